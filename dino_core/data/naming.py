"""What file names say: which are images, which class and split their folders stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# fmt: off
IMAGE_ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".qoi", ".mpo", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm",
    ".heic", ".heif",
))
# Begin like TIFF, but hold a camera's raw data or a whole microscope slide.
NOT_PICTURES = frozenset((
    ".dng", ".nef", ".nrw", ".cr2", ".arw", ".orf", ".pef", ".rw2", ".srw", ".svs", ".ndpi", ".scn",
))
# fmt: on
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing"])


def is_hidden(name: str) -> bool:
    """Hidden files, and what macOS leaves behind in archives."""
    return name.startswith(".") or name == "__MACOSX"


def by_name(name: str, channels: int = 3) -> bool | None:
    """Whether a file's ending makes it an image; None when its content has to tell.

    An array (.npy) is one only where images of other than three channels are looked for.
    """
    ending = "." + name.rpartition(".")[2].lower() if "." in name else ""
    if ending in IMAGE_ENDINGS or (channels != 3 and ending == ".npy"):
        return True
    return False if ending in NOT_PICTURES else None


@dataclass(frozen=True)
class FolderLabels:
    """What the folders of a collection say about its images."""

    labels: np.ndarray | None
    classes: list[str]
    splits: np.ndarray | None


def folder_labels(names: Sequence[str]) -> FolderLabels:
    """Classes and splits of "a/b/1.jpg"-like names.

    The outermost folder in which the images differ names the class; images outside of any such
    folder are unlabeled (-1). One folder around everything says nothing and gives no labels.
    Folders called train, val, test and the like are splits, and the class is one level further in.
    """
    places: dict[str, int] = {}  # a million images lie in few folders: those are what is looked at
    place = [places.setdefault(name.rpartition("/")[0], len(places)) for name in names]
    folders = _without_common([folder.split("/") if folder else [] for folder in places])
    splits = None
    if len(folders) and all(parts and parts[0].lower() in SPLITS for parts in folders):
        splits = np.array([parts[0] for parts in folders], dtype=object)[place]
        folders = [parts[1:] for parts in folders]
    outer = [parts[0] if parts else "" for parts in folders]
    classes = sorted(set(outer) - {""})
    if not classes:
        return FolderLabels(None, [], splits)
    number = {name: k for k, name in enumerate(["", *classes], start=-1)}
    return FolderLabels(np.array([number[name] for name in outer])[place], classes, splits)


def _without_common(folders: list[list[str]]) -> list[list[str]]:
    """Drop the leading folders that all images share."""
    if not folders:
        return folders
    first, last = min(folders), max(folders)  # what these two share, all between them share
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return [parts[shared:] for parts in folders]


def label_values(values: Sequence[object]) -> tuple[np.ndarray, list[str]]:
    """Labels of any kind as (int64 [n], names): numbers in order of size, then words; missing -1.

    A whole number is named as one, though a gap in its column made it 3.0.
    """
    texts = [plain_text(value) for value in values]
    classes = sorted({text for text in texts if text}, key=_natural)
    number = {"": -1} | {name: k for k, name in enumerate(classes)}
    return np.array([number[text] for text in texts], np.int64).reshape(len(texts)), classes


def plain_text(value: object) -> str:
    """A table's cell as text: "" for a missing one, "3" for 3.0."""
    if value is None or value != value:  # NaN differs from itself
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _natural(text: str) -> tuple[bool, float, str]:
    try:
        return (False, float(text), text)
    except ValueError:
        return (True, 0.0, text)
