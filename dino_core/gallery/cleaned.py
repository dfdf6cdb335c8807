"""A table of a gallery's images as a review left them: a new file, to be opened as data.

    done = write_cleaned(gallery, "cleaned/pets.parquet")
    done.sentence()                # "1,973 images: 12 checked and kept, 8 with a new label, ..."
    open_source(done.path)         # what was removed is not there, what was relabeled is so

Images are never touched, and no file is ever written over. The table has `path` (relative where the
image lies below the table's folder, else absolute), `label` and `split` where there are any, the
user's own columns, and `decision`: keep or relabel where someone decided, else nothing.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dino_core.data.naming import plain_text
from dino_core.data.table import open_table
from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.gallery.images import COLUMNS
from dino_core.gallery.notes import Notes, Review
from dino_core.gallery.opened import Gallery

ENDINGS = (".csv", ".parquet")
LONGEST_NAME = 120  # characters


@dataclass(frozen=True)
class Cleaned:
    """What was written."""

    path: Path
    images: int  # rows of the table
    kept: int  # of them, decided to be kept
    relabeled: int
    removed: int  # left out because someone decided so
    gone: int  # left out because their files are gone, as the gallery knows
    unnamed: int  # left out because a table cannot spell their file names

    def sentence(self) -> str:
        """How many of each, for a person."""
        parts = [
            f"{self.images:,} images: {self.kept:,} checked and kept, {self.relabeled:,} with a "
            f"new label, {self.images - self.kept - self.relabeled:,} as they were; "
            f"{self.removed:,} left out"
        ]
        if self.gone:
            parts.append(f"{self.gone:,} more left out, because their files are gone")
        if self.unnamed:
            parts.append(
                f"{self.unnamed:,} more left out, because a table cannot spell their names"
            )
        return ", ".join(parts)


def write_cleaned(gallery: Gallery, path: str | Path) -> Cleaned:
    """Write what is left after the decisions so far as a new `.csv` or `.parquet`.

    Raises `UserError` for a file that exists, another ending, images that are no files or were
    moved, nothing left, and what a CSV cannot say (007 reads back as 7) where a Parquet can.
    """
    path = Path(path).absolute()
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path.name}: a table is called .csv or .parquet; choose such a name")
    if path.exists():
        raise UserError(f"{path}: is there already, and nothing is written over; choose a new name")
    _refuse_what_are_no_files(gallery)
    images, reviews = gallery.images, Notes(gallery.path).reviews()
    decisions_N = decisions_of(images["id"], reviews)
    gone_N = images["gone"].to_numpy(bool)
    paths = images["path"]
    unnamed_N = (paths.isna() | (paths.str.rstrip() != paths)).to_numpy(bool)
    removed_N = decisions_N == "remove"
    stays_N = ~gone_N & ~removed_N & ~unnamed_N
    if not stays_N.any():
        raise UserError(f"{gallery.name}: no image would be left; undo some of the decisions first")
    table = _table(gallery, path.parent, stays_N, decisions_N, reviews)
    _write(table, path)
    decided = decisions_N[stays_N]
    return Cleaned(
        path=path,
        images=int(stays_N.sum()),
        kept=int((decided == "keep").sum()),
        relabeled=int((decided == "relabel").sum()),
        removed=int((removed_N & ~gone_N).sum()),
        gone=int(gone_N.sum()),
        unnamed=int((unnamed_N & ~gone_N & ~removed_N).sum()),
    )


def free_name(folder: Path, stem: str, ending: str = ".csv") -> str:
    """A file name that is not there yet: pets.csv, pets-2.csv, ..."""
    stem = re.sub(r"[^\w.-]+", "-", stem)
    numbers = iter(range(2, 1 << 30))
    name = stem + ending
    while (folder / name).exists():
        name = f"{stem}-{next(numbers)}{ending}"
    return name


def in_folder(folder: Path, name: str) -> Path:
    """The file of that name in a folder. Raises `UserError` for a name that leads elsewhere."""
    name = name.strip()
    if not name or name != Path(name).name or name.startswith(".") or "\\" in name:
        raise UserError(
            f"{name or 'The table'}: give a plain file name, such as cleaned.csv; it is written to "
            f"{folder}"
        )
    if len(name) > LONGEST_NAME:
        raise UserError(f"{name[:24]}...: a file name has at most {LONGEST_NAME} characters")
    return folder / name


def decisions_of(ids: pd.Series, reviews: dict[str, Review]) -> np.ndarray:
    """The decision about each image, object [N]; None where there is none."""
    decided = {id: review.decision for id, review in reviews.items()}
    found: np.ndarray = ids.map(decided).to_numpy(object)
    found[pd.isna(found)] = None
    return found


def _refuse_what_are_no_files(gallery: Gallery) -> None:
    if gallery.images["path"].isna().all():
        raise UserError(
            f"{gallery.name}: its images are no files of their own ({gallery.info.data}), so no "
            "table can name them; the decisions stay in the gallery, in user/reviews.jsonl"
        )
    if missing := gallery.images_missing():
        raise UserError(f"{missing}; no table was written")


def _table(
    gallery: Gallery,
    folder: Path,
    stays_N: np.ndarray,
    decisions_N: np.ndarray,
    reviews: dict[str, Review],
) -> pd.DataFrame:
    images = gallery.images[stays_N]
    decisions = decisions_N[stays_N]
    labels = images["label"].astype(object).to_numpy(copy=True)
    for place in np.flatnonzero(decisions == "relabel"):
        labels[place] = reviews[images["id"].iat[place]].label
    columns: dict[str, object] = {"path": _paths(images["path"], gallery.info.root, folder)}
    if not pd.isna(labels).all():
        columns["label"] = labels
    if images["split"].notna().any():
        columns["split"] = images["split"].to_numpy()
    taken = {*columns, "decision"}
    for name in images.columns:
        if name not in COLUMNS:
            ours = name if name not in taken else f"their_{name}"
            columns[ours] = images[name].to_numpy()
            taken.add(ours)
    columns["decision"] = decisions
    return pd.DataFrame(columns)


def _paths(paths: pd.Series, root: str | None, folder: Path) -> list[str]:
    """Paths as a table in `folder` names them."""
    below = Path(root or "").absolute()
    if below == folder:
        prefix = "./" if paths.str.startswith(" ").any() else ""  # cells are read without margins
    elif below.is_relative_to(folder):
        prefix = below.relative_to(folder).as_posix() + "/"
    else:
        prefix = below.as_posix().rstrip("/") + "/"
    return [path if os.path.isabs(path) else prefix + path for path in paths]


def _write(table: pd.DataFrame, path: Path) -> None:
    """Write it; a CSV is read back before it appears."""
    with whole_file(path, new=True) as aside:
        if path.suffix.lower() == ".parquet":
            table.to_parquet(aside, index=False)
            return
        table.to_csv(aside, index=False, encoding="utf-8")
        if not _says_the_same(aside, table):
            raise UserError(
                f"{path.name}: a CSV has no types, so its labels, splits or columns would be read "
                f"as others (007 as 7); call the table {path.with_suffix('.parquet').name}"
            )


def _says_the_same(file: Path, table: pd.DataFrame) -> bool:
    """Whether the CSV in a file, opened as data, has the table's labels and splits."""
    names = "".join(table.columns)
    if any(names.count(mark) >= len(table.columns) - 1 for mark in ";\t|\n"):
        return False  # the reader would take this mark for the comma
    read = open_table(str(file), file)
    label, split = table.get("label"), table.get("split")
    if label is not None:
        if read.labels is None:
            return False
        classes = np.array([*read.classes, ""], object)  # the last one: -1, no label
        if classes[read.labels].tolist() != [plain_text(value) for value in label]:
            return False
    if split is not None and read.splits is not None:
        return list(read.splits) == [plain_text(value) for value in split]
    return len(read) == len(table)
