"""A CSV or Parquet table with a column of image paths, as an image source.

Paths are relative to the table's folder (or absolute). A column `label` gives the classes, `split`
the splits; every other column is the user's own and goes along as metadata.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dino_core.data.decode import BadImage, read_file
from dino_core.data.naming import by_name, label_values, plain_text
from dino_core.data.source import Names, Source, checked
from dino_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PATH_COLUMNS = (
    "path", "image_path", "img_path", "file_path", "filepath", "image", "img", "filename",
    "file_name", "image_name", "file", "image_file", "images", "files",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category")
SPLIT_COLUMNS = ("split", "subset", "partition")
TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".pq")
TRIED = 200  # paths looked up to find that a table's images are not there


class Table(Source):
    """Images named by a table, one a row, in the table's order."""

    def __init__(self, spec: str, file: Path, frame: "pd.DataFrame", column: str) -> None:
        self.spec, self.root, self.notes = spec, file.parent, []
        values = frame[column].tolist()
        self._paths = Names(plain_text(value) for value in values)
        self.ids = Names(_unique_ids(self._paths))
        self.labels, self.classes, self.splits = None, [], None
        label, split = _find(frame, LABEL_COLUMNS), _find(frame, SPLIT_COLUMNS)
        if label is not None:
            self.labels, self.classes = label_values(frame[label].tolist())
        if split is not None:
            self.splits = np.array([plain_text(v) for v in frame[split].tolist()], dtype=object)
        own = frame.drop(columns=[c for c in (column, label, split) if c is not None])
        self.metadata = own.reset_index(drop=True)

    def read(self, i: int) -> bytes:
        """The bytes of the file in row `i`; raises `BadImage`."""
        path = self.path(i)
        if path is None:
            raise BadImage("no path in this row of the table")
        return read_file(path)

    def path(self, i: int) -> Path | None:
        """The file in row `i`; None where the row names none."""
        assert self.root is not None
        raw = self._paths.raw(checked(i, len(self)))
        return self.root / os.fsdecode(raw) if raw else None


def open_table(spec: str, file: Path, channels: int = 3) -> Table:
    """Read a table; a `UserError` when it has no rows, no paths, or none of its files."""
    frame = _read(spec, file)
    if frame.empty:
        raise UserError(f"{spec}: this table has no rows")
    column = _path_column(frame)
    if column is None:
        columns = ", ".join(str(c) for c in frame.columns[:12])
        raise UserError(
            f"{spec}: no column of image paths; call one of its columns path (it has: {columns})"
        )
    table = Table(spec, file, frame, column)
    table.channels = channels
    paths = [table.path(i) for i in range(min(len(table), TRIED))]
    if not any(path is not None and path.exists() for path in paths):
        raise UserError(
            f"{spec}: none of the files in column {column} is there, e.g. {paths[0]} "
            "(paths are relative to the table's folder)"
        )
    return table


def _read(spec: str, file: Path) -> "pd.DataFrame":
    import pandas as pd  # takes 0.4 s, and only tables need it

    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(file)
        with file.open(encoding="utf-8-sig") as opened:
            header = opened.readline()
        delimiter = max(",;\t|", key=header.count)
        # A class may well be called NA or None: only nothing at all is missing.
        return pd.read_csv(
            file, sep=delimiter, encoding="utf-8-sig", keep_default_na=False, na_values=[""]
        )
    except UnicodeDecodeError:
        raise UserError(f"{spec}: is not UTF-8 text; save the table as CSV UTF-8") from None
    except Exception as error:  # pandas and pyarrow raise many kinds, none of ours
        text = " ".join(str(error).split())[:160]
        raise UserError(f"{spec}: cannot be read as a table ({text})") from None


def _find(frame: "pd.DataFrame", names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a column, in any case."""
    lower = {str(column).strip().lower(): column for column in reversed(list(frame.columns))}
    return next((lower[name] for name in names if name in lower), None)


def _path_column(frame: "pd.DataFrame") -> str | None:
    """The column of paths: by its name, else the first whose values end as image files do."""
    by_title = [c for n in PATH_COLUMNS if (c := _find(frame, (n,))) is not None]
    others = [c for c in frame.columns if c not in by_title]
    for column in by_title + others:
        values = [v for v in frame[column].head(TRIED).tolist() if v is not None and v == v]
        if values and all(isinstance(value, str) for value in values):
            images = sum(bool(by_name(value)) for value in values)
            if column in by_title or images > len(values) / 2:
                return column
    return None


def _unique_ids(paths: Names) -> list[str]:
    """Ids of rows: the path; a path's second row is "a.jpg#2", a row without a path "row-7"."""
    ids: list[str] = []
    times: dict[str, int] = {}
    for row, path in enumerate(paths):
        name = path.replace("\\", "/").removeprefix("./") or f"row-{row}"
        times[name] = times.get(name, 0) + 1
        ids.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return ids
