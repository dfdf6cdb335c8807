"""The attention lens on a clip: where the CLS token looks, frame after frame, on ONE color scale.

    frames = read_frames(Path("dog.mp4"), every=2)     # or a folder of frames, or an animated GIF
    clip = look_at_clip(model, frames, head=3, smoothing=0.5)
    write(clip, Path("dog-attention.mp4"))             # or .gif, .webp, or a folder of PNGs

A picture's map is stretched to its own range; a clip stretched frame by frame flickers, and a frame
where the model attends to nothing looks as bright as one where it found the dog. Here the range is
that of the whole clip (`Clip.scale`), so that equal attention has one color throughout.

Nothing holds a whole clip of full-size frames. `Frames` decodes anew each time it is iterated over:
once for the maps, which are small and kept, once more for the pictures. What is read is bounded in
frames, seconds and pixels.

Legend: frames uint8 [H, W, 3], maps float [T, h, w] for T frames on the patch grid.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

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
from dino_core.files import whole_file, whole_folder
from dino_core.lenses import colormap as colors
from dino_core.lenses.attention import look, resized
from dino_core.lenses.render import nearest
from dino_core.models.attention import attention_modules

if TYPE_CHECKING:
    from dino_core.models import Model

FOLDER_RATE = 12.0  # frames a second of a folder of pictures, which does not say
ANIMATION_DELAY = 100  # ms a frame of an animation that says none; browsers do the same
MAX_FRAME_PIXELS = 2**26  # 67 million: twice an 8K video
MAX_SMOOTHING = 0.95
MAX_HELD = 2**28  # bytes of pictures; Pillow holds all of an animation before it writes the first
SCALE_QUANTILES = (0.05, 0.95)

# What FFmpeg may take a file for: containers with the video inside. Playlists, concatenations and
# image patterns are left out, because they make it open other files and addresses.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg,flv,asf,h264,hevc,ivf,"
    "mjpeg,mxf,dv"
)
ENCODERS = ("libx264", "libopenh264", "mpeg4")  # H.264, which every browser plays, or what there is
BT601_MATRIX, BT709, MPEG_RANGE = 6, 1, 1  # FFmpeg's numbers (AVColorSpace, AVColorPrimaries)

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, message)`; a total of 0 is not known."""


class Cancelled(Exception):
    """The caller's `cancelled()` said so; nothing is left behind."""


class _Reader(Protocol):
    """A place that frames come from."""

    count: int | None  # frames there are, as far as its header says
    rate: float  # frames a second

    def read(self, every: int) -> Iterator[np.ndarray]:
        """Every `every`-th frame, uint8 [H, W, 3]; raises `UserError` for what is damaged."""
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
        with closing(self.reader.read(self.every)) as frames:  # type: ignore[type-var]
            first: tuple[int, ...] | None = None
            for number, frame in enumerate(itertools.islice(frames, self.most)):
                first = first or frame.shape
                if frame.shape != first:
                    raise UserError(
                        f"{self.path}: frame {number * self.every} is {frame.shape[1]} x "
                        f"{frame.shape[0]} px, the first is {first[1]} x {first[0]}; "
                        "give frames of one size"
                    )
                yield resized(frame, *self.size)


@dataclass(frozen=True)
class Clip:
    """One head's (or the heads' mean) map of every frame, and the frames to lay them over."""

    frames: Iterable[np.ndarray]  # uint8 [H, W, 3]; can be iterated over again
    maps: np.ndarray  # float32 [T, h, w], as the model gave them
    smoothing: float  # 0 (none) to 0.95: see `smoothed`
    rate: float  # frames a second
    layer: int
    head: int | None  # None: the mean of all
    model: str  # spec
    model_hash: str

    def shown(self) -> np.ndarray:
        """The maps after smoothing, float32 [T, h, w]."""
        return smoothed(self.maps, self.smoothing)

    def scale(self) -> tuple[float, float]:
        """(low, high): the values of `shown` that get the first and the last color, in every frame.

        The 5 % quantile of the frames' least and the 95 % quantile of their largest values, so that
        one flaring frame does not darken all others; what lies beyond gets the end's color.
        """
        flat = self.shown().reshape(len(self.maps), -1)
        low, high = SCALE_QUANTILES
        return float(np.quantile(flat.min(1), low)), float(np.quantile(flat.max(1), high))


