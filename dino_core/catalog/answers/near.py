"""The images of the gallery most like the picture, a part of it, or one patch of it."""

from typing import Any

import numpy as np
import pandas as pd

from dino_core.catalog.answers.desk import Desk
from dino_core.catalog.answers.heads import coded
from dino_core.catalog.questions import Question
from dino_core.catalog.workbench import Neighbor
from dino_core.errors import UserError
from dino_core.gallery.features import Features
from dino_core.gallery.images import COLUMNS
from dino_core.gallery.patches import PatchHits, patch_features
from dino_core.gallery.queries import filtered
from dino_core.lenses.tokens import read_tokens

PATCH_NEIGHBORS = 12  # each is looked at, to draw where in it the patch's like is
MOST_VALUES = 60  # of a column that can be filtered by: more are no choice
MOST_LABELS = 1_000  # of the labels, as many as ImageNet has


def near(desk: Desk, question: Question) -> dict[str, Any]:
    """Neighbors of the whole picture, of a `box` in shares of it, or of a `patch`; filtered."""
    if not desk.scene.gallery:
        raise UserError("no gallery is picked; make one with scripts/embed.py, or pick one")
    where = _where(desk, question)
    if "patch" in question:
        return _of_patch(desk, question.part("patch"), where)
    found = desk.bench.neighbors(
        desk.scene.picture,
        desk.scene.model,
        desk.scene.gallery,
        box=_box(desk, question.part("box")) if "box" in question else None,
        where=where,
        names_allowed=desk.scene.names_allowed,
    )
    return found.to_json()


def filters(desk: Desk, question: Question) -> dict[str, Any]:
    """The columns that neighbors can be filtered by, and whether patches can be asked for."""
    patches = desk.gallery.patches
    return {
        "columns": choices(desk.gallery.images),
        "patches": None if patches is None else patches.info.says(),
    }


def choices(images: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of few values, and these as text, sorted."""
    own = [name for name in images.columns if name not in COLUMNS or name in ("label", "split")]
    found = {}
    for name in own:
        values = sorted(map(str, _values(images, name)))
        if 1 < len(values) <= (MOST_LABELS if name == "label" else MOST_VALUES):
            found[name] = values
    return found


def matching(images: pd.DataFrame, column: str, text: str) -> np.ndarray:
    """The images whose value in a column reads as `text`, bool [n]."""
    wanted = [value for value in _values(images, column) if str(value) == text]
    return filtered(images, column, wanted)


def _values(images: pd.DataFrame, column: str) -> list[Any]:
    """What stands in a column, each once; lists and the like count as nothing."""
    values = list(images[column].dropna().drop_duplicates())
    return values if all(map(pd.api.types.is_scalar, values)) else []


def _where(desk: Desk, question: Question) -> np.ndarray | None:
    """Which images may be found, bool [n]: those whose value in the column reads as was asked."""
    if "column" not in question:
        return None
    column, text = question.text("column"), question.text("value")
    images = desk.gallery.images
    if column not in choices(images):
        raise UserError(f"{column}: not a column of {desk.gallery.name} to filter by")
    return matching(images, column, text)


def _box(desk: Desk, shares: Question) -> tuple[float, float, float, float]:
    """The box in pixels of the picture; `region_features` refuses one that is too small."""
    height, width = desk.image.shape[:2]
    left, right = (shares.number(side, 0, 1) * width for side in ("left", "right"))
    top, bottom = (shares.number(side, 0, 1) * height for side in ("top", "bottom"))
    return left, top, right, bottom


def _of_patch(desk: Desk, place: Question, where: np.ndarray | None) -> dict[str, Any]:
    """Images with a patch like the one at a place (`x`, `y` in shares), and where it is in them."""
    opened = desk.gallery
    patches = opened.patches
    if patches is None:
        raise UserError(
            f"{opened.name} holds no patches of its images; add them by running scripts/embed.py "
            "for it again with --patches 49"
        )
    patch = _patch(desk, place.number("x", 0, 1), place.number("y", 0, 1))
    hits = patches.search(patch, k=PATCH_NEIGHBORS, where=_without_itself(desk, where))
    found = desk.bench.neighborhood(
        desk.scene.gallery or "",
        [
            Neighbor(int(row), id, label, float(score))
            for row, id, label, score in zip(
                hits.rows, hits.ids, hits.labels, hits.scores, strict=True
            )
        ],
    ).to_json()
    for at, one in enumerate(found["neighbors"]):
        one |= _where_in(desk, hits, at, patch.array[0])
    return found


def _patch(desk: Desk, x: float, y: float) -> Features:
    """The feature of the patch at shares of the picture, as a gallery holds patches.

    Those are of the center crop; beside it the picture is seen whole, at the same scale.
    """
    height, width = desk.image.shape[:2]
    seen = patch_features(desk.model, desk.image)
    try:
        return seen.under(x * width - 0.5, y * height - 0.5)  # pixel centers are whole numbers
    except UserError:
        tokens = read_tokens(desk.model, desk.image, size=desk.model.info.image_size)
    rows, columns = tokens.grid
    row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
    return Features(tokens.patches[row, column][None], seen.feature_hash, seen.model)


def _without_itself(desk: Desk, where: np.ndarray | None) -> np.ndarray | None:
    """Which images may be found, the picture itself left out where it is one of the gallery."""
    picture = desk.scene.picture
    if picture.row is None or picture.gallery != desk.scene.gallery:
        return where
    allowed = np.ones(len(desk.gallery), bool) if where is None else where.copy()
    allowed[picture.row] = False
    return allowed


def _where_in(desk: Desk, hits: PatchHits, at: int, vector_D: np.ndarray) -> dict[str, Any]:
    """Of one hit: its patch as shares of its image, and how alike all of its patches are."""
    row = int(hits.rows[at])
    try:
        image = desk.gallery.image(row)
        tokens = read_tokens(desk.model, image, size=desk.model.info.image_size)
    except UserError:  # its file is gone: found it was all the same
        return {}
    height, width = tokens.source_size
    left, top, right, bottom = (int(side) for side in hits.boxes[at])
    return {
        "patch": [left / width, top / height, right / width, bottom / height],
        "map": coded(tokens.patches @ vector_D),
    }
