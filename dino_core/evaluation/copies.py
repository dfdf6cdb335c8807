"""Copy detection as on Copydays: is the original found again after crops, prints and paint?

Published protocol (DINO, section 4.2.1 and its eval_copy_detection script): images squeezed to
320 x 320 px, class token beside the generalized mean of the patch tokens, cosine; each strong copy
asks originals and distractors, of its 20 nearest the average precision of its original counts.
Features may be whitened first, by what other images have in common (see `measures/whitening.py`).

    originals, copies = open_pairs(Path("copydays"))
    result = evaluate(load_model("starter"), originals, copies, whitening=open_source("others"))
    print(result.table())

Which copy belongs to which original is told by one of:

    a table     a CSV with the columns copy and original; several rows for several originals
    Copydays    where all names are six digits: the first four are alike (200001 is of 200000)
    names       the longest original's name that the copy's begins with, up to its end or to a sign
                that is no letter or digit: cat_crop.jpg, cat.blur.png and crops/cat.jpg are of
                cat.jpg, cats.jpg is not

Shapes: H x W pixels, C channels, S pixels a side, M images, D dimensions.
"""

import csv
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_core.data import Source, open_source
from dino_core.errors import UserError, at_least
from dino_core.evaluation.ground_truth import by_tail, places_of
from dino_core.evaluation.passes import Look, Passing, features
from dino_core.evaluation.results import Result, left_out, unreadable
from dino_core.gallery.features import SourceFeatures, cls_and_gem, feature_dim
from dino_core.gallery.images import source_hash
from dino_core.measures.ranking import average_precision, top_ranks
from dino_core.measures.whitening import Whitening, learn_whitening
from dino_core.models import Model, ModelInfo, untrained
from dino_core.models.preprocess import by_band, require_channels

SIZE = 320
TOP = 20  # neighbors that count; an original further back is not found
ORIGINALS, COPIES = ("original", "originals"), ("strong", "copies")  # folders, Copydays' first
ROWS_AT_ONCE = 8192

_COPYDAYS = re.compile(r"[0-9]{6}")
_BLOCK = 4  # digits that an original and its copies share


@dataclass(frozen=True)
class Answer:
    """What one copy got."""

    copy: str
    originals: list[str]
    ap: float  # percent
    rank: int | None  # of the first original, from 1; None where it is not among the nearest
    first_wrong: str | None  # the nearest image that is no original of it
    is_distractor: bool  # whether that one is
    margin: float | None  # cosine of the first original minus that one's, -2..2, where both are


@dataclass(frozen=True, kw_only=True)
class CopiesResult(Result):
    """Mean average precision over the copies, in percent."""

    map: float  # the published figure (strong copies)
    top1: float  # copies whose nearest image is an original of theirs
    queries: int  # copies that asked
    images: int  # that were searched: originals and distractors
    answers: list[Answer] = field(repr=False)
    data: str  # the copies
    data_hash: str
    originals: str
    originals_hash: str
    distractors: str | None
    distractors_hash: str | None
    whitening: str | None
    whitening_hash: str | None
    whitening_dim: int | None  # axes that were asked for; None: as many as the images span
    axes: int | None  # that whitening kept; None: features are not whitened
    matched_by: str  # "table", "Copydays" or "names"
    size: int  # pixels a side
    as_published: bool

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(map(len, [*rows, "%"]))
        lines = [f"{'%':{width}}     mAP   top-1"]
        lines += [f"{name:{width}}{row.map:8.2f}{row.top1:8.2f}" for name, row in rows.items()]
        how = "not whitened"
        if self.whitening is not None:
            how = f"whitened by {self.whitening} ({self.axes:,} axes)"
        lines.append(f"{self.queries:,} copies, {self.images:,} images searched, {how}")
        return "\n".join(lines + self.notes)


