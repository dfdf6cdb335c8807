"""The plain twin against Pillow's own operations, written out by hand."""

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from dino_core.augment import Box, ViewPlan, pil_view
from dino_core.augment.pil import to_normalized

EVERYTHING = ViewPlan(
    view=1,
    box=Box(top=10, left=30, height=80, width=100),
    size=64,
    flip=True,
    jitter=(("contrast", 1.3), ("brightness", 0.7), ("hue", 0.08), ("saturation", 1.2)),
    grayscale=False,
    blur_sigma=1.1,
    solarize=True,
)


def turn_hue(image: Image.Image, shift: float) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(shift * 255)
    return Image.fromarray(hsv, "HSV").convert("RGB")


def test_operations_and_their_order_are_the_published_ones(drawing: np.ndarray) -> None:
    image = Image.fromarray(drawing)
    expected = image.crop((30, 10, 130, 90)).resize((64, 64), Image.Resampling.BICUBIC)
    expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = ImageEnhance.Contrast(expected).enhance(1.3)
    expected = ImageEnhance.Brightness(expected).enhance(0.7)
    expected = turn_hue(expected, 0.08)
    expected = ImageEnhance.Color(expected).enhance(1.2)
    expected = expected.filter(ImageFilter.GaussianBlur(1.1))
    expected = ImageOps.solarize(expected)
    assert np.array_equal(pil_view(image, EVERYTHING), expected)


def test_input_of_the_model_is_normalized(drawing: np.ndarray) -> None:
    x = to_normalized(Image.fromarray(drawing), mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.3))
    expected = (drawing / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.1, 0.3)
    assert x.dtype == torch.float32
    assert np.allclose(x.numpy().transpose(1, 2, 0), expected, atol=1e-5)
