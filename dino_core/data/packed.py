"""Many image files inside one file, read at random by their places in it."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data.decode import MAX_BYTES, BadImage
from dino_core.data.source import Source, checked


class Packed(Source):
    """Images at `offsets` in `file`, of `sizes` bytes; both int64 [n].

    Reads use `pread`, which moves no shared file position: threads and forked workers may share
    one descriptor. Pickling leaves the descriptor behind; the copy opens its own.
    """

    container = "file"  # what to call `file` in a sentence

    def __init__(
        self, spec: str, file: Path, ids: Sequence[str], offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.spec, self.file, self.ids, self.notes = spec, file, ids, []
        self.classes = []
        self._offsets, self._sizes = offsets, sizes
        self._opened: int | None = None
        self._opening = threading.Lock()

    def read(self, i: int) -> bytes:
        """The bytes of image `i`; raises `BadImage`."""
        i = checked(i, len(self))
        size = int(self._sizes[i])
        if size > MAX_BYTES:
            raise BadImage(f"too large: {size:,} bytes, the limit is {MAX_BYTES:,}")
        try:
            data = read_at(self._descriptor(), int(self._offsets[i]), size)
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise BadImage(f"truncated (the {self.container} ends within it)")
        return data

    def _descriptor(self) -> int:
        with self._opening:
            if self._opened is None:
                self._opened = os.open(self.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock())

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            os.close(self._opened)  # type: ignore[arg-type]


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the end of the file."""
    pieces: list[bytes] = []
    while size > 0:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)
