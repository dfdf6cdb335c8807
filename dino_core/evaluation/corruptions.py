"""Ten ways to spoil a picture, each at five severities: what features should not mind.

In kind after Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations" (2019): noise, blur, weather's and a camera's doing, digital damage. The changes
and their strengths are our own (`STRENGTHS`), so figures are NOT those of ImageNet-C, and compare
only with others made here.

    spoiled = corrupt(image, "gaussian_noise", severity=3, seed=0, index=17)

What is random belongs to (seed, corruption, index) and not to the severity: the same grain, only
stronger. Lengths are in 256ths of the short side, so a blur looks the same at any size; noise is
per pixel. JPEG is the installed Pillow's, whose versions may differ by a level or two.

Shapes: H x W pixels, C channels. Color needs red, green and blue: images of another number of
channels are changed channel by channel, and `grayscale` leaves them alone.
"""

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from dino_core.errors import UserError
from dino_core.gallery.features import prepared
from dino_core.models import ModelInfo
from dino_core.models.preprocess import by_band, require_channels
from dino_core.rng import generator

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 256  # short side in which lengths are given
WHITE = 255.0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow's "L"

Strengths = tuple[float, float, float, float, float]
Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

STRENGTHS: dict[str, Strengths] = {
    "gaussian_noise": (0.04, 0.08, 0.13, 0.19, 0.27),  # deviation, as a share of white
    "shot_noise": (80, 40, 20, 10, 5),  # photons that make white
    "gaussian_blur": (1, 2, 3, 4.5, 6.5),  # deviation, a length
    "motion_blur": (5, 9, 14, 20, 28),  # the path, a length
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # what is added, as a share of white
    "contrast": (0.7, 0.5, 0.35, 0.2, 0.1),  # what is left of the distance from the mean
    "jpeg": (30, 18, 12, 8, 5),  # quality
    "pixelate": (128, 88, 60, 40, 26),  # cells on the short side
    "grayscale": (0.2, 0.4, 0.6, 0.8, 1.0),  # how far the way to gray
    "rotation": (4, 8, 12, 16, 20),  # degrees, either way
}


def corrupt(
    image: np.ndarray, name: str, severity: int, *, seed: int = 0, index: int = 0
) -> np.ndarray:
    """`image`, uint8 [H, W, C] of any size, corrupted: a new array of the same shape.

    `index` is the image's number (any integer of its own), which with `seed` keys what is random.
    Raises `UserError` for an unknown corruption, or a severity that is not in 1 .. 5.
    """
    require(name, severity)
    random = generator(seed, "corruption", name, index)
    changed = CHANGES[name](image, STRENGTHS[name][severity - 1], random)
    return np.clip(np.rint(changed), 0, WHITE).astype(np.uint8)


def require(name: str, severity: int) -> None:
    """Raise a `UserError` for a corruption or a severity that there is not."""
    if name not in STRENGTHS:
        raise UserError(f"corruption {name!r} is unknown; there are {', '.join(STRENGTHS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity} of {name}: must be a whole number from 1 to 5")


def spoiled(image: np.ndarray, info: ModelInfo, name: str, severity: int, seed: int) -> Tensor:
    """uint8 [H, W, C] to the model's input [S, S, C]: square, corruption, preprocessing.

    The key of what is random is (seed, corruption, the square's pixels). No `name`: no corruption.
    """
    require_channels(image, info)
    square = middle_square(image)
    if name:
        square = corrupt(square, name, severity, seed=seed, index=key_of(square))
    return prepared(square, info)


def middle_square(image: np.ndarray) -> np.ndarray:
    """The middle of an image at 256 x 256 px: uint8 [H, W, C], H and W being any, to [256, 256, C].

    Resized both ways, by Pillow's bicubic, so that a severity means the same for every image.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2

    def resized(band: Image.Image) -> np.ndarray:
        return np.asarray(band.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    return by_band(resized, image[top : top + side, left : left + side])


def key_of(image: np.ndarray) -> int:
    """A number of an image's own: 64 bits of a hash of its pixels."""
    pixels = np.ascontiguousarray(image)
    return int.from_bytes(hashlib.blake2b(pixels.data, digest_size=8).digest(), "little")


def _gaussian_noise(image: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    noise = random.standard_normal(image.shape, np.float32)
    return image + np.float32(share * WHITE) * noise


def _shot_noise(image: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    """Light is counted: each value is drawn from the Poisson distribution around itself."""
    return random.poisson(image * (photons / WHITE)) * (WHITE / photons)


def _gaussian_blur(image: np.ndarray, sigma: float, _: np.random.Generator) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(_pixels(sigma, image))
    return by_band(lambda band: np.asarray(band.filter(blur)), image)


def _motion_blur(image: np.ndarray, path: float, random: np.random.Generator) -> np.ndarray:
    """The mean along a straight path in a random direction, in steps of whole pixels."""
    angle = random.uniform(0, math.pi)
    length = _pixels(path, image)
    reach = math.ceil(length / 2)
    along = np.linspace(-length / 2, length / 2, 2 * reach + 1)
    steps = np.rint(np.outer(along, [math.sin(angle), math.cos(angle)])).astype(int) + reach
    height, width = image.shape[:2]
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros(image.shape, np.float32)
    for down, right in steps.tolist():
        total += padded[down : down + height, right : right + width]
    return total / len(steps)


def _brightness(image: np.ndarray, share: float, _: np.random.Generator) -> np.ndarray:
    return image + np.float32(share * WHITE)


def _contrast(image: np.ndarray, left: float, _: np.random.Generator) -> np.ndarray:
    mean = np.float32(image.mean())
    return mean + np.float32(left) * (image - mean)


def _jpeg(image: np.ndarray, quality: float, _: np.random.Generator) -> np.ndarray:
    def through_file(band: Image.Image) -> np.ndarray:
        file = io.BytesIO()
        band.save(file, "JPEG", quality=int(quality))
        return np.asarray(Image.open(file))

    return by_band(through_file, image)


def _pixelate(image: np.ndarray, cells: float, _: np.random.Generator) -> np.ndarray:
    """Cells of one color each, the mean of what they cover; not smaller than pixels."""
    height, width = image.shape[:2]
    share = min(1.0, cells / min(height, width))
    few = max(1, round(width * share)), max(1, round(height * share))

    def coarse(band: Image.Image) -> np.ndarray:
        reduced = band.resize(few, Image.Resampling.BOX)
        return np.asarray(reduced.resize((width, height), Image.Resampling.NEAREST))

    return by_band(coarse, image)


def _grayscale(image: np.ndarray, way: float, _: np.random.Generator) -> np.ndarray:
    if image.shape[2] != len(LUMA):
        return image
    gray = (image @ LUMA)[:, :, None]
    return image + np.float32(way) * (gray - image)


def _rotation(image: np.ndarray, degrees: float, random: np.random.Generator) -> np.ndarray:
    """About the center, to the left or the right; what comes in at the edges is mirrored."""
    signed = degrees if random.random() < 0.5 else -degrees
    height, width = image.shape[:2]
    margin = math.ceil(max(height, width) / 2 * math.sin(math.radians(degrees))) + 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    inside = slice(margin, margin + height), slice(margin, margin + width)

    def turned(band: Image.Image) -> np.ndarray:
        return np.asarray(band.rotate(signed, Image.Resampling.BICUBIC))[inside]

    return by_band(turned, padded)


def _pixels(length: float, image: np.ndarray) -> float:
    """A length in pixels of this image."""
    return length * min(image.shape[:2]) / SIDE


CHANGES: dict[str, Change] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "grayscale": _grayscale,
    "rotation": _rotation,
}
