"""The whole fast path beside the published pipeline, each with random numbers of its own.

The other tests compare one planned view by both ways. Here the published transform, written with
torchvision's classes and their own draws, makes hundreds of views of the same images, and what can
be seen in the pixels must be distributed alike: brightness, contrast, color, sharpness, what is
gray, inverted, or mirrored, where a crop lies and how large it is.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as T

from dino_core.augment import MultiCrop, PhotometricBatch, crop_into, photometric, plan_batch

SIDE, COUNT = 48, 600
CONFIG = MultiCrop(global_size=SIDE, local_size=SIDE, local_count=1)
LIMIT = 1.95 * math.sqrt(2 / COUNT)  # Kolmogorov-Smirnov, two samples, p = 0.001
SIGMAS = 4.5
KINDS = ("first global", "second global", "local")


def published(kind: int) -> Callable[[Image.Image], Image.Image]:
    """The transform of the paper's code for one kind of view, up to the tensor."""

    def blurred(image: Image.Image) -> Image.Image:
        if random.random() > CONFIG.blur[kind]:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    def solarized(image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < CONFIG.solarize[kind] else image

    return T.Compose(
        [
            T.RandomResizedCrop(
                SIDE, scale=CONFIG.scale(kind), interpolation=T.InterpolationMode.BICUBIC
            ),
            T.RandomHorizontalFlip(p=0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.Lambda(blurred),
            T.Lambda(solarized),
        ]
    )


@pytest.fixture(scope="module")
def ramp() -> np.ndarray:
    """Red grows to the right, green downwards, on a chessboard: uint8 [96, 128, 3].

    So a crop's colors tell where it lies, how large it is, and whether it is mirrored.
    """
    y, x = np.mgrid[:96, :128]
    texture = 60 * ((x // 6 + y // 6) % 2)
    pixels = np.stack([40 + x + texture, 40 + 1.2 * y + texture, np.full_like(x, 70) + texture], -1)
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module", params=range(3), ids=KINDS)
def views(request: pytest.FixtureRequest, ramp: np.ndarray) -> tuple[Tensor, Tensor]:
    """`COUNT` views of one kind by each way, float [COUNT, 3, SIDE, SIDE] from 0 to 255."""
    kind = request.param
    heights, widths = np.full(COUNT, 96), np.full(COUNT, 128)
    plans = plan_batch(CONFIG, 11, 0, range(COUNT), heights, widths, range(kind, kind + 1))
    crops = torch.empty((COUNT, 3, SIDE, SIDE), dtype=torch.uint8)
    for i in range(COUNT):
        crop_into(crops[i : i + 1], ramp, plans.boxes[i : i + 1], plans.flip[i : i + 1])
    ours = photometric(crops, PhotometricBatch.of(plans), (0, 0, 0), (1, 1, 1)) * 255
    ours = ours.round()  # as Pillow does: equal pictures are to give equal numbers
    picture, transform = Image.fromarray(ramp), published(kind)
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        random.seed(5)
        made = [np.asarray(transform(picture)) for _ in range(COUNT)]
    random.setstate(state)
    return ours, torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float()


def slope(x: Tensor, axis: int) -> Tensor:
    """How much the difference of red and green grows along an axis, per pixel, [N]."""
    difference = (x[:, 0] - x[:, 1]).mean(dim=3 - axis)
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    return (difference @ place) / place.square().sum()


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(dim=(1, 2, 3)),
    "deviation": lambda x: x.std(dim=(1, 2, 3)),
    "red": lambda x: x[:, 0].mean(dim=(1, 2)),
    "green": lambda x: x[:, 1].mean(dim=(1, 2)),
    "blue": lambda x: x[:, 2].mean(dim=(1, 2)),
    "color": lambda x: (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),
    "sharpness": lambda x: x.diff(dim=3).abs().mean(dim=(1, 2, 3)),
    "position and width": lambda x: slope(x, 2).abs(),
    "position and height": lambda x: slope(x, 1).abs(),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_what_can_be_seen_is_distributed_alike(views: tuple[Tensor, Tensor], name: str) -> None:
    ours, theirs = (STATISTICS[name](x).numpy() for x in views)
    assert kolmogorov_smirnov(ours, theirs) < LIMIT
    assert ours.std() > 0.01


SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "gray": lambda x: (x.amax(dim=1) - x.amin(dim=1)).amax(dim=(1, 2)) < 2.5,
    "mirrored": lambda x: slope(x, 2) < 0,
    "solarized": lambda x: x.amax(dim=(1, 2, 3)) < 129,
    "sharp": lambda x: x.diff(dim=3).abs().mean(dim=(1, 2, 3)) > 8,
}


@pytest.mark.parametrize("name", SHARES)
def test_shares_are_alike(views: tuple[Tensor, Tensor], name: str) -> None:
    ours, theirs = (SHARES[name](x).float().mean().item() for x in views)
    both = (ours + theirs) / 2
    assert abs(ours - theirs) <= SIGMAS * math.sqrt(2 * max(both * (1 - both), 1e-3) / COUNT)


def test_the_published_shares_are_seen_in_the_pixels(views: tuple[Tensor, Tensor]) -> None:
    """So the statistics above tell what they are meant to."""
    ours, _ = views
    gray = SHARES["gray"](ours)
    assert abs(gray.float().mean().item() - 0.2) < SIGMAS * math.sqrt(0.16 / COUNT)
    mirrored = SHARES["mirrored"](ours)[~gray]
    assert 0.35 < mirrored.float().mean().item() < 0.65


def test_another_recipe_would_be_noticed(ramp: np.ndarray) -> None:
    """Blur with the opposite probability (as later codes have it) is far outside the limit."""
    heights, widths = np.full(COUNT, 96), np.full(COUNT, 128)
    sharpness = []
    for blur in (0.1, 0.9):
        config = MultiCrop(global_size=SIDE, blur=(blur, blur, blur))
        plans = plan_batch(config, 0, 0, range(COUNT), heights, widths, range(1, 2))
        crops = torch.empty((COUNT, 3, SIDE, SIDE), dtype=torch.uint8)
        for i in range(COUNT):
            crop_into(crops[i : i + 1], ramp, plans.boxes[i : i + 1], plans.flip[i : i + 1])
        x = photometric(crops, PhotometricBatch.of(plans), (0, 0, 0), (1, 1, 1)) * 255
        sharpness.append(STATISTICS["sharpness"](x).numpy())
    assert kolmogorov_smirnov(*sharpness) > 3 * LIMIT


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between two samples' cumulative distributions."""
    values = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), values, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), values, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())
