"""Image retrieval on revisited Oxford and Paris: does a picture of a building find its others?

Published protocol (DINO, section 4.2.1 and its eval_image_retrieval script): class tokens of images
whose longer side is 224 px (Oxford) or 512 px (Paris, the mean of three scales), L2-normalized;
all images of the database ranked by cosine; mean average precision and precision at k, `easy`,
`medium` and `hard` (see `measures/ranking.py`).

    result = evaluate(load_model("starter"), open_source("roxford5k"))
    print(result.table())

Images keep their shape. What is left beside the whole patches, at the right and at the bottom, is
cut off at each scale: the published model's patch embedding leaves out the same pixels.

Unlike the published script, which takes files as they are stored, images are turned upright as
their EXIF says, and one that is cut off is left out and named instead of filled up with gray.

Shapes: B images, C channels, H x W pixels, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from dino_core.evaluation.passes import Look, Passing, features
from dino_core.evaluation.results import Result, left_out, unreadable
from dino_core.gallery.features import SourceFeatures
from dino_core.gallery.images import source_hash
from dino_core.measures import ranking
from dino_core.models import Backbone, Model, ModelInfo, untrained
from dino_core.models.packed import can_pack, class_tokens
from dino_core.models.preprocess import by_band, require_channels
from dino_core.models.vit import VitBackbone

SCALES = (1.0, 2**-0.5, 0.5)
SIZE = 224  # pixels of the longer side
PUBLISHED = {"roxford5k": (SIZE, False), "rparis6k": (512, True)}  # size, whether several scales
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


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(Result):
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
    answers: list[Answer] = field(repr=False)
    data: str
    data_hash: str
    ground_truth: str  # its name
    ground_truth_hash: str  # sha256 of the file
    size: int  # pixels of the longer side
    multiscale: bool
    as_published: bool

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
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

    The benchmark has queries cut to the box around what is asked for. The published script asks
    with whole images, and so does `as_published`. (That script also divides the mean over scales by
    the norm of the whole batch, which changes nothing: its batches are of one image, and it
    L2-normalizes each feature before it ranks.)

    Raises `UserError` without ground truth, or when none of its images or queries is there.
    """
    truth = read_ground_truth(ground_truth or find_ground_truth(source.root))
    default_size, default_scales = PUBLISHED.get(truth.name, (SIZE, False))
    size = default_size if size is None else size
    least = _least(model.backbone)
    if size < least:
        raise UserError(f"--size {size}: {model.spec} needs images of {least} px or more")
    asked = _Benchmark.found(
        truth,
        source,
        size=size,
        multiscale=default_scales if multiscale is None else multiscale,
        as_published=as_published,
    )
    result = _judged(model, asked, passing)
    if random_init:
        result = replace(result, random_init=_judged(untrained(model), asked, passing))
    return result


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
    """A ground truth, the images that are there for it, and how they are looked at."""

    truth: GroundTruth
    source: Source
    database: Asked
    numbers: np.ndarray  # int64: of each image of `database`, its place in `truth.images`
    queries: Asked
    entries: list[Query]  # of each image of `queries`
    size: int
    multiscale: bool
    as_published: bool
    notes: list[str]

    @classmethod
    def found(
        cls, truth: GroundTruth, source: Source, *, size: int, multiscale: bool, as_published: bool
    ) -> "_Benchmark":
        """Match names to images; a `UserError` where none is there."""
        names = [query.name for query in truth.queries]
        places, no_images = _matched("images", truth.images, truth, source)
        asked, no_queries = _matched("queries", names, truth, source)
        entries = [one for one, at in zip(truth.queries, asked, strict=True) if at is not None]
        numbers = [number for number, at in enumerate(places) if at is not None]
        return cls(
            truth=truth,
            source=source,
            database=Asked(source, [at for at in places if at is not None], [None] * len(numbers)),
            numbers=np.array(numbers, np.int64),
            queries=Asked(
                source,
                [at for at in asked if at is not None],
                [None if as_published else entry.box for entry in entries],
            ),
            entries=entries,
            size=size,
            multiscale=multiscale,
            as_published=as_published,
            notes=no_queries + no_images,
        )


def _matched(
    what: str, names: Sequence[str], truth: GroundTruth, source: Source
) -> tuple[list[int | None], list[str]]:
    """The place of each name, None where it is not there, and a sentence of those that are not."""
    places = places_of(names, source.ids, source.spec)
    missing = [name for name, at in zip(names, places, strict=True) if at is None]
    of_all = f"of the {len(names):,} {what} of {truth.name}"
    if len(missing) == len(names):
        raise UserError(
            f"{source.spec}: has none {of_all} (such as {names[0]}); name the folder that holds "
            "them, or with --ground-truth the file that belongs to these images"
        )
    return places, left_out(missing, f"{of_all} is not there", f"{of_all} are not there")


def _look(model: Model, asked: _Benchmark) -> Look:
    scales = SCALES if asked.multiscale else SCALES[:1]
    info = model.info
    return Look(
        name="cls of whole images",
        prepare=partial(thumbnail, size=asked.size, info=info),
        tokens=partial(multi_scale, scales=scales),
        dim=model.backbone.embed_dim,
        settings={
            "size": asked.size,
            "scales": list(scales),
            "mean": list(info.mean),
            "std": list(info.std),
        },
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


def multi_scale(backbone: Backbone, x_BCHW: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """The mean of the class tokens at several scales: [B, D], not normalized.

    Images are resized bilinearly without antialiasing, as published.
    """
    least = _least(backbone)
    sizes = [_whole_patches(_scaled(x_BCHW, scale, least), backbone) for scale in scales]
    return _class_tokens(backbone, sizes).unflatten(0, (len(sizes), -1)).mean(0)


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


def _judged(model: Model, asked: _Benchmark, passing: Passing) -> RetrievalResult:
    """The protocol for one model."""
    look = _look(model, asked)
    # One image at a time: each has its own shape.
    passing = replace(passing, batch_size=1)
    database = features(model, asked.database, look, passing)
    boxed = look.settings | {"boxes": [box and list(box) for box in asked.queries.boxes]}
    queries = features(model, asked.queries, replace(look, settings=boxed), passing)
    for found, what in ((database, "images"), (queries, "queries")):
        if not len(found.rows):
            raise UserError(f"{asked.source.spec}: none of the {what} can be read")
    judged, answers = _answered(asked, database, queries, model.device)
    return RetrievalResult(
        **_means(judged),
        queries=len(queries.rows),
        images=len(database.rows),
        answers=answers,
        data=asked.source.spec,
        data_hash=source_hash(asked.source),
        ground_truth=asked.truth.name,
        ground_truth_hash=asked.truth.digest,
        size=asked.size,
        multiscale=asked.multiscale,
        as_published=asked.as_published,
        model=model.spec,
        model_hash=model.hash,
        notes=asked.notes + unreadable([*queries.bad, *database.bad]),
    )


def _means(judged: Sequence[dict[str, ranking.Judged | None]]) -> dict[str, Any]:
    """The figures of the result by name: means over queries, in percent."""
    figures: dict[str, Any] = {}
    for name in DIFFICULTIES:
        mean = ranking.averaged([one[name] for one in judged])
        figures[f"map_{name}"] = _percent(mean.mean_ap)
        figures |= {f"mp{k}_{name}": _percent(mean.precision[k]) for k in ranking.KS}
    return figures


def _answered(
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
