"""Linear heads that learn from frozen features: what is tried, what is chosen, and how.

    learned = choose(train, setup, model, passing)

Features are computed once, of center crops and of `views` random ones. All heads of a sweep learn
from nine tenths of the training images at once; rate, features and epoch are chosen on the last
tenth, and a head is trained on all images with that choice. Test images have no part in it.

Shapes: M images, F dimensions held, C classes, R rates, E epochs, K candidates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dino_core.data import Source
from dino_core.errors import UserError, at_least
from dino_core.evaluation.classes import require_two_classes
from dino_core.evaluation.heads import Heads, Held, moments, near
from dino_core.evaluation.heads import train as train_heads
from dino_core.evaluation.linear_features import (
    RandomCrops,
    Seen,
    columns,
    look_at,
    published_features,
)
from dino_core.evaluation.linear_weights import LinearWeights
from dino_core.evaluation.passes import Passing, features
from dino_core.gallery.features import SourceFeatures
from dino_core.measures.knn import UNLABELED
from dino_core.models import Model
from dino_core.rng import permutation

RATES = tuple(float(f"{rate:.3g}") for rate in np.logspace(-4, 0, 13))
PUBLISHED_RATE = 0.001  # for a batch of 256
RATE_BATCH = 256
EPOCHS = 100
BATCH = 1024  # 8 GPUs with 128 images each
STEPS = 32  # least batches of an epoch by default: few images would hardly be trained on
LEAST_BATCH = 32
HELD_OUT = 0.1
CHOSEN = (
    "chosen on a tenth of the training images, of which {:.1f} % were right; test is judged once"
)

Pooling = Literal["no", "yes", "both"]


@dataclass(frozen=True)
class Setup:
    """What the training of heads depends on beside images and model.

    Settings that mean nothing, or contradict each other, are a `UserError`.
    """

    blocks: tuple[int, ...] | None = None  # None: as published for the model's architecture
    pooling: Pooling | None = None
    rates: tuple[float, ...] = RATES
    epochs: int = EPOCHS
    batch: int | None = None
    views: int = 0
    standardize: bool = True
    as_published: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.blocks is not None and (not self.blocks or min(self.blocks) < 1):
            raise UserError(
                f"n_blocks {self.blocks}: name at least one number of blocks, each from 1"
            )
        if not self.rates or not all(0 < rate < float("inf") for rate in self.rates):
            raise UserError(f"rates {self.rates}: name at least one rate, each above 0")
        if self.pooling not in (None, "no", "yes", "both"):
            raise UserError(f"avgpool {self.pooling!r}: choose no, yes or both")
        at_least(1, epochs=self.epochs, batch=self.batch)
        at_least(0, views=self.views)
        if self.as_published:
            self._require_published()

    def _require_published(self) -> None:
        """The published training tries one thing: a `UserError` for what would be left undone."""
        undone = {
            f"rates {self.rates}": self.rates not in (RATES, (PUBLISHED_RATE,)),
            f"views {self.views}": self.views > 0,
            f"n_blocks {self.blocks}": self.blocks is not None and len(self.blocks) > 1,
            "avgpool both": self.pooling == "both",
        }
        if asked := [name for name, is_asked in undone.items() if is_asked]:
            raise UserError(
                f"{', '.join(asked)}: as published there is one head at the rate {PUBLISHED_RATE} "
                "on new crops in each epoch; leave that out, or as_published"
            )

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
class Learned:
    """A head for raw features, and how it came about; by default it was given."""

    linear: LinearWeights
    lr: float = 0.0  # for a batch of 256
    epoch: int = 0  # from 1
    batch: int = 0
    held_out: float | None = None  # top-1 in percent where rate, features and epoch were chosen
    sweep: list[dict[str, Any]] = field(default_factory=list)  # see `LinearResult`
    train_images: int = 0
    bad: Sequence[tuple[str, str]] = ()  # (id, reason) of training images that cannot be read
    notes: list[str] = field(default_factory=list)


def choose(train: Source, setup: Setup, model: Model, passing: Passing) -> Learned:
    """Choose rate, features and epoch on a tenth of the images, train a head on all of them.

    Raises `UserError` when fewer than two classes have readable images.
    """
    learning = Learning(train, setup, model, passing)
    sweep, notes = _sweep(learning), list(learning.notes)
    if sweep:
        top1_K, loss_K = (np.array([one[name] for one in sweep]) for name in ("held_out", "loss"))
        best = sweep[pick(top1_K, loss_K, sweep[0]["images"])]
        seen = Seen(best["n_blocks"], best["avgpool"])
        lr, epoch, held_out = best["lr"], best["epoch"], best["held_out"]
    else:
        seen, lr, epoch, held_out = learning.kinds[0], PUBLISHED_RATE, setup.epochs, None
        notes.append(
            "no class has two images, so rate and epoch are the published ones, not chosen"
        )
    head = learning.heads(seen, [lr])
    learning.fit([head], learning.labeled, "Training the chosen head", until=epoch)
    return Learned(
        LinearWeights(*head.linear(), seen.blocks, seen.avgpool),
        lr=lr,
        epoch=epoch,
        batch=learning.batch,
        held_out=held_out,
        sweep=sweep,
        train_images=len(learning.labeled),
        bad=learning.bad,
        notes=notes,
    )


class Learning:
    """The labeled training images of one model: their features by epoch, and heads for them.

    Views are numbered: 0 is the center crop, the others are random ones. The pass over view `first`
    tells which images are readable.
    """

    def __init__(
        self, train: Source, setup: Setup, model: Model, passing: Passing, first: int = 0
    ) -> None:
        self.train, self.setup, self.model, self.passing = train, setup, model, passing
        self.kinds, self.notes = setup.kinds(model)
        self.blocks = max(seen.blocks for seen in self.kinds)
        self.avgpool = any(seen.avgpool for seen in self.kinds)
        found = self.compute(first)
        self.rows, self.bad = found.rows, found.bad
        assert train.labels is not None
        self.labels = train.labels[self.rows]
        require_two_classes(train, self.labels)
        self.labeled = np.flatnonzero(self.labels != UNLABELED)
        self.batch = setup.batch or default_batch(len(self.labeled))
        self.held: dict[int, Held] = {first: near(found.array, model.device)}
        self.coordinates = None
        if setup.standardize:
            self.coordinates = moments(self.held[first], self.labeled, model.device)

    def compute(self, view: int) -> SourceFeatures:
        """A pass over the training images."""
        source, name = self.train, ""
        if view:
            source = RandomCrops(self.train, self.model.info, view, self.setup.seed)
            name = f"crop {view} of seed {self.setup.seed}"
        look = look_at(self.model, self.blocks, self.avgpool, name)
        return features(self.model, source, look, self.passing_of(view))

    def passing_of(self, view: int) -> Passing:
        """How the pass over a view is run."""
        return self.passing

    def of_view(self, view: int) -> Held:
        if view not in self.held:
            found = self.compute(view)
            require_same_images(self.train, found.rows, self.rows)
            self.held[view] = near(found.array, self.model.device)
        return self.held[view]

    def of_epoch(self, epoch: int) -> Held:
        """The center crop and the random ones in turn."""
        return self.of_view(epoch % (1 + self.setup.views))

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
        *,
        first: int = 0,
        until: int | None = None,
        after: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        """`heads.train`, with progress."""
        until = self.setup.epochs if until is None else until

        def say(epoch: int) -> None:
            after(epoch)
            self.passing.progress(epoch + 1, until, message)

        self.passing.progress(first, until, message)
        train_heads(
            groups, self.of_epoch, rows, self.labels, epochs=self.setup.epochs, first=first,
            until=until, batch=self.batch, seed=self.setup.seed, after=say,
        )  # fmt: skip


def require_same_images(train: Source, rows: np.ndarray, before: np.ndarray) -> None:
    """`UserError` when a pass found other images readable than the one before."""
    if not np.array_equal(rows, before):
        raise UserError(
            f"{train.spec}: images became unreadable since it was first looked at; start again "
            "when it does not change any more"
        )


def _sweep(learning: Learning) -> list[dict[str, Any]]:
    """Every rate on every kind of features, trained on nine tenths and asked on the last.

    Nothing where no class has two images.
    """
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
    return [
        one
        for seen, so_far in zip(learning.kinds, figures, strict=True)
        for one in _best_epochs(seen, setup.rates, so_far, len(asked))
    ]


def _best_epochs(
    seen: Seen,
    rates: Sequence[float],
    by_epoch: Sequence[tuple[np.ndarray, np.ndarray]],
    images: int,
) -> list[dict[str, Any]]:
    """Of each rate the epoch to stop at. `by_epoch`: top-1 and loss [R] after each."""
    top1_RE, loss_RE = (np.stack(one, axis=1) for one in zip(*by_epoch, strict=True))
    found = []
    for r, rate in enumerate(rates):
        epoch = pick(top1_RE[r], loss_RE[r], images)
        figures = {"held_out": float(top1_RE[r, epoch]), "loss": float(loss_RE[r, epoch])}
        kind = {"n_blocks": seen.blocks, "avgpool": seen.avgpool, "lr": rate, "epoch": epoch + 1}
        found.append(kind | figures | {"images": images})
    return found


def pick(top1_K: np.ndarray, loss_K: np.ndarray, images: int) -> int:
    """The best of several candidates that were asked about the same few images.

    The one of lowest cross entropy among those whose top-1 (percent) lies within half a standard
    error of the highest: with few images the highest is a matter of luck, with many this is it.
    (Of none, a quarter, a half and a whole standard error, half did best on parts of Imagenette.)
    """
    highest = float(top1_K.max()) / 100
    error = 100 * math.sqrt(highest * (1 - highest) / images)
    return int(np.where(top1_K >= 100 * highest - error / 2 - 1e-9, loss_K, np.inf).argmin())


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


def default_batch(images: int) -> int:
    """The published 1,024; of fewer images so many that an epoch has 32 batches, at least 32."""
    return min(BATCH, max(LEAST_BATCH, images // STEPS))
