"""The frames of a clip, read from a video, an animation or a folder of pictures, within bounds.

    frames = read_frames(Path("dog.mp4"), every=2)
    for frame in frames:  # uint8 [H, W, 3]; can be gone through again
        ...

Nothing holds a whole clip: `Frames` decodes anew each time it is iterated over. A small file may
unfold to a great deal, so what is decoded is bounded in frames, seconds, pixels of a frame and
pixels in all, skipped frames included, and each decoded frame asks whether it is still wanted.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dino_core.data.decode import (
    BadImage,
    as_bad_image,
    decode_image,
    looks_like_image,
    open_checked,
    read_file,
)
from dino_core.data.naming import by_name, is_hidden
from dino_core.errors import UserError, at_least
from dino_core.lenses.attention import resized

FOLDER_RATE = 12.0  # frames a second of a folder of pictures, which does not say
ANIMATION_DELAY = 100  # ms a frame of an animation that says none; browsers do the same
MAX_FRAME_PIXELS = 12_500_000  # a phone's photo (12.2 million) or 4K; a pixel costs up to 25 bytes

# Pixels decoded in one pass, by what a pixel costs: FFmpeg makes some hundred million a second,
# Pillow about twenty million of an animation.
VIDEO_PIXELS = 2**32  # a minute of 1080p at 30 frames a second
ANIMATION_PIXELS = 2**29
FOLDER_PIXELS = 2**30

WIDEST_PIXEL = 4.0  # width over height; films have 0.9 to 2, anything beyond 4 is damage

# What FFmpeg may take a file for: containers with the video inside. Playlists, concatenations and
# image patterns are left out, because they make it open other files and addresses.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg,flv,asf,h264,hevc,ivf,"
    "mjpeg,mxf,dv"
)

Asks = Callable[[], bool]


class Cancelled(Exception):
    """The caller's `cancelled()` said so; nothing is left behind."""


def go_on(cancelled: Asks | None) -> None:
    """Raise `Cancelled` once `cancelled()` is true."""
    if cancelled and cancelled():
        raise Cancelled


class _Reader(Protocol):
    """A place that frames come from."""

    count: int | None  # frames there are, as far as its header says
    rate: float  # frames a second
    pixels: int  # of a frame, as far as its header says; 0: not known
    budget: int  # pixels that may be decoded in one pass
    skips: bool  # whether frames that are left out cost nothing

    def read(self, every: int, cancelled: Asks | None) -> Iterator[np.ndarray]:
        """Every `every`-th frame, uint8 [H, W, 3]; raises `UserError` for what is damaged, and
        `Cancelled`, also between two frames that are given."""
        ...

    def named(self, number: int) -> str:
        """How a sentence begins that is about this frame."""
        ...


