"""k-NN accuracy: how well the classes of images can be read off their neighbors, untrained on them.

Published protocol (DINO, section 4.1 and its eval_knn script): class tokens of whole images
(short side resized, center crop, normalized), cosine similarity, votes weighted by
exp(similarity / 0.07), k = 10, 20, 100 and 200, of which the best is reported.

    result = evaluate(load_model("starter"), open_source("train"), open_source("val"), pixels=True)
    print(result.table())
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import (
    ClassesResult,
    classes_fields,
    labels_as_in,
    names_of,
    require_labeled,
)
from dino_core.evaluation.passes import Passing, Task, features, features_by, kind_look
from dino_core.evaluation.results import unreadable
from dino_core.gallery.features import SourceFeatures
from dino_core.gallery.images import source_hash
from dino_core.measures.knn import (
    TEMPERATURE,
    UNLABELED,
    Accuracy,
    knn_vote,
    ranking_accuracy,
    voted,
)
from dino_core.models import Model, untrained
from dino_core.models.info import IMAGENET_MEAN, IMAGENET_STD
from dino_core.models.preprocess import by_band

KS = (10, 20, 100, 200)
PIXELS = "raw pixels"
PIXELS_SIDE = 32
OTHER_MEAN, OTHER_STD = 0.45, 0.225  # of channels that are not RGB; about what RGB's are


@dataclass(frozen=True, kw_only=True)
class KnnResult(ClassesResult):
    """All figures but `per_k` are those at the best k; `top1` is the published one."""

    k: int  # the best of `per_k` by top-1
    per_k: dict[int, Accuracy]
    temperature: float
    pixels: Self | None = None  # the same for raw pixels

    def rows(self) -> dict[str, Self]:
        rows = super().rows()
        return rows if self.pixels is None else rows | {PIXELS: self.pixels}

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(len("top-1, %"), *map(len, rows))
        head = "".join(f"{f'k={k}':>9}" for k in self.per_k)
        lines = [f"{'top-1, %':{width}}{head}     best  (its top-5)"]
        if len(self.per_k) > 1:
            lines.insert(0, "k-NN; best: at the k that is best on test, as published")
        for name, row in rows.items():
            figures = "".join(f"{accuracy.top1:9.2f}" for accuracy in row.per_k.values())
            lines.append(f"{name:{width}}{figures}{row.top1:9.2f}  ({row.top5:.2f})")
        lines.append(f"{self.test_images:,} test images, {self.train_images:,} that vote")
        return "\n".join(lines + self.confused() + self.notes)


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
        result = replace(result, random_init=_score(asked, untrained(model)))
    if pixels:
        result = replace(result, pixels=_score(asked, None))
    return replace(result, notes=notes + result.notes)


def _score(asked: _Asked, model: Model | None) -> KnnResult:
    """The protocol for one model, or for raw pixels where there is none."""
    train, test, passing = asked.train, asked.test, asked.passing
    voters, judged = (
        pixel_features(source, passing)
        if model is None
        else features(model, source, kind_look(model), passing)
        for source in (train, test)
    )
    assert train.labels is not None
    voting, labels = train.labels[voters.rows], asked.test_labels[judged.rows]
    require_labeled(train, voting)
    require_labeled(test, labels)
    most = int((voting != UNLABELED).sum())
    ranked = knn_vote(
        torch.as_tensor(np.asarray(voters.array)).to("cpu" if model is None else model.device),
        voting,
        np.asarray(judged.array),
        sorted({min(k, most) for k in asked.ks}),
        temperature=asked.temperature,
    )
    ranked = voted(ranked)
    per_k = {k: ranking_accuracy(ranked_MC, labels) for k, ranked_MC in ranked.items()}
    best = max(per_k, key=lambda k: per_k[k].top1)
    return KnnResult(
        **classes_fields(ranked[best], labels, names_of(train, test), test, judged.rows),
        k=best,
        per_k=per_k,
        temperature=asked.temperature,
        model=model.spec if model else PIXELS,
        model_hash=model.hash if model else "",
        train=train.spec,
        train_hash=asked.hashes[0],
        test=test.spec,
        test_hash=asked.hashes[1],
        train_images=most,
        notes=unreadable([*voters.bad, *judged.bad]) + _clamped(asked.ks, most),
    )


def _clamped(ks: Sequence[int], most: int) -> list[str]:
    """A sentence where more neighbors are asked for than there are."""
    if max(ks) <= most:
        return []
    return [f"k above {most:,} counts as {most:,}: so many images vote"]


def pixel_features(source: Source, passing: Passing) -> SourceFeatures:
    """What a model has to beat: whole images at 32 x 32 px, normalized, as one vector each."""
    dim, depends = source.channels * PIXELS_SIDE**2, {"settings": {"side": PIXELS_SIDE}}
    message = f"Raw pixels of {source.spec}"
    return features_by(Task(PIXELS, _small_pixels, _flat, dim, depends, message), source, passing)


def _small_pixels(image: np.ndarray) -> Tensor:
    """uint8 [H, W, C] -> float32 [32, 32, C], normalized per channel as for a model."""
    size = (PIXELS_SIDE, PIXELS_SIDE)
    small = by_band(lambda band: np.asarray(band.resize(size, Image.Resampling.BICUBIC)), image)
    values = torch.from_numpy(np.array(small)).float() / 255
    if image.shape[2] != len(IMAGENET_MEAN):
        return (values - OTHER_MEAN) / OTHER_STD
    return (values - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)


def _flat(pixels_BHWC: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(pixels_BHWC.flatten(1), dim=1).numpy()
