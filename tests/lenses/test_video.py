"""Attention clips: one color scale, smoothing, bounds, damaged files, and nothing left behind."""

import sys
import weakref
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.errors import UserError
from dino_core.lenses import frames as frames_module
from dino_core.lenses import look, render, video
from dino_core.lenses.colormap import table
from dino_core.lenses.frames import Cancelled, read_frames
from dino_core.lenses.video import Clip, look_at_clip, smoothed, write

COLORS = np.array([[200, 40, 40], [40, 160, 60], [50, 60, 190], [220, 210, 60]], np.uint8)


def striped(number: int, height: int = 32, width: int = 64) -> np.ndarray:
    """Four broad stripes of color, moved by one stripe a frame: tells frames and sides apart."""
    stripe = np.roll(COLORS, number, axis=0)[np.arange(width) * 4 // width]
    return np.ascontiguousarray(np.broadcast_to(stripe, (height, width, 3)))


def clip_of(maps: np.ndarray, frames=None, smoothing: float = 0.0) -> Clip:
    frames = frames or [striped(t) for t in range(len(maps))]
    return Clip(frames, maps.astype(np.float32), smoothing, 10.0, 1, 0, "m", "h")


def some_maps(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((frames, 4, 8)).astype(np.float32)


def save_video(path: Path, frames, rate: int = 10) -> Path:
    """As FFmpeg makes it, nearly without loss, and without the code under test."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def save_folder(path: Path, frames, names=None) -> Path:
    path.mkdir()
    for frame, name in zip(frames, names or range(len(frames)), strict=True):
        Image.fromarray(frame).save(path / f"{name}.png")
    return path


def save_animation(path: Path, frames, **options) -> Path:
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=80, **options)
    return path


def near(frame: np.ndarray, expected: np.ndarray, most: int) -> bool:
    """Alike but for the borders of stripes, whose color video keeps at half the size."""
    inside = np.ones(frame.shape[1], bool)
    edges = np.flatnonzero(np.any(np.diff(expected[0].astype(int), axis=0), axis=1))
    for edge in edges:
        inside[max(0, edge - 2) : edge + 4] = False
    difference = np.abs(frame.astype(int) - expected.astype(int))[:, inside]
    return frame.shape == expected.shape and difference.max() <= most


# --- one scale


def test_equal_attention_has_one_color_in_every_frame():
    """A second frame half as strong: stretched by itself it would look like the first."""
    first = np.linspace(0, 1, 32).reshape(4, 8)
    clip = clip_of(np.stack([first, first / 2]))
    full, half = video.pictures(clip, opacity=1.0, colormap="viridis")
    low, high = clip.scale()
    for picture, attention in ((full, first), (half, first / 2)):
        cell = picture[4::8, 4::8].astype(int)  # one pixel of each patch of 8 px
        code = np.rint(np.clip((attention.astype(np.float32) - low) / (high - low), 0, 1) * 255)
        np.testing.assert_array_equal(cell, table("viridis")[code.astype(int)])
    assert not np.array_equal(full, half)


def test_one_flaring_frame_does_not_darken_the_others():
    maps = np.tile(np.linspace(0, 0.1, 32).reshape(1, 4, 8), (40, 1, 1))
    calm = clip_of(maps).scale()
    maps[17] *= 50
    assert clip_of(maps).scale() == pytest.approx(calm)
    assert calm == pytest.approx((0, 0.1))


def test_a_clip_without_contrast_is_dark():
    frames = video.pictures(clip_of(np.full((2, 4, 8), 0.2)), opacity=1.0)
    assert all((picture == table("inferno")[0]).all() for picture in frames)


def test_with_its_own_range_the_overlay_is_the_photos():
    attention, frame = some_maps(1)[0], striped(0)
    scale = (float(attention.min()), float(attention.max()))
    np.testing.assert_array_equal(
        video.overlay(frame, attention, scale, 0.4, "magma"),
        render.overlay(frame, attention, 0.4, "magma"),
    )


# --- smoothing


@given(frames=st.integers(1, 9), smoothing=st.floats(0.01, 0.95), seed=st.integers(0, 99))
def test_smoothing_is_the_weighted_mean_over_time(frames, smoothing, seed):
    maps = some_maps(frames, seed)
    apart = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    kernel = smoothing**apart
    expected = np.einsum("st,thw->shw", kernel / kernel.sum(1, keepdims=True), maps)
    found = smoothed(maps, smoothing)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Backward in time it is the same clip backward: nothing trails.
    np.testing.assert_allclose(smoothed(maps[::-1], smoothing)[::-1], found, atol=1e-6)


def test_no_smoothing_is_the_identity_and_a_still_clip_stays_still():
    maps = some_maps(5)
    np.testing.assert_array_equal(smoothed(maps, 0), maps)
    still = np.repeat(maps[:1], 6, axis=0)
    np.testing.assert_allclose(smoothed(still, 0.9), still, rtol=1e-6)


# --- looking


def test_maps_are_those_of_the_lens(model):
    frames = [striped(t, 48, 64) for t in range(3)]
    heads = [look(model, frame, size=48).maps[0, 2] for frame in frames]
    clip = look_at_clip(model, frames, layer=0, head=2, size=48)
    np.testing.assert_array_equal(clip.maps, heads)
    assert (clip.layer, clip.head, clip.model_hash) == (0, 2, model.hash)
    mean = [look(model, frame, size=48).maps[-1].mean(0) for frame in frames]
    np.testing.assert_array_equal(look_at_clip(model, frames, size=48).maps, mean)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"layer": 2}, "layer 2: the model has layers 0 to 1"),
        ({"layer": -3}, "layer -3"),
        ({"head": 3}, "head 3: the model has heads 0 to 2"),
        ({"smoothing": 0.96}, r"smoothing 0.96: must lie between 0 and 0.95"),
    ],
)
def test_what_is_not_there_is_said_before_any_frame_is_read(model, asked, said):
    class Untouched:
        def __iter__(self):
            yield pytest.fail("a frame was read")

    with pytest.raises(UserError, match=said):
        look_at_clip(model, Untouched(), **asked)


def test_no_frames_changing_frames_and_generators_are_refused(model):
    with pytest.raises(UserError, match="no frames"):
        look_at_clip(model, [])
    with pytest.raises(UserError, match="frame 1 has another shape"):
        look_at_clip(model, [striped(0), striped(1, 64, 64)], size=32)
    with pytest.raises(TypeError, match="gone through twice"):
        look_at_clip(model, (striped(t) for t in range(2)))


# --- cancelling and failing leave nothing


def after(calls: int):
    """A `cancelled` that says so from its `calls`-th call on."""
    counter = count(1)
    return lambda: next(counter) >= calls


def test_looking_stops_when_told(model):
    seen = []
    with pytest.raises(Cancelled):
        look_at_clip(
            model,
            [striped(t) for t in range(5)],
            size=32,
            progress=lambda done, total, message: seen.append((done, total)),
            cancelled=after(3),
        )
    assert seen == [(1, 5), (2, 5)]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "folder"])
def test_a_cancelled_file_is_not_there(tmp_path, name):
    with pytest.raises(Cancelled):
        write(clip_of(some_maps(6)), tmp_path / name, cancelled=after(4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "folder"])
@pytest.mark.parametrize("frames", [4, 6])
def test_other_frames_than_were_looked_at_leave_no_file(tmp_path, name, frames):
    clip = clip_of(some_maps(5), [striped(t) for t in range(frames)])
    with pytest.raises(UserError, match="has changed since it was looked at"):
        write(clip, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    clip = clip_of(some_maps(2))
    with pytest.raises(UserError, match=r"cannot write '.avi'; use .mp4"):
        write(clip, tmp_path / "a.avi")
    with pytest.raises(UserError, match=r"opacity 1.5"):
        write(clip, tmp_path / "a.mp4", opacity=1.5)
    with pytest.raises(UserError, match="color map 'jet'"):
        write(clip, tmp_path / "a.mp4", colormap="jet")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write(clip, tmp_path / "there")


def test_an_animation_too_large_to_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_HELD", 3 * 32 * 64 * 3)
    assert write(clip_of(some_maps(3)), tmp_path / "a.gif").exists()
    with pytest.raises(UserError, match=r"4 frames of 64 x 32 px.*write .mp4 or a folder"):
        write(clip_of(some_maps(4)), tmp_path / "b.gif")
    assert write(clip_of(some_maps(4)), tmp_path / "b.mp4").exists()


# --- what is written


def test_png_frames_are_the_pictures_and_the_same_bytes_twice(tmp_path):
    clip = clip_of(some_maps(12), smoothing=0.5)
    for name in ("one", "two"):
        write(clip, tmp_path / name, opacity=0.7, colormap="viridis")
    files = sorted((tmp_path / "one").iterdir())
    assert [file.name for file in files] == [f"{t:04}.png" for t in range(12)]
    expected = list(video.pictures(clip, 0.7, "viridis"))
    for file, picture in zip(files, expected, strict=True):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        np.testing.assert_array_equal(np.asarray(Image.open(file)), picture)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_a_written_clip_reads_back(tmp_path, name):
    """Without opacity the pictures are the frames, colors and order as they were."""
    clip = clip_of(some_maps(8))
    back = read_frames(write(clip, tmp_path / name, opacity=0.0))
    assert (back.size, back.rate, back.expected) == ((32, 64), 10, 8)
    frames = list(back)
    assert len(frames) == 8
    assert all(near(frame, striped(t), 12) for t, frame in enumerate(frames))


def test_odd_sides_are_padded_for_video(tmp_path):
    frames = [striped(t, 31, 63) for t in range(3)]
    back = list(read_frames(write(clip_of(some_maps(3), frames), tmp_path / "a.mp4", opacity=0.0)))
    assert len(back) == 3 and back[0].shape == (32, 64, 3)
    assert near(back[1][:31, :63], frames[1], 12)


@pytest.mark.parametrize(("encoders", "codec"), [(None, "h264"), (("none", "mpeg4"), "mpeg4")])
def test_video_is_h264_or_what_there_is(tmp_path, monkeypatch, encoders, codec):
    if encoders:
        monkeypatch.setattr(video, "ENCODERS", encoders)
    path = write(clip_of(some_maps(4)), tmp_path / "a.mp4", opacity=0.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == codec
        assert stream.codec_context.pix_fmt == "yuv420p" and stream.average_rate == 10
    assert near(list(read_frames(path))[3], striped(3), 16)
    monkeypatch.setattr(video, "ENCODERS", ("none",))
    with pytest.raises(UserError, match=r"no encoder for \.mp4"):
        write(clip_of(some_maps(2)), tmp_path / "b.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


class Counted:
    """Frames that know how many of them are alive at once."""

    def __init__(self, frames: int) -> None:
        self.frames, self.alive, self.most = frames, 0, 0

    def __iter__(self):
        for t in range(self.frames):
            yield self.noted(striped(t))

    def noted(self, frame: np.ndarray) -> np.ndarray:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(frame, self._gone)
        return frame

    def _gone(self) -> None:
        self.alive -= 1


def test_full_frames_are_never_held_together(model, tmp_path, monkeypatch):
    """At most the frame before, the frame, and both pictures made of them."""
    frames, overlay = Counted(12), video.overlay
    monkeypatch.setattr(video, "overlay", lambda *args: frames.noted(overlay(*args)))
    clip = look_at_clip(model, frames, size=32)
    write(clip, tmp_path / "folder")
    write(clip, tmp_path / "a.mp4")
    assert frames.most <= 4


# --- what is read


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    folder = save_folder(tmp_path / "frames", [striped(t) for t in (2, 0, 1)], ["f10", "f1", "f9"])
    (folder / "notes.txt").write_text("no picture")
    frames = read_frames(folder)
    assert (frames.expected, frames.rate, frames.note) == (3, frames_module.FOLDER_RATE, "")
    for _ in range(2):  # it can be gone through again
        np.testing.assert_array_equal(list(frames), [striped(0), striped(1), striped(2)])


def sources(folder: Path, frames) -> list[Path]:
    return [
        save_folder(folder / "frames", frames),
        save_animation(folder / "a.webp", frames, lossless=True),
        save_animation(folder / "a.gif", frames),
        save_video(folder / "a.mp4", frames),
    ]


def test_every_source_gives_every_other_frame_within_the_limits(tmp_path):
    for path in sources(tmp_path, [striped(t) for t in range(10)]):
        whole = read_frames(path)
        assert (whole.expected, len(list(whole)), whole.note) == (10, 10, ""), path
        frames = read_frames(path, every=3, max_frames=3, max_side=32)
        assert frames.size == (16, 32) and frames.rate == pytest.approx(whole.rate / 3)
        assert "only the first 3 of 4 frames are read" in frames.note
        found = list(frames)
        assert len(found) == 3 and frames.expected == 3
        for number, frame in enumerate(found):
            assert near(frame, striped(3 * number, 16, 32), 6), path
        assert len(list(read_frames(path, max_seconds=2.5 / whole.rate))) == 3


def test_transparent_animations_lie_on_white(tmp_path):
    frames = [Image.new("RGBA", (8, 8), (255, 0, 0, alpha)) for alpha in (0, 255)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    first, second = read_frames(tmp_path / "a.png")
    assert (first == 255).all() and (second == [255, 0, 0]).all()


def test_a_film_taken_sideways_is_turned(tmp_path):
    """The track header's matrix (ISO 14496-12, 8.3.2) says: turn by a quarter clockwise."""
    path = save_video(tmp_path / "a.mp4", [striped(0)] * 3)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: times and ids, then layer and volume
    one = 0x10000
    upright, turned = (one, 0, 0, 0, one, 0, 0, 0, 0x40000000), (0, one, 0, -one, 0, 0, 0, 0, 2**30)
    assert data[start : start + 36] == np.array(upright, ">i4").tobytes()
    data[start : start + 36] = np.array(turned, ">i4").tobytes()
    path.write_bytes(data)
    frames = read_frames(path)
    assert frames.size == (64, 32)
    assert near(np.rot90(next(iter(frames))), striped(0), 6)  # top to bottom was left to right


# --- what cannot be read


def test_damaged_files_are_named(tmp_path):
    whole = save_video(tmp_path / "a.mp4", [striped(t) for t in range(8)]).read_bytes()
    gif = save_animation(tmp_path / "a.gif", [striped(t) for t in range(8)]).read_bytes()
    for name, data in {
        "cut.mp4": whole[: len(whole) // 2],  # its index, at the end, is gone
        "text.mp4": b"not a film at all",
        "empty.mp4": b"",
        "cut.gif": gif[: len(gif) // 2],
        "head.gif": gif[:20],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as refusal:
            list(read_frames(tmp_path / name))
        assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_a_download_that_broke_off_is_not_taken_for_a_short_film(tmp_path, share):
    """With its index in front it opens, and gives frames up to where it ends."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    path = write(clip_of(some_maps(20), list(noise)), tmp_path / "a.mp4", opacity=0.0)
    assert len(list(read_frames(path))) == 20
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"cut.mp4: cut short or damaged"):
        list(read_frames(tmp_path / "cut.mp4"))


def test_damage_in_the_middle_is_told_from_the_end(tmp_path):
    folder = save_folder(tmp_path / "frames", [striped(t) for t in range(4)])
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    frames = iter(read_frames(folder))
    assert next(frames).shape == next(frames).shape == (32, 64, 3)
    with pytest.raises(UserError, match=r"2.png: "):
        next(frames)


def test_frames_of_another_size_are_named(tmp_path):
    folder = save_folder(tmp_path / "frames", [striped(0), striped(1), striped(2, 40, 40)])
    with pytest.raises(UserError, match=r"2\.png is 40 x 40 px, the first is 64 x 32"):
        list(read_frames(folder))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile {film}\n"),
    ],
)
def test_a_list_that_names_other_files_is_not_followed(tmp_path, name, text):
    film = save_video(tmp_path / "a.mp4", [striped(0)] * 3)
    (tmp_path / name).write_text(text.format(film=film.name))
    with pytest.raises(UserError, match=f"{name}: not a video"):
        read_frames(tmp_path / name)


def test_frames_with_too_many_pixels_are_refused(tmp_path, monkeypatch):
    paths = sources(tmp_path, [striped(t) for t in range(2)])
    monkeypatch.setattr(frames_module, "MAX_FRAME_PIXELS", 32 * 64 - 1)
    for path in paths:
        with pytest.raises(UserError, match=r"64 x 32 p"):
            read_frames(path)


def test_a_caller_may_allow_larger_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, "MAX_FRAME_PIXELS", 32 * 64 - 1)
    for path in sources(tmp_path, [striped(t) for t in range(2)]):
        assert len(list(read_frames(path, max_pixels=32 * 64))) == 2


@pytest.mark.parametrize(("budget", "taken"), [(0, 1), (3, 1), (8, 2), (11, 2), (12, 3), (99, 3)])
def test_a_clip_has_no_more_than_its_pixels_decoded(tmp_path, monkeypatch, budget, taken):
    """Of 10 frames every 4th: three are taken, and the second costs what is skipped before it."""
    for kind in ("_Video", "_Animation", "_Folder"):
        monkeypatch.setattr(getattr(frames_module, kind), "budget", budget * 32 * 64)
    folder, *whole = sources(tmp_path, [striped(t) for t in range(10)])
    for path in whole:
        frames = read_frames(path, every=4)
        assert (frames.expected, len(list(frames))) == (taken, taken), path
        assert ("million pixels in all" in frames.note) == (taken < 3)
    assert len(list(read_frames(folder, every=4))) == min(3, max(1, budget))  # skips for nothing


def with_aspect(path: Path, aspect: Fraction, side: int = 256) -> Path:
    """A film whose header says how wide its pixels are; FFmpeg believes 255 : 1 from 255 px on."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for t in range(2):
            frame = av.VideoFrame.from_ndarray(striped(t, side, side), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == aspect
    return path


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        ((1, 1), (256, 256)),
        ((4, 3), (192, 256)),  # wider pixels: fewer rows, never more columns
        ((1, 2), (256, 128)),
        ((4, 1), (64, 256)),
        ((1, 4), (256, 64)),
        ((5, 1), (256, 256)),  # damage, or a trap
        ((255, 1), (256, 256)),
        ((1, 255), (256, 256)),
    ],
)
def test_pixels_that_are_not_square_make_no_frame_larger(tmp_path, monkeypatch, aspect, size):
    path, made = with_aspect(tmp_path / "a.mp4", Fraction(*aspect)), []
    resize = frames_module.resized
    monkeypatch.setattr(
        frames_module, "resized", lambda *asked: made.append(resize(*asked)) or made[-1]
    )
    frames = read_frames(path)
    assert frames.size == size and next(iter(frames)).shape == (*size, 3)
    assert max(picture.size for picture in made) <= 256 * 256 * 3


@pytest.mark.parametrize("kind", ["a.webp", "a.gif", "a.mp4"])
def test_what_is_skipped_asks_too(tmp_path, kind):
    """A film of which every 9th frame is taken must not be deaf for eight frames."""
    sources(tmp_path, [striped(t) for t in range(10)])
    asked = []
    taken = read_frames(tmp_path / kind, every=9).read(
        lambda: len(asked) == 5 or asked.append(1) is not None
    )
    next(taken)
    with pytest.raises(Cancelled):
        next(taken)
    assert len(asked) == 5


def test_looking_and_writing_stop_between_frames_that_are_taken(model, tmp_path):
    frames = read_frames(sources(tmp_path, [striped(t) for t in range(10)])[1], every=9)
    seen = []
    with pytest.raises(Cancelled):
        look_at_clip(
            model, frames, size=32, progress=lambda *so: seen.append(so), cancelled=after(6)
        )
    assert len(seen) == 1
    clip, seen = look_at_clip(model, frames, size=32), []
    with pytest.raises(Cancelled):
        write(clip, tmp_path / "made", progress=lambda *so: seen.append(so), cancelled=after(6))
    assert len(seen) == 1 and not (tmp_path / "made").exists()


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.mp4: cannot be read"):
        read_frames(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in this folder"):
        read_frames(tmp_path / "empty")
    with pytest.raises(UserError, match="--every 0"):
        read_frames(tmp_path / "empty", every=0)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="no picture track"):
        read_frames(sound)


def test_without_pyav_folders_and_animations_still_work(model, tmp_path, monkeypatch):
    film, gif = (save_video(tmp_path / "a.mp4", [striped(0)] * 2), tmp_path / "a.gif")
    save_animation(gif, [striped(t) for t in range(3)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"needs PyAV: pip install -e '\.\[video\]'"):
        read_frames(film)
    clip = look_at_clip(model, read_frames(gif), size=32)
    assert len(list(read_frames(write(clip, tmp_path / "b.gif")))) == 3
    with pytest.raises(UserError, match=r"b.mp4: writing .mp4 needs PyAV"):
        write(clip, tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()