def open_pairs(folder: Path) -> tuple[Source, Source]:
    """Originals and copies of a folder that holds both: `original/` and `strong/` as Copydays has
    them, or `originals/` and `copies/`. A `UserError` where either is not there."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds originals and copies")
    found = []
    for names in (ORIGINALS, COPIES):
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is None:
            raise UserError(
                f"{folder}: has no folder {names[0]} or {names[1]}; originals lie in `original` "
                "or `originals`, copies in `strong` or `copies`"
            )
        found.append(open_source(place))
    return found[0], found[1]


def evaluate(
    model: Model,
    originals: Source,
    copies: Source,
    *,
    pairs: Path | None = None,
    distractors: Source | None = None,
    whitening: Source | None = None,
    whitening_dim: int | None = None,
    size: int = SIZE,
    as_published: bool = False,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> CopiesResult:
    """Look for the original of each copy among `originals` and `distractors`.

    `pairs`: a CSV of copies and originals (None: told by their names, see the top of this file);
    `whitening`: images that whitening is learned from, `whitening_dim` axes of it (None: as many
    as they span); `size`: pixels a side, rounded down to whole patches.

    The published covariance is that of features which are not centered, though what it whitens is,
    and all axes are kept, also those that too few images cannot tell. Here it is centered, and axes
    are those that the images span; `as_published` repeats the published way.

    Raises `UserError` when no copy belongs to an original, for a table that names what is not
    there, or when too few images can be read.
    """
    at_least(1, whitening_dim=whitening_dim)
    if whitening_dim is not None and whitening is None:
        raise UserError(
            f"--whitening-dim {whitening_dim}: nothing is whitened; name images with --whitening"
        )
    if copies.spec == originals.spec:
        raise UserError(f"{copies.spec}: is both copies and originals; name a folder of each")
    patch = model.backbone.patch_size
    if size < patch:
        raise UserError(f"--size {size}: {model.spec} needs images of {patch} px or more")
    whole = size - size % patch
    notes = [f"images are {whole} px a side: whole patches"] if whole < size else []
    belongs, matched_by, unmatched = matched(copies, originals, pairs)
    notes += left_out(unmatched, "belongs to no original", "belong to no original")
    search = _Search(
        originals, copies, belongs, matched_by, distractors, whitening, whitening_dim, whole,
        as_published, notes,
    )  # fmt: skip
    result = _judged(model, search, passing)
    if random_init:
        result = replace(result, random_init=_judged(untrained(model), search, passing))
    return result


def matched(
    copies: Source, originals: Source, pairs: Path | None = None
) -> tuple[list[list[int]], str, list[str]]:
    """For each copy its originals (places), what told that, and the copies that have none.

    Raises `UserError` when no copy has one, two originals fit a name, or the table is none.
    """
    if pairs is not None:
        belongs, told_by = _by_table(copies, originals, pairs), "table"
    elif _is_copydays(copies) and _is_copydays(originals):
        belongs, told_by = _by_block(copies, originals), "Copydays"
    else:
        belongs, told_by = _by_name(copies, originals), "names"
    if not any(belongs):
        raise UserError(
            f"{copies.spec}: no copy there belongs to an image of {originals.spec} (the first are "
            f"{copies.ids[0]} and {originals.ids[0]}); begin a copy's name with its original's, or "
            "name with --pairs a CSV with the columns copy and original"
        )
    return belongs, told_by, [copies.ids[i] for i, found in enumerate(belongs) if not found]


def _is_copydays(source: Source) -> bool:
    return all(_COPYDAYS.fullmatch(PurePosixPath(name).stem) for name in source.ids)


def _by_block(copies: Source, originals: Source) -> list[list[int]]:
    """As the published script has it: all originals of the same first four digits."""
    blocks: dict[str, list[int]] = {}
    for place, name in enumerate(originals.ids):
        blocks.setdefault(PurePosixPath(name).stem[:_BLOCK], []).append(place)
    return [blocks.get(PurePosixPath(name).stem[:_BLOCK], []) for name in copies.ids]


def _by_name(copies: Source, originals: Source) -> list[list[int]]:
    places = by_tail(originals.ids)
    belongs = []
    for name in copies.ids:
        found = next((places[key] for key in _beginnings(name) if key in places), [])
        if len(found) > 1:
            first, second = (originals.ids[place] for place in found[:2])
            raise UserError(
                f"{copies.spec}: {name} may be of {first} or of {second}; lay copies out like the "
                "originals, or name with --pairs a CSV with the columns copy and original"
            )
        belongs.append(found)
    return belongs


def _beginnings(name: str) -> list[str]:
    """What an original of the copy `a/b_c.jpg` may be called: `a/b_c`, `a/b`, `b_c`, `b`."""
    *folders, stem = PurePosixPath(name).with_suffix("").parts
    ends = [len(stem), *(at for at in range(len(stem) - 1, 0, -1) if not stem[at].isalnum())]
    return [
        "/".join([*folders[start:], stem[:end]])
        for start in range(len(folders) + 1)
        for end in ends
    ]


def _by_table(copies: Source, originals: Source, path: Path) -> list[list[int]]:
    """The rows of a CSV; every name in it must be there."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from None
    if not rows or not {"copy", "original"} <= rows[0].keys():
        raise UserError(f"{path}: needs the columns copy and original, and a row for each copy")
    sides = []
    for column, source in (("copy", copies), ("original", originals)):
        names = [(row[column] or "").strip().replace("\\", "/") for row in rows]
        places = places_of(names, source.ids, source.spec)
        missing = [name for name, place in zip(names, places, strict=True) if place is None]
        if missing:
            raise UserError(f"{path}: names the {column} {missing[0]!r}, not in {source.spec}")
        sides.append([place for place in places if place is not None])
    belongs: list[list[int]] = [[] for _ in copies.ids]
    for copy, original in zip(*sides, strict=True):
        belongs[copy].append(original)
    return belongs


