"""Crops as matrix products: the pixels of the plain twin and of Pillow, for images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.augment import MultiCrop, crop_views
from dino_core.augment import products as products_module
from dino_core.augment.pil import pil_crop
from dino_core.augment.planning import Plans, plan_batch
from dino_core.augment.products import CropBatch, bicubic, crop_products

TOLERANCE = 2  # of 255
CONFIGS = [MultiCrop(), MultiCrop(global_size=64, local_size=32, local_count=6)]


def packed(images: list[np.ndarray]) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels one after the other, their first bytes, heights, widths."""
    sizes = np.array([image.size for image in images])
    pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
    heights, widths = np.array([image.shape[:2] for image in images]).T
    return pixels, np.cumsum(sizes) - sizes, heights, widths


def planned(config: MultiCrop, heights: np.ndarray, widths: np.ndarray, views: range) -> Plans:
    return plan_batch(config, 0, 0, range(len(heights)), heights, widths, views)


def twins(images: list[np.ndarray], plans: Plans) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the CPU's crops and Pillow's are."""
    chosen = enumerate(plans.unpacked())
    return [
        (
            crop_views(images[i % len(images)], [plan])[0].numpy(),
            np.asarray(pil_crop(Image.fromarray(images[i % len(images)]), plan)).transpose(2, 0, 1),
        )
        for i, plan in chosen
    ]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b)


@pytest.fixture(scope="module")
def images(photo: np.ndarray, drawing: np.ndarray) -> list[np.ndarray]:
    """A photo, a drawing, a panorama of it, and one smaller than any crop."""
    return [photo, drawing, drawing[:40], np.ascontiguousarray(drawing[30:49, 50:80])]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.global_size))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["global", "local"])
def test_crops_are_the_twins(
    images: list[np.ndarray], config: MultiCrop, dtype: torch.dtype, kind: str
) -> None:
    pixels, offsets, heights, widths = packed(images)
    views = range(2) if kind == "global" else range(2, 6)
    plans = planned(config, heights, widths, views)
    crops = crop_products(pixels, CropBatch.of(plans, offsets, widths), dtype).numpy()
    assert plans.flip.any() and not plans.flip.all()
    for ours, (fast, pillow) in zip(crops, twins(images, plans), strict=True):
        for twin in (fast, pillow):
            assert difference(ours, twin).max() <= TOLERANCE
            assert difference(ours, twin).mean() < 0.25


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(photo: np.ndarray, channels: int) -> None:
    image = np.ascontiguousarray(np.tile(photo[:120, :150], 2)[..., :channels])
    pixels, offsets, heights, widths = packed([image, image[:90].copy()])
    plans = planned(CONFIGS[1], heights, widths, range(2, 6))
    crops = crop_products(pixels, CropBatch.of(plans, offsets, widths, channels))
    pair = [image, image[:90]]
    for i, (ours, plan) in enumerate(zip(crops, plans.unpacked(), strict=True)):
        twin = crop_views(pair[i % 2].copy(), [plan])[0]
        assert ours.shape == (channels, 32, 32) and (ours.int() - twin.int()).abs().max() <= 2


def test_parts_change_nothing(images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, offsets, heights, widths = packed(images)
    plans = planned(CONFIGS[1], heights, widths, range(2, 8))
    whole = CropBatch.of(plans, offsets, widths)
    monkeypatch.setattr(products_module, "AT_ONCE", 200_000)
    divided = CropBatch.of(plans, offsets, widths)
    assert len(whole.parts) == 1 and len(divided.parts) > 3
    assert [part[0] for part in divided.parts[1:]] == [part[1] for part in divided.parts[:-1]]
    assert divided.parts[0][0] == 0 and divided.parts[-1][1] == len(plans)
    assert torch.equal(crop_products(pixels, divided), crop_products(pixels, whole))


def test_weights_sum_to_one_and_leave_equal_sizes_alone() -> None:
    lengths = torch.tensor([1, 5, 32, 100])
    weights = bicubic(lengths, 112, 32)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 32))
    assert all((weights[i, :, n:] == 0).all() for i, n in enumerate(lengths.tolist()))
    torch.testing.assert_close(weights[2, :, :32], torch.eye(32))


@pytest.mark.gpu
def test_cuda_agrees_and_does_not_wait(images: list[np.ndarray]) -> None:
    pixels, offsets, heights, widths = packed(images)
    plans = planned(CONFIGS[0], heights, widths, range(2))
    batch = CropBatch.of(plans, offsets, widths)
    expected = crop_products(pixels, batch)
    there, on_device = pixels.cuda(), batch.pin_memory().to("cuda", non_blocking=True)
    crop_products(there, on_device)  # the first call sets up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        crops = crop_products(there, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (crops.cpu().int() - expected.int()).abs().max() <= TOLERANCE
