"""Colors of a batch: Pillow's and torchvision's definitions, each image with its own parameters.

Tolerances are in steps of 255. Pillow rounds or truncates to whole numbers after each operation and
keeps hue and saturation in 8 bits; the batch stays in float32, so that it is a little more exact.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from dino_core.augment import Box, MultiCrop, PhotometricBatch, ViewPlan, photometric, plan_views
from dino_core.augment.photometric import blur_matrices, gaussian_blur, shift_hue, solarize
from dino_core.augment.pil import pil_colors, pil_crop

PLAIN = ViewPlan(0, Box(0, 0, 64, 64), 64, False, (), False, 0.0, False)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIVID = MultiCrop(global_size=64, local_size=64, local_count=6, jitter=1, solarize=(0.5, 0.5, 0.5))


class Operations(TorchDispatchMode):
    """Notes the name of every torch operation that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.name().removeprefix("aten::").split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=["photo", "drawing"])
def crops(request: pytest.FixtureRequest) -> list[Image.Image]:
    """Eight 64-pixel crops of an image."""
    image = request.getfixturevalue(request.param)
    plans = plan_views(VIVID, 1, 0, 0, height=image.shape[0], width=image.shape[1])
    return [pil_crop(Image.fromarray(image), plan) for plan in plans]


@pytest.fixture(scope="module")
def varied() -> tuple[Tensor, list[ViewPlan]]:
    """Twenty-four images of noise with as many different plans."""
    plans = [plan for i in range(3) for plan in plan_views(VIVID, 0, 0, i, height=64, width=64)]
    return noise(len(plans)), plans


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.4])
@pytest.mark.parametrize(
    ("operation", "tolerance"), [("brightness", 1), ("contrast", 1.3), ("saturation", 1.6)]
)
def test_blends_are_pillows(
    crops: list[Image.Image], operation: str, tolerance: float, factor: float
) -> None:
    difference = from_pillow(crops, replace(PLAIN, jitter=((operation, factor),)))
    assert difference.max() <= tolerance


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.05, 0.1, 0.5])
def test_hue_is_pillows_up_to_its_eight_bits(crops: list[Image.Image], shift: float) -> None:
    """Pillow truncates hue and shift to 255ths of the circle and wraps their sum at 256.

    Each of the three can move a channel of a vivid color by 6.
    """
    difference = from_pillow(crops, replace(PLAIN, jitter=(("hue", shift),)))
    assert difference.max() <= 18 and difference.mean() <= 2


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    x = noise(4).float()
    x[0] = x[0, :1]  # gray: no hue
    x[1, 1] = x[1, 0]  # two channels equal, the corners between the sectors
    x[2, 2] = x[2, 1]
    expected = F.adjust_hue(x / 255, shift) * 255
    assert_near(shift_hue(x, torch.full((4,), shift)), expected, 0.01)


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation"])
def test_blends_are_torchvisions(operation: str) -> None:
    images = noise(2)
    plans = [replace(PLAIN, jitter=((operation, factor),)) for factor in (0.7, 1.3)]
    adjust = getattr(F, f"adjust_{operation}")
    pairs = zip(images, (0.7, 1.3), strict=True)
    expected = torch.stack([adjust(image / 255, factor) * 255 for image, factor in pairs])
    assert_near(colors(images, plans), expected, 0.05)  # its gray weighs red 0.2989, not 0.299


@pytest.mark.parametrize("sigma", [0.1, 0.35, 0.8, 1.0, 1.5, 2.0, 5.0])
def test_blur_is_pillows_up_to_the_edges(crops: list[Image.Image], sigma: float) -> None:
    speckle = Image.fromarray(noise(1)[0].permute(1, 2, 0).numpy())
    difference = from_pillow([*crops, speckle], replace(PLAIN, blur_sigma=sigma))
    assert difference.max() <= 3 and difference.mean() <= 0.7  # it rounds after each of six passes


def test_blur_is_as_wide_as_asked() -> None:
    """Three extended boxes have exactly the Gaussian's variance, and lose no light."""
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0, 4.0], dtype=torch.float64)
    kernels = blur_matrices(sigma, size=81)
    assert (kernels >= 0).all()
    torch.testing.assert_close(kernels.sum(-1), torch.ones(6, 81, dtype=torch.float64))
    offset = torch.arange(-40.0, 41.0, dtype=torch.float64)
    torch.testing.assert_close(kernels[:, 40] @ offset.square(), sigma.square())


def test_blur_of_each_image_is_its_own() -> None:
    x, sigma = noise(3).float(), torch.tensor([0.3, 1.0, 2.0])
    alone = [gaussian_blur(x[i : i + 1], sigma[i : i + 1]) for i in range(3)]
    assert_near(gaussian_blur(x, sigma), torch.cat(alone), 1e-3)


def test_solarize_is_pillows_for_every_value() -> None:
    values = torch.arange(256.0)
    expected = torch.where(values < 128, values, 255 - values)
    assert torch.equal(solarize(values), expected)


def test_gray_is_pillows(crops: list[Image.Image]) -> None:
    assert from_pillow(crops, replace(PLAIN, grayscale=True)).max() <= 0.51