@dataclass(frozen=True)
class Frames:
    """The frames of a clip, decoded anew on each iteration: uint8 [H, W, 3], all of one size."""

    path: Path
    size: tuple[int, int]  # (H, W)
    rate: float  # of the frames that are taken, per second
    expected: int  # how many there will be, by the file's header; `most` where it does not say
    most: int  # the most there can be
    note: str  # a sentence where limits leave frames out, else empty
    every: int
    reader: _Reader

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames in order. Raises `UserError` for damaged ones and for changing sizes."""
        return self.read()

    def read(self, cancelled: Asks | None = None) -> Iterator[np.ndarray]:
        """As iterating, but `Cancelled` is raised once `cancelled()` is true."""
        with closing(self.reader.read(self.every, cancelled)) as frames:  # type: ignore[type-var]
            first: tuple[int, ...] | None = None
            for number, frame in enumerate(itertools.islice(frames, self.most)):
                first = first or frame.shape
                if frame.shape != first:
                    raise UserError(
                        f"{self.reader.named(number * self.every)} is {frame.shape[1]} x "
                        f"{frame.shape[0]} px, the first is {first[1]} x {first[0]}; "
                        "give frames of one size"
                    )
                yield resized(frame, *self.size)


def read_frames(
    path: Path,
    *,
    every: int = 1,
    max_frames: int = 240,
    max_side: int = 640,
    max_seconds: float = 60.0,
    max_pixels: int | None = None,
) -> Frames:
    """The frames of a video (needs PyAV), a folder of pictures, or an animated GIF, WebP or PNG.

    Every `every`-th frame is taken, at most `max_frames`, of the first `max_seconds` of the clip
    and as many as the pixels decoded in all allow; larger frames are reduced to `max_side` pixels
    on the long side. Pictures of a folder come in the order of their names, numbers in them by
    value (`9.png` before `10.png`).

    The first frame is decoded at once. Raises `UserError` where there is nothing to read, PyAV is
    missing, a file is damaged, or a frame has more than `max_pixels` pixels (None: 12.5 million).
    """
    at_least(1, every=every, max_frames=max_frames, max_side=max_side, max_pixels=max_pixels)
    reader = _reader_of(Path(path), MAX_FRAME_PIXELS if max_pixels is None else max_pixels)
    with closing(reader.read(every, None)) as frames:  # type: ignore[type-var]
        first = next(frames, None)
    if first is None:
        raise UserError(f"{path}: no frame can be read; the file is empty or damaged")
    within = max(1, ceil(max_seconds * reader.rate / every))
    pixels = max(reader.pixels, first.shape[0] * first.shape[1])
    affordable = max(1, reader.budget // pixels // (1 if reader.skips else every))
    most = min(max_frames, within, affordable)
    taken = None if reader.count is None else max(1, ceil(reader.count / every))
    note = ""
    if taken is not None and taken > most:
        note = (
            f"{path}: only the first {most} of {taken} frames are read, {max_frames} frames, "
            f"{max_seconds:g} s and {reader.budget / 1e6:,.0f} million pixels in all being the "
            "limits; take fewer frames a second, reduce them first, or raise the limits"
        )
    return Frames(
        path=Path(path),
        size=_reduced(first.shape[0], first.shape[1], max_side),
        rate=reader.rate / every,
        expected=most if taken is None else min(most, taken),
        most=most,
        note=note,
        every=every,
        reader=reader,
    )


# --- where frames come from


class _Folder:
    """Pictures of a folder, by name."""

    rate, pixels, budget, skips = FOLDER_RATE, 0, FOLDER_PIXELS, True

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        names = (p for p in path.iterdir() if by_name(p.name) and not is_hidden(p.name))
        self.files = sorted((p for p in names if p.is_file()), key=_natural)
        self.count: int | None = len(self.files)
        if not self.files:
            raise UserError(f"{path}: no pictures in this folder")

    def named(self, number: int) -> str:
        return str(self.files[number])

    def read(self, every: int, cancelled: Asks | None) -> Iterator[np.ndarray]:
        for file in self.files[::every]:
            go_on(cancelled)
            with _named(file):
                frame = decode_image(file, self.max_pixels)
            yield frame


class _Animation:
    """An animated GIF, WebP, PNG or AVIF, by Pillow."""

    budget, skips = ANIMATION_PIXELS, False

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self.max_pixels = path, max_pixels
        with _named(path), as_bad_image(), self._opened() as image:
            image.load()  # the delay is known from here on
            self.count: int | None = getattr(image, "n_frames", 1)
            self.pixels = image.width * image.height
            delay = float(image.info.get("duration") or 0)
        self.rate = 1000 / (delay if delay > 10 else ANIMATION_DELAY)

    def named(self, number: int) -> str:
        return f"{self.path}: frame {number}"

    def _opened(self) -> Image.Image:
        return open_checked(read_file(self.path), self.max_pixels)

    def read(self, every: int, cancelled: Asks | None) -> Iterator[np.ndarray]:
        with _named(self.path):
            image = self._opened()
        with image:
            for number in range(self.count or 1):
                go_on(cancelled)
                with _named(self.path, f"frame {number}: "), as_bad_image():
                    image.seek(number)
                    image.load()  # each builds on the one before, so none can be jumped over
                    frame = None if number % every else _on_white(image)
                if frame is not None:
                    yield frame


class _Video:
    """A video file, by PyAV."""

    budget, skips = VIDEO_PIXELS, False

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self.max_pixels = path, max_pixels
        with self._opened() as (_, stream):
            width, height = stream.codec_context.width, stream.codec_context.height
            self.pixels = width * height
            if self.pixels > max_pixels:
                raise UserError(
                    f"{path}: {width:,} x {height:,} px a frame, the limit is "
                    f"{max_pixels:,} pixels; reduce it first"
                )
            self.rate = float(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
            seconds = float(stream.duration * stream.time_base) if stream.duration else None
            known = stream.frames or (seconds and round(seconds * self.rate))
            self.count: int | None = known or None

    def named(self, number: int) -> str:
        return f"{self.path}: frame {number}"

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its video stream; what FFmpeg says becomes a sentence."""
        av = pyav(self.path, "reading video")
        try:
            # A file object and no protocols: nothing but this very file is opened.
            options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
            with self.path.open("rb") as file, av.open(file, options=options) as container:
                stream = container.streams.best("video")
                if stream is None:
                    raise UserError(f"{self.path}: has no picture track")
                stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
                stream.thread_type = "AUTO"
                yield container, stream
        except av.FFmpegError as error:
            raise UserError(f"{self.path}: not a video, or damaged ({said(error)})") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def read(self, every: int, cancelled: Asks | None) -> Iterator[np.ndarray]:
        with self._opened() as (container, stream):
            aspect = float(stream.sample_aspect_ratio or 1)
            for number, frame in enumerate(self._decoded(container, stream)):
                go_on(cancelled)
                if number % every:
                    continue
                pixels = frame.to_ndarray(format="rgb24")
                height, width = pixels.shape[:2]
                pixels = resized(pixels, *_square(height, width, aspect))
                # Phones film sideways and note by how much to turn it, counterclockwise.
                yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """All frames. FFmpeg takes a file cut short for one that ends there; we say so, except of
        Matroska and WebM, whose packets do not show it."""
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UserError(f"{self.path}: cut short or damaged; copy or download it again")
            yield from packet.decode()


