"""TokenCut scored against masks: boxes and shares by hand, the protocol again in plain loops."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import objects as protocol
from dino_core.evaluation.objects import evaluate, packed, rounded, unpacked
from dino_core.evaluation.passes import Passing
from dino_core.lenses.objects import ObjectMask, object_mask, padded_keys
from dino_core.lenses.tokens import read_tokens
from dino_core.measures.overlap import bounds, box_iou, corloc, iou, iou_by_label
from dino_core.models import Model


@pytest.fixture(scope="module")
def model(make_model) -> Model:
    return make_model(patch=8)


def write(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture = Image.frombytes("P", picture.size, values.tobytes())
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    picture.save(path)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_boxes_by_hand():
    mask = np.zeros((5, 7), bool)
    mask[1, 2] = mask[3, 5] = True
    assert bounds(mask) == (2, 1, 6, 4)
    assert bounds(np.zeros((5, 7), bool)) is None
    boxes = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [1, 1, 3, 3]])
    # 16 of 16; 4 of 28; they only touch; 4 of 16
    np.testing.assert_allclose(box_iou(boxes[0], boxes), [1, 4 / 28, 0, 4 / 16])


def test_half_an_overlap_is_enough_for_corloc():
    assert corloc(np.array([0.5, 0.49999, 1, 0])) == 0.5
    assert corloc(np.array([0.5, 0.6]), at=0.55) == 0.5


sides = st.tuples(st.integers(0, 6), st.integers(1, 4))


@given(*[sides] * 4)
def test_the_overlap_of_boxes_is_that_of_their_pixels(x, y, other_x, other_y):
    drawn, boxes = [], []
    for (left, width), (top, height) in ((x, y), (other_x, other_y)):
        boxes.append((left, top, left + width, top + height))
        drawn.append(np.zeros((10, 10), bool))
        drawn[-1][top : top + height, left : left + width] = True
    assert bounds(drawn[0]) == boxes[0]
    assert box_iou(boxes[0], np.array(boxes[1:])) == pytest.approx(float(iou(*drawn)))


labels = arrays.arrays(np.int64, (4, 5), elements=st.sampled_from([0, 0, 1, 3, 250]))
masks = arrays.arrays(bool, (4, 5))


@given(labels=labels, valid=masks, heads=st.lists(masks, min_size=1, max_size=3))
def test_all_objects_at_once_are_each_by_itself(labels, valid, heads):
    numbers = [number for number in np.unique(labels[valid]) if number]
    expected = [[iou(head, labels == number, valid) for number in numbers] for head in heads]
    found = iou_by_label(heads, labels, valid)
    np.testing.assert_array_equal(found, np.array(expected).reshape(len(heads), len(numbers)))


@given(counts=arrays.arrays(np.int64, (2, 256), elements=st.integers(0, 3)))
def test_counts_come_back_as_they_were_packed(counts):
    np.testing.assert_array_equal(unpacked(json.loads(json.dumps(packed(counts)))), counts)


def known_cut(foreground: np.ndarray, component: np.ndarray, centered: bool = False) -> ObjectMask:
    y = np.where(foreground, 1.0, -0.5)
    seed = (0, 0) if foreground.any() else None
    return ObjectMask(
        foreground, component, y, 0.0, seed, 0.5, centered, (40, 60), "known", "0" * 64
    )


def test_counted_by_hand(model, monkeypatch, tmp_path):
    """Patches 4 x 6 of 10 px: the side is the left half and the last column, the part the half."""
    side = np.zeros((4, 6), bool)
    side[:, :3] = side[:, 5] = True
    part = np.zeros((4, 6), bool)
    part[:, :3] = True
    nothing = np.zeros((4, 6), bool)
    found = iter([known_cut(side, part, centered=True), known_cut(nothing, nothing)])
    monkeypatch.setattr(protocol, "object_mask", lambda tokens, tau: next(found))

    labels = np.zeros((40, 60), np.uint8)
    labels[:, 0:20] = 1  # a third of the image, within the part
    labels[0:20, 40:60] = 2  # the upper right corner, half of it on the side
    labels[20:40, 40:60] = 255  # void
    write(tmp_path / "in" / "a.png", noise(40, 60))
    write(tmp_path / "masks" / "a.png", labels, palette=True)
    write(tmp_path / "in" / "b.png", noise(40, 60, 1))
    write(tmp_path / "masks" / "b.png", np.full((40, 60), 255, np.uint8))

    source = open_source(tmp_path / "in")
    result = evaluate(model, source, tmp_path / "masks", size=64, random_init=False)
    # of 2,000 valid pixels the side has 1,200 + 200, the objects 800 + 400, both 800 + 200
    assert result.images_scored == [("a.png", pytest.approx(1000 / 1600)), ("b.png", 0.0)]
    assert result.jaccard == pytest.approx(1000 / 1600 / 2)
    assert result.object_jaccard == pytest.approx(800 / 1200 / 2)
    assert result.corloc == 0.5  # the part's box, 30 x 40, and the first object's, 20 x 40: 2/3
    assert (result.images, result.objects) == (2, 3)
    assert (result.centered, result.uncut) == (1, 1)
    assert "1 of 2 images had nothing to cut" in result.notes[1]
    assert "keys of 1 of 2 images were nearly all alike" in result.notes[0]


def plain_scores(cut: ObjectMask, target: np.ndarray, patch: int) -> tuple[float, float, float]:
    """The protocol once more, for one object, with Pillow, sets of pixels and loops.

    `patch`: the pixels of the image that a patch covers, a side.
    """
    height, width = target.shape
    size = (cut.foreground.shape[1] * patch, cut.foreground.shape[0] * patch)
    wanted = set(np.flatnonzero(target))
    shares = []
    for mask in (cut.foreground, cut.component):
        enlarged = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        pixels = set(np.flatnonzero(enlarged[:height, :width]))
        shares.append(len(pixels & wanted) / len(pixels | wanted))
    ys, xs = np.nonzero(target)
    left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    if cut.box_pixels is None:
        return shares[0], shares[1], 0.0
    a, b, c, d = cut.box_pixels
    common = sum(left <= x < right and top <= y < bottom for x in range(a, c) for y in range(b, d))
    either = (c - a) * (d - b) + (right - left) * (bottom - top) - common
    return shares[0], shares[1], common / either


def test_scenes_agree_with_plain_loops(model):
    source = open_source("scenes:4")
    result = evaluate(model, source, size=64, random_init=False)
    expected = []
    for i in range(4):
        cut = object_mask(read_tokens(model, source.image(i), size=64))
        expected.append(plain_scores(cut, source.mask(i), patch=24))
    union, part, boxes = np.array(expected).T
    assert result.jaccard == pytest.approx(union.mean())
    assert result.object_jaccard == pytest.approx(part.mean())
    assert result.corloc == (boxes >= 0.5).mean()
    assert (result.size, result.as_published) == (64, False)


def test_as_published_images_are_padded_and_scored_without_the_padding(model, tmp_path):
    """Scenes cut to sizes that are no whole patches."""
    scenes, expected = open_source("scenes:4"), []
    for i in range(4):
        image, target = scenes.image(i)[: 150 + i, :181], scenes.mask(i)[: 150 + i, :181]
        write(tmp_path / "in" / f"{i}.png", image)
        write(tmp_path / "masks" / f"{i}.png", target.astype(np.uint8) * 255)
        cut = object_mask(padded_keys(model, image), center=False)
        assert cut.padded == (152 - 150 - i if i < 3 else 7, 3)
        expected.append(plain_scores(cut, target, patch=8))
    source = open_source(tmp_path / "in")
    result = evaluate(
        model, source, tmp_path / "masks", as_published=True, random_init=False
    )  # fmt: skip
    union, part, boxes = np.array(expected).T
    assert result.jaccard == pytest.approx(union.mean())
    assert result.object_jaccard == pytest.approx(part.mean())
    assert result.corloc == (boxes >= 0.5).mean()
    assert (result.size, result.as_published, result.centered) == (None, True, 0)


def test_saliency_as_published_rounds_to_whole_patches():
    image = noise(60, 98)
    expected = Image.fromarray(image).resize((96, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(rounded(image, 8), expected)
    assert rounded(noise(3, 20), 8).shape == (8, 16, 3)  # 20 / 8 is halfway: to the even one


def test_the_size_that_was_fed_is_kept(model, tmp_path):
    """The lens's default: 28 patches of 8 px, fewer for long images."""
    write(tmp_path / "in" / "a.png", noise(20, 30))
    write(tmp_path / "masks" / "a.png", np.full((20, 30), 255, np.uint8))
    result = evaluate(model, open_source(tmp_path / "in"), tmp_path / "masks", random_init=False)
    assert result.size == result.as_dict()["size"] == 224
    assert not any("long" in note for note in result.notes)
    write(tmp_path / "in" / "b.png", noise(4, 100))
    write(tmp_path / "masks" / "b.png", np.full((4, 100), 255, np.uint8))
    result = evaluate(model, open_source(tmp_path / "in"), tmp_path / "masks", random_init=False)
    assert result.size == 224
    assert "1 of 2 images are long, and were fed smaller than 224 px" in result.notes


