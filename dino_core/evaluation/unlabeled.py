"""Judging features without labels: RankMe, alignment and uniformity, shared neighbors, robustness.

    result = evaluate(load_model("starter"), open_source("photos"), other=[load_model("runs/a")])
    print(result.table())

- RankMe (Garrido et al. 2023): how many dimensions the class tokens really use; not normalized, and
  not centered.
- Alignment and uniformity (Wang & Isola 2020, alpha 2, t 2) of the L2-normalized class tokens. The
  positive pairs are random crops of one image (the geometry of DINO's global crops: 40 to 100 % of
  the area, flipped or not), without changes of color.
- Shared neighbors: of an image's k nearest others, the share that another model finds too.
- Robustness: how far features move when pictures are corrupted (`corruptions.py`), and whether a
  corrupted picture still finds its clean self before all other images.

None of them says what features are good for, and an untrained network may well be ahead in most.
What it computes are random mixtures of pixels, which spread out and withstand noise and blur; a
little training first draws features together; and a network that gives all images one feature is
perfectly aligned. (Of 500 photos of Imagenette at 160 px the starter's class tokens have a RankMe
of 7.6 and a uniformity of -0.20, those of its untrained backbone 41 and -1.54, and yet its k-NN
accuracy is the better one.) So distances are also given as shares of the distance between different
images (`alignment_share`, `kept`), and where the untrained backbone is ahead a note says so. Read
the figures together, beside k-NN or a linear probe where there are labels.

Every corruption sees the same pictures whatever the model: the middle square at 256 x 256 px, after
that the model's own preprocessing. What is random in a crop or a corruption belongs to the seed and
to the image's pixels, so it does not depend on what else lies in the folder.

Shapes: M images, D dimensions, Q images of which neighbors are searched, B of them at a time.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core.augment import MultiCrop, crop_views, plan_view
from dino_core.data import Source
from dino_core.errors import UserError, at_least
from dino_core.evaluation.corruptions import SIDE, STRENGTHS, key_of, require, spoiled
from dino_core.evaluation.passes import Look, Passing, features, kind_look
from dino_core.gallery.features import SourceFeatures
from dino_core.gallery.images import source_hash
from dino_core.gallery.neighbors import nearest_others
from dino_core.measures.rankme import rankme
from dino_core.measures.shared_neighbors import neighbor_overlap, overlap_by_chance
from dino_core.measures.uniformity import (
    Estimate,
    alignment,
    mean_squared_distance,
    sampled_uniformity,
    uniformity,
)
from dino_core.models import Model, ModelInfo, untrained
from dino_core.models.preprocess import require_channels
from dino_core.rng import generator, permutation

SEVERITIES = (1, 3, 5)
UNTRAINED = "untrained"
VIEW_SCALE = (0.4, 1.0)  # share of the area that a view shows
MOST_IN_RANKME = 25_600  # images; as many as the paper takes
MOST_IN_PAIRS = 10_000  # images of which all pairs are taken; of more a sample of pairs
PAIRS = 1_000_000
MOST_ASKED = 10_000  # images whose nearest are searched, among all
CHUNK = 1024  # of these, compared with all at a time
ALIKE = 1e-6  # cosines that differ by less are rounded alike
SHOWN = 12  # images that are named as moved most and least


@dataclass(frozen=True)
class Robustness:
    """What one corruption at one severity does to the features of all images."""

    corruption: str
    severity: int  # 1 to 5
    cosine: float  # of an image's clean and corrupted feature, mean, -1 to 1
    kept: float  # 1: features have not moved; 0: as far as another image's is (mean); at most 1
    retrieval: float  # share of images, 0 to 1, that are the nearest clean one to themselves


@dataclass(frozen=True)
class Moved:
    """An image, and the mean cosine of its clean and corrupted features."""

    id: str
    cosine: float


@dataclass(frozen=True)
class UnlabeledResult:
    """Figures without labels; shares from 0 to 1. None where no corruption was asked for."""

    rankme: float  # dimensions in use, 1 to `dim`; more is better
    alignment: float  # mean squared distance of two views, 0 to 4; less is better
    alignment_share: float  # of that of two images: 0 to about 1; less is better
    uniformity: float  # -8 to 0; less is better, and features at right angles have -4
    uniformity_error: float  # standard error of the estimate; 0 where all pairs were taken
    overlap: dict[str, float]  # of each other model: the share of the k neighbors it finds too
    overlap_by_chance: float
    cosine: float | None  # means over `robustness`; more is better
    kept: float | None
    retrieval: float | None
    robustness: list[Robustness]
    moved_most: list[Moved]  # by all corruptions, the most first
    moved_least: list[Moved]
    dim: int
    images: int
    model: str
    model_hash: str
    data: str
    data_hash: str
    k: int
    views: int
    corruptions: list[str]
    severities: list[int]
    seed: int
    notes: list[str] = field(default_factory=list)  # sentences: what was left out and why
    random_init: "UnlabeledResult | None" = None  # the same for the untrained backbone

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        columns = [self] if self.random_init is None else [self, self.random_init]
        names = [column.model for column in columns]
        width = max(12, *(len(name) + 2 for name in names))
        lines = [f"{'':32}" + "".join(f"{name:>{width}}" for name in names)]

        def row(title: str, values: Sequence[float | None], form: str) -> None:
            if None not in values:
                lines.append(f"{title:32}" + "".join(f"{value:>{width}{form}}" for value in values))

        row(f"RankMe, of {self.dim} dimensions", [one.rankme for one in columns], ".1f")
        row("alignment", [one.alignment for one in columns], ".4f")
        row("  as a share of all distances", [one.alignment_share for one in columns], ".3f")
        row("uniformity", [one.uniformity for one in columns], ".3f")
        row("cosine after corruption", [one.cosine for one in columns], ".3f")
        row("  kept of the distances", [one.kept for one in columns], ".3f")
        row("found again, %", [_percent(one.retrieval) for one in columns], ".1f")
        for which in zip(*(column.robustness for column in columns), strict=True):
            title = f"  {which[0].corruption.replace('_', ' ')}, {which[0].severity}"
            row(title, [_percent(one.retrieval) for one in which], ".1f")
        for name, share in self.overlap.items():
            lines.append(f"{share:.1%} of the {self.k} nearest neighbors are shared with {name}")
        if self.overlap:
            lines.append(f"{self.overlap_by_chance:.1%} would be by chance")
        lines.append(f"{self.images:,} images")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    *,
    other: Sequence[Model] = (),
    corruptions: Sequence[str] = tuple(STRENGTHS),
    severities: Sequence[int] = SEVERITIES,
    k: int = 10,
    views: int = 2,
    seed: int = 0,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> UnlabeledResult:
    """What can be said of `model`'s features of `source` without any label.

    Neighbors are compared with each of `other`, and with the untrained backbone if `random_init`;
    that is then judged by all the rest too. Alignment is over all pairs of `views` views. Every
    corruption at every severity is a pass over the images, as are the views; no `corruptions`, no
    robustness. A `k` above the number of other images counts as that number.

    Raises `UserError` for fewer than two readable images or views, a `k` below 1, a corruption or
    severity that there is not, and a model of other channels than the images.
    """
    at_least(1, k=k)
    at_least(2, views=views)
    spoiling, notes = _spoiling(source, corruptions, severities)
    models = _named([model, *other])
    if random_init:
        models[UNTRAINED] = untrained(model)
    raw, rows = _clean(models, source, passing)
    left_out = len(source) - len(rows)
    notes += [f"{left_out:,} unreadable images were left out"] if left_out else []
    if k > len(rows) - 1:
        notes.append(f"k = {k} counts as {len(rows) - 1}: there are no more other images")
        k = len(rows) - 1
    asked = _asked(len(rows), seed)
    if len(asked) < len(rows):
        notes.append(f"neighbors were searched of {len(asked):,} images, among all")
    nearest = {name: nearest_others(_unit(array), asked, k)[0] for name, array in raw.items()}

    def judge(name: str) -> UnlabeledResult:
        return _judged(
            name, models[name], raw[name], rows, nearest, source,
            spoiling=spoiling, asked=asked, k=k, views=views, seed=seed, passing=passing,
        )  # fmt: skip

    result = judge(next(iter(models)))
    if random_init:
        chance = judge(UNTRAINED)
        result = replace(result, random_init=chance)
        notes += _behind(result, chance)
    return replace(result, notes=notes + result.notes)


def _judged(
    name: str,
    model: Model,
    raw_MD: np.ndarray,
    rows: np.ndarray,
    nearest: dict[str, np.ndarray],
    source: Source,
    *,
    spoiling: Sequence[tuple[str, int]],
    asked: np.ndarray,
    k: int,
    views: int,
    seed: int,
    passing: Passing,
) -> UnlabeledResult:
    """The protocol for one model, its neighbors and those of all others being known."""
    unit_MD = _unit(raw_MD)
    apart = mean_squared_distance(unit_MD)
    spread = _uniformity(unit_MD, seed)
    aligned = _alignment(model, source, rows, views, seed, passing)
    robustness, cosine_M = _robustness(model, source, rows, spoiling, asked, seed, passing)
    order = np.argsort(cosine_M, kind="stable") if robustness else np.empty(0, np.int64)
    moved = [Moved(source.ids[int(rows[at])], float(cosine_M[at])) for at in order]
    sampled = permutation(len(rows), seed, "rankme")[:MOST_IN_RANKME]
    return UnlabeledResult(
        rankme=rankme(raw_MD[np.sort(sampled)]),
        alignment=aligned,
        alignment_share=aligned / apart if apart > ALIKE else 1.0,
        uniformity=spread.value,
        uniformity_error=spread.error,
        overlap={
            other: float(neighbor_overlap(nearest[name], theirs, k).mean())
            for other, theirs in nearest.items()
            if other != name
        },
        overlap_by_chance=overlap_by_chance(len(rows), k),
        cosine=_mean([one.cosine for one in robustness]),
        kept=_mean([one.kept for one in robustness]),
        retrieval=_mean([one.retrieval for one in robustness]),
        robustness=robustness,
        moved_most=moved[:SHOWN],
        moved_least=moved[::-1][:SHOWN],
        dim=raw_MD.shape[1],
        images=len(rows),
        model=name,
        model_hash=model.hash,
        data=source.spec,
        data_hash=source_hash(source),
        k=k,
        views=views,
        corruptions=list(dict.fromkeys(corruption for corruption, _ in spoiling)),
        severities=sorted({severity for _, severity in spoiling}),
        seed=seed,
    )


def _spoiling(
    source: Source, corruptions: Sequence[str], severities: Sequence[int]
) -> tuple[list[tuple[str, int]], list[str]]:
    """Each corruption with each severity, none twice; and what is left out."""
    names, notes = list(dict.fromkeys(corruptions)), []
    if source.channels != 3 and "grayscale" in names:
        names.remove("grayscale")
        notes.append(f"grayscale is left out: images of {source.channels} channels have no color")
    if names and not severities:
        raise UserError("severities: name at least one number from 1 to 5")
    pairs = list(itertools.product(names, sorted(set(severities))))
    for name, severity in pairs:
        require(name, severity)
    return pairs, notes


def _named(models: Sequence[Model]) -> dict[str, Model]:
    """Models by what they are called; of two called alike the second is numbered."""
    named: dict[str, Model] = {}
    for model in models:
        alike = sum(model.spec == one.spec for one in named.values())
        named[f"{model.spec} ({alike + 1})" if alike else model.spec] = model
    return named


def _clean(
    models: dict[str, Model], source: Source, passing: Passing
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each model's class tokens as they are, of the images that all could read; and their rows."""
    found = {
        name: features(
            model, source, replace(kind_look(model), name="cls, any length", unit=False), passing
        )
        for name, model in models.items()
    }
    rows = reduce(np.intersect1d, [one.rows for one in found.values()])
    if len(rows) < 2:
        raise UserError(
            f"{source.spec}: has fewer than two readable images, and nothing to compare"
        )
    return {name: _of_rows(one, rows) for name, one in found.items()}, rows