def _reader_of(path: Path, max_pixels: int) -> _Reader:
    if path.is_dir():
        return _Folder(path, max_pixels)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    kind = _Animation if looks_like_image(head) else _Video
    return kind(path, max_pixels)


def pyav(path: Path, purpose: str) -> ModuleType:
    """PyAV, or a `UserError` that says what needs it."""
    try:
        import av
    except ImportError:
        raise UserError(
            f"{path}: {purpose} needs PyAV: pip install -e '.[video]'; without it a folder of "
            "frames, or an animated GIF or WebP, will do"
        ) from None
    return av


def said(error: Exception) -> str:
    """FFmpeg's own words, without number and path."""
    return str(getattr(error, "strerror", None) or error).split(":")[0].lower()


@contextmanager
def _named(path: Path, where: str = "") -> Iterator[None]:
    """A `BadImage` inside is a sentence about `path`."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"{path}: {where}{error.reason}") from None


def _natural(path: Path) -> list[str | int]:
    """A key that sorts `9.png` before `10.png`; text and numbers alternate, so they compare."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _on_white(image: Image.Image) -> np.ndarray:
    """The current frame of an animation as RGB uint8 [H, W, 3], transparency laid on white."""
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    picture = image.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(paper, picture).convert("RGB"))


def _square(height: int, width: int, aspect: float) -> tuple[int, int]:
    """(height, width) in square pixels of a frame whose pixels are `aspect` times as wide as high.

    The longer side of a pixel is reduced, never the other enlarged: what a header says makes no
    frame larger. An aspect that no film has counts as 1.
    """
    if not 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL:
        return height, width
    if aspect > 1:
        return max(1, round(height / aspect)), width
    return height, max(1, round(width * aspect))


def _reduced(height: int, width: int, max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