def test_the_untrained_backbone_is_scored_too_and_all_goes_to_json(model):
    result = evaluate(model, open_source("scenes:2"), size=64)
    assert result.random_init is not None
    assert result.random_init.model_hash != result.model_hash
    again = evaluate(model, open_source("scenes:2"), size=64, random_init=False)
    assert again == replace(result, random_init=None)
    read = json.loads(json.dumps(result.as_dict()))
    assert read["random_init"]["corloc"] == result.random_init.corloc
    assert "untrained" in result.table() and "CorLoc" in result.table()


def test_a_kept_pass_is_found_again(model, monkeypatch, tmp_path):
    passing = Passing(keep=tmp_path)
    source = open_source("scenes:2")
    first = evaluate(model, source, size=64, random_init=False, passing=passing)

    def never(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(protocol, "read_tokens", never)
    assert evaluate(model, source, size=64, random_init=False, passing=passing) == first


def test_settings_that_no_cut_can_have_are_refused(model, tmp_path):
    source = open_source("scenes:1")
    with pytest.raises(UserError, match="tau 2: is a cosine"):
        evaluate(model, source, tau=2)
    with pytest.raises(UserError, match="as published every image has its own"):
        evaluate(model, source, size=64, as_published=True)
    write(tmp_path / "in" / "a.png", noise(520, 520))
    write(tmp_path / "masks" / "a.png", np.full((520, 520), 255, np.uint8))
    with pytest.raises(UserError, match=r"^[^ ]+: .*makes 4,225 patches"):
        evaluate(model, open_source(tmp_path / "in"), tmp_path / "masks", as_published=True)
