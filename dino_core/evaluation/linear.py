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

Shapes: M test images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_core import distributed
from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import (
    ClassesResult,
    classes_fields,
    labels_as_in,
    names_in,
    names_of,
    numbered,
)
from dino_core.evaluation.heads import Heads
from dino_core.evaluation.linear_features import Seen, look_at
from dino_core.evaluation.linear_published import learn_as_published
from dino_core.evaluation.linear_training import (
    CHOSEN,
    EPOCHS,
    RATES,
    Learned,
    Pooling,
    Setup,
    choose,
)
from dino_core.evaluation.linear_weights import (
    LinearWeights,
    check_linear_place,
    read_linear_weights,
    write_linear_weights,
)
from dino_core.evaluation.passes import Passing, features
from dino_core.evaluation.results import unreadable
from dino_core.files import check_writable
from dino_core.gallery.images import source_hash
from dino_core.models import Model, untrained


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
            if row.as_published:
                how += ", the best on test"
            lines.append(f"{name:{width}} {row.top1:9.2f}{row.top5:9.2f}  {how}")
        learned = f"{self.train_images:,} to learn from" if not self.weights else self.weights
        lines.append(f"{self.test_images:,} test images, {learned}")
        if self.held_out is not None:
            lines.append(CHOSEN.format(self.held_out))
        return "\n".join(lines + self.confused() + self.notes)


@dataclass(frozen=True)
class _Asked:
    """The test images, their classes as numbers of a head's."""

    test: Source
    labels: np.ndarray  # int64 [M]
    classes: int  # of the head
    names: list[str]  # of the numbers: the head's classes, then those that it lacks


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

    `as_published` trains one head at the published rate, always on raw features, on new random
    crops in each epoch (a pass each: 100 times the time), and reports the best epoch on test; it
    goes on where it was stopped. `weights` evaluates a linear layer that was trained elsewhere;
    `train` then only names its classes (sorted, where the file does not), and may be None where
    test has them all. `save` writes the head that was judged as safetensors.

    Raises `UserError` when either source has no labels, they share no class, train has fewer than
    two classes, they are the same images, weights do not fit, or settings contradict each other.
    """
    setup = Setup(
        None if n_blocks is None else tuple(n_blocks),
        avgpool, tuple(rates), epochs, batch, views, standardize and not as_published,
        as_published, seed,
    )  # fmt: skip
    if weights is not None:
        _require_untrained(setup, save)
        return _given(model, train, test, Path(weights), setup, passing)
    if train is None:
        raise UserError("train: name images to learn from, or linear weights to evaluate")
    return _trained(model, train, test, setup, save, random_init, passing)


def _trained(
    model: Model,
    train: Source,
    test: Source,
    setup: Setup,
    save: Path | None,
    random_init: bool,
    passing: Passing,
) -> LinearResult:
    """The accuracy of a head that is trained here, and of the same for the untrained backbone."""
    if save is not None:
        check_linear_place(save)
    save = save if distributed.is_main() else None  # the others compute the same head
    if save is not None:
        check_writable(save)  # before hours of computing
    labels, notes = labels_as_in(train, test, "a linear classifier")
    asked = _Asked(test, labels, len(train.classes), names_of(train, test))

    def judge(one: Model) -> tuple[LinearResult, Learned]:
        if setup.as_published:
            learned = learn_as_published(train, test, labels, setup, one, passing)
        else:
            learned = choose(train, setup, one, passing)
        return _judged(one, train, asked, learned, setup, passing), learned

    result, learned = judge(model)
    if save is not None:
        linear = replace(learned.linear, classes=train.classes, model_hash=model.hash)
        write_linear_weights(save, linear)
    if random_init:
        result = replace(result, random_init=judge(untrained(model))[0])
    return replace(result, notes=notes + result.notes)


def _given(
    model: Model,
    train: Source | None,
    test: Source,
    path: Path,
    setup: Setup,
    passing: Passing,
) -> LinearResult:
    """The accuracy of a linear layer as it lies in a file."""
    blocks = None if setup.blocks is None else max(setup.blocks)
    pooled = None if setup.pooling in (None, "both") else setup.pooling == "yes"
    linear = read_linear_weights(path, model, blocks=blocks, avgpool=pooled)
    classes = linear.classes
    if classes is None:
        classes = _names_in_order(train or test, len(linear.bias_C), path)
    labels, notes = numbered(test, classes, str(path), "the head's")
    asked = _Asked(test, labels, len(classes), names_in(classes, test))
    notes += _another_model(linear, model, path)
    notes.append("without random initialization: the given weights were made for this backbone")
    given = Learned(linear, notes=notes)
    return replace(
        _judged(model, train, asked, given, replace(setup, standardize=False), passing),
        epochs=0,
        weights=str(path),
    )


def _judged(
    model: Model,
    train: Source | None,
    asked: _Asked,
    learned: Learned,
    setup: Setup,
    passing: Passing,
) -> LinearResult:
    """What a head makes of the test images."""
    linear = learned.linear
    found = features(model, asked.test, look_at(model, linear.blocks, linear.avgpool), passing)
    head = Heads.of(linear.weight_CD, linear.bias_C, model.device)
    ranked = head.ranking(found.array, np.arange(len(found.array)))
    return LinearResult(
        **classes_fields(ranked, asked.labels[found.rows], asked.names, asked.test, found.rows),
        lr=learned.lr,
        epoch=learned.epoch,
        n_blocks=linear.blocks,
        avgpool=linear.avgpool,
        held_out=learned.held_out,
        sweep=learned.sweep,
        classes=asked.classes,
        train_images=learned.train_images,
        model=model.spec,
        model_hash=model.hash,
        train=train.spec if train else "",
        train_hash=source_hash(train) if train else "",
        test=asked.test.spec,
        test_hash=source_hash(asked.test),
        epochs=setup.epochs,
        batch=learned.batch,
        views=setup.views,
        standardized=setup.standardize,
        as_published=setup.as_published,
        weights="",
        notes=learned.notes + unreadable([*learned.bad, *found.bad]),
    )


def _names_in_order(source: Source, count: int, path: Path) -> list[str]:
    """Names for the classes of a head whose file has none: sorted, as class folders are."""
    if len(source.classes) != count:
        raise UserError(
            f"{path}: tells {count:,} classes apart and does not name them, but {source.spec} has "
            f"{len(source.classes):,}; name a train set (--train) with all that it was trained on"
        )
    return sorted(source.classes)


def _another_model(linear: LinearWeights, model: Model, path: Path) -> list[str]:
    """A sentence where a head learned from another model's features than it is judged on."""
    if linear.model_hash in ("", model.hash):
        return []
    return [
        f"{path}: learned from features of another model ({linear.model_hash[:8]}) than "
        f"{model.spec} ({model.hash[:8]}), so the figures say little of either"
    ]


def _require_untrained(setup: Setup, save: Path | None) -> None:
    """`UserError` where weights are given and settings of a training as well."""
    plain = Setup(setup.blocks, setup.pooling, standardize=setup.standardize, seed=setup.seed)
    names = ("rates", "epochs", "batch", "views", "as_published")
    asked = [name for name in names if getattr(setup, name) != getattr(plain, name)]
    if save is not None:
        asked.append("save")
    if asked:
        raise UserError(
            f"{', '.join(asked)}: nothing is trained where weights are given; leave that out, or "
            "the weights"
        )
