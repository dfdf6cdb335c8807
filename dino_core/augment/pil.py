"""The plain twin: one view of one image with Pillow, in the published order.

It reads like the paper and is what the fast path (`crop.py`, then `photometric.py`) is tested
against; training does not use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dino_core.augment.plan import ViewPlan

JITTER: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def pil_view(image: Image.Image, plan: ViewPlan) -> Image.Image:
    """Make the planned view of an RGB image: crop, flip, jitter, gray, blur, solarize."""
    return pil_colors(pil_crop(image, plan), plan)


def pil_crop(image: Image.Image, plan: ViewPlan) -> Image.Image:
    """The geometric half: crop, resize to a square of the plan's size, flip."""
    box = (plan.box.top, plan.box.left, plan.box.height, plan.box.width)
    size = [plan.size, plan.size]
    view = F.resized_crop(image, *box, size=size, interpolation=InterpolationMode.BICUBIC)
    return ImageOps.mirror(view) if plan.flip else view


def pil_colors(view: Image.Image, plan: ViewPlan) -> Image.Image:
    """The photometric half: jitter in the plan's order, gray, blur, solarize."""
    for operation, factor in plan.jitter:
        view = JITTER[operation](view, factor)
    if plan.grayscale:
        view = F.to_grayscale(view, num_output_channels=3)
    if plan.blur_sigma > 0:
        view = view.filter(ImageFilter.GaussianBlur(radius=plan.blur_sigma))
    if plan.solarize:
        view = ImageOps.solarize(view, threshold=128)
    return view


def channel_view(pixels: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """The planned view of an image without color: uint8 [H, W, C], C not 3, to [S, S, C].

    Each channel is a gray image of its own, but for the contrast, which is about the mean of all;
    what only moves colors (saturation, hue, grayscale) does nothing.
    """
    planes = [pil_crop(Image.fromarray(plane), plan) for plane in np.moveaxis(pixels, -1, 0)]
    for operation, factor in plan.jitter:
        if operation == "brightness":
            planes = [F.adjust_brightness(plane, factor) for plane in planes]
        elif operation == "contrast":
            mean = round(float(np.mean([np.asarray(plane) for plane in planes])))
            even = Image.new("L", (plan.size, plan.size), mean)
            planes = [Image.blend(even, plane, factor) for plane in planes]
    rest = replace(plan, jitter=(), grayscale=False)
    return np.stack([np.asarray(pil_colors(plane, rest)) for plane in planes], axis=-1)


def to_normalized(view: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A view as the model's input: float32 [3, S, S], `mean` and `std` of pixels in [0, 1]."""
    pixels = F.to_dtype(F.pil_to_tensor(view), torch.float32, scale=True)
    return F.normalize(pixels, mean=list(mean), std=list(std))
