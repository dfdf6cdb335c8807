"""The attention lens on a clip: where the CLS token looks, frame after frame, on ONE color scale.

    frames = read_frames(Path("dog.mp4"), every=2)     # or a folder of frames, or an animated GIF
    clip = look_at_clip(model, frames, head=3, smoothing=0.5)
    write(clip, Path("dog-attention.mp4"))             # or .gif, .webp, or a folder of PNGs

A picture's map is stretched to its own range; a clip stretched frame by frame flickers, and a frame
where the model attends to nothing looks as bright as one where it found the dog. Here the range is
that of the whole clip (`Clip.scale`), so that equal attention has one color throughout.

Nothing holds a whole clip of full-size frames. They are decoded (see `frames`) once for the maps,
which are small and kept, once more for the pictures.

Legend: frames uint8 [H, W, 3], maps float [T, h, w] for T frames on the patch grid.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dino_core.errors import UserError
from dino_core.files import whole_file, whole_folder
from dino_core.lenses import colormap as colors
from dino_core.lenses.attention import look
from dino_core.lenses.frames import FOLDER_RATE, Asks, Frames, go_on, pyav, said
from dino_core.lenses.render import nearest
from dino_core.models.attention import attention_modules

if TYPE_CHECKING:
    from dino_core.models import Model

MAX_SMOOTHING = 0.95
MAX_HELD = 2**28  # bytes of pictures; Pillow holds all of an animation before it writes the first
SCALE_QUANTILES = (0.05, 0.95)
ENCODERS = ("libx264", "libopenh264", "mpeg4")  # H.264, which every browser plays, or what there is
BT601_MATRIX, BT709, MPEG_RANGE = 6, 1, 1  # FFmpeg's numbers (AVColorSpace, AVColorPrimaries)

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, message)`; a total of 0 is not known."""


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


def look_at_clip(
    model: "Model",
    frames: Iterable[np.ndarray],
    *,
    layer: int = -1,
    head: int | None = None,
    size: int | None = None,
    smoothing: float = 0.0,
    progress: Progress | None = None,
    cancelled: Asks | None = None,
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


def pictures(
    clip: Clip, opacity: float = 0.6, colormap: str = "inferno", cancelled: Asks | None = None
) -> Iterator[np.ndarray]:
    """The clip's frames under their maps, uint8 [H, W, 3], one at a time, on the clip's scale.

    Raises `UserError` when there are other frames than were looked at, `Cancelled` once
    `cancelled()` is true.
    """
    scale = clip.scale()
    for frame, attention in itertools.zip_longest(_watched(clip.frames, cancelled), clip.shown()):
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
    cancelled: Asks | None = None,
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
    made = pictures(clip, opacity, colormap, cancelled)
    _WRITERS[ending](clip, path, _counted(made, len(clip.maps), progress))
    return path


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


def _watched(frames: Iterable[np.ndarray], cancelled: Asks | None) -> Iterator[np.ndarray]:
    """The frames; asks `cancelled` before each, and `Frames` also while it skips some."""
    for frame in frames.read(cancelled) if isinstance(frames, Frames) else frames:
        go_on(cancelled)
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
    av = pyav(path, "writing .mp4")
    rate = Fraction(clip.rate).limit_denominator(1001)
    with whole_file(path) as aside:
        try:
            _encode(av, aside, rate, map(_even, made))
        except av.FFmpegError as error:
            raise UserError(f"{path}: cannot be encoded ({said(error)})") from error


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
