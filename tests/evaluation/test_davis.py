"""Folders laid out as DAVIS: all layouts, all kinds of masks, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.data import BadImage
from dino_core.errors import UserError
from dino_core.evaluation.davis import open_davis, palette, read_labels, write_labels

COLORS = bytes([0, 0, 0]) + bytes([128, 0, 0, 0, 128, 0]) * 127 + bytes([224, 224, 192])


def frame(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "gray").save(path)


def mask(path: Path, values: list[list[int]], mode: str = "P") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(values, np.uint8))
    if mode == "P":
        picture.putpalette(COLORS)
    else:
        picture = picture.convert(mode)
    picture.save(path)
    return path


def video(root: Path, name: str, frames: int = 3, under: str = "480p") -> None:
    for t in range(frames):
        frame(root / "JPEGImages" / under / name / f"{t:05d}.jpg")
        mask(root / "Annotations" / under / name / f"{t:05d}.png", [[0, 1]])


def names(root: Path, **options) -> list[str]:
    return [video.name for video in open_davis(root, **options).videos]


@pytest.mark.parametrize("under", ["480p", "Full-Resolution", ""])
def test_any_resolution_or_none(tmp_path, under):
    video(tmp_path, "dog", under=under)
    video(tmp_path, "cat", under=under)
    found = open_davis(tmp_path).videos
    assert [one.name for one in found] == ["cat", "dog"]
    assert [path.name for path in found[1].frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert [path and path.name for path in found[1].masks] == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]
    assert all(path and path.is_file() for path in found[1].masks)


def test_480p_among_several_resolutions(tmp_path):
    video(tmp_path, "large", under="1080p")
    video(tmp_path, "small", under="480p")
    assert names(tmp_path) == ["small"]


def test_the_list_says_which_videos_and_in_which_order(tmp_path):
    for name in ("a", "b", "c"):
        video(tmp_path, name)
    listed = tmp_path / "ImageSets" / "2016" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("c\n\na\nz\n")
    found = open_davis(tmp_path)
    assert [one.name for one in found.videos] == ["c", "a"]
    assert found.notes == ("1 video is in val.txt but not there: z",)
    newer = tmp_path / "ImageSets" / "2017" / "val.txt"
    newer.parent.mkdir()
    newer.write_text("b")
    assert names(tmp_path) == ["b"]
    assert names(tmp_path, names=["c"]) == ["c"]  # who names videos needs no list
    newer.write_text("q\n")
    with pytest.raises(UserError, match="names no video that is there"):
        open_davis(tmp_path)


def test_the_list_of_2016_names_files(tmp_path):
    for name in ("a", "b"):
        video(tmp_path, name)
    listed = tmp_path / "ImageSets" / "480p" / "val.txt"
    listed.parent.mkdir(parents=True)
    lines = [f"/JPEGImages/480p/b/{t:05d}.jpg /Annotations/480p/b/{t:05d}.png \n" for t in range(3)]
    listed.write_text("".join(lines))
    assert names(tmp_path) == ["b"]


def test_frames_without_padding_are_in_order_and_may_lack_masks(tmp_path):
    for t in range(12):
        frame(tmp_path / "JPEGImages" / "480p" / "v" / f"{t}.png")
    mask(tmp_path / "Annotations" / "480p" / "v" / "0.png", [[0, 1]])
    mask(tmp_path / "Annotations" / "480p" / "v" / "10.png", [[0, 1]])
    (one,) = open_davis(tmp_path).videos
    assert [path.stem for path in one.frames] == [str(t) for t in range(12)]
    assert [t for t, path in enumerate(one.masks) if path] == [0, 10]


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no folder JPEGImages; lay it out as DAVIS is"):
        open_davis(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(UserError, match="has no folder Annotations"):
        open_davis(tmp_path)
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(UserError, match="holds no video"):
        open_davis(tmp_path)
    video(tmp_path, "dog")
    with pytest.raises(UserError, match="has no video cat; there are dog"):
        open_davis(tmp_path, ["cat"])
    with pytest.raises(UserError, match="no video is asked for"):
        open_davis(tmp_path, [])
    (tmp_path / "JPEGImages" / "480p" / "empty").mkdir()
    assert open_davis(tmp_path).notes == ("empty: has no frames and is left out",)


def test_the_hash_knows_contents_not_places(tmp_path):
    for root in (tmp_path / "x", tmp_path / "y"):
        video(root, "dog")
    first, second = open_davis(tmp_path / "x"), open_davis(tmp_path / "y")
    assert first.content_hash() == second.content_hash()
    mask(tmp_path / "y" / "Annotations" / "480p" / "dog" / "00001.png", [[1, 0]])
    assert first.content_hash() != second.content_hash()


def test_palette_masks_are_indices(tmp_path):
    values = [[0, 1, 2], [3, 255, 0]]
    np.testing.assert_array_equal(read_labels(mask(tmp_path / "a.png", values)), values)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_gray_masks_are_one_object(tmp_path, mode):
    found = read_labels(mask(tmp_path / "a.png", [[0, 255, 3], [128, 0, 255]], mode))
    np.testing.assert_array_equal(found, [[0, 1, 1], [1, 0, 1]])
    assert found.dtype == np.uint8


def test_a_palette_of_grays_is_gray(tmp_path):
    picture = Image.fromarray(np.array([[0, 255, 90]], np.uint8)).convert("P")
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), [[0, 1, 1]])


def test_small_grays_are_indices(tmp_path):
    found = read_labels(mask(tmp_path / "a.png", [[0, 1, 2]], "L"))
    np.testing.assert_array_equal(found, [[0, 1, 2]])


def test_masks_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(BadImage, match="not an image"):
        read_labels(tmp_path / "a.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "b.png")
    with pytest.raises(BadImage, match="in color without a palette"):
        read_labels(tmp_path / "b.png")
    with pytest.raises(BadImage, match="cannot be read"):
        read_labels(tmp_path / "none.png")


def test_written_labels_are_read_again(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (13, 7)).astype(np.uint8)
    write_labels(tmp_path / "found" / "a.png", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "found" / "a.png"), labels)
    with Image.open(tmp_path / "found" / "a.png") as picture:
        assert picture.mode == "P"


def test_the_colors_of_voc():
    """As its development kit lists them: background, aeroplane, ..., tv monitor, void."""
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128)}
    known |= {7: (128, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    known |= {255: (224, 224, 192)}
    assert {label: tuple(palette()[label].tolist()) for label in known} == known
    assert len(np.unique(palette(), axis=0)) == 256
