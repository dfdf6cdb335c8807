"""Linear accuracy: how well one linear layer tells the classes from frozen features.

Published protocol (DINO, section 4.1 and its eval_linear script): class tokens of the last 4 blocks
after the final norm, side by side (ViT-S), or class token and mean patch token of the last block
(ViT-B); SGD with momentum 0.9 and no decay, rate 0.001 * batch / 256, falling to 0 along a cosine
in 100 epochs; training images cropped at random and flipped, anew in each epoch; the figure is the
best test accuracy of any epoch.

    result = evaluate(load_model("starter"), open_source("train"), open_source("val"))
    print(result.table())

Three things differ unless `as_published` is set. The published script runs the backbone on new
crops in each of 100 epochs; here features are computed once (of center crops, and of `views` random
ones) and a whole sweep of rates is trained on them. It chooses the epoch on the test images; here
rate, features and epoch are chosen on a tenth of the training images, a head is trained on all of
them with that choice, and the test images are looked at once. And it learns from raw features; here
they are taken from their mean and in units of their deviation, which changes no classifier, only
how soon SGD finds it (`heads.py`): on weak models and few images that is worth points.

The published script crashes for several blocks with average pooling; here the mean patch token of
the last block follows the class tokens. Its interleaving of the two matters to weight files only
(`linear_weights.py`).

Shapes: M images, F dimensions held, C classes, R rates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import (
    ClassesResult,
    labels_as_in,
    names_of,
    require_two_classes,
    told,
)
from dino_core.evaluation.heads import Heads, Held, moments, near
from dino_core.evaluation.heads import train as train_heads
from dino_core.evaluation.linear_features import (
    RandomCrops,
    Seen,
    columns,
    look_at,
    published_features,
)
from dino_core.evaluation.linear_weights import (
    LinearWeights,
    read_linear_weights,
    write_linear_weights,
)
from dino_core.evaluation.passes import Passing, features
from dino_core.evaluation.results import unreadable
from dino_core.gallery.features import SourceFeatures
from dino_core.gallery.images import source_hash
from dino_core.measures.knn import UNLABELED, ranking_accuracy
from dino_core.models import Model, untrained
from dino_core.rng import permutation

RATES = tuple(float(f"{rate:.3g}") for rate in np.logspace(-4, 0, 13))
PUBLISHED_RATE = 0.001  # for a batch of 256
RATE_BATCH = 256
EPOCHS = 100
BATCH = 1024  # 8 GPUs with 128 images each
STEPS = 32  # least batches of an epoch by default: few images would hardly be trained on
LEAST_BATCH = 32
HELD_OUT = 0.1

Pooling = Literal["no", "yes", "both"]


@dataclass(frozen=True, kw_only=True)
class LinearResult(ClassesResult):
    """`top1` is the published figure."""

    lr: float  # for a batch of 256, as published; 0 for given weights
    epoch: int  # from 1; 0 for given weights
    n_blocks: int  # whose class tokens are seen
    avgpool: bool  # whether the mean patch token is too
    held_out: float | None  # top-1 on the tenth of train that rate, features and epoch came from
    # of each head: n_blocks, avgpool, lr, its epoch; held_out and loss there, of how many images
    sweep: list[dict[str, Any]]
    classes: int
    epochs: int
    batch: int
    views: int  # random crops of each training image beside the center one
    standardized: bool  # whether heads learned from standardized features
    as_published: bool
    weights: str  # the file of given weights, or ""

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(len("linear, %"), *map(len, rows))
        lines = [f"{'linear, %':{width}}     top-1    top-5  features"]
        for name, row in rows.items():
            how = f"{Seen(row.n_blocks, row.avgpool)}"
            if not row.weights:
                how += f", lr {row.lr:g}, epoch {row.epoch} of {row.epochs}"
            lines.append(f"{name:{width}} {row.top1:9.2f}{row.top5:9.2f}  {how}")
        lines.append(f"{self.test_images:,} test images, {self.train_images:,} to learn from")
        lines += [f"{a} taken for {b}: {count:,}" for a, b, count, _ in self.confusions[:3]]
        return "\n".join(lines + self.notes)


@dataclass(frozen=True)
class Setup:
    """What the training of heads depends on beside images and model."""

    blocks: tuple[int, ...] | None  # None: as published for the model's architecture
    pooling: Pooling | None
    rates: tuple[float, ...]
    epochs: int
    batch: int | None
    views: int
    standardize: bool
    as_published: bool
    seed: int

    def kinds(self, model: Model) -> tuple[list[Seen], list[str]]:
        """The features to try, and what could not be had of this architecture."""
        published = published_features(model)
        deepest = max(1, model.backbone.depth)
        asked = (published.blocks,) if self.blocks is None else self.blocks
        blocks = sorted({min(n, deepest) for n in asked})
        pooled: tuple[bool, ...] = (published.avgpool,)
        if self.pooling is not None:
            pooled = {"no": (False,), "yes": (True,), "both": (False, True)}[self.pooling]
        notes = []
        if max(asked) > deepest:
            notes = [f"class tokens are those of {deepest} blocks, the model gives no more"]
        return [Seen(n, mean) for n in blocks for mean in pooled], notes


@dataclass(frozen=True)
class _Sides:
    """Train and test, the labels of both as numbers of the training classes."""

    train: Source
    test: Source
    test_labels: np.ndarray
    names: list[str]  # of the numbers, those that train lacks at the end


def evaluate(
    model: Model,
    train: Source | None,
    test: Source,
    *,
    n_blocks: Sequence[int] | None = None,
    avgpool: Pooling | None = None,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    batch: int | None = None,
    views: int = 0,
    standardize: bool = True,
    as_published: bool = False,
    weights: Path | None = None,
    save: Path | None = None,
    seed: int = 0,
    random_init: bool = True,
    passing: Passing = Passing(),  # frozen
) -> LinearResult:
    """The accuracy of linear heads on `test` that learned from features of `train`.

    `n_blocks` and `avgpool` name the features; left out, they are the published ones for the
    architecture. Several are tried at once, all at all `rates` (for a batch of 256). `batch` is the
    published 1,024, or less where that would leave fewer than 32 batches an epoch. `views` random
    crops of each training image take turns with the center crop, an epoch each; that costs as many
    passes. Without `standardize` heads learn from raw features.

    `as_published` trains one head, the published rate on the first features named, raw, on new
    random crops in each epoch (a pass each: 100 times the time, and the room where passes are
    kept), and reports the best epoch on test. `weights` evaluates a linear layer that was trained
    elsewhere; `train` then only names its classes, and may be None where test has them all. `save`
    writes the head that was judged as safetensors.

    Raises `UserError` when either source has no labels, they share no class, train has fewer than
    two classes, they are the same images, or weights do not fit.
    """
    setup = Setup(
        None if n_blocks is None else tuple(n_blocks),
        avgpool, tuple(rates), epochs, batch, views, standardize and not as_published,
        as_published, seed,
    )  # fmt: skip
    _require_sane(setup)
    if weights is not None:
        return _given(model, train, test, Path(weights), n_blocks, avgpool, passing)
    if train is None:
        raise UserError("train: name images to learn from, or linear weights to evaluate")
    test_labels, notes = labels_as_in(train, test, "a linear classifier")
    sides = _Sides(train, test, test_labels, names_of(train, test))
    judge = partial(_published if as_published else _chosen, sides, setup, passing=passing)
    result, linear = judge(model)
    if save is not None:
        write_linear_weights(save, replace(linear, classes=train.classes), model.hash)
    if random_init:
        result = replace(result, random_init=judge(untrained(model))[0])
    return replace(result, notes=notes + result.notes)


def stratified(labels_M: np.ndarray, share: float, *key: int | str) -> np.ndarray:
    """Whether each image is among a share of its class, bool [M]: at least one, never all.

    A class of one image keeps it out. Unlabeled images are out.
    """
    chosen_M = np.zeros(len(labels_M), bool)
    for label in np.unique(labels_M[labels_M != UNLABELED]):
        members = np.flatnonzero(labels_M == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen_M[members[permutation(len(members), *key, int(label))[:count]]] = True
    return chosen_M


class Learning:
    """The labeled training images of one model: their features by epoch, and heads for them."""

    def __init__(self, train: Source, setup: Setup, model: Model, passing: Passing) -> None:
        self.train, self.setup, self.model, self.passing = train, setup, model, passing
        self.kinds, self.notes = setup.kinds(model)
        self.blocks = max(seen.blocks for seen in self.kinds)
        self.avgpool = any(seen.avgpool for seen in self.kinds)
        self._views: dict[int, Held] = {}
        first = self._pass(1 if setup.as_published else 0)
        self.rows, self.bad = first.rows, first.bad
        assert train.labels is not None
        self.labels = train.labels[self.rows]
        self.labeled = np.flatnonzero(self.labels != UNLABELED)
        require_two_classes(train, self.labels)
        self.batch = setup.batch or default_batch(len(self.labeled))
        held = near(first.array, model.device)
        self._views[1 if setup.as_published else 0] = held
        self.coordinates = moments(held, self.labeled, model.device) if setup.standardize else None

    def of_view(self, view: int) -> Held:
        """Features of the center crop (0) or of random crop `view`."""
        if view not in self._views:
            if self.setup.as_published:
                self._views.clear()  # each is for one epoch
            found = self._pass(view)
            if not np.array_equal(found.rows, self.rows):
                raise UserError(
                    f"{self.train.spec}: images became unreadable since it was first looked at; "
                    "start again when it does not change any more"
                )
            self._views[view] = near(found.array, self.model.device)
        return self._views[view]

    def of_epoch(self, epoch: int) -> Held:
        """The center crop and the random ones in turn; as published always new random ones."""
        return self.of_view(
            epoch + 1 if self.setup.as_published else epoch % (1 + self.setup.views)
        )

    def heads(self, seen: Seen, rates: Sequence[float]) -> Heads:
        """Fresh heads at rates as they are for a batch of 256."""
        where = columns(seen, self.blocks, self.model.backbone.embed_dim)
        return Heads(
            [rate * self.batch / RATE_BATCH for rate in rates],
            where.stop - where.start,
            len(self.train.classes),
            columns=where,
            coordinates=self.coordinates,
            seed=self.setup.seed,
            device=self.model.device,
        )

    def fit(
        self,
        groups: Sequence[Heads],
        rows: np.ndarray,
        message: str,
        until: int | None = None,
        after: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        """`heads.train`, with progress."""
        until = self.setup.epochs if until is None else until

        def say(epoch: int) -> None:
            after(epoch)
            self.passing.progress(epoch + 1, until, message)

        self.passing.progress(0, until, message)
        train_heads(
            groups, self.of_epoch, rows, self.labels, epochs=self.setup.epochs, until=until,
            batch=self.batch, seed=self.setup.seed, after=say,
        )  # fmt: skip

    def test_features(self, test: Source) -> SourceFeatures:
        look = look_at(self.model, self.blocks, self.avgpool)
        return features(self.model, test, look, self.passing)

    def _pass(self, view: int) -> SourceFeatures:
        source, name = self.train, ""
        if view:
            source = RandomCrops(self.train, self.model.info, view, self.setup.seed)
            name = f"crop {view} of seed {self.setup.seed}"
        look = look_at(self.model, self.blocks, self.avgpool, name)
        return features(self.model, source, look, self.passing)


def pick(top1_K: np.ndarray, loss_K: np.ndarray, images: int) -> int:
    """The best of several candidates that were asked about the same few images.

    The one of lowest cross entropy among those whose top-1 (percent) lies within half a standard
    error of the highest: with few images the highest is a matter of luck, with many this is it.
    (Of none, a quarter, a half and a whole standard error, half did best on parts of Imagenette.)
    """
    highest = float(top1_K.max()) / 100
    error = 100 * math.sqrt(highest * (1 - highest) / images)
    return int(np.where(top1_K >= 100 * highest - error / 2 - 1e-9, loss_K, np.inf).argmin())


def _chosen(
    sides: _Sides, setup: Setup, model: Model, *, passing: Passing
) -> tuple[LinearResult, LinearWeights]:
    """Choose rate, features and epoch on a tenth of train, train on all, look at test once."""
    learning = Learning(sides.train, setup, model, passing)
    sweep = _sweep(learning)
    if sweep:
        top1, loss = (np.array([one[name] for one in sweep]) for name in ("held_out", "loss"))
        choice = sweep[pick(top1, loss, sweep[0]["images"])]
        seen, lr, epoch = Seen(choice["n_blocks"], choice["avgpool"]), choice["lr"], choice["epoch"]
    else:
        seen, lr, epoch, choice = learning.kinds[0], PUBLISHED_RATE, setup.epochs, {}
        learning.notes.append(
            "no class has two images, so rate and epoch are the published ones, not chosen"
        )
    head = learning.heads(seen, [lr])
    learning.fit([head], learning.labeled, "Training the chosen head", until=epoch)
    asked = learning.test_features(sides.test)
    ranked = head.ranking(asked.array, np.arange(len(asked.array)))
    result = _result(
        sides, learning, asked, ranked, seen, lr=lr, epoch=epoch,
        held_out=choice.get("held_out"), sweep=sweep,
    )  # fmt: skip
    return result, _weights(head, seen)


def _sweep(learning: Learning) -> list[dict[str, Any]]:
    """Every rate on every kind of features, trained on nine tenths and asked on the last."""
    setup, labels = learning.setup, learning.labels
    out_M = stratified(labels, HELD_OUT, setup.seed, "linear held out")
    rows, asked = learning.labeled[~out_M[learning.labeled]], np.flatnonzero(out_M)
    if not len(asked):
        return []
    groups = [learning.heads(seen, setup.rates) for seen in learning.kinds]
    figures: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in groups]

    def look(epoch: int) -> None:
        for heads, so_far in zip(groups, figures, strict=True):
            so_far.append(heads.scores(learning.of_view(0), asked, labels))

    count = len(groups) * len(setup.rates)
    learning.fit(groups, rows, f"Training {count} heads", after=look)
    sweep = []
    for seen, so_far in zip(learning.kinds, figures, strict=True):
        top1_RE, loss_RE = (np.stack(one, axis=1) for one in zip(*so_far, strict=True))
        for r, rate in enumerate(setup.rates):
            epoch = pick(top1_RE[r], loss_RE[r], len(asked))
            sweep.append(
                {
                    "n_blocks": seen.blocks,
                    "avgpool": seen.avgpool,
                    "lr": rate,
                    "epoch": epoch + 1,
                    "held_out": float(top1_RE[r, epoch]),
                    "loss": float(loss_RE[r, epoch]),
                    "images": len(asked),
                }
            )
    return sweep


def _published(
    sides: _Sides, setup: Setup, model: Model, *, passing: Passing
) -> tuple[LinearResult, LinearWeights]:
    """One head at the published rate on new crops each epoch; the best epoch on test."""
    learning = Learning(sides.train, setup, model, passing)
    seen = learning.kinds[0]
    head = learning.heads(seen, [PUBLISHED_RATE])
    asked = learning.test_features(sides.test)
    there = near(asked.array, model.device)
    labels = sides.test_labels[asked.rows]
    kept: dict[str, Any] = {"top1": -1.0}

    def look(epoch: int) -> None:
        ranked = head.ranking(there, np.arange(len(asked.array)))
        top1 = ranking_accuracy(ranked, labels).top1 if (labels != UNLABELED).any() else 0.0
        if top1 > kept["top1"]:
            kept.update(top1=top1, epoch=epoch + 1, ranked=ranked, linear=_weights(head, seen))

    learning.fit([head], learning.labeled, "Training as published", after=look)
    result = _result(
        sides, learning, asked, kept["ranked"], seen, lr=PUBLISHED_RATE, epoch=kept["epoch"],
        held_out=None, sweep=[],
    )  # fmt: skip
    return result, kept["linear"]


def _given(
    model: Model,
    train: Source | None,
    test: Source,
    path: Path,
    n_blocks: Sequence[int] | None,
    avgpool: Pooling | None,
    passing: Passing,
) -> LinearResult:
    """The accuracy of a linear layer as it lies in a file."""
    blocks = None if n_blocks is None else max(n_blocks)
    pooled = None if avgpool in (None, "both") else avgpool == "yes"
    linear = read_linear_weights(path, model, blocks=blocks, avgpool=pooled)
    named = linear.classes or list((train or test).classes)
    if len(named) != len(linear.bias_C):
        raise UserError(
            f"{path}: tells {len(linear.bias_C):,} classes apart, but {(train or test).spec} has "
            f"{len(named):,}; name a train set with the classes that it was trained on"
        )
    labels, names, notes = _numbered(test, named, str(path))
    head = Heads([0.0], linear.weight_CD.shape[1], len(named), device=model.device)
    head.weight_RCD.copy_(linear.weight_CD)
    head.bias_RC.copy_(linear.bias_C)
    asked = features(model, test, look_at(model, linear.blocks, linear.avgpool), passing)
    ranked = head.ranking(asked.array, np.arange(len(asked.array)))
    notes.append("without random initialization: the given weights were made for this backbone")
    return LinearResult(
        **told(ranked, labels[asked.rows], names, test, asked.rows),
        lr=0.0,
        epoch=0,
        n_blocks=linear.blocks,
        avgpool=linear.avgpool,
        held_out=None,
        sweep=[],
        classes=len(named),
        train_images=0,
        model=model.spec,
        model_hash=model.hash,
        train=train.spec if train else "",
        train_hash="",
        test=test.spec,
        test_hash=source_hash(test),
        epochs=0,
        batch=0,
        views=0,
        standardized=False,
        as_published=False,
        weights=str(path),
        notes=notes + unreadable(asked.bad),
    )


def _result(
    sides: _Sides,
    learning: Learning,
    asked: SourceFeatures,
    ranked: Tensor,
    seen: Seen,
    *,
    lr: float,
    epoch: int,
    held_out: float | None,
    sweep: list[dict[str, Any]],
) -> LinearResult:
    """What became of heads that were trained here."""
    setup, model = learning.setup, learning.model
    return LinearResult(
        **told(ranked, sides.test_labels[asked.rows], sides.names, sides.test, asked.rows),
        lr=lr,
        epoch=epoch,
        n_blocks=seen.blocks,
        avgpool=seen.avgpool,
        held_out=held_out,
        sweep=sweep,
        classes=len(sides.train.classes),
        train_images=len(learning.labeled),
        model=model.spec,
        model_hash=model.hash,
        train=sides.train.spec,
        train_hash=source_hash(sides.train),
        test=sides.test.spec,
        test_hash=source_hash(sides.test),
        epochs=setup.epochs,
        batch=learning.batch,
        views=setup.views,
        standardized=setup.standardize,
        as_published=setup.as_published,
        weights="",
        notes=learning.notes + unreadable([*learning.bad, *asked.bad]),
    )


def _numbered(
    test: Source, named: Sequence[str], head: str
) -> tuple[np.ndarray, list[str], list[str]]:
    """Test labels as numbers of a head's classes, the names of all numbers, and what is odd."""
    if test.labels is None or not test.classes:
        raise UserError(f"{test.spec}: has no labels to compare with; use class folders")
    others = [name for name in test.classes if name not in set(named)]
    if len(others) == len(test.classes):
        raise UserError(f"{head} and {test.spec}: have no class in common")
    names = [*named, *others]
    number = {name: place for place, name in enumerate(names)}
    of_class = np.array([*(number[name] for name in test.classes), UNLABELED], np.int64)
    listed = ", ".join(others[:3])
    notes = [f"{len(others)} test classes are not in train ({listed}): they count as wrong"]
    return of_class[test.labels], names, notes if others else []


def _weights(head: Heads, seen: Seen) -> LinearWeights:
    """The first head, as it is now."""
    return LinearWeights(*head.linear(), seen.blocks, seen.avgpool)


def default_batch(images: int) -> int:
    """The published 1,024; of fewer images so many that an epoch has 32 batches, at least 32."""
    return min(BATCH, max(LEAST_BATCH, images // STEPS))


def _require_sane(setup: Setup) -> None:
    """A `UserError` for settings that mean nothing."""
    if setup.blocks is not None and (not setup.blocks or min(setup.blocks) < 1):
        raise UserError(f"n_blocks {setup.blocks}: name at least one number of blocks, each from 1")
    if not setup.rates or not all(0 < rate < float("inf") for rate in setup.rates):
        raise UserError(f"rates {setup.rates}: name at least one rate, each above 0")
    if setup.pooling not in (None, "no", "yes", "both"):
        raise UserError(f"avgpool {setup.pooling!r}: choose no, yes or both")
    if setup.epochs < 1 or setup.views < 0 or (setup.batch is not None and setup.batch < 1):
        raise UserError(
            f"epochs {setup.epochs}, views {setup.views}, batch {setup.batch}: an epoch, an image "
            "a batch and no views are the least"
        )
