"""k-NN accuracy: how well the classes of images can be read off their neighbors, untrained on them.

Published protocol (DINO, section 4.1 and its eval_knn script): class tokens of whole images
(short side resized, center crop, normalized), cosine similarity, votes weighted by
exp(similarity / 0.07), k = 10, 20, 100 and 200, of which the best is reported.

    result = evaluate(load_model("starter"), open_source("train"), open_source("val"), pixels=True)
    print(result.table())
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.gallery.features import default_workers, features_of, source_features
from dino_core.gallery.progress import Progress
from dino_core.measures.knn import TEMPERATURE, UNLABELED, Accuracy, knn_accuracy
from dino_core.models import Model, untrained
from dino_core.models.info import IMAGENET_MEAN, IMAGENET_STD

KS = (10, 20, 100, 200)
PIXELS_SIDE = 32


@dataclass(frozen=True)
class KnnResult:
    """Shares of test images in percent; `top1` is the published figure."""

    top1: float  # at the best k
    top5: float  # at the same k
    k: int  # the best of `per_k` by top-1
    per_k: dict[int, Accuracy]
    model: str
    model_hash: str
    train: str
    test: str
    train_images: int
    test_images: int
    temperature: float
    notes: list[str] = field(default_factory=list)  # sentences: what was left out and why
    random_init: "KnnResult | None" = None  # the same for the untrained backbone
    pixels: "KnnResult | None" = None  # the same for raw pixels

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        named = {self.model: self, "untrained": self.random_init, "raw pixels": self.pixels}
        rows = {name: row for name, row in named.items() if row is not None}
        width = max(len(name) for name in rows)
        head = "".join(f"{f'k={k}':>9}" for k in self.per_k)
        lines = [f"{'top-1, %':{width}}{head}     best  (its top-5)"]
        for name, row in rows.items():
            figures = "".join(f"{accuracy.top1:9.2f}" for accuracy in row.per_k.values())
            lines.append(f"{name:{width}}{figures}{row.top1:9.2f}  ({row.top5:.2f})")
        lines.append(f"{self.test_images:,} test images, {self.train_images:,} that vote")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    train: Source,
    test: Source,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    random_init: bool = True,
    pixels: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
) -> KnnResult:
    """The accuracy of `model` on `test`, with the images of `train` voting.

    `random_init` adds the untrained backbone, `pixels` the images themselves at 32 x 32 px. Every k
    above the number of training images counts as that number. Raises `UserError` when either source
    has no labels, they share no class, or are the same images, and for no `ks` or one below 1.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"ks {tuple(ks)}: name at least one number of neighbors, each 1 or more")
    test_labels, notes = _labels_as_in(train, test)
    score = partial(
        _score, train, test, test_labels, ks, temperature, batch_size=batch_size, workers=workers,
        progress=progress,
    )  # fmt: skip
    result = score(model)
    if random_init:
        result = replace(result, random_init=score(untrained(model), name="untrained"))
    if pixels:
        result = replace(result, pixels=score(None, name="raw pixels"))
    return replace(result, notes=notes + result.notes)


def _score(
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    ks: Sequence[int],
    temperature: float,
    model: Model | None,
    name: str = "",
    *,
    batch_size: int,
    workers: int | None,
    progress: Progress | None,
) -> KnnResult:
    """The protocol for one model, or for raw pixels where there is none."""
    told = name or (model.spec if model else "")
    sides = []
    for side, source in (("train", train), ("test", test)):
        message = f"Features of {told}, {side} images"
        if model is None:
            sides.append(pixel_features(source, batch_size, workers, progress, message))
        else:
            sides.append(
                features_of(
                    model, source, batch_size=batch_size, workers=workers, progress=progress,
                    message=message,
                )
            )  # fmt: skip
    voters, asked = sides
    assert train.labels is not None
    voting = train.labels[voters.rows]
    ks = sorted({min(k, int((voting != UNLABELED).sum())) for k in ks})
    labels = test_labels[asked.rows]
    if not ks[0] or not (labels != UNLABELED).any():
        raise UserError(f"{train.spec} or {test.spec}: has no image that is labeled and readable")
    per_k = knn_accuracy(voters.array, voting, asked.array, labels, ks, temperature=temperature)
    best = max(per_k, key=lambda k: per_k[k].top1)
    bad = len(voters.bad) + len(asked.bad)
    return KnnResult(
        top1=per_k[best].top1,
        top5=per_k[best].top5,
        k=best,
        per_k=per_k,
        model=told,
        model_hash=model.hash if model else "",
        train=train.spec,
        test=test.spec,
        train_images=int((voting != UNLABELED).sum()),
        test_images=int((labels != UNLABELED).sum()),
        temperature=temperature,
        notes=[f"{bad:,} unreadable images were left out"] if bad else [],
    )


def pixel_features(
    source: Source,
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
    message: str = "Raw pixels",
) -> Any:
    """What a model has to beat: whole images at 32 x 32 px, normalized, as one vector each."""
    return source_features(
        source,
        _small_pixels,
        _flat,
        dim=3 * PIXELS_SIDE**2,
        batch_size=batch_size,
        workers=default_workers(torch.device("cpu")) if workers is None else workers,
        progress=progress,
        message=message,
    )


def _small_pixels(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [32, 32, 3], normalized per channel as for a model."""
    small = Image.fromarray(image).resize((PIXELS_SIDE, PIXELS_SIDE), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(small)).float() / 255
    return (values - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)


def _flat(pixels_BHWC: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(pixels_BHWC.flatten(1), dim=1).numpy()


def _labels_as_in(train: Source, test: Source) -> tuple[np.ndarray, list[str]]:
    """The test labels as numbers of the training classes, matched by name; and what is odd.

    A test class that training does not have gets a number of its own, so its images count as wrong.
    """
    for source in (train, test):
        if source.labels is None or not source.classes:
            raise UserError(
                f"{source.spec}: has no labels, and k-NN needs them; "
                "use class folders, or a table with a column `label`"
            )
    if len(train) == len(test) and train.spec == test.spec:
        raise UserError(f"{train.spec}: is both train and test, so every image would find itself")
    number = {name: index for index, name in enumerate(train.classes)}
    unknown = [name for name in test.classes if name not in number]
    if len(unknown) == len(test.classes):
        raise UserError(
            f"{train.spec} and {test.spec}: have no class in common "
            f"({train.classes[0]!r} and others against {test.classes[0]!r} and others)"
        )
    number |= {name: len(number) + index for index, name in enumerate(unknown)}
    of_class = np.array([*(number[name] for name in test.classes), UNLABELED], np.int64)
    assert test.labels is not None
    names = ", ".join(unknown[:3])
    notes = [f"{len(unknown)} test classes are not in train ({names}): they count as wrong"]
    return of_class[test.labels], notes if unknown else []