@dataclass(frozen=True)
class _Search:
    """All that the figures of a model depend on beside the model."""

    originals: Source
    copies: Source
    belongs: list[list[int]]  # of each copy, its places in `originals`
    matched_by: str
    distractors: Source | None
    whitening: Source | None
    whitening_dim: int | None
    size: int
    as_published: bool
    notes: list[str]


def _look(model: Model, size: int) -> Look:
    info = model.info
    return Look(
        name="cls and gem of squares",
        prepare=partial(squeezed, size=size, info=info),
        tokens=cls_and_gem,
        dim=feature_dim(model, "cls+gem"),
        settings={"size": size, "mean": list(info.mean), "std": list(info.std)},
        unit=False,  # whitening comes first
    )


def squeezed(image: np.ndarray, size: int, info: ModelInfo) -> Tensor:
    """uint8 [H, W, C] as a tensor uint8 [S, S, C], whatever shape it had; bicubic, as published.

    Raises `UserError` when the image has other channels than the model.
    """
    require_channels(image, info)

    def square(band: Image.Image) -> np.ndarray:
        return np.asarray(band.resize((size, size), Image.Resampling.BICUBIC))

    return torch.from_numpy(np.array(by_band(square, image)))


def _judged(model: Model, search: _Search, passing: Passing) -> CopiesResult:
    """The protocol for one model."""
    look = _look(model, search.size)

    def found(source: Source) -> SourceFeatures:
        return features(model, source, look, passing)

    copies, originals = found(search.copies), found(search.originals)
    others = None if search.distractors is None else found(search.distractors)
    learning = None if search.whitening is None else found(search.whitening)
    learned, notes = (None, []) if learning is None else _learned(learning, search)
    database = [originals] if others is None else [originals, others]
    searched_ND = np.concatenate([_ready(side.array, learned) for side in database])
    asking_MD = _ready(copies.array, learned)
    similar, places = top_ranks(asking_MD, searched_ND, TOP, device=model.device)
    answers = _answers(search, copies, originals, others, similar, places)
    if not answers:
        raise UserError(
            f"{search.copies.spec}: no copy can be read together with its original; replace the "
            "damaged files"
        )
    sides = [copies, *database] + ([] if learning is None else [learning])
    return CopiesResult(
        map=float(np.mean([one.ap for one in answers])),
        top1=100 * float(np.mean([one.rank == 1 for one in answers])),
        queries=len(answers),
        images=len(searched_ND),
        answers=answers,
        axes=len(learned.axes_KD) if learned else None,
        model=model.spec,
        model_hash=model.hash,
        notes=search.notes + unreadable([one for side in sides for one in side.bad]) + notes,
        **_settings(search),
    )


