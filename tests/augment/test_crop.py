"""Crops on the CPU: Pillow's pixels, mirror images, memory of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.augment import (
    Box,
    MultiCrop,
    ViewPlan,
    crop_into,
    crop_views,
    plan_batch,
    plan_views,
)
from dino_core.augment.pil import pil_crop

TOLERANCE = 2  # of 255
CONFIGS = [MultiCrop(), MultiCrop(global_size=64, local_size=32, local_count=6)]
PLAIN = ViewPlan(0, Box(10, 20, 60, 90), 32, False, (), False, 0.0, False)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.global_size))
@pytest.mark.parametrize("picture", ["photo", "drawing"])
def test_crops_are_pillows(picture: str, config: MultiCrop, request: pytest.FixtureRequest) -> None:
    image = request.getfixturevalue(picture)
    height, width = image.shape[:2]
    for index in range(4):
        plans = plan_views(config, 0, 0, index, height=height, width=width)
        for crop, plan in zip(crop_views(image, plans), plans, strict=True):
            expected = np.asarray(pil_crop(Image.fromarray(image), plan)).transpose(2, 0, 1)
            difference = np.abs(crop.numpy().astype(int) - expected)
            assert difference.max() <= TOLERANCE and difference.mean() < 0.1


def test_crops_of_a_big_image_are_pillows(photo: np.ndarray) -> None:
    big = np.asarray(Image.fromarray(photo).resize((2400, 1600)))
    plans = plan_views(CONFIGS[1], 0, 0, 0, height=1600, width=2400)
    for crop, plan in zip(crop_views(big, plans), plans, strict=True):
        expected = np.asarray(pil_crop(Image.fromarray(big), plan)).transpose(2, 0, 1)
        assert np.abs(crop.numpy().astype(int) - expected).max() <= TOLERANCE


def test_flipping_the_plan_mirrors_the_crop(drawing: np.ndarray) -> None:
    plain, flipped = crop_views(drawing, [PLAIN, replace(PLAIN, flip=True)])
    assert torch.equal(plain.flip(-1), flipped)


def test_a_mirrored_image_gives_mirrored_crops(drawing: np.ndarray) -> None:
    box = PLAIN.box
    mirrored = replace(box, left=drawing.shape[1] - box.left - box.width)
    (crop,) = crop_views(drawing, [PLAIN])
    (mirror,) = crop_views(drawing[:, ::-1], [replace(PLAIN, box=mirrored)])
    assert (crop.flip(-1).int() - mirror.int()).abs().max() <= 1


def test_crops_own_their_memory(drawing: np.ndarray) -> None:
    """Also where nothing is left to resize, with one channel (whose layout needs no copy)."""
    image = drawing[:100, :100, :1].copy()
    whole = replace(PLAIN, box=Box(0, 0, 100, 100), size=100)
    for plan in (whole, replace(whole, flip=True)):
        (crop,) = crop_views(image, [plan])
        before = crop.clone()
        assert crop.shape == (1, 100, 100) and crop.is_contiguous()
        image[:] = 255 - image
        assert torch.equal(crop, before)


def test_arrays_and_tensors_are_taken_alike(drawing: np.ndarray) -> None:
    read_only = drawing.copy()
    read_only.flags.writeable = False
    (a,) = crop_views(read_only, [PLAIN])
    (b,) = crop_views(torch.from_numpy(drawing.copy()), [PLAIN])
    assert a.dtype == torch.uint8 and torch.equal(a, b)


def test_crops_of_plans_made_together_are_the_same(drawing: np.ndarray) -> None:
    height, width = drawing.shape[:2]
    sizes = np.array([height]), np.array([width])
    plans = plan_batch(CONFIGS[1], 0, 0, [0], *sizes, views=range(2, 8))
    out = torch.empty(6, 3, 32, 32, dtype=torch.uint8)
    crop_into(out, drawing, plans.boxes, plans.flip)
    assert torch.equal(out, torch.stack(crop_views(drawing, plans.unpacked())))


def test_an_image_of_one_pixel_can_be_cropped() -> None:
    image = np.full((1, 1, 3), 77, dtype=np.uint8)
    plans = plan_views(CONFIGS[1], 0, 0, 0, height=1, width=1)
    assert all((crop == 77).all() for crop in crop_views(image, plans))
