"""A selection for other programs: a table (CSV, Parquet), a list of paths, a folder of links.

    frame = table(gallery, rows)
    Path("chosen.csv").write_bytes(as_csv(frame))
    links = link_folder(gallery, rows, Path("exports"), "blurred dogs")
    print(links.sentence)

Paths are absolute, so that what is exported can be opened as data from anywhere: the table, the
list and the folder all are data that this program reads.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dino_core.errors import UserError
from dino_core.gallery.notes import Notes, clean_name
from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent

# What a spreadsheet takes for the beginning of a formula, in either width, or skips before one.
FORMULA = set("=+-@＝＋－＠\t\r\n")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
LONGEST_FILE_NAME = 200  # bytes; most disks hold 255
TAGS_BETWEEN = "; "


@dataclass(frozen=True)
class Links:
    """What became of the images of an exported folder."""

    folder: Path
    linked: int  # as symbolic links to the files where they lie
    copied: int  # where links cannot be made, or the image is no file of its own
    gone: int  # that could not be read any more

    @property
    def sentence(self) -> str:
        """The same in words."""
        parts = [f"{self.linked:,} links"] if self.linked or not self.copied else []
        parts += [f"{self.copied:,} copies"] if self.copied else []
        gone = f"; {self.gone:,} images are gone and were left out" if self.gone else ""
        return f"{' and '.join(parts)} in {self.folder}{gone}."


def table(gallery: Gallery, rows_M: np.ndarray) -> pd.DataFrame:
    """What is known of some images, one row each: `images.parquet`'s columns and a column of tags.

    `path` is absolute, null for what is no file of its own; `gone` says whether the file is there
    now; `tags` are joined by "; ".
    """
    frame = gallery.images.iloc[np.asarray(rows_M, np.int64)].reset_index(drop=True)
    files = _files(gallery, frame)
    frame["path"] = pd.Series([None if one is None else str(one) for one in files], dtype=object)
    gone = [one is not None and not one.is_file() for one in files]
    frame["gone"] = frame["gone"].to_numpy(bool) | np.array(gone, bool)
    tags_of: dict[str, list[str]] = {}
    here = set(frame["id"])
    for tag, ids in Notes(gallery.path).tags().items():
        for id in here.intersection(ids):
            tags_of.setdefault(id, []).append(tag)
    name = "tags" if "tags" not in frame else "our_tags"
    told = [TAGS_BETWEEN.join(tags_of.get(id, ())) for id in frame["id"]]
    return frame.assign(**{name: pd.Series(told, dtype=object)})


def as_csv(frame: pd.DataFrame) -> bytes:
    """The table as CSV in UTF-8, made harmless for spreadsheets.

    A text that begins as a formula does (= + - @ and what is skipped before them) gets an
    apostrophe before it, unless it is a number: so what is shown is the text and never a result.
    `as_parquet` keeps every value as it is.
    """
    safe = pd.DataFrame(
        {_harmless(str(name)): _harmless_column(frame.iloc[:, i]) for i, name in enumerate(frame)}
    )
    return safe.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")


def as_parquet(frame: pd.DataFrame) -> bytes:
    """The table as Parquet."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def as_paths(gallery: Gallery, rows_M: np.ndarray) -> bytes:
    """The absolute paths of the images that are there, one a line, in UTF-8.

    Left out: images that are gone, that are no files of their own, and a name with a line feed.
    """
    files = _files(gallery, gallery.images.iloc[np.asarray(rows_M, np.int64)])
    there = [str(file) for file in files if file is not None and file.is_file()]
    return "".join(f"{path}\n" for path in there if "\n" not in path).encode("utf-8", "replace")


def link_folder(
    gallery: Gallery,
    rows_M: np.ndarray,
    exports: Path,
    name: str,
    *,
    by_label: bool = False,
    progress: Progress = silent,
) -> Links:
    """Make the folder `exports/name` of links to the images' files; it appears whole or not at all.

    Where links cannot be made, files are copied; an image that is no file of its own becomes a PNG.
    Files keep their names, with a number where two have the same; with `by_label` each label has a
    folder of its own. Nothing is overwritten, and nothing written outside `exports`.
    Raises `UserError` for a name that is no name of a folder, one that is taken, no images, a full
    disk, or none that can be written.
    """
    folder = exports / _folder_name(name)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: is there already; choose another name")
    if len(rows_M) == 0:
        raise UserError(f"{folder}: no image is selected; select some first")
    try:
        exports.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=exports, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            counts = _fill(aside, gallery, np.asarray(rows_M, np.int64), by_label, progress)
            aside.chmod(0o755)
            os.rename(aside, folder)  # refused where somebody has put files meanwhile
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return Links(folder, *counts)


