"""Mask files of all kinds, matched to images; a pass over those that have one, what it leaves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation.masks import (
    DamagedMask,
    best_and_worst,
    each_masked,
    find_masks,
    read_mask,
)
from dino_core.evaluation.passes import Passing
from dino_core.models import Model

VALUES = np.array([[0, 1, 2], [128, 254, 255]], np.uint8)


@pytest.fixture(scope="module")
def model(make_model) -> Model:
    return make_model(patch=8)


def write(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    """A picture, or with mode "P" a palette mask in colors (0 black)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if mode == "P":
        picture = Image.frombytes("P", picture.size, values.tobytes())
        colors = np.random.default_rng(0).integers(1, 256, (256, 3), np.uint8)
        colors[0] = 0
        picture.putpalette(colors.tobytes())
    picture.save(path)
    return path


def noise(seed: int = 0, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def square(value: int = 255, side: int = 16) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[4:9, 4:9] = value
    return mask


def test_grayscale_masks_have_one_object(tmp_path):
    truth = read_mask(write(tmp_path / "m.png", VALUES))
    np.testing.assert_array_equal(truth.labels, VALUES > 0)
    assert truth.valid.all()
    assert len(list(truth.objects())) == 1
    np.testing.assert_array_equal(truth.foreground, VALUES > 0)


def test_palette_masks_have_an_object_per_index_and_void(tmp_path):
    truth = read_mask(write(tmp_path / "m.png", VALUES, "P"))
    np.testing.assert_array_equal(truth.labels, VALUES)
    np.testing.assert_array_equal(truth.valid, VALUES != 255)
    objects = list(truth.objects())
    assert [int(VALUES[one][0]) for one in objects] == [1, 2, 128, 254]
    assert all(one.sum() == 1 for one in objects)
    np.testing.assert_array_equal(truth.foreground, (VALUES > 0) & (VALUES < 255))


def test_only_the_formats_of_masks_are_read(tmp_path):
    Image.fromarray(VALUES).save(tmp_path / "m.png", format="PPM")
    with pytest.raises(UserError, match=r"m.png: cannot be read as a mask"):
        read_mask(tmp_path / "m.png")
    Image.fromarray(VALUES).save(tmp_path / "m.png", format="BMP")  # misnamed, but harmless
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").labels, VALUES > 0)


def test_several_colors_without_a_palette_are_no_mask(tmp_path):
    with pytest.raises(DamagedMask, match="in color without a palette; save each object as an"):
        read_mask(write(tmp_path / "m.png", noise()))


def test_text_is_a_mistake_and_a_torn_mask_is_damage(tmp_path):
    path = write(tmp_path / "m.png", noise(side=64)[..., 0])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DamagedMask, match="truncated"):
        read_mask(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedMask, match="empty file"):
        read_mask(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be read as a mask"):
        read_mask(path)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "I;16", "LA"])
def test_other_ways_to_save_one_object(tmp_path, mode):
    mask = square()
    picture = Image.fromarray(mask)
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16))
    elif mode == "P":
        picture = picture.convert("P")  # a palette of grays
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "m.png")
    labels, valid = read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(labels, mask > 0)
    assert valid.all()


def test_scenes_have_masks_of_their_own():
    source = open_source("scenes:3")
    masks = find_masks(source, None)
    assert (masks.indices, masks.notes, masks.spec) == ([0, 1, 2], [], "scenes:3")
    np.testing.assert_array_equal(masks.truth(1, (192, 192)).foreground, source.mask(1))


def test_the_hash_tells_other_masks_apart_and_not_other_folders(tmp_path):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.png", noise())
        for folder in ("one", "two", "three"):
            write(tmp_path / folder / f"{name}.png", square())
    write(tmp_path / "three" / "b.png", square(side=17)[:16, :16][::-1])
    write(tmp_path / "two" / "unused.png", square())
    source = open_source(tmp_path / "in")
    one, two, three = (find_masks(source, tmp_path / f).hash for f in ("one", "two", "three"))
    assert one == two != three
    gone = find_masks(source, tmp_path / "one")
    (tmp_path / "one" / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png: cannot be read as a mask \(No such file"):
        _ = gone.hash


def test_a_pass_gives_what_has_an_object_and_names_the_rest(model, tmp_path):
    for name in "abcdefg":
        write(tmp_path / "in" / f"{name}.png", noise())
        if name != "g":
            write(tmp_path / "masks" / f"{name}.png", square())
    (tmp_path / "in" / "b.png").write_bytes(b"")
    (tmp_path / "masks" / "c.png").write_bytes(b"")
    for name in "de":
        write(tmp_path / "masks" / f"{name}.png", square(0))
    source = open_source(tmp_path / "in")
    masks = find_masks(source, tmp_path / "masks")
    calls = []

    def area(image, truth):
        calls.append(image.shape)
        return {"area": int(truth.foreground.sum())}

    passing = Passing(keep=tmp_path / "keep")
    for _ in range(2):
        found = each_masked("area", {}, model, source, masks, area, passing, "Areas")
        assert found.ids == ["a.png", "f.png"]
        assert found.values == [{"area": 25}, {"area": 25}]
        assert found.notes == [
            "1 image has no mask and is left out: g.png",
            "1 image cannot be read and is left out: b.png (empty file)",
            "1 image has a mask that cannot be read and is left out: c.png (empty file)",
            "2 images have masks without an object and are left out: d.png, e.png",
        ]
    assert len(calls) == 2, "kept values are not computed again"
    write(tmp_path / "masks" / "f.png", square()[:, ::-1].copy())
    changed = find_masks(source, tmp_path / "masks")
    each_masked("area", {}, model, source, changed, area, passing, "Areas")
    assert len(calls) == 4, "values belong to the masks they were computed with"


def test_nothing_to_score_is_refused_with_the_reason(model, tmp_path):
    write(tmp_path / "in" / "a.png", noise())
    write(tmp_path / "masks" / "a.png", square(0))
    source = open_source(tmp_path / "in")

    def score(says: str) -> None:
        masks = find_masks(source, tmp_path / "masks")
        with pytest.raises(UserError, match=says):
            each_masked("area", {}, model, source, masks, lambda *_: 1, Passing(), "Areas")

    score("its masks hold no object")
    (tmp_path / "masks" / "a.png").write_bytes(b"")
    score("the first mask that cannot be read: empty file")
    (tmp_path / "in" / "a.png").write_bytes(b"")
    score("the first image that cannot be read: empty file")


def test_best_and_worst():
    scores = [("a", 0.5), ("b", 0.9), ("c", 0.1), ("d", 0.7), ("e", 0.3)]
    best, worst = best_and_worst(scores, 2)
    assert best == [("b", 0.9), ("d", 0.7)]
    assert worst == [("c", 0.1), ("e", 0.3)]
    best, worst = best_and_worst(scores, 10)
    assert not set(best) & set(worst) and len(best) == len(worst) == 2
    assert best_and_worst(scores[:1], 3) == ([("a", 0.5)], [])
