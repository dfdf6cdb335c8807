"""Attention scored against masks: the protocol by hand, what is kept, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import attention as protocol
from dino_core.evaluation.attention import evaluate
from dino_core.evaluation.passes import Passing
from dino_core.lenses import Attention, look, mass_mask
from dino_core.lenses import attention as lens
from dino_core.models import Model


@pytest.fixture(scope="module")
def model(make_model) -> Model:
    return make_model(patch=8)


def write(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    """A picture, or with mode "P" a palette mask in VOC's colors (0 black, 255 cream)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if mode == "P":
        picture = Image.frombytes("P", picture.size, values.tobytes())
        colors = np.random.default_rng(0).integers(1, 256, (256, 3), np.uint8)
        colors[0] = 0
        picture.putpalette(colors.tobytes())
    picture.save(path)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def box(height: int, width: int, rows: slice, columns: slice, value: int = 255) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = value
    return mask


@pytest.fixture
def halves(monkeypatch):
    """Heads that are known: head 0 looks at the left half, head 1 at the top half, both evenly."""
    maps = np.zeros((1, 2, 4, 6), np.float32)
    maps[0, 0, :, :3] = maps[0, 1, :2] = 1 / 12

    def known(model, image, size=None):
        return Attention(maps, (32, 48), image.shape[:2], 8, "known", "")

    monkeypatch.setattr(protocol, "look", known)


def test_counted_by_hand(model, halves, tmp_path):
    write(tmp_path / "in" / "a.png", noise(40, 60))
    write(tmp_path / "in" / "b.png", noise(40, 60, 1))
    labels = box(40, 60, slice(0, 40), slice(0, 30), 1)  # the left half
    labels[0:20, 30:60] = 2  # the quarter at the upper right
    labels[20:40, 30:60] = 255  # void
    write(tmp_path / "masks" / "a.png", labels, "P")
    write(tmp_path / "masks" / "b.png", box(40, 60, slice(0, 10), slice(0, 60)))  # upper quarter

    source = open_source(tmp_path / "in")
    result = evaluate(model, source, tmp_path / "masks", keep=1.0, random_init=False)
    # left half, void aside: head 0 covers it (1), head 1 shares a third of the union
    # upper right: head 0 none of it, head 1 half of the upper half
    # upper quarter: head 0 shares 300 of 1,500 pixels, head 1 half
    np.testing.assert_allclose(result.jaccard, (1 + 1 / 2 + 1 / 2) / 3)
    np.testing.assert_allclose(result.image_jaccard, ((1 + 1 / 2) / 2 + 1 / 2) / 2)
    np.testing.assert_allclose(result.per_head, [(1 + 0 + 1 / 5) / 3, (1 / 3 + 1 / 2 + 1 / 2) / 3])
    assert (result.images, result.objects, result.best) == (2, 3, 1)
    assert result.random_init is None and result.notes == []
    assert result.images_scored == [("a.png", (1 + 1 / 2) / 2), ("b.png", 1 / 2)]
    assert result.best_and_worst(1) == ([("a.png", 3 / 4)], [("b.png", 1 / 2)])


def test_scenes_bring_their_own_masks_and_the_untrained_backbone_is_scored_too(model):
    source = open_source("scenes:3")
    result = evaluate(model, source, size=64)
    expected = []
    for i in range(3):
        target = source.mask(i)
        masks = mass_mask(look(model, source.image(i), size=64).maps[-1], 0.6)
        overlaps = []
        for mask in masks:  # the protocol once more, with Pillow and sets of pixels
            enlarged = Image.fromarray(mask).resize(target.shape[::-1], Image.Resampling.NEAREST)
            pixels, wanted = set(np.flatnonzero(enlarged)), set(np.flatnonzero(target))
            overlaps.append(len(pixels & wanted) / len(pixels | wanted))
        expected.append(max(overlaps))
    np.testing.assert_allclose(result.jaccard, np.mean(expected), atol=1e-12)
    assert result.random_init is not None
    assert result.random_init.model_hash != result.model_hash
    assert result.random_init.objects == 3
    assert "untrained" in result.table() and "tiny" in result.table()
    assert json.loads(json.dumps(result.as_dict()))["random_init"]["objects"] == 3


def test_the_default_is_480_pixels_and_what_was_fed_is_kept(model, monkeypatch):
    asked = []

    def known(model, image, size=None):
        asked.append(size)
        maps = np.ones((1, 2, 4, 6), np.float32) / 24
        return Attention(maps, (size or 224, 999), image.shape[:2], 8, "known", "")

    monkeypatch.setattr(protocol, "look", known)
    source = open_source("scenes:2")
    assert evaluate(model, source, random_init=False).size == 480
    assert evaluate(model, source, size=64, random_init=False).size == 64
    result = evaluate(model, source, size=None, random_init=False)
    assert result.size == result.as_dict()["size"] == 224
    assert asked == [480, 480, 64, 64, None, None]