def _alignment(
    model: Model, source: Source, rows: np.ndarray, views: int, seed: int, passing: Passing
) -> float:
    """Over all pairs of views."""
    base = kind_look(model)
    found = []
    for number in range(views):
        look = replace(
            base,
            name=f"view {number + 1}",
            prepare=partial(view, info=model.info, number=number, seed=seed),
            settings={**base.settings, "scale": list(VIEW_SCALE), "view": number, "seed": seed},
        )
        found.append(_also(features(model, source, look, passing), rows, source))
    return float(np.mean([alignment(*pair) for pair in itertools.combinations(found, 2)]))


def view(image: np.ndarray, info: ModelInfo, number: int, seed: int) -> Tensor:
    """One of an image's views: uint8 [H, W, C] to a random crop, maybe flipped, [S, S, C].

    `info` is the model's; `number` counts the views. The key is (seed, number, the pixels).
    """
    require_channels(image, info)
    height, width = image.shape[:2]
    config = MultiCrop(global_size=info.image_size, global_scale=VIEW_SCALE)
    plan = plan_view(config, seed, number, key_of(image), view=0, height=height, width=width)
    return crop_views(image, [plan])[0].permute(1, 2, 0).contiguous()


def _robustness(
    model: Model,
    source: Source,
    rows: np.ndarray,
    spoiling: Sequence[tuple[str, int]],
    asked: np.ndarray,
    seed: int,
    passing: Passing,
) -> tuple[list[Robustness], np.ndarray]:
    """What each corruption does; and the mean cosine of each image, float64 [M]."""
    total_M = np.zeros(len(rows))
    if not spoiling:
        return [], total_M
    clean_MD = _also(features(model, source, _spoiled_look(model), passing), rows, source)
    between = 1 - mean_squared_distance(clean_MD) / 2  # mean cosine of different images
    search = Search(clean_MD, model.device)
    figures = []
    for name, severity in spoiling:
        look = _spoiled_look(model, name, severity, seed)
        spoiled_MD = _also(features(model, source, look, passing), rows, source)
        cosine_M = np.einsum("md,md->m", clean_MD, spoiled_MD, dtype=np.float64)
        total_M += cosine_M
        cosine = float(cosine_M.mean())
        kept = (cosine - between) / (1 - between) if between < 1 - ALIKE else 0.0
        again = float(search.found_again(spoiled_MD, asked).mean())
        figures.append(Robustness(name, severity, cosine, kept, again))
    return figures, total_M / len(spoiling)


