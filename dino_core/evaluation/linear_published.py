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

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core import __version__, distributed
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
    REVISION,
    Passing,
    features,
    images_of,
    weights_and_shape,
)
from dino_core.files import held, remove_leftovers, whole_file
from dino_core.gallery.features import preprocessing
from dino_core.measures.knn import ranking_accuracy
from dino_core.models import Model, write_tensors
from dino_core.models.weights import as_stored, read_safetensors

HEAD = "head.safetensors"
LOCK = ".training.lock"
CROP = "crop-{}"
MET = "met-{}"  # was here: that process
PAUSE = 0.1  # seconds between two looks at whether the others were
DIGITS = 12  # of a digest, in the folder's name


def learn_as_published(
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    setup: Setup,
    model: Model,
    passing: Passing,
) -> Learned:
    """The best head of any epoch on test. `test_labels` are numbers of the training classes.

    Raises `UserError` when fewer than two classes have readable images, none of test is labeled,
    or another process trains the same.
    """
    (seen, *_), notes = setup.kinds(model)
    found = features(model, test, look_at(model, seen.blocks, seen.avgpool), passing)
    labels = test_labels[found.rows]
    require_labeled(test, labels)
    with _workplace(_depends(train, test, seen, setup, model), passing) as (place, done):
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
            _meet(folder, self.passing)
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

    crops.fit([head], crops.labeled, "Training as published", first=crops.done, after=look)
    assert done is not None
    return done


def _depends(train: Source, test: Source, seen: Seen, setup: Setup, model: Model) -> dict[str, Any]:
    """All that the head depends on; JSON values."""
    return {
        "code": [__version__, REVISION],
        **weights_and_shape(model),
        "preprocessing": preprocessing(model),
        "train": images_of(train),
        "test": images_of(test),
        "features": asdict(seen),
        "training": [setup.epochs, setup.batch, setup.seed],
    }


@contextmanager
def _workplace(
    depends: dict[str, Any], passing: Passing
) -> Iterator[tuple[Path | None, _Done | None]]:
    """The folder of a training, where passes are kept, and what was done there before."""
    if passing.keep is None:
        yield None, None
        return
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:DIGITS]
    place = passing.keep / f"linear-as-published-{digest}"
    agree = passing.agree or (lambda value: value)
    if not distributed.is_main():
        agree(None)
        done = _Done.read(place)
        _meet(place, passing)
        yield place, done
        return
    with held(place / LOCK, f"{place}: another process trains this now; wait for it"):
        done = _Done.read(place)
        _tidy(place, done.epochs if done else 0)
        agree("tidy")
        _meet(place, passing)  # before this process writes what the others read here
        yield place, done


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


def _meet(folder: Path, passing: Passing) -> None:
    """The first process goes on when all others have been here; once in a folder."""
    if passing.agree is None:
        return
    if not distributed.is_main():
        (folder / MET.format(distributed.rank())).touch()
        return
    while len(met := list(folder.glob(MET.format("*")))) < distributed.world_size() - 1:
        time.sleep(PAUSE)
    for mark in met:
        mark.unlink()
