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
images (`alignment_share`: 0 if two views are one, 1 if they are as far apart as two images are;
`kept`: the other way round), and where the untrained backbone is ahead a note says so. Read the
figures together, beside k-NN or a linear probe where there are labels.

Every corruption sees the same pictures whatever the model: the middle square at 256 x 256 px, after
that the model's own preprocessing. What is random in a crop or a corruption belongs to the seed and
to the image's pixels, so it does not depend on what else lies in the folder.

Of many images samples are taken, whose sizes are below. Where passes are kept their features stay
on the disk (memory-mapped), and in memory are one model's features at a time and 16 million
cosines; without, all passes of a corruption or all views are.

Shapes: M images, D dimensions, Q images of which neighbors are searched, B of them at a time.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_core.augment import MultiCrop, crop_views, plan_view
from dino_core.data import Source
from dino_core.errors import UserError, at_least
from dino_core.evaluation.corruptions import SIDE, STRENGTHS, key_of, require, spoiled
from dino_core.evaluation.passes import Look, Passing, features, kind_look
from dino_core.evaluation.results import UNTRAINED, Result, unreadable
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
K = 10  # neighbors that are compared
VIEWS = 2  # of each image, for alignment
VIEW_SCALE = (0.4, 1.0)  # share of the area that a view shows
MOST_IN_RANKME = 25_600  # images; as many as the paper takes
MOST_IN_PAIRS = 10_000  # images of which all pairs are taken; of more a sample of pairs
PAIRS = 1_000_000
MOST_ASKED = 10_000  # images whose nearest are searched, among all
MOST_COSINES = 2**24  # at a time
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


class Measure(NamedTuple):
    """A row of the table."""

    field: str
    title: str
    form: str
    better: int  # 1: more, -1: less
    scale: int = 1


MEASURES = (
    Measure("rankme", "RankMe", ".1f", better=1),
    Measure("alignment", "alignment", ".4f", better=-1),
    Measure("alignment_share", "alignment as a share", ".3f", better=-1),
    Measure("uniformity", "uniformity", ".3f", better=-1),
    Measure("cosine", "cosine after corruption", ".3f", better=1),
    Measure("kept", "kept after corruption", ".3f", better=1),
    Measure("retrieval", "% found again", ".1f", better=1, scale=100),
)


@dataclass(frozen=True, kw_only=True)
class UnlabeledResult(Result):
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
    moved_most: list[Moved] = field(repr=False)  # by all corruptions, the most first
    moved_least: list[Moved] = field(repr=False)
    dim: int
    images: int
    data: str
    data_hash: str
    k: int
    views: int
    corruptions: list[str]
    severities: list[int]
    seed: int

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(12, *(len(name) + 2 for name in rows))
        lines = [f"{'':28}" + "".join(f"{name:>{width}}" for name in rows)]

        def row(title: str, values: Sequence[float | None], form: str, scale: int) -> None:
            told = [f"{scale * value:>{width}{form}}" for value in values if value is not None]
            if told:
                lines.append(f"{title:28}" + "".join(told))

        for one in MEASURES:
            values = [getattr(result, one.field) for result in rows.values()]
            row(one.title, values, one.form, one.scale)
        for which in zip(*(result.robustness for result in rows.values()), strict=True):
            title = f"  {which[0].corruption.replace('_', ' ')}, {which[0].severity}"
            row(title, [one.retrieval for one in which], ".1f", 100)
        for name, share in self.overlap.items():
            lines.append(f"{share:.1%} of the {self.k} nearest neighbors are shared with {name}")
        if self.overlap:
            lines.append(f"{self.overlap_by_chance:.1%} would be by chance")
        lines.append(f"{self.images:,} images, features of {self.dim:,} dimensions")
        return "\n".join(lines + self.notes)


@dataclass(frozen=True)
class _Asked:
    """What is asked, whichever model answers."""

    source: Source
    rows: np.ndarray  # int64 [M]: of the source, the images that all models could read
    compared: np.ndarray  # int64 [Q]: of these, the ones whose nearest are searched
    spoiling: list[tuple[str, int]]  # corruption, severity
    k: int
    views: int
    seed: int
    passing: Passing


