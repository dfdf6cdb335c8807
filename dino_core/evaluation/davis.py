"""Videos with masks on disk, laid out as DAVIS is.

    ROOT/JPEGImages/480p/VIDEO/00000.jpg     frames; any resolution's folder, or none
    ROOT/Annotations/480p/VIDEO/00000.png    masks by the frame's name; not every frame needs one
    ROOT/ImageSets/2017/val.txt              which videos count, where there is such a list

Masks of DAVIS 2017 have a palette: each index is an object, 0 the background, 255 void. Those of
DAVIS 2016 are gray: everything that is not zero is one object. Gray masks without a value above 31
are indices that lost their palette: several objects taken for one (as `masks.py` takes all gray
masks) would give other figures without a word.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dino_core.data.decode import read_file
from dino_core.errors import UserError
from dino_core.evaluation.mask_files import MASK_SUFFIXES, mask_values
from dino_core.evaluation.results import named
from dino_core.files import whole_file

MOST_GRAY_INDICES = 31  # a picture of one object has brighter pixels, a mask no more objects
FRAMES, MASKS = "JPEGImages", "Annotations"
RESOLUTION = "480p"  # taken where there are several
LISTS = ("2017/val.txt", "2016/val.txt", "480p/val.txt")  # the first that is there counts
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Video:
    """One video: its frames in order, and the mask of each (None where it has none)."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]


@dataclass(frozen=True)
class Davis:
    """The videos of one folder."""

    root: Path
    videos: tuple[Video, ...]
    notes: tuple[str, ...]  # sentences: what was left out and why

    def content_hash(self) -> str:
        """sha256 over the names and bytes of all frames and masks, the same on every machine."""
        digest = hashlib.sha256()
        for video in self.videos:
            for path in (*video.frames, *filter(None, video.masks)):
                digest.update(f"{path.relative_to(self.root).as_posix()}\0".encode())
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def open_davis(root: Path | str, names: Sequence[str] | None = None) -> Davis:
    """The videos in `root` (see the top of this file), or those of them that `names` says.

    Raises `UserError` when the folder is laid out otherwise, has no video, or not one of `names`.
    """
    root = Path(root)
    frames, masks = _part(root, FRAMES), _part(root, MASKS)
    resolution = _resolution(frames)
    frames = frames / resolution
    if (masks / resolution).is_dir():
        masks = masks / resolution
    there = sorted(path.name for path in frames.iterdir() if path.is_dir())
    wanted, notes = _wanted(root, there, names)
    videos = [_video(frames / name, masks / name) for name in wanted]
    if not any(video.frames for video in videos):
        raise UserError(f"{frames}: holds no video; put each into a folder of its frames")
    empty = [video.name for video in videos if not video.frames]
    notes += [f"{name}: has no frames and is left out" for name in empty]
    return Davis(root, tuple(video for video in videos if video.frames), tuple(notes))


def read_labels(path: Path) -> np.ndarray:
    """A mask's labels, uint8 [H, W]: 0 background, 1 and up objects, 255 void.

    Palette: its indices. Gray (also with a gray palette, or saved in color): 1 where not zero, or
    indices where all are small; the top of this file says why. Raises `BadImage` as `mask_values`.
    """
    values, indexed = mask_values(read_file(path))
    if indexed or (values.dtype == np.uint8 and values.max() <= MOST_GRAY_INDICES):
        return values
    return (values != 0).astype(np.uint8)


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write labels, uint8 [H, W], as a palette PNG in DAVIS's colors, whole or not at all."""
    picture = Image.fromarray(labels)
    picture.putpalette(palette().tobytes())  # from gray to palette, the same indices
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    with whole_file(path) as aside:
        aside.write_bytes(encoded.getvalue())


def palette() -> np.ndarray:
    """The colors of labels in DAVIS and VOC, uint8 [256, 3].

    A label's bits in turn are the high to low bits of red, green and blue (VOC's development kit).
    """
    labels = np.arange(256)
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            source = 3 * bit + channel
            if source < 8:
                colors[:, channel] |= ((labels >> source) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def _part(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise UserError(
            f"{root}: has no folder {name}; lay it out as DAVIS is, "
            f"{FRAMES}/{RESOLUTION}/VIDEO/*.jpg and {MASKS}/{RESOLUTION}/VIDEO/*.png"
        )
    return root / name


def _resolution(frames: Path) -> str:
    """The folder between `JPEGImages` and the videos; none where videos lie right there."""
    folders = sorted(path for path in frames.iterdir() if path.is_dir())
    if any(path.name == RESOLUTION for path in folders):
        return RESOLUTION
    for folder in folders:
        if any(_is_image(path, FRAME_SUFFIXES) for path in folder.iterdir()):
            return ""
    return folders[0].name if folders else ""


def _wanted(
    root: Path, there: list[str], names: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The videos to take, in order, and what is odd about them."""
    if names is not None:
        unknown = [name for name in names if name not in there]
        if unknown or not names:
            what = f"has no video {unknown[0]}" if unknown else "no video is asked for"
            raise UserError(f"{root}: {what}; there are {', '.join(there[:8]) or 'none'}")
        return list(dict.fromkeys(names)), []
    path = next((p for p in (root / "ImageSets" / name for name in LISTS) if p.is_file()), None)
    if path is None:
        return there, []
    listed = list(dict.fromkeys(map(_listed, path.read_text(encoding="utf-8").splitlines())))
    listed = [name for name in listed if name]
    found = [name for name in listed if name in there]
    if not found:
        raise UserError(f"{path}: names no video that is there; delete it to take all that are")
    missing = [name for name in listed if name not in there]
    count = "1 video is" if len(missing) == 1 else f"{len(missing):,} videos are"
    return found, [f"{count} in {path.name} but not there: {named(missing)}"] if missing else []


def _listed(line: str) -> str:
    """The video that a line names: `dog`, or `/JPEGImages/480p/dog/00000.jpg ...` (2016)."""
    words = line.split()
    return "" if not words else Path(words[0]).parent.name if "/" in words[0] else words[0]


def _video(frames: Path, masks: Path) -> Video:
    files = sorted((p for p in frames.iterdir() if _is_image(p, FRAME_SUFFIXES)), key=_natural)
    found = {}
    if masks.is_dir():
        found = {p.stem: p for p in sorted(masks.iterdir()) if _is_image(p, MASK_SUFFIXES)}
    return Video(frames.name, tuple(files), tuple(found.get(path.stem) for path in files))


def _is_image(path: Path, suffixes: set[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def _natural(path: Path) -> list[str | int]:
    """A key that sorts `9.jpg` before `10.jpg`; text and numbers alternate, so they compare."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]
