"""Soft maps scored against the foreground: by plain loops, on known maps, from a shared pass."""

import json

import numpy as np
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import objects, saliency
from dino_core.evaluation.passes import Passing
from dino_core.evaluation.saliency import MAPS, evaluate
from dino_core.lenses import Attention, look
from dino_core.lenses.objects import object_mask
from dino_core.lenses.tokens import read_tokens
from dino_core.models import Model

SCENES = "scenes:4"


@pytest.fixture(scope="module")
def model(make_model) -> Model:
    return make_model(patch=8)


def soft_map(model: Model, image: np.ndarray, kind: str) -> np.ndarray:
    """The map [h, w] of 0..1 that a kind names, made with the lenses alone."""
    if kind == "attention":
        soft = look(model, image, size=64).maps[-1].mean(axis=0).astype(np.float64)
    else:
        cut = object_mask(read_tokens(model, image, size=64))
        soft = cut.y if kind == "eigenvector" else cut.foreground.astype(np.float64)
    return (soft - soft.min()) / (soft.max() - soft.min())


def plain_measures(maps: list[np.ndarray], targets: list[np.ndarray]) -> dict[str, float]:
    """All figures from whole masks, threshold by threshold."""
    p, r = np.zeros((2, len(maps), 256))
    overlaps, right = [], []
    for n, (soft, target) in enumerate(zip(maps, targets, strict=True)):
        enlarged = np.asarray(
            Image.fromarray(soft).resize(target.shape[::-1], Image.Resampling.NEAREST)
        )
        eight_bits = np.floor(255 * enlarged + 0.5)
        for t in range(256):
            mask = eight_bits >= t
            p[n, t] = (mask & target).sum() / max(mask.sum(), 1)
            r[n, t] = (mask & target).sum() / target.sum()
        half = enlarged >= 0.5
        overlaps.append((half & target).sum() / (half | target).sum())
        right.append((half == target).mean())
    below = np.where(p + r > 0, 0.3 * p + r, 1)
    mean_p, mean_r = p.mean(axis=0), r.mean(axis=0)
    curve = 1.3 * mean_p * mean_r / np.maximum(0.3 * mean_p + mean_r, 1e-12)
    return {
        "max_f": curve.max(),
        "threshold": curve.argmax(),
        "max_mean_f": (1.3 * p * r / below).mean(axis=0)[1:].max(),
        "iou": np.mean(overlaps),
        "accuracy": np.mean(right),
    }


@pytest.mark.parametrize("kind", MAPS)
def test_scenes_agree_with_plain_loops(model, kind):
    source = open_source(SCENES)
    result = evaluate(model, source, map=kind, size=64, random_init=False)
    targets = [source.mask(i) for i in range(len(source))]
    maps = [soft_map(model, source.image(i), kind) for i in range(len(source))]
    for name, value in plain_measures(maps, targets).items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-12), name
    assert result.images == len(result.images_scored) == 4 and result.size == 64
    assert np.mean([score for _, score in result.images_scored]) == pytest.approx(result.iou)


def test_as_published_the_part_is_scored_of_rounded_images(model, tmp_path):
    """Scenes cut to sizes that are no whole patches; the component by the lens alone."""
    scenes, targets, maps = open_source(SCENES), [], []
    for i in range(4):
        image, target = scenes.image(i)[:150, : 180 + i], scenes.mask(i)[:150, : 180 + i]
        for folder, values in (("in", image), ("masks", target.astype(np.uint8) * 255)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / f"{i}.png")
        whole = np.asarray(Image.fromarray(image).resize((184, 152), Image.Resampling.LANCZOS))
        if i == 0:  # 180 / 8 is halfway: to the even one
            whole = np.asarray(Image.fromarray(image).resize((176, 152), Image.Resampling.LANCZOS))
        cut = object_mask(read_tokens(model, whole, size=152), center=False)
        targets.append(target)
        maps.append(cut.component.astype(np.float64))
    source = open_source(tmp_path / "in")
    result = evaluate(model, source, tmp_path / "masks", as_published=True, random_init=False)
    for name, value in plain_measures(maps, targets).items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-12), name
    assert (result.map, result.size, result.as_published) == ("cut", None, True)


def test_attention_that_is_the_mask_is_perfect(model, monkeypatch):
    """Two heads, of which one looks away from the object, less strongly: their mean finds it."""
    source = open_source("scenes:2")
    order = iter(range(2))

    def known(model, image, size=None):
        target = source.mask(next(order)).astype(np.float32)
        maps = np.stack([target + 0.5, 0.5 - 0.25 * target])[None]
        return Attention(maps, image.shape[:2], image.shape[:2], 1, "known", "")

    monkeypatch.setattr(saliency, "look", known)
    result = evaluate(model, source, map="attention", random_init=False)
    assert (result.max_f, result.max_mean_f, result.iou, result.accuracy) == (1, 1, 1, 1)
    assert result.tau is None


def test_one_pass_serves_masks_and_both_maps_of_a_cut(model, monkeypatch, tmp_path):
    source, passing = open_source(SCENES), Passing(keep=tmp_path)
    kinds = {kind: evaluate(model, source, map=kind, size=64) for kind in ("cut", "eigenvector")}
    masks = objects.evaluate(model, source, size=64, passing=passing)

    def never(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(objects, "read_tokens", never)
    for kind, plain in kinds.items():
        assert evaluate(model, source, map=kind, size=64, passing=passing) == plain
    assert kinds["cut"].iou == pytest.approx(masks.jaccard)
    assert kinds["cut"].images_scored == masks.images_scored


def test_the_untrained_backbone_is_scored_too_and_all_goes_to_json(model):
    result = evaluate(model, open_source("scenes:2"), map="attention", size=64)
    assert result.random_init is not None
    assert result.random_init.model_hash != result.model_hash
    read = json.loads(json.dumps(result.as_dict()))
    assert read["random_init"]["max_f"] == result.random_init.max_f
    assert read["data_hash"] and read["masks_hash"]
    assert "untrained" in result.table() and "max F-beta" in result.table()
    best, worst = result.best_and_worst(1)
    assert best[0][1] >= worst[0][1]


def test_no_other_map(model):
    with pytest.raises(UserError, match="use one of cut, eigenvector, attention"):
        evaluate(model, open_source("scenes:1"), map="rollout")