def _settings(search: _Search) -> dict[str, Any]:
    """The fields of the result that are the same whatever the model."""
    sides = {
        "data": search.copies,
        "originals": search.originals,
        "distractors": search.distractors,
        "whitening": search.whitening,
    }
    named = {}
    for name, side in sides.items():
        named[name] = None if side is None else side.spec
        named[f"{name}_hash"] = None if side is None else source_hash(side)
    return named | {
        "whitening_dim": search.whitening_dim,
        "matched_by": search.matched_by,
        "size": search.size,
        "as_published": search.as_published,
    }


def _learned(learning: SourceFeatures, search: _Search) -> tuple[Whitening, list[str]]:
    """Whitening, and a sentence where it keeps fewer axes than were asked for."""
    assert search.whitening is not None
    width = learning.array.shape[1]
    dim = search.whitening_dim and min(search.whitening_dim, width)
    try:
        learned = learn_whitening(learning.array, dim=dim, as_published=search.as_published)
    except ValueError as error:
        raise UserError(
            f"{search.whitening.spec}: cannot teach whitening ({error}); name more images"
        ) from None
    kept = len(learned.axes_KD)
    if kept == (search.whitening_dim or width):
        return learned, []
    return learned, [
        f"whitening keeps {kept:,} axes: {len(learning.array):,} images and {width:,} dimensions "
        "have no more"
    ]


def _ready(features_MD: np.ndarray, learned: Whitening | None) -> np.ndarray:
    """Whitened if so asked, and L2-normalized: float32, a copy."""
    ready = learned.apply(features_MD) if learned else np.array(features_MD, np.float32)
    for start in range(0, len(ready), ROWS_AT_ONCE):
        part = ready[start : start + ROWS_AT_ONCE]
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return ready


def _answers(
    search: _Search,
    copies: SourceFeatures,
    originals: SourceFeatures,
    others: SourceFeatures | None,
    similar: np.ndarray,
    places: np.ndarray,
) -> list[Answer]:
    """Each copy that has an original that could be read. `similar`, `places`: its nearest."""
    row_of = {int(place): row for row, place in enumerate(originals.rows)}
    ids = [search.originals.ids[place] for place in originals.rows]
    answers = []
    for copy, cosines, nearest in zip(copies.rows, similar, places, strict=True):
        wanted = sorted({row_of[place] for place in search.belongs[copy] if place in row_of})
        if not wanted:
            continue
        right = np.isin(nearest, wanted)
        ranks, wrongs = np.flatnonzero(right), np.flatnonzero(~right)
        wrong = int(nearest[wrongs[0]]) if len(wrongs) else None
        both = len(ranks) and len(wrongs)
        answers.append(
            Answer(
                copy=search.copies.ids[copy],
                originals=[ids[row] for row in wanted],
                ap=100 * average_precision(ranks, len(wanted)),
                rank=int(ranks[0]) + 1 if len(ranks) else None,
                first_wrong=None if wrong is None else _named(wrong, ids, search, others),
                is_distractor=wrong is not None and wrong >= len(ids),
                margin=float(cosines[ranks[0]] - cosines[wrongs[0]]) if both else None,
            )
        )
    return answers


def _named(row: int, ids: list[str], search: _Search, others: SourceFeatures | None) -> str:
    """The id of an image of the database: originals first, then distractors."""
    if row < len(ids):
        return ids[row]
    assert others is not None and search.distractors is not None
    return search.distractors.ids[int(others.rows[row - len(ids)])]