def test_whole_plans_are_pillows(crops: list[Image.Image]) -> None:
    """All operations in each image's own order; without hue and its 8 bits much closer."""
    for config, largest, mean in ((VIVID, 16, 2.5), (replace(VIVID, hue=0), 6, 2.2)):
        for index in range(4):
            plans = plan_views(config, 0, 0, index, height=64, width=64)
            difference = np.abs(colors(batch_of(crops), plans).numpy() - pillow(crops, plans))
            assert difference.max() <= largest and difference.mean() <= mean


def test_order_of_the_jitter_is_each_images_own(crops: list[Image.Image]) -> None:
    steps = (("brightness", 1.4), ("contrast", 0.6), ("saturation", 1.2))
    plans = [replace(PLAIN, jitter=steps), replace(PLAIN, jitter=steps[::-1])]
    pair = [crops[0], crops[0]]
    there, back = colors(batch_of(pair), plans)
    assert (there - back).abs().max() > 10
    assert np.abs(torch.stack([there, back]).numpy() - pillow(pair, plans)).max() <= 4


def test_untouched_images_are_only_normalized() -> None:
    images = noise(3)
    before = images.clone()
    x = photometric(images, PhotometricBatch.collate([PLAIN] * 3), MEAN, STD)
    expected = F.normalize(images / 255, list(MEAN), list(STD))
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)
    assert x.dtype == torch.float32 and torch.equal(images, before)


def test_neighbors_in_the_batch_do_not_matter(varied: tuple[Tensor, list[ViewPlan]]) -> None:
    images, plans = varied
    order = torch.randperm(len(plans), generator=torch.Generator().manual_seed(0)).tolist()
    together = colors(images, plans)
    assert_near(colors(images[order], [plans[i] for i in order]), together[order], 1e-3)
    alone = [colors(images[i : i + 1], [plan]) for i, plan in enumerate(plans)]
    assert_near(torch.cat(alone), together, 1e-3)


def test_mirroring_commutes_with_colors(varied: tuple[Tensor, list[ViewPlan]]) -> None:
    images, plans = varied
    assert_near(colors(images.flip(-1), plans), colors(images, plans).flip(-1), 1e-3)


def test_autocast_changes_nothing(varied: tuple[Tensor, list[ViewPlan]]) -> None:
    images, plans = varied
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = colors(images, plans)
    assert torch.equal(inside, colors(images, plans))


def test_a_few_at_a_time_is_all_at_once(
    varied: tuple[Tensor, list[ViewPlan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU goes through a batch in parts; a GPU takes it whole."""
    images, plans = varied
    together = colors(images, plans)
    monkeypatch.setattr(
        sys.modules["dino_core.augment.photometric"], "IN_CACHE", 5 * images[0].numel()
    )
    assert_near(colors(images, plans), together, 1e-3)


def test_nothing_waits_for_the_device(varied: tuple[Tensor, list[ViewPlan]]) -> None:
    """No operation reads a value on the host or makes a tensor whose size hangs on one."""

    images, plans = varied
    batch = PhotometricBatch.collate(plans)
    with Operations() as watch:
        photometric(images, batch, MEAN, STD)
    assert "index_copy_" in watch.seen
    assert not watch.seen & {"_local_scalar_dense", "item", "equal", "is_nonzero"}
    assert not watch.seen & {"nonzero", "masked_select", "index", "unique", "lift_fresh"}


@pytest.mark.gpu
def test_cuda_agrees_and_does_not_wait(varied: tuple[Tensor, list[ViewPlan]]) -> None:
    images, plans = varied
    batch = PhotometricBatch.collate(plans).pin_memory().to("cuda", non_blocking=True)
    on_device = images.cuda()
    photometric(on_device, batch, MEAN, STD)  # the first call sets up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        x = photometric(on_device, batch, (0, 0, 0), (1, 1, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_near(x.cpu() * 255, colors(images, plans), 0.5)  # TF32 products may be allowed


def test_batch_survives_the_way_from_a_worker(varied: tuple[Tensor, list[ViewPlan]]) -> None:
    images, plans = varied
    (batch,) = DataLoader(
        plans, batch_size=len(plans), num_workers=1, collate_fn=PhotometricBatch.collate
    )
    assert len(batch) == len(plans)
    assert torch.equal(
        photometric(images, batch, (0, 0, 0), (1, 1, 1)) * 255, colors(images, plans)
    )


def test_batch_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="2 images, but parameters for 3"):
        photometric(noise(2), PhotometricBatch.collate([PLAIN] * 3), MEAN, STD)


def noise(n: int) -> Tensor:
    """Random uint8 images [n, 3, 64, 64], the same each time."""
    source = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=source)


def batch_of(crops: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) for crop in crops])


def colors(images: Tensor, plans: Sequence[ViewPlan]) -> Tensor:
    """What `photometric` makes of the images, in steps of 255."""
    return photometric(images, PhotometricBatch.collate(plans), (0, 0, 0), (1, 1, 1)) * 255


def pillow(crops: Sequence[Image.Image], plans: Sequence[ViewPlan]) -> np.ndarray:
    """What the plain twin makes of them, float [B, 3, S, S]."""
    views = [pil_colors(crop, plan) for crop, plan in zip(crops, plans, strict=True)]
    return np.stack([np.asarray(view, dtype=float).transpose(2, 0, 1) for view in views])


def from_pillow(crops: Sequence[Image.Image], plan: ViewPlan) -> np.ndarray:
    """Difference of each pixel between both paths when every crop has this plan."""
    plans = [plan] * len(crops)
    return np.abs(colors(batch_of(crops), plans).numpy() - pillow(crops, plans))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
