"""What is done to one view of one image, decided before any pixel is read.

A plan depends on its key (seed, epoch, image, view), the configuration and the image's size, and
on nothing else: not on workers, batches, or what was drawn before. Each decision reads its own
numbers of the key's stream, so turning one off leaves all the others as they were.

    plans = plan_views(MultiCrop(), seed, epoch, index, height=375, width=500)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dino_core.augment.config import MultiCrop, Range
from dino_core.rng import generator

RATIO: Range = (3 / 4, 4 / 3)  # width / height of a crop's box
TRIES = 10  # boxes drawn before falling back to a central one
JITTER = ("brightness", "contrast", "saturation", "hue")

# Where in the key's stream of uniform numbers each decision reads (BOX: four per try).
BOX, FLIP, JITTERED, FACTORS, ORDER, GRAYSCALE, BLURRED, SIGMA, SOLARIZED, DRAWS = (
    *(0, 40, 41, 42, 46, 50, 51, 52, 53),
    54,
)


@dataclass(frozen=True, slots=True)
class Box:
    """A crop's rectangle in pixels of the image; it lies inside the image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """All that happens to a view, in the order in which it happens."""

    view: int  # 0 and 1 are the global crops
    box: Box
    size: int  # side of the crop in pixels
    flip: bool
    jitter: tuple[tuple[str, float], ...]  # (operation, factor) in order; () when left alone
    grayscale: bool
    blur_sigma: float  # in pixels of the crop; 0 when not blurred
    solarize: bool


def plan_views(
    config: MultiCrop, seed: int, epoch: int, index: int, *, height: int, width: int
) -> list[ViewPlan]:
    """Plan every view of image `index` in `epoch`: first the two global ones, then the local."""
    return [
        plan_view(config, seed, epoch, index, view=view, height=height, width=width)
        for view in range(config.views)
    ]


def plan_view(
    config: MultiCrop, seed: int, epoch: int, index: int, *, view: int, height: int, width: int
) -> ViewPlan:
    """Plan one view of an image of `height` x `width` pixels."""
    draws: list[float] = generator(seed, "augment", epoch, index, view).random(DRAWS).tolist()
    kind = min(view, 2)
    return ViewPlan(
        view=view,
        box=_box(draws[BOX : BOX + 4 * TRIES], config.scale(view), height, width),
        size=config.size(view),
        flip=draws[FLIP] < config.flip,
        jitter=_jitter(draws, config) if draws[JITTERED] < config.jitter else (),
        grayscale=draws[GRAYSCALE] < config.grayscale,
        blur_sigma=(
            _between(config.blur_sigma, draws[SIGMA]) if draws[BLURRED] < config.blur[kind] else 0.0
        ),
        solarize=draws[SOLARIZED] < config.solarize[kind],
    )


def reduction(config: MultiCrop, height: int, width: int) -> int:
    """By how much an image may be reduced so that no crop has to be enlarged for it: 1, 2, 4 or 8.

    No box that is drawn has a shorter side than the least area at the most oblong ratio gives, or
    than the image itself.
    """
    kinds = {config.size(view): config.scale(view) for view in range(config.views)}
    room = min(
        min(math.sqrt(height * width * low * RATIO[0]), height, width) / size
        for size, (low, _) in kinds.items()
    )
    return next((factor for factor in (8, 4, 2) if room >= factor), 1)


def _box(draws: Sequence[float], scale: Range, height: int, width: int) -> Box:
    """The rectangle of `torchvision.transforms.RandomResizedCrop`, with the same distribution.

    The share of the area is uniform in `scale`, the aspect ratio log-uniform in `RATIO`; a
    rectangle larger than the image is drawn again, and after `TRIES` the largest central one of an
    allowed ratio is taken.
    """
    log_ratio = (math.log(RATIO[0]), math.log(RATIO[1]))
    for share, shape, down, right in zip(*[iter(draws)] * 4, strict=True):
        area = height * width * _between(scale, share)
        ratio = math.exp(_between(log_ratio, shape))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(down * (height - box_height + 1))
            left = int(right * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    return central_box(height, width)


def central_box(height: int, width: int) -> Box:
    """The largest central rectangle whose ratio lies in `RATIO`."""
    box_height, box_width = height, width
    if width / height < RATIO[0]:
        box_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        box_width = round(height * RATIO[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _jitter(draws: Sequence[float], config: MultiCrop) -> tuple[tuple[str, float], ...]:
    """Operations and factors in a random order, as `torchvision.transforms.ColorJitter` draws them.

    Brightness, contrast and saturation multiply by 1 +- strength (never below 0); hue shifts by
    +- strength of the color circle. An operation of strength 0 is left out.
    """
    order = sorted(range(len(JITTER)), key=lambda operation: draws[ORDER + operation])
    steps = []
    for operation in order:
        name = JITTER[operation]
        strength = getattr(config, name)
        if strength > 0:
            steps.append((name, _between(limits(name, strength), draws[FACTORS + operation])))
    return tuple(steps)


def limits(operation: str, strength: float) -> Range:
    """Between which numbers the factor of a jitter operation is drawn."""
    middle, lowest = (0.0, -0.5) if operation == "hue" else (1.0, 0.0)
    return max(lowest, middle - strength), middle + strength


def _between(ends: Range, draw: float) -> float:
    """Stretch a number of [0, 1) to `ends`."""
    return ends[0] + (ends[1] - ends[0]) * draw