def read_frames(
    path: Path,
    *,
    every: int = 1,
    max_frames: int = 240,
    max_side: int = 640,
    max_seconds: float = 60.0,
) -> Frames:
    """The frames of a video (needs PyAV), a folder of pictures, or an animated GIF, WebP or PNG.

    Every `every`-th frame is taken, at most `max_frames`, of the first `max_seconds` of the clip;
    larger frames are reduced to `max_side` pixels on the long side. Pictures of a folder come in
    the order of their names, numbers in them by value (`9.png` before `10.png`).

    The first frame is decoded at once. Raises `UserError` where there is nothing to read, PyAV is
    missing, a file is damaged, or a frame has more than 67 million pixels.
    """
    at_least(1, every=every, max_frames=max_frames, max_side=max_side)
    reader = _reader_of(Path(path))
    with closing(reader.read(every)) as frames:  # type: ignore[type-var]
        first = next(frames, None)
    if first is None:
        raise UserError(f"{path}: no frame can be read; the file is empty or damaged")
    within = max(1, ceil(max_seconds * reader.rate / every))
    most = min(max_frames, within)
    taken = None if reader.count is None else max(1, ceil(reader.count / every))
    note = ""
    if taken is not None and taken > most:
        note = (
            f"{path}: only the first {most} of {taken} frames are read, {max_frames} frames and "
            f"{max_seconds:g} s being the limits; take fewer frames a second or raise the limits"
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


def look_at_clip(
    model: "Model",
    frames: Iterable[np.ndarray],
    *,
    layer: int = -1,
    head: int | None = None,
    size: int | None = None,
    smoothing: float = 0.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Clip:
    """Look at every frame; of each, only the small map of one layer and head is kept.

    `frames` uint8 [H, W, 3] of one size: `Frames`, or a list; they are iterated over again when
    pictures are made. `head` None is the mean of all; `size` is the short side in pixels that the
    model is fed; `smoothing` 0..0.95. Raises `UserError` for a layer or head that is not there and
    for no frames, `Cancelled` once `cancelled()` is true.
    """
    if iter(frames) is frames:
        raise TypeError("frames are gone through twice: give a list or `Frames`, not a generator")
    layer = _checked(model, layer, head, smoothing)
    total = frames.expected if isinstance(frames, Frames) else _length(frames)
    maps = []
    for done, frame in enumerate(_watched(frames, cancelled)):
        attention = look(model, frame, size=size)
        maps.append(attention.head_mean(layer) if head is None else attention.maps[layer, head])
        if maps[-1].shape != maps[0].shape:
            raise UserError(f"frame {done} has another shape than the first: give one size")
        if progress:
            progress(done + 1, max(total, done + 1) if total else 0, "looking at frames")
    if not maps:
        raise UserError("the clip has no frames")
    return Clip(
        frames=frames,
        maps=np.stack(maps),
        smoothing=smoothing,
        rate=float(getattr(frames, "rate", FOLDER_RATE)),
        layer=layer,
        head=head,
        model=model.spec,
        model_hash=model.hash,
    )


def smoothed(maps: np.ndarray, smoothing: float) -> np.ndarray:
    """Each map as the mean of its neighbors in time, weighted smoothing^|frames apart|.

    Exponential in BOTH directions: a filter that only looks back lets the map trail behind what
    moves, by smoothing / (1 - smoothing) frames. At the ends the mean is over what there is. No
    optical flow: what moves by patches a frame is smeared along its way, so keep it low for fast
    clips. `maps` float [T, h, w]; 0 changes nothing; returns float32.
    """
    if smoothing == 0:
        return maps.astype(np.float32, copy=False)
    forward = maps.astype(np.float64)
    backward = forward.copy()
    weight = np.ones((2, len(maps), 1, 1))
    for t in range(1, len(maps)):
        forward[t] += smoothing * forward[t - 1]
        backward[-1 - t] += smoothing * backward[-t]
        weight[0, t] += smoothing * weight[0, t - 1]
        weight[1, -1 - t] += smoothing * weight[1, -t]
    both = (forward + backward - maps) / (weight.sum(axis=0) - 1)  # the frame itself counts once
    return both.astype(np.float32)


def overlay(
    frame: np.ndarray,
    attention: np.ndarray,
    scale: tuple[float, float],
    opacity: float = 0.6,
    colormap: str = "inferno",
) -> np.ndarray:
    """`frame` under the colors of a map [h, w] on a given `scale`: uint8 [H, W, 3].

    `render.overlay` is this with the scale of the map itself.
    """
    low, high = scale
    values = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    tint = colors.table(colormap)[nearest(colors.codes(values), frame.shape[0], frame.shape[1])]
    return np.rint((1 - opacity) * frame + opacity * tint).astype(np.uint8)


def pictures(clip: Clip, opacity: float = 0.6, colormap: str = "inferno") -> Iterator[np.ndarray]:
    """The clip's frames under their maps, uint8 [H, W, 3], one at a time, on the clip's scale.

    Raises `UserError` when there are other frames than were looked at.
    """
    scale = clip.scale()
    for frame, attention in itertools.zip_longest(clip.frames, clip.shown()):
        if frame is None or attention is None:
            raise UserError("the clip has changed since it was looked at: look again")
        yield overlay(frame, attention, scale, opacity, colormap)


def write(
    clip: Clip,
    path: Path,
    *,
    opacity: float = 0.6,
    colormap: str = "inferno",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Write the clip's pictures to `path`: .mp4, .gif, .webp, or (no ending) a folder of PNGs.

    MP4 is H.264 where PyAV has an encoder for it, else MPEG-4 part 2, which browsers do not play.
    A GIF counts time in 1/100 s. The file or folder appears whole or not at all; an existing file
    is replaced, an existing folder is not. Raises `UserError` for other endings and what the disk
    says, `Cancelled` once `cancelled()` is true.
    """
    path = Path(path)
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity {opacity}: must lie between 0 and 1")
    colors.table(colormap)  # an unknown name before any work
    ending = path.suffix.lower()
    if ending not in _WRITERS:
        raise UserError(f"{path}: cannot write '{ending}'; use .mp4, .gif, .webp or a folder")
    made = _watched(pictures(clip, opacity, colormap), cancelled)
    _WRITERS[ending](clip, path, _counted(made, len(clip.maps), progress))
    return path


# --- where frames come from


class _Folder:
    """Pictures of a folder, by name."""

    rate = FOLDER_RATE

    def __init__(self, path: Path) -> None:
        names = (p for p in path.iterdir() if by_name(p.name) and not is_hidden(p.name))
        self.files = sorted((p for p in names if p.is_file()), key=_natural)
        self.count: int | None = len(self.files)
        if not self.files:
            raise UserError(f"{path}: no pictures in this folder")

    def read(self, every: int) -> Iterator[np.ndarray]:
        for file in self.files[::every]:
            with _named(file):
                frame = decode_image(file, MAX_FRAME_PIXELS)
            yield frame


class _Animation:
    """An animated GIF, WebP, PNG or AVIF, by Pillow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _named(path), as_bad_image(), self._opened() as image:
            image.load()  # the delay is known from here on
            self.count: int | None = getattr(image, "n_frames", 1)
            delay = float(image.info.get("duration") or 0)
        self.rate = 1000 / (delay if delay > 10 else ANIMATION_DELAY)

    def _opened(self) -> Image.Image:
        return open_checked(read_file(self.path), MAX_FRAME_PIXELS)

    def read(self, every: int) -> Iterator[np.ndarray]:
        with _named(self.path):
            image = self._opened()
        with image:
            for number in range(0, self.count or 1, every):
                with _named(self.path, f"frame {number}: "), as_bad_image():
                    image.seek(number)
                    frame = _on_white(image)
                yield frame


class _Video:
    """A video file, by PyAV."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as (_, stream):
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_FRAME_PIXELS:
                raise UserError(
                    f"{path}: {width:,} x {height:,} px a frame, the limit is "
                    f"{MAX_FRAME_PIXELS:,} pixels; reduce it first"
                )
            self.rate = float(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
            seconds = float(stream.duration * stream.time_base) if stream.duration else None
            known = stream.frames or (seconds and round(seconds * self.rate))
            self.count: int | None = known or None

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its video stream; what FFmpeg says becomes a sentence."""
        av = _pyav(self.path, "reading video")
        try:
            # A file object and no protocols: nothing but this very file is opened.
            options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
            with self.path.open("rb") as file, av.open(file, options=options) as container:
                stream = container.streams.best("video")
                if stream is None:
                    raise UserError(f"{self.path}: has no picture track")
                stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
                stream.thread_type = "AUTO"
                yield container, stream
        except av.FFmpegError as error:
            raise UserError(f"{self.path}: not a video, or damaged ({_said(error)})") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def read(self, every: int) -> Iterator[np.ndarray]:
        with self._opened() as (container, stream):
            shape = stream.sample_aspect_ratio or 1  # width over height of one pixel
            for number, frame in enumerate(self._decoded(container, stream)):
                if number % every:
                    continue
                pixels = frame.to_ndarray(format="rgb24")
                if shape != 1:
                    wide = max(1, round(pixels.shape[1] * float(shape)))
                    pixels = resized(pixels, pixels.shape[0], wide)
                # Phones film sideways and note by how much to turn it, counterclockwise.
                yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """All frames. FFmpeg takes a file cut short for one that ends there; we say so, except of
        Matroska and WebM, whose packets do not show it."""
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UserError(f"{self.path}: cut short or damaged; copy or download it again")
            yield from packet.decode()


def _reader_of(path: Path) -> _Reader:
    if path.is_dir():
        return _Folder(path)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return _Animation(path) if looks_like_image(head) else _Video(path)


def _pyav(path: Path, purpose: str) -> ModuleType:
    try:
        import av
    except ImportError:
        raise UserError(
            f"{path}: {purpose} needs PyAV: pip install -e '.[video]'; without it a folder of "
            "frames, or an animated GIF or WebP, will do"
        ) from None
    return av


@contextmanager
def _named(path: Path, where: str = "") -> Iterator[None]:
    """A `BadImage` inside is a sentence about `path`."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"{path}: {where}{error.reason}") from None


def _said(error: Exception) -> str:
    """FFmpeg's own words, without number and path."""
    return str(getattr(error, "strerror", None) or error).split(":")[0].lower()


def _natural(path: Path) -> list[str | int]:
    """A key that sorts `9.png` before `10.png`; text and numbers alternate, so they compare."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _on_white(image: Image.Image) -> np.ndarray:
    """The current frame of an animation as RGB uint8 [H, W, 3], transparency laid on white."""
    picture = image.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(paper, picture).convert("RGB"))


def _reduced(height: int, width: int, max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


# --- looking


def _checked(model: "Model", layer: int, head: int | None, smoothing: float) -> int:
    """The layer by number from 0, once everything asked for is there."""
    depth, heads = len(attention_modules(model.backbone.vit)), model.backbone.num_heads
    if not -depth <= layer < depth:
        raise UserError(f"layer {layer}: the model has layers 0 to {depth - 1}")
    if head is not None and not 0 <= head < heads:
        raise UserError(f"head {head}: the model has heads 0 to {heads - 1}")
    if not 0 <= smoothing <= MAX_SMOOTHING:
        raise UserError(f"smoothing {smoothing}: must lie between 0 and {MAX_SMOOTHING}")
    return layer % depth


def _length(frames: Iterable[np.ndarray]) -> int:
    return len(frames) if isinstance(frames, Sized) else 0


def _watched(
    frames: Iterable[np.ndarray], cancelled: Callable[[], bool] | None
) -> Iterator[np.ndarray]:
    for frame in frames:
        if cancelled and cancelled():
            raise Cancelled
        yield frame


def _counted(
    frames: Iterator[np.ndarray], total: int, progress: Progress | None
) -> Iterator[np.ndarray]:
    for done, frame in enumerate(frames):
        yield frame
        if progress:
            progress(done + 1, total, "writing frames")


# --- where pictures go


def _write_mp4(clip: Clip, path: Path, made: Iterator[np.ndarray]) -> None:
    av = _pyav(path, "writing .mp4")
    rate = Fraction(clip.rate).limit_denominator(1001)
    with whole_file(path) as aside:
        try:
            _encode(av, aside, rate, map(_even, made))
        except av.FFmpegError as error:
            raise UserError(f"{path}: cannot be encoded ({_said(error)})") from error


def _encode(av: Any, aside: Path, rate: Fraction, made: Iterator[np.ndarray]) -> None:
    # The index goes to the front, so that a browser plays before it has everything.
    options = {"movflags": "+faststart"}
    with av.open(str(aside), "w", format="mp4", options=options) as container:
        stream = None
        for number, picture in enumerate(made):
            stream = stream or _video_stream(av, container, rate, picture.shape)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        if stream:
            container.mux(stream.encode())


def _video_stream(av: Any, container: Any, rate: Fraction, shape: Sequence[int]) -> Any:
    name = _encoder(av)
    # Patches are hard-edged squares of strong color: a better quality than the default pays.
    quality = {"crf": "18", "preset": "veryfast"} if name == "libx264" else {"qscale": "3"}
    stream = container.add_stream(name, rate=rate, options=quality)
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
    if name != "libx264":
        stream.bit_rate = int(shape[0] * shape[1] * float(rate) * 0.25)
    context = stream.codec_context
    # Said outright: a player that has to guess the matrix gets greens and reds wrong.
    context.colorspace, context.color_range = BT601_MATRIX, MPEG_RANGE
    context.color_primaries = context.color_trc = BT709
    return stream


def _encoder(av: Any) -> str:
    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # PyAV's UnknownCodecError
            continue
        return name
    raise UserError("PyAV has no encoder for .mp4 here: write .gif, .webp or a folder")


def _even(picture: np.ndarray) -> np.ndarray:
    """With a last row or column twice where a side is odd: colors are stored at half the size."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_animation(clip: Clip, path: Path, made: Iterator[np.ndarray]) -> None:
    first = next(made)
    held = first.nbytes * len(clip.maps)
    if held > MAX_HELD:
        raise UserError(
            f"{path}: {len(clip.maps)} frames of {first.shape[1]} x {first.shape[0]} px are more "
            "than an animation should hold; write .mp4 or a folder, or take fewer or smaller frames"
        )
    kind = path.suffix.lower().removeprefix(".").upper()
    with whole_file(path) as aside:
        Image.fromarray(first).save(
            aside,
            format=kind,
            save_all=True,
            append_images=map(Image.fromarray, made),
            duration=round(1000 / clip.rate),
            loop=0,
        )


def _write_folder(clip: Clip, path: Path, made: Iterator[np.ndarray]) -> None:
    if path.exists():
        raise UserError(f"{path}: exists already; name a new folder")
    digits = max(4, len(str(len(clip.maps) - 1)))
    with whole_folder(path) as aside:
        for number, picture in enumerate(made):
            Image.fromarray(picture).save(aside / f"{number:0{digits}}.png")


_WRITERS: dict[str, Callable[[Clip, Path, Iterator[np.ndarray]], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_animation,
    ".webp": _write_animation,
    "": _write_folder,
}
