"""Low-shot accuracy: how far a few labels go, when the features need none.

Of each class some training images keep their labels: a share (1 %, 10 %) or a number (1, 2, 5, 10),
drawn several times. From their class tokens, unit length as for k-NN, two classifiers are made and
asked about all test images: L2-regularized logistic regression, the usual choice at few labels, and
the k-NN vote. One pass over the images serves them all.

    result = evaluate(load_model("starter"), open_source("train"), open_source("val"))
    print(result.table())

Logistic regression rather than the SGD heads of the linear protocol: it is a convex problem with
one answer, so neither rate nor epoch has to be chosen where there are no labels to choose with.

Shapes: M images, D dimensions, C classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import labels_as_in, require_labeled, require_two_classes
from dino_core.evaluation.heads import chunks, logistic_regression
from dino_core.evaluation.passes import Passing, features, kind_look
from dino_core.evaluation.results import Result, unreadable
from dino_core.gallery.features import SourceFeatures
from dino_core.gallery.images import source_hash
from dino_core.gallery.progress import Progress
from dino_core.measures.knn import UNLABELED, knn_vote, ranking_accuracy
from dino_core.models import Model, untrained
from dino_core.rng import permutation

SHARES = (0.01, 0.1)
PER_CLASS = (1, 2, 5, 10)
REPEATS = 5
STRENGTH = 100.0
K = 10


@dataclass(frozen=True)
class FewLabels:
    """Top-1 in percent with so many labels: mean over the repeats, and their deviation."""

    top1: float  # logistic regression
    top1_deviation: float  # of a sample; 0 for one repeat
    knn: float
    knn_deviation: float
    images: int  # with a label, in each repeat
    each: list[float]  # top-1 of logistic regression in each repeat
    knn_each: list[float]


@dataclass(frozen=True, kw_only=True)
class LowShotResult(Result):
    """Accuracy by the number of labels, "1 %" and "10 %" of them, "1", "2", ... a class."""

    labels: dict[str, FewLabels]
    classes: int
    train_images: int
    test_images: int
    repeats: int
    k: int
    strength: float  # of the fit against regularization: scikit-learn's C
    seed: int
    train: str
    train_hash: str
    test: str
    test_hash: str

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(len("labels, top-1 in %"), *(len(name) + 10 for name in rows))
        lines = [f"{'labels, top-1 in %':{width}}" + "".join(f"{name:>14}" for name in self.labels)]
        for name, row in rows.items():
            few = row.labels.values()
            linear = "".join(f"{one.top1:7.2f} ± {one.top1_deviation:4.2f}" for one in few)
            votes = "".join(f"{one.knn:7.2f} ± {one.knn_deviation:4.2f}" for one in few)
            lines += [f"{name + ', linear':{width}}{linear}", f"{name + ', k-NN':{width}}{votes}"]
        drawn = "one draw" if self.repeats == 1 else f"mean and deviation of {self.repeats} draws"
        lines.append(f"{self.test_images:,} test images, {drawn} of the labels")
        return "\n".join(lines + self.notes)


class Budget(NamedTuple):
    """How many labels each class keeps."""

    amount: float  # a share (0..1] of them, or a number
    share: bool


@dataclass(frozen=True)
class _Settings:
    """What is the same for all budgets; fields of the result as well."""

    repeats: int
    k: int
    strength: float
    seed: int


def evaluate(
    model: Model,
    train: Source,
    test: Source,
    *,
    shares: Sequence[float] = SHARES,
    per_class: Sequence[int] = PER_CLASS,
    repeats: int = REPEATS,
    k: int = K,
    strength: float = STRENGTH,
    seed: int = 0,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> LowShotResult:
    """The accuracy on `test` with few labels of `train`, the same draws for every model.

    `shares` (above 0, up to 1) and `per_class` say how many labels each class keeps; at least one,
    at most all it has. A draw is keyed by `seed`, its number and the class; fewer labels are part
    of more. `k` above the number of labels counts as that number. Raises `UserError` for settings
    that mean nothing, and as k-NN does for sources that cannot be judged.
    """
    settings = _Settings(repeats, k, strength, seed)
    budgets = _budgets(shares, per_class, settings)
    test_labels, notes = labels_as_in(train, test, "low-shot accuracy")
    judge = partial(_judge, train, test, test_labels, budgets, settings, passing)
    result = judge(model)
    if random_init:
        result = replace(result, random_init=judge(untrained(model)))
    return replace(result, notes=notes + result.notes)


def labeled_subset(
    labels_M: np.ndarray, amount: float, seed: int, repeat: int, *, share: bool
) -> np.ndarray:
    """Rows that keep their labels, int64, rising: of each class a share or a number of its images.

    At least one, at most all.
    """
    kept = []
    for label in np.unique(labels_M[labels_M != UNLABELED]):
        members = np.flatnonzero(labels_M == label)
        count = max(1, round(amount * len(members))) if share else int(amount)
        order = permutation(len(members), seed, "low-shot", repeat, int(label))
        kept.append(members[order[:count]])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def _budgets(
    shares: Sequence[float], per_class: Sequence[int], settings: _Settings
) -> dict[str, Budget]:
    """The budgets by name."""
    if not all(0 < share <= 1 for share in shares) or not all(n >= 1 for n in per_class):
        raise UserError(
            f"shares {tuple(shares)}, per_class {tuple(per_class)}: shares lie above 0 and up to "
            "1, and each class keeps at least one label"
        )
    if not [*shares, *per_class]:
        raise UserError("low-shot: name at least one share or number of labels")
    repeats, k, strength = settings.repeats, settings.k, settings.strength
    if repeats < 1 or k < 1 or not 0 < strength < float("inf"):
        raise UserError(
            f"repeats {repeats}, k {k}, strength {strength}: each has to be above 0, and finite"
        )
    numbers = {f"{n} a class": Budget(n, False) for n in sorted(per_class)}
    return numbers | {f"{100 * share:g} %": Budget(share, True) for share in sorted(shares)}


@dataclass(frozen=True)
class _Drawing:
    """One model's features and their classes, from which labels are drawn."""

    model: Model
    classes: int
    learned: SourceFeatures
    labels: np.ndarray  # int64, of `learned`
    asked: SourceFeatures
    truth: np.ndarray  # int64, of `asked`, in the numbers of the training classes
    settings: _Settings
    progress: Progress

    def judge(self, name: str, budget: Budget) -> FewLabels:
        """All draws of one budget."""
        repeats, seed = self.settings.repeats, self.settings.seed
        draws = [
            labeled_subset(self.labels, budget.amount, seed, repeat, share=budget.share)
            for repeat in range(repeats)
        ]
        count = len(draws[0])  # the same in each
        message = f"{name}: {count:,} labels on {self.model.spec}"
        linear, votes = [], []
        for done, rows in enumerate(draws):
            self.progress(done, repeats, message)
            x_ND = torch.from_numpy(self.learned.array[rows]).to(self.model.device)
            linear.append(self._top1(self._by_regression(x_ND, self.labels[rows])))
            votes.append(self._top1(self._by_vote(x_ND, self.labels[rows])))
        self.progress(repeats, repeats, message)
        return FewLabels(*_spread(linear), *_spread(votes), count, linear, votes)

    def _top1(self, ranked_MC: Tensor) -> float:
        return ranking_accuracy(ranked_MC, self.truth).top1

    def _by_vote(self, x_ND: Tensor, labels_N: np.ndarray) -> Tensor:
        k = self.settings.k
        return knn_vote(x_ND, labels_N, self.asked.array, [k])[k]

    def _by_regression(self, x_ND: Tensor, labels_N: np.ndarray) -> Tensor:
        """The likeliest class of every test image, int64 [M, 1]."""
        weight_CD, bias_C = logistic_regression(
            x_ND, labels_N, self.classes, self.settings.strength, self.model.device
        )
        every_M = np.arange(len(self.asked.array))
        parts = [
            (x_BD @ weight_CD.T + bias_C).argmax(1, keepdim=True).cpu()
            for x_BD, _ in chunks(self.asked.array, every_M, weight_CD.device)
        ]
        return torch.cat(parts)


