"""Image retrieval on revisited Oxford and Paris: does a picture of a building find its others?

Published protocol (DINO, section 4.3 and its eval_image_retrieval script): class tokens of images
whose longer side is 224 px (Oxford) or 512 px (Paris, the mean of three scales), L2-normalized;
all images of the database ranked by cosine; mean average precision and precision at k, `easy`,
`medium` and `hard` (see `measures/ranking.py`).

    result = evaluate(load_model("starter"), open_source("roxford5k"))
    print(result.table())

Images keep their shape. What is left beside the whole patches, at the right and at the bottom, is
cut off at each scale: the published model's patch embedding leaves out the same pixels.

Shapes: B images, C channels, H x W pixels, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.evaluation.ground_truth import (
    GroundTruth,
    Query,
    find_ground_truth,
    places_of,
    read_ground_truth,
)
from dino_core.evaluation.masks import left_out
from dino_core.evaluation.passes import Look, Passing, features
from dino_core.gallery.features import SourceFeatures
from dino_core.gallery.images import source_hash
from dino_core.measures import ranking
from dino_core.models import Backbone, Model, ModelInfo, untrained
from dino_core.models.packed import can_pack, class_tokens
from dino_core.models.preprocess import by_band, require_channels
from dino_core.models.vit import VitBackbone

SCALES = (1.0, 2**-0.5, 0.5)
PUBLISHED = {"roxford5k": (224, False), "rparis6k": (512, True)}  # longer side, several scales
SMALLEST = 32  # pixels a side for networks without patches, which halve an image five times
SHOWN = 5  # first images of every query, for a report
DIFFICULTIES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Answer:
    """What one query got; ranks are counted without its junk."""

    query: str
    ap_easy: float | None  # percent; None where there is nothing to be found
    ap_medium: float | None
    ap_hard: float | None
    nearest: list[str]  # the first images, the most similar first
    right: list[bool]  # whether each of them is easy or hard
    first_wrong: str | None
    first_wrong_rank: int | None  # from 1


@dataclass(frozen=True)
class RetrievalResult:
    """Mean average precision and mean precision at 1, 5 and 10, in percent.

    None where no query has anything to be found. The published figures are medium and hard.
    """

    map_easy: float | None
    map_medium: float | None
    map_hard: float | None
    mp1_easy: float | None
    mp5_easy: float | None
    mp10_easy: float | None
    mp1_medium: float | None
    mp5_medium: float | None
    mp10_medium: float | None
    mp1_hard: float | None
    mp5_hard: float | None
    mp10_hard: float | None
    queries: int  # that were asked
    images: int  # that were searched
    answers: list[Answer]
    model: str
    model_hash: str
    data: str
    data_hash: str
    ground_truth: str  # its name
    ground_truth_hash: str  # sha256 of the file
    size: int  # pixels of the longer side
    multiscale: bool
    as_published: bool
    notes: list[str]  # sentences: what was left out and why
    random_init: "RetrievalResult | None" = None  # the same for the untrained backbone

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        named = {self.model: self, "untrained": self.random_init}
        rows = {name: row for name, row in named.items() if row is not None}
        width = max(map(len, [*rows, "%"]))
        heads = "".join(f"{f'mAP {name}':>12}" for name in DIFFICULTIES)
        lines = [f"{'%':{width}}{heads}{'mP@1':>8}{'mP@5':>8}{'mP@10':>8}  (medium)"]
        for name, row in rows.items():
            means = "".join(_told(getattr(row, f"map_{one}"), 12) for one in DIFFICULTIES)
            firsts = "".join(_told(getattr(row, f"mp{k}_medium"), 8) for k in ranking.KS)
            lines.append(f"{name:{width}}{means}{firsts}")
        lines.append(
            f"{self.ground_truth}: {self.queries:,} queries, {self.images:,} images of at most "
            f"{self.size} px{' at three scales' if self.multiscale else ''}"
        )
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    ground_truth: Path | None = None,
    *,
    size: int | None = None,
    multiscale: bool | None = None,
    as_published: bool = False,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> RetrievalResult:
    """Ask `source`'s images for what each query of the ground truth shows.

    `ground_truth`: `gnd_NAME.pkl` or `.json` (None: the one beside the images or in the folder
    above); `size`: longer side in pixels; `multiscale`: the mean of the features at 1, 1/sqrt(2)
    and 1/2 of that. Where not given these two are as published for roxford5k and rparis6k, and 224
    at one scale for others.

    The benchmark has queries cut to the box around what is asked for; the published script asks
    with whole images, and divides the mean over scales by the norm of the whole batch instead of
    each image's own (which no figure shows: features are L2-normalized afterwards). `as_published`
    does both.

    Raises `UserError` without ground truth, or when none of its images or queries is there.
    """
    truth = read_ground_truth(ground_truth or find_ground_truth(source.root))
    default_size, default_scales = PUBLISHED.get(truth.name, (224, False))
    size = default_size if size is None else size
    multiscale = default_scales if multiscale is None else multiscale
    if size < _least(model.backbone):
        raise UserError(
            f"--size {size}: {model.spec} needs images of {_least(model.backbone)} px or more"
        )
    asked = _Benchmark.found(truth, source, boxes=not as_published)
    look = _look(model, size, multiscale, as_published)
    # One image at a time: each has its own shape.
    passing = replace(passing, batch_size=1)
    result = RetrievalResult(
        **_figures(model, asked, look, passing),
        model=model.spec,
        model_hash=model.hash,
        data=source.spec,
        data_hash=source_hash(source),
        ground_truth=truth.name,
        ground_truth_hash=truth.digest,
        size=size,
        multiscale=multiscale,
        as_published=as_published,
    )
    if not random_init:
        return result
    baseline = untrained(model)
    figures = _figures(baseline, asked, look, passing)
    return replace(
        result,
        random_init=replace(result, **figures, model=baseline.spec, model_hash=baseline.hash),
    )


class Asked(Source):
    """Some images of a source, in a new order, each cut to its box where it has one.

    `places`: in `source`; `boxes`: left, top, right, bottom in pixels, or None, for each.
    """

    def __init__(
        self,
        source: Source,
        places: Sequence[int],
        boxes: Sequence[tuple[float, float, float, float] | None],
    ) -> None:
        self.source, self.places, self.boxes = source, list(places), list(boxes)
        self.spec, self.root, self.channels = source.spec, source.root, source.channels
        self.ids = [source.ids[place] for place in places]
        self.classes, self.notes = [], []

    def read(self, i: int) -> bytes:
        """The bytes of the whole image's file."""
        return self.source.read(self.places[i])

    def image(self, i: int) -> np.ndarray:
        """The part of image `i` within its box; `BadImage` where nothing of it is."""
        image = self.source.image(self.places[i])
        box = self.boxes[i]
        if box is None:
            return image
        left, top, right, bottom = (max(0, round(value)) for value in box)
        part = image[top:bottom, left:right]
        if not part.size:
            raise BadImage("its box lies outside of the image")
        return np.ascontiguousarray(part)

    def path(self, i: int) -> Path | None:
        """The file of the whole image."""
        return self.source.path(self.places[i])