def _fill(
    folder: Path, gallery: Gallery, rows_M: np.ndarray, by_label: bool, progress: Progress
) -> tuple[int, int, int]:
    """Links, copies, and what is gone."""
    frame = gallery.images.iloc[rows_M]
    labels = frame["label"] if by_label else [None] * len(frame)
    taken = {_safe(label).casefold() for label in labels if isinstance(label, str)}
    linked = copied = gone = 0
    each = zip(rows_M.tolist(), frame["id"], labels, _files(gallery, frame), strict=True)
    for done, (row, id, label, file) in enumerate(each):
        progress(done, len(frame), "Linking images")
        inside = _safe(label) if isinstance(label, str) else ""
        drawn_name = re.sub(r"\.\w{1,5}$", "", str(id).rsplit("/", 1)[-1]) + ".png"
        own_name = drawn_name if file is None else file.name
        place = folder / _unique(f"{inside}/{_safe(own_name)}".lstrip("/"), taken)
        if (image := None if file is not None else _drawn(gallery, row)) is not None:
            place.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(place, "PNG")
            copied += 1
        elif file is None or not _can_be_read(file):
            gone += 1
        elif _link(file, place):
            linked += 1
        else:
            shutil.copyfile(file, place)
            copied += 1
    return linked, copied, gone


def _link(file: Path, place: Path) -> bool:
    """Whether a link to the file could be made; the folder for it, or a copy, is there then."""
    place.parent.mkdir(exist_ok=True)
    with contextlib.suppress(OSError, NotImplementedError):  # Windows, or a disk without links
        place.symlink_to(file)
        return True
    return False


def _drawn(gallery: Gallery, row: int) -> np.ndarray | None:
    """An image that is no file of its own: a member of a .tar, a generated one."""
    try:
        return gallery.image(row)
    except UserError:
        return None


def _can_be_read(file: Path) -> bool:
    try:
        with open(file, "rb"):
            return True
    except OSError:
        return False


def _files(gallery: Gallery, frame: pd.DataFrame) -> list[Path | None]:
    """Where the images of these rows lie; None for what is no file of its own."""
    root = Path(gallery.info.root or "").absolute()
    return [root / path if isinstance(path, str) else None for path in frame["path"]]


def _folder_name(name: str) -> str:
    """The name of a folder that somebody typed. Raises `UserError` for one that leads elsewhere."""
    kept = clean_name(name, "folder")
    if kept != _safe(kept):
        raise UserError(
            f"{kept}: cannot be the name of a folder here; use letters, numbers, spaces, - and _"
        )
    return kept


def _safe(name: str) -> str:
    """A name that every disk takes, that is not hidden, and that leads nowhere else."""
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name).rstrip(". ")
    name = re.sub(r"^[. ]+", "_", name).encode("utf-8", "replace").decode()
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > 8:
        stem, dot, suffix = name, "", ""
    room = LONGEST_FILE_NAME - len(suffix.encode()) - 1
    return (stem.encode()[:room].decode(errors="ignore") or "_") + dot + suffix


def _unique(place: str, taken: set[str]) -> str:
    """The place, with a number before its suffix where it is taken, in any case of its letters."""
    stem, dot, suffix = place.rpartition(".")
    if not dot or "/" in suffix:
        stem, dot, suffix = place, "", ""
    unique, number = place, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{stem}-{number}{dot}{suffix}"
    taken.add(unique.casefold())
    return unique


def _harmless_column(values: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        return values
    safe = [_harmless(one) if isinstance(one, str) else one for one in values]
    return pd.Series(safe, dtype=object)  # as they are: `map` would make 1.0 of 1 beside None


def _harmless(text: str) -> str:
    if not text or text[0] not in FORMULA:
        return text
    return text if NUMBER.fullmatch(text) else f"'{text}"