def _judge(
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    budgets: dict[str, Budget],
    settings: _Settings,
    passing: Passing,
    model: Model,
) -> LowShotResult:
    """The protocol for one model."""
    look = kind_look(model, "cls")
    learned, asked = (features(model, source, look, passing) for source in (train, test))
    assert train.labels is not None
    labels, truth = train.labels[learned.rows], test_labels[asked.rows]
    require_two_classes(train, labels)
    require_labeled(test, truth)
    drawing = _Drawing(
        model, len(train.classes), learned, labels, asked, truth, settings, passing.progress
    )
    return LowShotResult(
        labels={name: drawing.judge(name, budget) for name, budget in budgets.items()},
        classes=len(train.classes),
        train_images=int((labels != UNLABELED).sum()),
        test_images=int((truth != UNLABELED).sum()),
        model=model.spec,
        model_hash=model.hash,
        train=train.spec,
        train_hash=source_hash(train),
        test=test.spec,
        test_hash=source_hash(test),
        notes=_too_few(labels, budgets) + unreadable([*learned.bad, *asked.bad]),
        **asdict(settings),
    )


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _too_few(labels_M: np.ndarray, budgets: dict[str, Budget]) -> list[str]:
    """Sentences where a class has not the images to keep what the budget says."""
    fewest = int(np.unique(labels_M[labels_M != UNLABELED], return_counts=True)[1].min())
    notes = [
        f"{name}: at least one label a class, which is more than that share of {fewest} images"
        for name, budget in budgets.items()
        if budget.share and budget.amount * fewest < 0.5
    ]
    names = [name for name, one in budgets.items() if not one.share and one.amount > fewest]
    if names:
        told = ", ".join(names)
        notes.append(f"{told}: classes with fewer images ({fewest} at the least) keep them all")
    return notes
