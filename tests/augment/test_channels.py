"""Images of other than three channels: the batch does what the plain twin does, channel by channel.

Tolerances are in steps of 255: Pillow rounds to whole numbers after each operation.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dino_core.augment import (
    Box,
    MultiCrop,
    PhotometricBatch,
    ViewPlan,
    crop_views,
    photometric,
    plan_views,
    sheet,
)
from dino_core.augment.photometric import blur_matrices
from dino_core.augment.pil import channel_view

CONFIG = MultiCrop(
    global_size=64, local_size=64, local_count=6, jitter=1, solarize=(0.5, 0.5, 0.5), grayscale=0.5
)
WHOLE = ViewPlan(0, Box(0, 0, 64, 64), 64, False, (), False, 0.0, False)


@pytest.fixture(scope="module", params=[1, 2, 4, 7])
def stained(request: pytest.FixtureRequest, photo: np.ndarray) -> np.ndarray:
    """A picture of 1, 2, 4 or 7 channels, each with structure and brightness of its own."""
    planes = [np.roll(photo[:, :, k % 3], 40 * k, axis=k % 2) // (1 + k % 3) for k in range(7)]
    return np.stack(planes[: request.param], axis=-1)


def colors(crops: list[Tensor], plans: list[ViewPlan]) -> np.ndarray:
    """What the fast path makes of crops, in steps of 255, [B, S, S, C]."""
    channels = len(crops[0])
    batch = PhotometricBatch.collate(plans)
    x_BCHW = photometric(torch.stack(crops), batch, [0.0] * channels, [1.0] * channels)
    return x_BCHW.mul(255).permute(0, 2, 3, 1).numpy()


def test_crops_are_pillows_in_every_channel(stained: np.ndarray) -> None:
    height, width = stained.shape[:2]
    nothing = replace(CONFIG, jitter=0, solarize=(0, 0, 0), blur=(0, 0, 0))
    plans = plan_views(nothing, 0, 0, 0, height=height, width=width)
    for crop, plan in zip(crop_views(stained, plans), plans, strict=True):
        expected = channel_view(stained, plan)
        difference = np.abs(crop.permute(1, 2, 0).numpy().astype(int) - expected)
        assert crop.shape == (stained.shape[2], 64, 64)
        assert difference.max() <= 2 and difference.mean() < 0.1


def test_whole_plans_are_the_plain_twins(stained: np.ndarray) -> None:
    height, width = stained.shape[:2]
    for index in range(4):
        plans = plan_views(CONFIG, 0, 0, index, height=height, width=width)
        fast = colors(crop_views(stained, plans), plans)
        plain = np.stack([channel_view(stained, plan) for plan in plans])
        difference = np.abs(fast - plain)
        assert difference.max() <= 8 and difference.mean() <= 1.5


def test_what_only_moves_colors_does_nothing(stained: np.ndarray) -> None:
    jitter = (("saturation", 1.7), ("hue", 0.3), ("saturation", 0.2))
    plan = replace(WHOLE, jitter=jitter, grayscale=True)
    (crop,) = crop_views(stained[:64, :64], [plan])
    expected = crop.permute(1, 2, 0).numpy()
    assert np.abs(colors([crop], [plan])[0] - expected).max() < 1e-3
    assert np.array_equal(channel_view(stained[:64, :64].copy(), plan), expected)


def test_contrast_is_about_the_mean_of_all_channels() -> None:
    pixels = np.zeros((64, 64, 2), np.uint8)
    pixels[..., 0], pixels[..., 1] = 50, 150
    plan = replace(WHOLE, jitter=(("contrast", 0.5),))
    fast = colors(crop_views(pixels, [plan]), [plan])[0]
    assert np.allclose(fast[0, 0], [75, 125], atol=1e-3)
    assert channel_view(pixels, plan)[0, 0].tolist() == [75, 125]


def test_blur_is_of_each_channel(stained: np.ndarray) -> None:
    plan = replace(WHOLE, blur_sigma=1.5)
    (crop,) = crop_views(stained[:64, :64], [plan])
    (kernel,) = blur_matrices(torch.tensor([1.5]), 64)
    expected = torch.stack([kernel @ plane.float() @ kernel.T for plane in crop])
    assert np.abs(colors([crop], [plan])[0] - expected.permute(1, 2, 0).numpy()).max() < 0.01


def test_normalization_is_per_channel() -> None:
    crop = torch.full((2, 4, 4), 51, dtype=torch.uint8)
    batch = PhotometricBatch.collate([WHOLE])
    (x_CHW,) = photometric(crop[None], batch, mean=(0.1, 0.2), std=(0.5, 0.25))
    assert torch.allclose(x_CHW[:, 0, 0], torch.tensor([0.2, 0.0]), atol=1e-6)
    with pytest.raises(ValueError, match="zip"):
        photometric(crop[None], batch, mean=(0.1,), std=(0.5,))


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 1, 1]), (5, [0, 1, 2])])
def test_a_sheet_shows_the_first_three(channels: int, shown: list[int]) -> None:
    values = np.arange(channels, dtype=np.uint8) * 40 + 20
    image = np.broadcast_to(values, (64, 64, channels)).copy()
    config = MultiCrop(
        global_size=32, local_size=16, local_count=2, jitter=0, solarize=(0, 0, 0), blur=(0, 0, 0)
    )
    page = np.asarray(sheet(image, config, rows=1))
    middle = page[80, 160 + 8 + 80]
    assert middle.tolist() == values[shown].tolist()
