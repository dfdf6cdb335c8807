"""What is wrong with a gallery's files, told from their sizes and headers, without reading them.

Each function returns "" for a file that looks whole, else what is wrong with it, to be read after
its name: "is missing", "cannot be read", "holds 5 rows, gallery.json says 6". Content that is
garbage behind a whole header is found when it is read.

What the system keeps from being read (too many open files, no memory, a disk that fails, a mount
that is gone) is no damage: it is raised as a `UserError`, so that nothing is made anew for it.
"""

import errno
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dino_core.errors import UserError
from dino_core.files import read_json
from dino_core.gallery.images import COLUMNS, IMAGES
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.partial import FEATURES

NEIGHBORS = "neighbors.npz"
_PATCH_FILES = ("index.faiss", "patches.npz")
LOOKED_AT = 16  # features whose length is checked
UNIT = 1e-3  # how far from 1 the length of a feature may be
MISSING, UNREADABLE = "is missing", "cannot be read"
# What reading garbage can raise: Arrow's own errors have no number, offsets may lead anywhere.
_OF_CONTENT = (None, errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EOVERFLOW)


class Damaged(UserError):
    """A file of a gallery is missing, or its content is wrong: it may be made again."""


def unreadable(file: Path, error: Exception) -> str:
    """UNREADABLE, where a file's content is why reading it failed.

    Raises `UserError` where the system is why.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) not in _OF_CONTENT:
        why = getattr(error, "strerror", None) or "not enough memory"
        raise UserError(
            f"{file}: cannot be read now ({why}), so nothing was changed; try again when that is "
            "mended, or delete the file to have it made anew"
        ) from None
    return UNREADABLE


def is_there(file: Path) -> bool:
    """Whether it is a file. Raises `UserError` where the system cannot tell."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        unreadable(file, error)
        return False


def map_file(name: str) -> str:
    """Where a map lies in a gallery's folder."""
    return f"maps/{name}.parquet"


def features_damage(path: Path, info: GalleryInfo) -> str:
    """Of `features.npy`: its shape, and the length of a few rows."""
    file = path / FEATURES
    if not is_there(file):
        return MISSING
    if info.count == 0:  # an empty file cannot be mapped
        return ""
    try:
        features_ND = np.load(file, mmap_mode="r", allow_pickle=False)
        shape, dtype = features_ND.shape, features_ND.dtype
    except Exception as error:  # bytes that are no array can fail in any way
        return unreadable(file, error)
    if shape != (info.count, info.dim):
        return f"holds {shape}, gallery.json says {(info.count, info.dim)}"
    if dtype != np.float32 or not features_ND.flags.c_contiguous:
        return f"holds {dtype}, not float32 row by row"
    some = np.linspace(0, info.count - 1, LOOKED_AT).astype(np.int64)
    lengths = np.linalg.norm(features_ND[some].astype(np.float64), axis=1)
    return "" if np.allclose(lengths, 1, atol=UNIT) else "holds rows that are not of length 1"


def table_damage(path: Path, info: GalleryInfo) -> str:
    """Of `images.parquet`."""
    return _parquet_damage(path / IMAGES, info.count, set(COLUMNS))


def map_damage(path: Path, info: GalleryInfo, name: str) -> str:
    """Of one of the maps that the manifest names."""
    return _parquet_damage(path / map_file(name), info.count, {"x", "y"})


def neighbors_damage(path: Path, info: GalleryInfo) -> str:
    """Of `neighbors.npz`: a file cut short has lost the list of what is in it."""
    if not is_there(path / NEIGHBORS):
        return MISSING
    try:
        with zipfile.ZipFile(path / NEIGHBORS) as archive:
            shapes = [_npy_shape(archive, name) for name in ("rows", "scores")]
    except Exception as error:  # as above
        return unreadable(path / NEIGHBORS, error)
    wrong = [shape for shape in shapes if shape != (info.count, info.neighbors)]
    return f"holds {wrong[0]}, gallery.json says {(info.count, info.neighbors)}" if wrong else ""


def patches_damage(path: Path, info: GalleryInfo) -> str:
    """Of the folder `patches/`, where there is one."""
    folder = path / "patches"
    if not folder.is_dir():
        return ""
    try:
        manifest = read_json(folder / "patches.json")
        made_for, size = manifest["gallery"], manifest["bytes"]
        there = size == sum((folder / name).stat().st_size for name in _PATCH_FILES)
    except (UserError, OSError, KeyError, TypeError):
        return UNREADABLE
    names = ("feature_hash", "source_hash", "count")
    if not there or made_for != {name: getattr(info, name) for name in names}:
        return "is of other images than the gallery holds now" if there else UNREADABLE
    return ""


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        shape: tuple[int, ...] = np.lib.format.read_array_header_1_0(file)[0]
    return shape


def _parquet_damage(file: Path, count: int, columns: set[str]) -> str:
    if not is_there(file):
        return MISSING
    try:
        facts: Any = pq.read_metadata(file)
        names, rows = set(facts.schema.names), facts.num_rows
    except Exception as error:  # as above
        return unreadable(file, error)
    if columns - names:
        return f"lacks the column {sorted(columns - names)[0]}"
    return "" if rows == count else f"holds {rows} rows, gallery.json says {count}"