@dataclass(frozen=True)
class _Benchmark:
    """A ground truth and the images that are there for it."""

    truth: GroundTruth
    database: Asked
    numbers: np.ndarray  # int64: of each image of `database`, its place in `truth.images`
    queries: Asked
    entries: list[Query]  # of each image of `queries`
    notes: list[str]

    @classmethod
    def found(cls, truth: GroundTruth, source: Source, boxes: bool) -> "_Benchmark":
        """Match names to images; a `UserError` where none is there."""
        names = [query.name for query in truth.queries]
        places = places_of(truth.images, source.ids, source.spec)
        asked = places_of(names, source.ids, source.spec)
        for what, wanted, there in (("image", truth.images, places), ("query", names, asked)):
            if not any(place is not None for place in there):
                raise UserError(
                    f"{source.spec}: has no {what} of {truth.name} (such as {wanted[0]}); name the "
                    "folder that holds its images"
                )
        numbers = [i for i, place in enumerate(places) if place is not None]
        entries = [one for one, at in zip(truth.queries, asked, strict=True) if at is not None]
        missing = [names[i] for i, at in enumerate(asked) if at is None]
        missing += [truth.images[i] for i, place in enumerate(places) if place is None]
        return cls(
            truth,
            Asked(source, [at for at in places if at is not None], [None] * len(numbers)),
            np.array(numbers, np.int64),
            Asked(
                source,
                [at for at in asked if at is not None],
                [entry.box if boxes else None for entry in entries],
            ),
            entries,
            left_out(missing, "is not there", "are not there"),
        )


def _look(model: Model, size: int, multiscale: bool, as_published: bool) -> Look:
    scales = SCALES if multiscale else SCALES[:1]
    settings = {"size": size, "scales": list(scales), "as_published": as_published}
    return Look(
        name="cls of whole images",
        prepare=partial(thumbnail, size=size, info=model.info),
        tokens=partial(multi_scale, scales=scales, as_published=as_published),
        dim=model.backbone.embed_dim,
        settings=settings | {"mean": list(model.info.mean), "std": list(model.info.std)},
    )


def thumbnail(image: np.ndarray, size: int, info: ModelInfo) -> Tensor:
    """uint8 [H, W, C] made smaller, never larger, until no side is above `size` px; a tensor.

    Lanczos, as published; raises `UserError` when the image has other channels than the model.
    """
    require_channels(image, info)

    def small(band: Image.Image) -> np.ndarray:
        band.thumbnail((size, size), Image.Resampling.LANCZOS)
        return np.asarray(band)

    return torch.from_numpy(np.array(by_band(small, image)))


