"""What every image source offers, wherever its images come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, overload

import numpy as np

from dino_core.data.channels import decode_channels
from dino_core.data.decode import Shrink, decode_image

if TYPE_CHECKING:
    import pandas as pd


class Names(Sequence[str]):
    """An immutable list of strings, packed into one buffer.

    A million Python strings weigh 100 MB, take seconds to pickle, and are copied page by page into
    every forked worker as their reference counts are touched; one buffer does none of that.
    Names are bytes as the disk has them; what is not UTF-8 in them is shown as `\\xff`.
    """

    def __init__(self, names: Iterable[str | bytes]) -> None:
        raw = [n if isinstance(n, bytes) else n.encode("utf-8", "surrogateescape") for n in names]
        self.ends = np.cumsum([len(name) for name in raw], dtype=np.int64)
        self.buffer = b"".join(raw)

    @classmethod
    def packed(cls, buffer: bytes, ends: np.ndarray) -> Self:
        """Names joined in `buffer`, name `i` ending at byte `ends[i]` (int64 [n]); ValueError
        where these do not belong together."""
        if ends.ndim != 1 or (np.diff(ends, prepend=0) < 0).any():
            raise ValueError("these are not the ends of names")
        if (int(ends[-1]) if len(ends) else 0) != len(buffer):
            raise ValueError("the names are cut off")
        names = cls([])
        names.ends, names.buffer = ends.astype(np.int64), buffer
        return names

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "backslashreplace")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends.tolist():
            yield self.buffer[start:end].decode("utf-8", "backslashreplace")
            start = end

    def raw(self, index: int) -> bytes:
        """The name as bytes; `os.fsdecode` makes a path of it."""
        index = checked(index, len(self))
        start = int(self.ends[index - 1]) if index else 0
        return self.buffer[start : int(self.ends[index])]


def checked(index: int, length: int) -> int:
    """`index` counted from the front, as sequences do; IndexError when there is none such."""
    front = int(index) + length if index < 0 else int(index)
    if not 0 <= front < length:
        raise IndexError(f"image {index} of {length}")
    return front


class Source(ABC):
    """A numbered collection of images. Cheap to pickle; safe to use from threads and forks.

    spec      what `open_source` was given
    root      the folder that ids are relative to, None where there is none
    ids       n stable names, e.g. "dog/1.jpg"
    labels    int64 [n] into `classes`, -1 = unlabeled; None where the source knows no labels
    classes   names of the labels, [] without labels
    splits    object [n] of strings such as "train", None where the source knows none
    metadata  the user's own columns, n rows; None without a table
    notes     sentences on what was left out while opening
    channels  of an image; 3 is RGB
    """

    spec: str
    root: Path | None = None
    ids: Sequence[str]
    labels: np.ndarray | None = None
    classes: list[str]
    splits: np.ndarray | None = None
    metadata: "pd.DataFrame | None" = None
    notes: list[str]
    generated: bool = False
    channels: int = 3

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        labels = f", {len(self.classes)} classes" if self.classes else ""
        return f"<{type(self).__name__} {self.spec}: {len(self):,} images{labels}>"

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The bytes of image `i`'s file; `BadImage` when it cannot be read."""

    def image(self, i: int) -> np.ndarray:
        """Image `i`, uint8 [H, W, channels], RGB where these are 3; raises `BadImage`."""
        return self.decode(self.read(i))

    def shrunk(self, i: int, shrink: Shrink) -> np.ndarray:
        """`image`, of a JPEG reduced while it is decoded, by 1, 2, 4 or 8 as `shrink` says."""
        if self.channels == 3 and type(self).image is Source.image:
            return decode_image(self.read(i), shrink=shrink)
        return self.image(i)

    def decode(self, data: bytes) -> np.ndarray:
        """An image file's bytes as `image` gives them; raises `BadImage`."""
        return decode_image(data) if self.channels == 3 else decode_channels(data, self.channels)

    def mask(self, i: int) -> np.ndarray | None:
        """The exact foreground of image `i`, bool [H, W], where the source knows it."""
        checked(i, len(self))
        return None

    def path(self, i: int) -> Path | None:
        """The file that image `i` is, where it is one."""
        checked(i, len(self))
        return None

    def fingerprint(self, i: int) -> str:
        """A hash of image `i`'s content, 32 hexadecimal digits; raises `BadImage`."""
        return hashlib.blake2b(self.read(i), digest_size=16).hexdigest()
