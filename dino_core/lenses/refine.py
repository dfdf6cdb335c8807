"""From the patch grid to pixels: a mask that follows the edges of the photo.

    refined(mask, image)              # bool [H, W], for a mask on the patch grid [h, w]

With the guided filter of He, Sun and Tang ("Guided Image Filtering", TPAMI 2013, the form for a
guide in color): within each small window the mask becomes the linear function of the color that
fits it best, and each pixel the mean of the windows it lies in. TokenCut's paper uses a bilateral
solver (Barron and Poole 2016) instead, which solves for all pixels at once and carries a mask as
far as a color reaches. This one is local, it moves an outline by a patch or two and no further:
it mends the stairs of the grid, but not a cut that is wrong.

Legend: images uint8 [H, W, 3] and planes float32 [H, W], masks [h, w] on the patch grid.
"""

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from dino_core.lenses.attention import resized

REACH = 0.75  # patches; a window of one or more would wipe out what is one patch wide
LONG_SIDE = 1_400  # px; larger photos are filtered at this size, and the result enlarged
SMOOTHNESS = 1e-4  # He's epsilon for colors in 0..1: a spread of 0.01 counts as an edge


def refined(mask: np.ndarray, image: np.ndarray, *, smoothness: float = SMOOTHNESS) -> np.ndarray:
    """`mask` as pixels of `image`: bool [H, W], its outline drawn to the photo's edges.

    `mask`: bool, or float in 0..1 of which 0.5 is the border, [h, w] on the patch grid; `image`:
    uint8 [H, W, 3]. Windows reach 0.75 of a patch to each side. `smoothness`: He's epsilon, the
    variance of a color (0..1) below which the photo counts as flat; there a single patch is lost.
    Takes about 120 bytes a pixel of at most 1,400 x 1,400, and 2 bytes a pixel of the photo.
    """
    height, width = image.shape[:2]
    scale = min(1.0, LONG_SIDE / max(height, width))
    small = resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
    soft = enlarged(mask.astype(np.float32), *small.shape[:2])
    patch = max(small.shape[0] / mask.shape[0], small.shape[1] / mask.shape[1])
    fitted = guided(soft, small, radius=max(1, round(REACH * patch)), smoothness=smoothness)
    if small is image:
        return fitted > 0.5
    codes = np.rint(255 * np.clip(fitted, 0, 1)).astype(np.uint8)  # a quarter of floats' memory
    large = Image.fromarray(codes).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large) > 127


def guided(
    soft: np.ndarray, image: np.ndarray, *, radius: int, smoothness: float = SMOOTHNESS
) -> np.ndarray:
    """The guided filter of the plane `soft` (float32 [H, W]) under `image`: float32 [H, W].

    Windows are squares of 2 `radius` + 1 pixels, cut off at the frame.
    """
    size = 2 * radius + 1
    inside = uniform_filter(np.ones_like(soft), size, mode="constant")

    def mean(plane: np.ndarray) -> np.ndarray:
        return uniform_filter(plane, size, mode="constant") / inside

    color = [np.divide(image[..., c], 255, dtype=np.float32) for c in range(3)]
    color_mean, soft_mean = [mean(plane) for plane in color], mean(soft)
    slopes = _solved(
        [
            [mean(color[i] * color[j]) - color_mean[i] * color_mean[j] for j in range(i + 1)]
            for i in range(3)
        ],
        [mean(color[i] * soft) - color_mean[i] * soft_mean for i in range(3)],
        smoothness,
    )
    for slope, center in zip(slopes, color_mean, strict=True):
        soft_mean -= slope * center  # what is left is the windows' offset
    result = mean(soft_mean)
    for slope, plane in zip(slopes, color, strict=True):
        result += mean(slope) * plane
    return result


def enlarged(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """`grid` float32 [h, w] enlarged to [height, width] between patch centers, bilinear."""
    picture = Image.fromarray(np.ascontiguousarray(grid, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _solved(
    covariance: list[list[np.ndarray]], target: list[np.ndarray], ridge: float
) -> list[np.ndarray]:
    """x of (covariance + ridge) x = target, symmetric 3 x 3, at every pixel; lower rows given.

    By square-root-free Cholesky: cofactors lose all digits in float32 where a photo is gray.
    """
    (s00,), (s10, s11), (s20, s21, s22) = covariance
    d0 = s00 + ridge
    l10, l20 = s10 / d0, s20 / d0
    d1 = s11 + ridge - l10 * s10
    l21 = (s21 - l20 * s10) / d1
    d2 = s22 + ridge - l20 * s20 - l21 * l21 * d1
    y0 = target[0]
    y1 = target[1] - l10 * y0
    x2 = (target[2] - l20 * y0 - l21 * y1) / d2
    x1 = y1 / d1 - l21 * x2
    return [y0 / d0 - l10 * x1 - l20 * x2, x1, x2]