def _spoiled_look(model: Model, name: str = "", severity: int = 0, seed: int = 0) -> Look:
    """Corrupted, then cut as the model wants it; without a name only that."""
    base = kind_look(model)
    how: dict[str, Any] = {"square": SIDE}
    if name:
        how |= {"corruption": name, "strength": STRENGTHS[name][severity - 1], "seed": seed}
    return replace(
        base,
        name=f"{name.replace('_', ' ')} {severity}" if name else "middle square",
        prepare=partial(spoiled, info=model.info, name=name, severity=severity, seed=seed),
        settings={**base.settings, **how},
    )


class Search:
    """Clean features, on the device where they are compared."""

    def __init__(self, clean_MD: np.ndarray, device: torch.device) -> None:
        self.clean_MD = torch.tensor(clean_MD, device=device)

    def found_again(self, changed_MD: np.ndarray, asked_Q: np.ndarray) -> np.ndarray:
        """Whether the clean image nearest to a changed one is itself, for some rows: [Q], 0 to 1.

        Both sets are L2-normalized. Of n equally near ones each is found with probability 1 / n, so
        features that are all equal come to 1 / M, and of two copies each counts half.
        """
        parts = [np.empty(0)]
        for rows in _chunks(asked_Q):
            changed_BD = torch.tensor(changed_MD[rows], device=self.clean_MD.device)
            cosine_BM = changed_BD @ self.clean_MD.T
            places = torch.as_tensor(rows, device=cosine_BM.device)
            own_B1 = cosine_BM.gather(1, places[:, None])
            nearer_B = (cosine_BM > own_B1 + ALIKE).any(1)
            equal_B = (cosine_BM >= own_B1 - ALIKE).sum(1)  # itself among them
            parts.append(torch.where(nearer_B, 0.0, 1.0 / equal_B).cpu().double().numpy())
        return np.concatenate(parts)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]


