"""A linear head as the published script trains it: one rate, raw features, new random crops in
each epoch; and of all epochs the one that is best on test.

Each epoch is a pass over the training images. Where passes are kept only that of the epoch at work
is, and beside it the head as the last epoch left it, so that a stopped run goes on at its epoch:

    features/linear-as-published-1f0c3a5e77aa/
        head.safetensors    weights and momentum, the best weights so far, how many epochs are done
        crop-17/            the features of that epoch's crops, until it is trained on

Under torchrun every process trains the same head; the first one writes and deletes.

Shapes: M test images, C classes, D features that the head sees.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dino_core import distributed
from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import require_labeled
from dino_core.evaluation.heads import Held, near
from dino_core.evaluation.linear_features import Seen, look_at
from dino_core.evaluation.linear_training import (
    PUBLISHED_RATE,
    Learned,
    Learning,
    Setup,
    require_same_images,
)
from dino_core.evaluation.linear_weights import LinearWeights
from dino_core.evaluation.passes import (
    MET,
    Passing,
    features,
    folder_of,
    images_of,
    meet,
    plan_of,
    turn,
    weights_and_shape,
)
from dino_core.files import remove_leftovers, whole_file
from dino_core.gallery.features import preprocessing
from dino_core.measures.knn import ranking_accuracy
from dino_core.models import Model, write_tensors
from dino_core.models.weights import as_stored, read_safetensors

HEAD = "head.safetensors"
CROP = "crop-{}"
MESSAGE = "Training as published"


def learn_as_published(
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    setup: Setup,
    model: Model,
    passing: Passing,
) -> Learned:
    """The best head of any epoch on test. `test_labels` are numbers of the training classes.

    Where another start trains the same, this one waits until it has ended. Raises `UserError` when
    fewer than two classes have readable images, or none of test is labeled.
    """
    (seen, *_), notes = setup.kinds(model)
    found = features(model, test, look_at(model, seen.blocks, seen.avgpool), passing)
    labels = test_labels[found.rows]
    require_labeled(test, labels)
    plan = _plan(train, test, seen, setup, model)
    with _workplace(plan, setup.epochs, passing) as (place, done):
        if done is None or done.epochs < setup.epochs:
            crops = NewCrops(train, setup, model, passing, place, done.epochs if done else 0)
            done = _train(crops, near(found.array, model.device), labels, done)
    return Learned(
        LinearWeights(done.weight_CD, done.bias_C, seen.blocks, seen.avgpool),
        lr=PUBLISHED_RATE,
        epoch=done.best_epoch,
        batch=done.batch,
        train_images=done.train_images,
        bad=done.bad,
        notes=notes,
    )


@dataclass(frozen=True)
class _Done:
    """What the epochs so far have come to."""

    epochs: int
    best_epoch: int  # from 1
    best_top1: float  # in percent, on test
    weight_CD: Tensor  # of the best epoch
    bias_C: Tensor
    head: dict[str, Tensor]  # as the last epoch left it, see `Heads.state`
    rows: np.ndarray  # int64, which training images are readable
    bad: list[tuple[str, str]]  # and which are not
    train_images: int
    batch: int

    def write(self, place: Path) -> None:
        values = vars(self) | {"rows": torch.from_numpy(self.rows)}
        tensors = {name: values.pop(name) for name in ("weight_CD", "bias_C", "rows")}
        tensors |= {f"head.{name}": tensor for name, tensor in values.pop("head").items()}
        stored = {name: as_stored(tensor) for name, tensor in tensors.items()}
        with whole_file(place / HEAD) as aside:
            write_tensors(aside, stored, {"done": json.dumps(values)})

    @classmethod
    def read(cls, place: Path) -> "_Done | None":
        if not (place / HEAD).is_file():
            return None
        tensors, metadata = read_safetensors(place / HEAD)
        try:
            values: dict[str, Any] = json.loads(metadata["done"])
            values["bad"] = [(name, reason) for name, reason in values["bad"]]
            values["rows"] = tensors.pop("rows").numpy()
            values |= {name: tensors.pop(name) for name in ("weight_CD", "bias_C")}
            head = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
            return cls(**values, head=head)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{place / HEAD}: is damaged ({error}); delete it to train anew"
            ) from None


class NewCrops(Learning):
    """Training images of which every epoch sees new crops, and none is kept when it is over."""

    def __init__(
        self,
        train: Source,
        setup: Setup,
        model: Model,
        passing: Passing,
        place: Path | None,
        done: int,
    ) -> None:
        self.place, self.done = place, done
        super().__init__(train, setup, model, passing, first=done + 1)

    def passing_of(self, view: int) -> Passing:
        return self.passing if self.place is None else replace(self.passing, keep=self._crop(view))

    def of_epoch(self, epoch: int) -> Held:
        return self.of_view(epoch + 1)

    def forget(self, epoch: int) -> None:
        """What was kept for an epoch goes, when all processes have trained on it."""
        self.held.clear()
        if self.place is not None:
            folder = self._crop(epoch + 1)
            meet(folder, self.passing)
            if distributed.is_main():
                shutil.rmtree(folder, ignore_errors=True)

    def _crop(self, view: int) -> Path:
        assert self.place is not None
        return self.place / CROP.format(view)


def _train(crops: NewCrops, asked: Held, labels_M: np.ndarray, done: _Done | None) -> _Done:
    """The epochs that are left. `asked`, `labels_M`: features and classes of the test images."""
    head = crops.heads(crops.kinds[0], [PUBLISHED_RATE])
    if done is not None:
        require_same_images(crops.train, crops.rows, done.rows)
        head.restore(done.head)
    every_M = np.arange(len(asked))

    def look(epoch: int) -> None:
        nonlocal done
        top1 = ranking_accuracy(head.ranking(asked, every_M), labels_M).top1
        if done is not None and top1 <= done.best_top1:
            done = replace(done, epochs=epoch + 1, head=head.state())
        else:
            done = _Done(
                epoch + 1, epoch + 1, top1, *head.linear(), head.state(), crops.rows,
                list(crops.bad), len(crops.labeled), crops.batch,
            )  # fmt: skip
        if crops.place is not None and distributed.is_main():
            done.write(crops.place)
        crops.forget(epoch)

    crops.fit([head], crops.labeled, MESSAGE, first=crops.done, after=look)
    assert done is not None
    return done


def _plan(train: Source, test: Source, seen: Seen, setup: Setup, model: Model) -> dict[str, Any]:
    """All that the head depends on."""
    return plan_of(
        "linear as published",
        **weights_and_shape(model),
        preprocessing=preprocessing(model),
        train=images_of(train),
        test=images_of(test),
        features=asdict(seen),
        training=[setup.epochs, setup.batch, setup.seed],
    )


@contextmanager
def _workplace(
    plan: dict[str, Any], epochs: int, passing: Passing
) -> Iterator[tuple[Path | None, _Done | None]]:
    """The folder of a training, where passes are kept, and what was done there before."""
    if passing.keep is None:
        yield None, None
        return
    with (
        folder_of(plan, passing) as place,
        turn(place, lambda: _epochs_done(place) >= epochs, passing, MESSAGE) as missing,
    ):
        if missing:
            if distributed.is_main():
                _tidy(place, _epochs_done(place))
            if passing.agree is not None:
                passing.agree("tidy")
        done = _Done.read(place)
        if missing:
            meet(place, passing)  # before the first process writes what the others read here
        yield place, done


def _epochs_done(place: Path) -> int:
    """How many epochs the head that lies there has seen, without reading it; 0 for none."""
    try:
        with safe_open(place / HEAD, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["done"])["epochs"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0  # one that is damaged is told of when it is read


def _tidy(place: Path, epochs: int) -> None:
    """Remove what a killed run has left: half written files, marks, crops of epochs that are done.

    The crops of the epoch that comes next stay, as far as they go.
    """
    remove_leftovers(place)
    for mark in place.rglob(MET.format("*")):
        mark.unlink()
    for crop in place.glob(CROP.format("*")):
        if crop.name != CROP.format(epochs + 1):
            shutil.rmtree(crop, ignore_errors=True)