def multi_scale(
    backbone: Backbone,
    x_BCHW: Tensor,
    scales: Sequence[float] = SCALES,
    as_published: bool = False,
) -> Tensor:
    """The mean of the class tokens at several scales, L2-normalized: [B, D].

    Images are resized bilinearly without antialiasing, as published. `as_published` divides by the
    norm of the whole batch, which leaves images of a batch at length 1 only if there is just one.
    """
    least = _least(backbone)
    sizes = [_whole_patches(_scaled(x_BCHW, scale, least), backbone) for scale in scales]
    mean_BD = _class_tokens(backbone, sizes).unflatten(0, (len(sizes), -1)).mean(0)
    return mean_BD / mean_BD.norm() if as_published else F.normalize(mean_BD, dim=1)


def _class_tokens(backbone: Backbone, groups: Sequence[Tensor]) -> Tensor:
    """The class tokens of images of several sizes, those of the first group first."""
    if isinstance(backbone, VitBackbone) and can_pack(backbone):
        return class_tokens(backbone, groups)
    return torch.cat([backbone(x_BCHW) for x_BCHW in groups])


def _scaled(x_BCHW: Tensor, scale: float, least: int) -> Tensor:
    """Resized by `scale`; a side that would be below `least` pixels is made that long."""
    sides = [math.floor(side * scale) for side in x_BCHW.shape[-2:]]
    if min(sides) < least:
        sides = [max(side, least) for side in sides]
        return F.interpolate(x_BCHW, sides, mode="bilinear", align_corners=False)
    if scale == 1:
        return x_BCHW
    return F.interpolate(x_BCHW, scale_factor=scale, mode="bilinear", align_corners=False)


def _whole_patches(x_BCHW: Tensor, backbone: Backbone) -> Tensor:
    """Without the pixels at the right and at the bottom that fill no patch."""
    height, width = (side - side % backbone.patch_size for side in x_BCHW.shape[-2:])
    return x_BCHW[..., :height, :width]


def _least(backbone: Backbone) -> int:
    """The shortest side in pixels that the network takes."""
    return backbone.patch_size if backbone.patch_size > 1 else SMALLEST


def _figures(model: Model, asked: _Benchmark, look: Look, passing: Passing) -> dict[str, Any]:
    """What the result says of one model."""
    database = features(model, asked.database, look, passing)
    boxed = look.settings | {"boxes": [box and list(box) for box in asked.queries.boxes]}
    queries = features(model, asked.queries, replace(look, settings=boxed), passing)
    for found, what in ((database, "images"), (queries, "queries")):
        if not len(found.rows):
            raise UserError(f"{asked.database.spec}: none of the {what} can be read")
    judged, answers = _judged(asked, database, queries, model.device)
    means = {name: ranking.averaged([one[name] for one in judged]) for name in DIFFICULTIES}
    figures: dict[str, Any] = {}
    for name, mean in means.items():
        figures[f"map_{name}"] = _percent(mean.mean_ap)
        figures |= {f"mp{k}_{name}": _percent(mean.precision[k]) for k in ranking.KS}
    bad = [name for found in (queries, database) for name, _ in found.bad]
    return figures | {
        "queries": len(queries.rows),
        "images": len(database.rows),
        "answers": answers,
        "notes": asked.notes + left_out(bad, "cannot be read", "cannot be read"),
    }


def _judged(
    asked: _Benchmark, database: SourceFeatures, queries: SourceFeatures, device: torch.device
) -> tuple[list[dict[str, ranking.Judged | None]], list[Answer]]:
    """Every query's ranking, judged and told. What could not be read is not looked for."""
    numbers = asked.numbers[database.rows]
    searched = torch.from_numpy(np.array(database.array)).to(device)
    orders = ranking.rankings(np.array(queries.array), searched)
    judged, answers = [], []
    for row, order in zip(queries.rows, orders, strict=True):
        entry = asked.entries[row]
        easy, hard, junk = (
            np.intersect1d(places, numbers) for places in (entry.easy, entry.hard, entry.junk)
        )
        found = ranking.by_difficulty(numbers[order], easy, hard, junk)
        judged.append(found)
        kept = order[~np.isin(numbers[order], junk)]
        right = np.isin(numbers[kept], np.concatenate([easy, hard]))
        answers.append(_answer(asked, int(row), found, database.rows[kept], right))
    return judged, answers


def _answer(
    asked: _Benchmark,
    row: int,
    found: dict[str, ranking.Judged | None],
    kept: np.ndarray,
    right: np.ndarray,
) -> Answer:
    """`kept`: rows of the database without junk, the most similar first; `right`: of each."""
    ids = asked.database.ids
    wrong = int(right.argmin()) if not right.all() else None
    aps = {name: _percent(None if one is None else one.ap) for name, one in found.items()}
    return Answer(
        query=asked.queries.ids[row],
        ap_easy=aps["easy"],
        ap_medium=aps["medium"],
        ap_hard=aps["hard"],
        nearest=[ids[at] for at in kept[:SHOWN]],
        right=[bool(value) for value in right[:SHOWN]],
        first_wrong=None if wrong is None else ids[kept[wrong]],
        first_wrong_rank=None if wrong is None else wrong + 1,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _told(percent: float | None, width: int) -> str:
    return f"{'-' if percent is None else f'{percent:.2f}':>{width}}"
