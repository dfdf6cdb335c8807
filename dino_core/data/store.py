"""Decoded images as raw pixels, one after the other: in memory, on a GPU, or in the cache on disk.

    store = fill(source, images, stored_size=288, threads=2)
    store.image(7)                      # image 7 of the source, uint8 [H, W, C]

A store is made once and then read at random, at the cost of a copy. `stored_size` reduces larger
images to this short side first (antialiased bicubic), which changes what is seen of them; 0 keeps
every pixel. A bad image's place is taken by its replacement, as `safe_image` has it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dino_core.data.decode import Shrink
from dino_core.data.quarantine import Quarantined, safe_image
from dino_core.data.source import Source
from dino_core.errors import UserError

Progress = Callable[[int, int], None]  # images done, images in all

BLOCK = 2**26  # bytes that go to a GPU at once
SAMPLE = 32  # images looked at to judge the size of all
SPARE = 1.1  # of the judged size, so that it seldom has to grow


@dataclass(frozen=True)
class PixelStore:
    """The pixels of some images of a source.

    `images` int64 [n], ascending, are their numbers in the source. Pickling leaves a file's pixels
    behind; the copy maps them again.
    """

    pixels: Tensor
    """uint8 [bytes]: images [H, W, C] one after the other."""
    images: np.ndarray
    offsets: np.ndarray
    """int64 [n], the first byte of each."""
    heights: np.ndarray
    widths: np.ndarray
    """int64 [n], in pixels."""
    channels: int
    quarantined: list[Quarantined] = field(default_factory=list)
    """What was bad, and is replaced."""
    file: Path | None = None
    """Where the pixels are mapped from."""

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Where images of the source stand here, int64; KeyError for one that is not here."""
        wanted = np.asarray(indices, np.int64)
        rows = np.searchsorted(self.images, wanted)
        found = self.images[np.minimum(rows, len(self.images) - 1)]
        if (found != wanted).any():
            raise KeyError(f"image {int(wanted[found != wanted][0])} is not in this store")
        return rows

    def image(self, i: int) -> np.ndarray:
        """Image `i` of the source, uint8 [H, W, C]: the store's own memory, not to be changed."""
        (row,) = self.rows([i])
        height, width = int(self.heights[row]), int(self.widths[row])
        start = int(self.offsets[row])
        end = start + height * width * self.channels
        return self.pixels[start:end].view(height, width, self.channels).numpy()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({} if self.file is None else {"pixels": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.file is not None:
            self.__dict__["pixels"] = mapped(self.file)

    def to(self, device: torch.device) -> "PixelStore":
        """The same with its pixels on `device`, copied block by block."""
        there = MemoryPixels(len(self.pixels), device)
        for start in range(0, len(self.pixels), BLOCK):
            there.append(self.pixels[start : start + BLOCK].numpy())
        fields = self.__dict__ | {"pixels": there.finish(), "file": None}
        return PixelStore(**fields)


def mapped(file: Path) -> Tensor:
    """A file's bytes as a tensor, read when they are looked at."""
    if file.stat().st_size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c"))


class PixelSink(Protocol):
    """Where pixels go while a store is made."""

    def append(self, pixels: np.ndarray) -> None: ...


class MemoryPixels:
    """Pixels in the memory of a device, `capacity` bytes at first; grows where that is too few."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.device = device
        self.held = self._empty(capacity)
        self.length = 0
        self.waiting: list[np.ndarray] = []
        self.waiting_bytes = 0

    def append(self, pixels: np.ndarray) -> None:
        self.waiting.append(pixels.reshape(-1))
        self.waiting_bytes += pixels.size
        if self.device.type == "cpu" or self.waiting_bytes >= BLOCK:
            self._flush()

    def finish(self) -> Tensor:
        """All pixels, uint8 [bytes]."""
        self._flush()
        return self.held[: self.length]

    def _flush(self) -> None:
        if not self.waiting:
            return
        block = torch.from_numpy(np.require(np.concatenate(self.waiting), requirements="W"))
        self.waiting, self.waiting_bytes = [], 0
        end = self.length + len(block)
        if end > len(self.held):
            larger = self._empty(max(end, int(1.25 * len(self.held))))
            larger[: self.length] = self.held[: self.length]
            self.held = larger
        self.held[self.length : end] = block
        self.length = end

    def _empty(self, size: int) -> Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except (RuntimeError, MemoryError):  # out of memory is one of these, by device
            raise UserError(
                f"the decoded images ({size / 2**30:.1f} GB) do not fit into the memory of "
                f"{self.device}: use --resident never, or a smaller --stored-size"
            ) from None


def fill(
    source: Source,
    images: np.ndarray,
    stored_size: int = 0,
    *,
    threads: int = 1,
    device: torch.device | None = None,
    shrink: Shrink | None = None,
    tell: Progress | None = None,
) -> PixelStore:
    """Decode `images` (int64 [n]) of a source into the memory of a device (default: the CPU's).

    Raises `UserError` where the memory is too small or replacement after replacement is bad.
    """
    images = np.unique(images)
    capacity = int(SPARE * judged_bytes(source, images, stored_size, shrink))
    sink = MemoryPixels(capacity, device or torch.device("cpu"))
    layout = pour(source, images, stored_size, sink, threads, shrink, tell)
    return PixelStore(pixels=sink.finish(), images=images, channels=source.channels, **layout)


def pour(
    source: Source,
    images: np.ndarray,
    stored_size: int,
    sink: PixelSink,
    threads: int,
    shrink: Shrink | None,
    tell: Progress | None,
) -> dict[str, Any]:
    """Decode `images` into `sink`; returns the fields of a store that say where each lies."""
    shapes = np.empty((len(images), 2), np.int64)
    quarantined: list[Quarantined] = []
    for row, (pixels, bad) in enumerate(_decoded(source, images, stored_size, threads, shrink)):
        sink.append(pixels)
        shapes[row] = pixels.shape[:2]
        quarantined += bad
        if tell is not None:
            tell(row + 1, len(images))
    sizes = shapes.prod(axis=1) * source.channels
    return {
        "offsets": np.cumsum(sizes) - sizes,
        "heights": shapes[:, 0].copy(),
        "widths": shapes[:, 1].copy(),
        "quarantined": quarantined,
    }


def _decoded(
    source: Source, images: np.ndarray, stored_size: int, threads: int, shrink: Shrink | None
) -> Iterator[tuple[np.ndarray, list[Quarantined]]]:
    """Images in order, decoded by threads (decoding and resizing let go of Python's lock)."""
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[tuple[np.ndarray, list[Quarantined]]]] = deque()
        try:
            for i in images.tolist():
                running.append(pool.submit(stored_image, source, i, stored_size, shrink))
                if len(running) > 4 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for job in running:
                job.cancel()


def stored_image(
    source: Source, i: int, stored_size: int, shrink: Shrink | None = None
) -> tuple[np.ndarray, list[Quarantined]]:
    """Image `i` or its replacement as a store has it, and what was bad; raises `UserError`."""
    pixels, _, bad = safe_image(source, i, shrink)
    return reduced(pixels, stored_size), bad


def down_to(short_side: int, height: int, width: int) -> int:
    """How far a JPEG may be reduced while it is decoded if this short side is wanted: 1 to 8.

    A short side of 0 wants every pixel.
    """
    if short_side == 0:
        return 1
    return next((k for k in (8, 4, 2) if min(height, width) // k >= short_side), 1)


def reduced(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """An image of at most this short side, uint8 [H, W, C]; 0 and smaller images: as it is."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if not 0 < short_side < shorter:
        return pixels
    size = [max(1, round(length * short_side / shorter)) for length in (height, width)]
    image_CHW = torch.from_numpy(np.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)
    smaller_CHW = F.resize(image_CHW, size, InterpolationMode.BICUBIC, antialias=True)
    return np.ascontiguousarray(smaller_CHW.permute(1, 2, 0).numpy())


def judged_bytes(
    source: Source, images: np.ndarray, stored_size: int, shrink: Shrink | None = None
) -> int:
    """About how many bytes the pixels of `images` take, from the sizes of a few of them."""
    if not len(images):
        return 0
    looked_at = images[np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int)]
    sizes = [stored_image(source, int(i), stored_size, shrink)[0].size for i in looked_at]
    return int(np.mean(sizes) * len(images))
