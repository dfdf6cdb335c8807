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
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import labels_as_in
from dino_core.evaluation.heads import logistic_regression
from dino_core.evaluation.passes import Passing, features, kind_look
from dino_core.gallery.images import source_hash
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


@dataclass(frozen=True)
class LowShotResult:
    """Accuracy by the number of labels, "1 %" and "10 %" of them, "1", "2", ... a class."""

    labels: dict[str, FewLabels]
    classes: int
    train_images: int
    test_images: int
    repeats: int
    k: int
    strength: float  # of the fit against regularization: scikit-learn's C
    seed: int
    model: str
    model_hash: str
    train: str
    train_hash: str
    test: str
    test_hash: str
    notes: list[str] = field(default_factory=list)  # sentences: what was left out and why
    random_init: "LowShotResult | None" = None  # the same for the untrained backbone

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        named = {self.model: self, "untrained": self.random_init}
        rows = {name: row for name, row in named.items() if row is not None}
        width = max(len("labels, top-1 in %"), *(len(name) + 10 for name in rows))
        lines = [f"{'labels, top-1 in %':{width}}" + "".join(f"{name:>14}" for name in self.labels)]
        for name, row in rows.items():
            few = row.labels.values()
            linear = "".join(f"{one.top1:7.2f} ± {one.top1_deviation:4.2f}" for one in few)
            votes = "".join(f"{one.knn:7.2f} ± {one.knn_deviation:4.2f}" for one in few)
            lines += [f"{name + ', linear':{width}}{linear}", f"{name + ', k-NN':{width}}{votes}"]
        lines.append(f"{self.test_images:,} test images, {self.repeats} draws of the labels")
        return "\n".join(lines + self.notes)


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
    budgets = _budgets(shares, per_class, repeats, k, strength)
    test_labels, notes = labels_as_in(train, test, "low-shot accuracy")
    settings = {"repeats": repeats, "k": k, "strength": strength, "seed": seed}

    def judge(one: Model) -> LowShotResult:
        return _judge(one, train, test, test_labels, budgets, settings, passing)

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
    shares: Sequence[float], per_class: Sequence[int], repeats: int, k: int, strength: float
) -> dict[str, tuple[float, bool]]:
    """Name -> amount, and whether it is a share."""
    if not all(0 < share <= 1 for share in shares) or not all(n >= 1 for n in per_class):
        raise UserError(
            f"shares {tuple(shares)}, per_class {tuple(per_class)}: shares lie above 0 and up to "
            "1, and each class keeps at least one label"
        )
    if not [*shares, *per_class]:
        raise UserError("low-shot: name at least one share or number of labels")
    if repeats < 1 or k < 1 or not 0 < strength < float("inf"):
        raise UserError(
            f"repeats {repeats}, k {k}, strength {strength}: each has to be above 0, and finite"
        )
    found: dict[str, tuple[float, bool]] = {f"{n} a class": (n, False) for n in sorted(per_class)}
    return found | {f"{100 * share:g} %": (share, True) for share in sorted(shares)}


def _judge(
    model: Model,
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    budgets: dict[str, tuple[float, bool]],
    settings: dict[str, Any],
    passing: Passing,
) -> LowShotResult:
    """The protocol for one model."""
    look = kind_look(model, "cls")
    learned, asked = (features(model, source, look, passing) for source in (train, test))
    assert train.labels is not None
    labels, truth = train.labels[learned.rows], test_labels[asked.rows]
    present = np.unique(labels[labels != UNLABELED])
    if len(present) < 2:
        raise UserError(
            f"{train.spec}: has fewer than two classes with readable images, so there is nothing "
            "to tell apart; add images of another class"
        )
    if not (truth != UNLABELED).any():
        raise UserError(f"{test.spec}: has no image that is labeled and readable")
    few, done, total = {}, 0, len(budgets) * settings["repeats"]
    message = f"Few labels on {model.spec}"
    passing.progress(0, total, message)
    for name, (amount, share) in budgets.items():
        linear, votes, images = [], [], 0
        for repeat in range(settings["repeats"]):
            rows = labeled_subset(labels, amount, settings["seed"], repeat, share=share)
            images = len(rows)
            some = torch.from_numpy(learned.array[rows]), labels[rows]
            ranked = _ranked(*some, asked.array, len(train.classes), settings["strength"], model)
            linear.append(ranking_accuracy(ranked, truth).top1)
            there = some[0].to(model.device)
            ranked = knn_vote(there, some[1], asked.array, [settings["k"]])[settings["k"]]
            votes.append(ranking_accuracy(ranked, truth).top1)
            done += 1
            passing.progress(done, total, message)
        few[name] = FewLabels(*_spread(linear), *_spread(votes), images, linear, votes)
    bad = len(learned.bad) + len(asked.bad)
    return LowShotResult(
        labels=few,
        classes=len(train.classes),
        train_images=int((labels != UNLABELED).sum()),
        test_images=int((truth != UNLABELED).sum()),
        model=model.spec,
        model_hash=model.hash,
        train=train.spec,
        train_hash=source_hash(train),
        test=test.spec,
        test_hash=source_hash(test),
        notes=_too_few(labels, present, budgets)
        + ([f"{bad:,} unreadable images were left out"] if bad else []),
        **settings,
    )


def _ranked(
    x_ND: torch.Tensor,
    labels_N: np.ndarray,
    asked_MD: np.ndarray,
    classes: int,
    strength: float,
    model: Model,
    chunk: int = 8192,
) -> torch.Tensor:
    """The likeliest class of every test image by logistic regression, int64 [M, 1]."""
    weight_CD, bias_C = logistic_regression(x_ND, labels_N, classes, strength, model.device)
    parts = []
    for start in range(0, len(asked_MD), chunk):
        x_BD = torch.from_numpy(np.array(asked_MD[start : start + chunk])).to(weight_CD.device)
        parts.append((x_BD @ weight_CD.T + bias_C).argmax(1, keepdim=True).cpu())
    return torch.cat(parts)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _too_few(
    labels: np.ndarray, present: np.ndarray, budgets: dict[str, tuple[float, bool]]
) -> list[str]:
    """A sentence where classes have fewer images than should keep their labels."""
    fewest = min(int((labels == label).sum()) for label in present)
    names = [name for name, (n, share) in budgets.items() if not share and n > fewest]
    notes = [
        f"{name}: at least one label a class, which is more than that share of {fewest} images"
        for name, (n, share) in budgets.items()
        if share and n * fewest < 0.5
    ]
    if names:
        told = ", ".join(names)
        notes.append(f"{told}: classes with fewer images ({fewest} at the least) keep them all")
    return notes