def test_masks_match_by_path_and_missing_ones_are_named(model, tmp_path):
    for name in ("x/1.png", "y/1.png", "y/2.png"):
        write(tmp_path / "in" / name, noise(16, 16))
    for name in ("x/1.png", "y/1.png"):
        write(tmp_path / "masks" / name, box(16, 16, slice(4, 9), slice(4, 9)))
    source = open_source(tmp_path / "in")
    result = evaluate(model, source, tmp_path / "masks", size=64, random_init=False)
    assert result.images == 2
    assert result.notes == ["1 image has no mask and is left out: y/2.png"]


def test_masks_beside_the_images(model, tmp_path):
    """`people/images` and `people/masks`, with the data named as `people`."""
    write(tmp_path / "images" / "1.png", noise(16, 16))
    write(tmp_path / "masks" / "1.png", box(16, 16, slice(4, 9), slice(4, 9)))
    source = open_source(tmp_path)
    result = evaluate(model, source, tmp_path / "masks", size=64, random_init=False)
    assert (result.images, result.notes) == (1, [])


def test_a_bad_image_is_left_out_and_named(model, tmp_path):
    write(tmp_path / "in" / "a.png", noise(16, 16))
    (tmp_path / "in" / "b.png").write_bytes(b"")
    for name in "ab":
        write(tmp_path / "masks" / f"{name}.png", box(16, 16, slice(4, 9), slice(4, 9)))
    source = open_source(tmp_path / "in")
    result = evaluate(model, source, tmp_path / "masks", size=64, random_init=False)
    assert result.images == 1 and "b.png (empty file)" in result.notes[0]


def test_a_pass_that_was_stopped_goes_on_and_gives_the_same(model, monkeypatch, tmp_path):
    source = open_source("scenes:4")
    plain = evaluate(model, source, size=64, random_init=False)
    looks = []

    def failing(model, image, size=None):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return look(model, image, size=size)

    monkeypatch.setattr(protocol, "look", failing)
    passing = Passing(keep=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, source, size=64, random_init=False, passing=passing)
    assert evaluate(model, source, size=64, random_init=False, passing=passing) == plain
    assert len(looks) == 5, "the two that were done are not done again"
    evaluate(model, source, size=64, keep=0.5, random_init=False, passing=passing)
    assert len(looks) == 9, "another setting is another pass"


def test_progress_says_which_model_looks_at_how_many(model, halves):
    told = []
    evaluate(
        model,
        open_source("scenes:2"),
        passing=Passing(progress=lambda *step: told.append(step)),
    )
    assert (2, 2, "Attention of tiny") in told
    assert (2, 2, "Attention of tiny (random init)") in told


def test_an_image_too_long_for_the_size_gets_less(model, tmp_path, monkeypatch):
    for name, height, width in (("square", 32, 32), ("long", 16, 160)):
        write(tmp_path / "in" / f"{name}.png", noise(height, width))
        write(tmp_path / "masks" / f"{name}.png", box(height, width, slice(0, 8), slice(0, 8)))
    monkeypatch.setattr(lens, "MAX_TOKENS", 16)
    result = evaluate(model, open_source(tmp_path / "in"), tmp_path / "masks", size=32)
    assert (result.images, result.size) == (2, 32)
    assert result.notes == ["1 of 2 images are long, and were fed smaller than 32 px"]


@pytest.mark.parametrize(("height", "width"), [(20, 20), (20, 61), (300, 20)])
def test_the_largest_size_is_one_below_the_first_refused(model, height, width, monkeypatch):
    monkeypatch.setattr(lens, "MAX_TOKENS", 40)
    size = lens.largest_size(model, height, width, 64)
    lens.plan(model, height, width, size=size)
    if size < 64:
        with pytest.raises(UserError, match="patches"):
            lens.plan(model, height, width, size=size + 1)


def refused(model, tmp_path, says, data="in", **options):
    source = open_source(tmp_path / data)
    with pytest.raises(UserError, match=says):
        evaluate(model, source, tmp_path / "masks", **options)


def test_masks_that_do_not_belong_are_refused(model, tmp_path):
    write(tmp_path / "in" / "x" / "1.png", noise(16, 16))
    refused(model, tmp_path, "no such folder of masks")
    (tmp_path / "masks").mkdir()
    refused(model, tmp_path, r"no mask there has the name of an image.*1\.png")
    write(tmp_path / "masks" / "1.png", box(16, 40, slice(0, 4), slice(0, 4)))
    refused(model, tmp_path, "does not have the shape of")
    write(tmp_path / "masks" / "1.png", box(16, 16, slice(0, 0), slice(0, 0)))
    refused(model, tmp_path, "hold no object")
    (tmp_path / "masks" / "1.png").write_bytes(b"text")
    refused(model, tmp_path, "cannot be read as a mask")
    refused(model, tmp_path, "has layers 0 to 1", layer=2)
    refused(model, tmp_path, "keep 0: is a share", keep=0)
    write(tmp_path / "in" / "y" / "1.png", noise(16, 16))
    refused(model, tmp_path, "fits x/1.png and y/1.png")
    with pytest.raises(UserError, match="has no masks of its own"):
        evaluate(model, open_source(tmp_path / "in"))
