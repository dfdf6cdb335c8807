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
from dino_core.evaluation.classes import (
    labels_as_in,
    most_confused,
    names_of,
    per_class_accuracy,
)
from dino_core.evaluation.passes import Passing, features, kind_look
from dino_core.gallery.extraction import default_workers
from dino_core.gallery.features import SourceFeatures, source_features
from dino_core.gallery.images import source_hash
from dino_core.measures.knn import TEMPERATURE, UNLABELED, Accuracy, knn_vote, ranking_accuracy
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
    per_class: dict[str, float]  # top-1 at the best k, of each class that test has
    confusions: list[tuple[str, str, int]]  # (class, taken for, images), the most frequent first
    model: str
    model_hash: str
    train: str
    train_hash: str
    test: str
    test_hash: str
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
        lines += [f"{a} taken for {b}: {count:,}" for a, b, count in self.confusions[:3]]
        return "\n".join(lines + self.notes)


@dataclass(frozen=True)
class _Asked:
    """What is asked, whoever answers."""

    train: Source
    test: Source
    test_labels: np.ndarray  # int64, in the numbers of the training classes
    ks: tuple[int, ...]
    temperature: float
    hashes: tuple[str, str]  # of the two sources
    passing: Passing


def evaluate(
    model: Model,
    train: Source,
    test: Source,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    random_init: bool = True,
    pixels: bool = False,
    passing: Passing = Passing(),
) -> KnnResult:
    """The accuracy of `model` on `test`, with the images of `train` voting.

    `random_init` adds the untrained backbone, `pixels` the images themselves at 32 x 32 px. Every k
    above the number of training images counts as that number. Raises `UserError` when either source
    has no labels, they share no class, or are the same images, and for no `ks` or one below 1.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"ks {tuple(ks)}: name at least one number of neighbors, each 1 or more")
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature {temperature}: has to be above 0; the published one is 0.07")
    labels, notes = labels_as_in(train, test)
    hashes = source_hash(train), source_hash(test)
    asked = _Asked(train, test, labels, tuple(ks), temperature, hashes, passing)
    result = _score(asked, model)
    if random_init:
        result = replace(result, random_init=_score(asked, untrained(model), name="untrained"))
    if pixels:
        result = replace(result, pixels=_score(asked, None, name="raw pixels"))
    return replace(result, notes=notes + result.notes)


def _score(asked: _Asked, model: Model | None, name: str = "") -> KnnResult:
    """The protocol for one model, or for raw pixels where there is none."""
    train, test, passing = asked.train, asked.test, asked.passing
    look = None if model is None else partial(features, model, look=kind_look(model))
    voters, judged = (
        pixel_features(source, passing) if look is None else look(source=source, passing=passing)
        for source in (train, test)
    )
    assert train.labels is not None
    voting, labels = train.labels[voters.rows], asked.test_labels[judged.rows]
    most = int((voting != UNLABELED).sum())
    ks = sorted({min(k, most) for k in asked.ks})
    if not most or not (labels != UNLABELED).any():
        raise UserError(f"{train.spec} or {test.spec}: has no image that is labeled and readable")
    device = torch.device("cpu") if model is None else model.device
    ranked = knn_vote(
        torch.as_tensor(np.asarray(voters.array)).to(device), voting, np.asarray(judged.array), ks,
        temperature=asked.temperature,
    )  # fmt: skip
    per_k = {k: ranking_accuracy(ranked_MC, labels) for k, ranked_MC in ranked.items()}
    best = max(per_k, key=lambda k: per_k[k].top1)
    taken, names = ranked[best][:, 0].numpy(), names_of(train, test)
    return KnnResult(
        top1=per_k[best].top1,
        top5=per_k[best].top5,
        k=best,
        per_k=per_k,
        per_class=per_class_accuracy(taken, labels, names),
        confusions=most_confused(taken, labels, names),
        model=name or (model.spec if model else ""),
        model_hash=model.hash if model else "",
        train=train.spec,
        train_hash=asked.hashes[0],
        test=test.spec,
        test_hash=asked.hashes[1],
        train_images=most,
        test_images=int((labels != UNLABELED).sum()),
        temperature=asked.temperature,
        notes=_notes(asked.ks, most, len(voters.bad) + len(judged.bad)),
    )


def _notes(ks: Sequence[int], most: int, bad: int) -> list[str]:
    """What was done otherwise than asked."""
    notes = [f"{bad:,} unreadable images were left out"] if bad else []
    if max(ks) > most:
        notes.append(f"k above {most:,} counts as {most:,}: so many images vote")
    return notes


def pixel_features(source: Source, passing: Passing) -> SourceFeatures:
    """What a model has to beat: whole images at 32 x 32 px, normalized, as one vector each."""
    return source_features(
        source,
        _small_pixels,
        _flat,
        dim=3 * PIXELS_SIDE**2,
        batch_size=passing.batch_size,
        workers=(
            default_workers(torch.device("cpu")) if passing.workers is None else passing.workers
        ),
        progress=passing.progress,
        message="Raw pixels",
    )


def _small_pixels(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [32, 32, 3], normalized per channel as for a model."""
    small = Image.fromarray(image).resize((PIXELS_SIDE, PIXELS_SIDE), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(small)).float() / 255
    return (values - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)


def _flat(pixels_BHWC: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(pixels_BHWC.flatten(1), dim=1).numpy()
