"""`images.parquet`: one row for every image of a gallery, in the order of its features."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dino_core.data import Source
from dino_core.files import whole_file
from dino_core.gallery.progress import Progress, silent

STEPS = 100  # of progress, while a source's files are asked for
IMAGES = "images.parquet"
COLUMNS = (
    "id",  # stable: stays the same as long as the image is called so
    "path",  # of its file, relative to the gallery's root where it lies below; or null
    "label",  # a class name, or null
    "split",
    "mask",  # the path of its mask, where one is known
    "content_hash",
    "size",  # bytes on the disk
    "mtime",  # seconds since the epoch
    "width",
    "height",
    "gone",  # its file was there once and is not any more
)


def their_columns(source: Source) -> pd.DataFrame | None:
    """The user's own columns, one row for every image of the source, as Parquet can hold them.

    A column that has one of our names becomes `their_NAME`, a name that is there already gets a
    number, and a column of mixed types becomes text; what is missing stays missing.
    """
    if source.metadata is None:
        return None
    columns: dict[str, pd.Series] = {}
    for place, name in enumerate(map(_text, source.metadata.columns)):
        name = f"their_{name}" if name in COLUMNS else name
        same = (f"{name}_{number}" for number in itertools.count(2))
        unique = name if name not in columns else next(one for one in same if one not in columns)
        columns[unique] = _storable(source.metadata.iloc[:, place].reset_index(drop=True))
    return pd.DataFrame(columns, index=range(len(source.metadata)))


def images_table(
    source: Source, facts: list[dict[str, Any]], theirs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The table of the good images among `facts` (see `features.Batch`).

    `theirs`: what `their_columns` says of the source, to be appended.
    """
    good = [one for one in facts if "bad" not in one]
    at = np.array([one["index"] for one in good], np.int64)
    files = [file_facts(source, index) for index in at]
    table = pd.DataFrame(
        {
            "id": pd.Series([source.ids[index] for index in at], dtype=object),
            "path": pd.Series([path for path, _, _ in files], dtype=object),
            "label": _labels(source, at),
            "split": None if source.splits is None else pd.Series(source.splits[at], dtype=object),
            "mask": pd.Series([None] * len(at), dtype=object),
            "content_hash": pd.Series([one["fingerprint"] for one in good], dtype=object),
            "size": pd.array([size for _, size, _ in files], dtype="Int64"),
            "mtime": pd.array([mtime for _, _, mtime in files], dtype="Float64"),
            "width": np.array([one["width"] for one in good], np.int32),
            "height": np.array([one["height"] for one in good], np.int32),
            "gone": np.zeros(len(at), bool),
        },
        index=range(len(at)),
    )
    if theirs is None:
        return table
    return pd.concat([table, theirs.iloc[at].reset_index(drop=True)], axis=1)


def write_table(folder: Path, table: pd.DataFrame) -> None:
    """Write `images.parquet`, whole or not at all."""
    with whole_file(folder / IMAGES) as aside:
        table.to_parquet(aside, index=False, write_page_checksum=True)


def read_table(folder: Path) -> pd.DataFrame:
    """The table as it was written; what was damaged since fails rather than gives other values."""
    return pd.read_parquet(folder / IMAGES, page_checksum_verification=True)


def source_hash(source: Source, progress: Progress = silent, message: str = "") -> str:
    """What tells that a source is still the same: ids, labels, and its files' sizes and times."""
    digest = hashlib.sha256()
    step = max(1, len(source) // STEPS)
    for index, name in enumerate(source.ids):
        _, size, mtime = file_facts(source, index)
        digest.update(f"{name}\0{size}\0{mtime}\n".encode())
        if (index + 1) % step == 0 or index + 1 == len(source):
            progress(index + 1, len(source), message)
    if source.labels is not None:
        digest.update("\0".join(source.classes).encode())
        digest.update(np.ascontiguousarray(source.labels, np.int64).tobytes())
    return digest.hexdigest()


def _storable(column: pd.Series) -> pd.Series:
    """The column, as text where Arrow has no one type for its values."""
    try:
        pa.array(column, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return column.astype(object).map(_text, na_action="ignore")
    return column


def _text(value: Any) -> str:
    """As UTF-8 can hold it."""
    return str(value).encode("utf-8", "replace").decode()


def _labels(source: Source, at: np.ndarray) -> pd.Series:
    if source.labels is None:
        return pd.Series([None] * len(at), dtype=object)
    names = [source.classes[label] if label >= 0 else None for label in source.labels[at]]
    return pd.Series(names, dtype=object)


def file_facts(source: Source, index: int) -> tuple[str | None, int | None, float | None]:
    """(path, size, mtime) of an image that is a file; Nones for one that is not, or is gone."""
    path = source.path(int(index))
    if path is None:
        return None, None, None
    try:
        stat = path.stat()
    except OSError:
        return _relative(path, source.root), None, None
    return _relative(path, source.root), stat.st_size, stat.st_mtime


def _relative(path: Path, root: Path | None) -> str | None:
    if root is not None and path.is_relative_to(root):
        text = path.relative_to(root).as_posix()
    else:
        text = str(path.absolute())
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: found through the source by its id
        return None
    return text