def evaluate(
    model: Model,
    source: Source,
    *,
    other: Sequence[Model] = (),
    corruptions: Sequence[str] = tuple(STRENGTHS),
    severities: Sequence[int] = SEVERITIES,
    k: int = K,
    views: int = VIEWS,
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
    raw, rows, bad = _clean(models, source, passing)
    notes += unreadable(bad)
    if k > len(rows) - 1:
        notes.append(f"k = {k} counts as {len(rows) - 1}: there are no more other images")
        k = len(rows) - 1
    compared = _compared(len(rows), seed)
    if len(compared) < len(rows):
        notes.append(f"neighbors were searched of {len(compared):,} images, among all")
    asked = _Asked(source, rows, compared, spoiling, k, views, seed, passing)
    nearest = {name: nearest_others(_unit(array), compared, k)[0] for name, array in raw.items()}
    first = next(iter(models))
    result = _judged(first, model, raw[first], nearest, asked)
    if random_init:
        twin = _judged(UNTRAINED, models[UNTRAINED], raw[UNTRAINED], nearest, asked)
        result = replace(result, random_init=twin)
        notes += _behind(result, twin)
    return replace(result, notes=notes)


def _judged(
    name: str, model: Model, raw_MD: np.ndarray, nearest: dict[str, np.ndarray], asked: _Asked
) -> UnlabeledResult:
    """The protocol for one model, its neighbors and those of all others being known."""
    apart, spread = _spread(raw_MD, asked.seed)
    aligned = _alignment(model, asked)
    source, spoiling = asked.source, asked.spoiling
    return UnlabeledResult(
        rankme=_rankme(raw_MD, asked.seed),
        alignment=aligned,
        alignment_share=aligned / apart if apart > ALIKE else 1.0,
        uniformity=spread.value,
        uniformity_error=spread.error,
        overlap={
            other: float(neighbor_overlap(nearest[name], theirs, asked.k).mean())
            for other, theirs in nearest.items()
            if other != name
        },
        overlap_by_chance=overlap_by_chance(len(asked.rows), asked.k),
        **_robustness(model, asked),
        dim=raw_MD.shape[1],
        images=len(asked.rows),
        model=model.spec,
        model_hash=model.hash,
        data=source.spec,
        data_hash=source_hash(source),
        k=asked.k,
        views=asked.views,
        corruptions=list(dict.fromkeys(corruption for corruption, _ in spoiling)),
        severities=sorted({severity for _, severity in spoiling}),
        seed=asked.seed,
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
) -> tuple[dict[str, np.ndarray], np.ndarray, list[tuple[str, str]]]:
    """Each model's class tokens as they are, of the images that all could read; their rows; and
    (id, reason) of the others."""
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
    bad = {name: reason for one in found.values() for name, reason in one.bad}
    return {name: _of_rows(one, rows) for name, one in found.items()}, rows, list(bad.items())


def _rankme(raw_MD: np.ndarray, seed: int) -> float:
    sampled = permutation(len(raw_MD), seed, "rankme")[:MOST_IN_RANKME]
    return rankme(raw_MD[np.sort(sampled)])


def _spread(raw_MD: np.ndarray, seed: int) -> tuple[float, Estimate]:
    """The mean squared distance of L2-normalized features, and their uniformity."""
    unit_MD = _unit(raw_MD)
    if len(unit_MD) <= MOST_IN_PAIRS:
        spread = Estimate(uniformity(unit_MD), 0.0)
    else:
        spread = sampled_uniformity(unit_MD, PAIRS, generator(seed, "uniformity"))
    return mean_squared_distance(unit_MD), spread


def _alignment(model: Model, asked: _Asked) -> float:
    """Over all pairs of views."""
    base = kind_look(model)
    found = []
    for number in range(asked.views):
        how = {"scale": list(VIEW_SCALE), "view": number, "seed": asked.seed}
        look = replace(
            base,
            name=f"view {number + 1}",
            prepare=partial(view, info=model.info, number=number, seed=asked.seed),
            settings={**base.settings, **how},
        )
        found.append(_also(model, look, asked))
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


def _robustness(model: Model, asked: _Asked) -> dict[str, Any]:
    """What each corruption does, its means, and who was moved: fields of the result."""
    figures: list[Robustness] = []
    order, mean_M = np.empty(0, np.int64), np.zeros(len(asked.rows))
    if asked.spoiling:
        clean_MD = _also(model, _spoiled_look(model), asked)
        between = 1 - mean_squared_distance(clean_MD) / 2  # mean cosine of different images
        search = Search(clean_MD, model.device)
        for name, severity in asked.spoiling:
            spoiled_MD = _also(model, _spoiled_look(model, name, severity, asked.seed), asked)
            cosine_M = np.einsum("md,md->m", clean_MD, spoiled_MD, dtype=np.float64)
            mean_M += cosine_M / len(asked.spoiling)
            cosine = float(cosine_M.mean())
            kept = (cosine - between) / (1 - between) if between < 1 - ALIKE else 0.0
            again = float(search.found_again(spoiled_MD, asked.compared).mean())
            figures.append(Robustness(name, severity, cosine, kept, again))
        order = np.argsort(mean_M, kind="stable")

    def moved(places: np.ndarray) -> list[Moved]:
        ids, rows = asked.source.ids, asked.rows
        return [Moved(ids[int(rows[at])], float(mean_M[at])) for at in places]

    return {
        "cosine": _mean([one.cosine for one in figures]),
        "kept": _mean([one.kept for one in figures]),
        "retrieval": _mean([one.retrieval for one in figures]),
        "robustness": figures,
        "moved_most": moved(order[:SHOWN]),
        "moved_least": moved(order[::-1][:SHOWN]),
    }


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
        self.clean_MD = torch.as_tensor(clean_MD).to(device)

    def found_again(self, changed_MD: np.ndarray, compared_Q: np.ndarray) -> np.ndarray:
        """Whether the clean image nearest to a changed one is itself, for some rows: [Q], 0 to 1.

        Both sets are L2-normalized. Of n equally near ones each is found with probability 1 / n, so
        features that are all equal come to 1 / M, and of two copies each counts half.
        """
        found = [np.empty(0)]
        for rows in self._parts(compared_Q):
            changed_BD = torch.as_tensor(changed_MD[rows]).to(self.clean_MD.device)
            cosine_BM = changed_BD @ self.clean_MD.T
            places = torch.as_tensor(rows, device=cosine_BM.device)
            own_B1 = cosine_BM.gather(1, places[:, None])
            nearer_B = (cosine_BM > own_B1 + ALIKE).any(1)
            equal_B = (cosine_BM >= own_B1 - ALIKE).sum(1)  # itself among them
            found.append(torch.where(nearer_B, 0.0, 1.0 / equal_B).cpu().double().numpy())
        return np.concatenate(found)

    def _parts(self, rows_Q: np.ndarray) -> Iterator[np.ndarray]:
        """As many rows at a time as may be compared with all."""
        at_once = max(1, MOST_COSINES // len(self.clean_MD))
        for start in range(0, len(rows_Q), at_once):
            yield rows_Q[start : start + at_once]


def _compared(count: int, seed: int) -> np.ndarray:
    """Rows of the images whose nearest are searched, int64, ascending."""
    return np.sort(permutation(count, seed, "asked")[:MOST_ASKED])


def _also(model: Model, look: Look, asked: _Asked) -> np.ndarray:
    """Features of the images that could be read before; a `UserError` if one cannot now."""
    source, rows = asked.source, asked.rows
    found = features(model, source, look, asked.passing)
    if not np.isin(rows, found.rows).all():
        name = source.ids[int(np.setdiff1d(rows, found.rows)[0])]
        raise UserError(
            f"{source.spec}: {name} could be read, and now cannot; leave the images alone meanwhile"
        )
    return _of_rows(found, rows)


def _of_rows(found: SourceFeatures, rows: np.ndarray) -> np.ndarray:
    """Features of some images of the source, not copied where these are all."""
    if len(rows) == len(found.rows):
        return found.array
    return found.array[np.searchsorted(found.rows, rows)]


def _unit(raw_MD: np.ndarray) -> np.ndarray:
    """L2-normalized."""
    return torch.nn.functional.normalize(torch.as_tensor(raw_MD), dim=1).numpy()


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _behind(result: UnlabeledResult, twin: UnlabeledResult) -> list[str]:
    """In which figures the untrained backbone is ahead, and how that is to be read."""
    ahead = []
    for one in MEASURES:
        own, other = getattr(result, one.field), getattr(twin, one.field)
        if own is not None and one.better * (other - own) > 0:
            ahead.append(one.title)
    if not ahead:
        return []
    return [
        f"The untrained backbone is ahead in {', '.join(ahead)}: these say nothing of what "
        "features are good for (random mixtures of pixels spread out and withstand noise, what "
        "hardly tells images apart is aligned); judge by k-NN or a linear probe if there are labels"
    ]