def _uniformity(unit_MD: np.ndarray, seed: int) -> Estimate:
    if len(unit_MD) <= MOST_IN_PAIRS:
        return Estimate(uniformity(unit_MD), 0.0)
    return sampled_uniformity(unit_MD, PAIRS, generator(seed, "uniformity"))


def _asked(count: int, seed: int) -> np.ndarray:
    """Rows of the images whose nearest are searched, int64, ascending."""
    return np.sort(permutation(count, seed, "asked")[:MOST_ASKED])


def _also(found: SourceFeatures, rows: np.ndarray, source: Source) -> np.ndarray:
    """Features of images that could be read before. Raises `UserError` for one that cannot now."""
    if not np.isin(rows, found.rows).all():
        name = source.ids[int(np.setdiff1d(rows, found.rows)[0])]
        raise UserError(
            f"{source.spec}: {name} could be read, and now cannot; leave the images alone meanwhile"
        )
    return _of_rows(found, rows)


def _of_rows(found: SourceFeatures, rows: np.ndarray) -> np.ndarray:
    """Features of some images of the source, in memory."""
    return np.array(found.array[np.searchsorted(found.rows, rows)])


def _unit(raw_MD: np.ndarray) -> np.ndarray:
    """L2-normalized."""
    lengths_M1 = np.linalg.norm(raw_MD, axis=1, keepdims=True)
    return np.ascontiguousarray(raw_MD / np.maximum(lengths_M1, np.finfo(np.float32).tiny))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


BETTER: dict[str, Callable[[float, float], bool]] = {
    "rankme": float.__gt__,
    "alignment": float.__lt__,
    "alignment_share": float.__lt__,
    "uniformity": float.__lt__,
    "cosine": float.__gt__,
    "kept": float.__gt__,
    "retrieval": float.__gt__,
}


def _behind(result: UnlabeledResult, chance: UnlabeledResult) -> list[str]:
    """In which figures the untrained backbone is ahead, and how that is to be read."""
    ahead = [
        name
        for name, better in BETTER.items()
        if getattr(result, name) is not None
        and better(getattr(chance, name), getattr(result, name))
    ]
    if not ahead:
        return []
    return [
        f"The untrained backbone is ahead in {', '.join(ahead)}: these say nothing of what "
        "features are good for (random mixtures of pixels spread out and withstand noise, what "
        "hardly tells images apart is aligned); judge by k-NN or a linear probe if there are labels"
    ]
