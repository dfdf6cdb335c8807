"""The published evaluation transform, scaled to a model's native size."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo

LONGEST = 32  # sides longer than this many short sides lose their ends before the resize


def resize_side(image_size: int) -> int:
    """The short side before the center crop: 256 for 224, and so in proportion."""
    return round(image_size * 256 / 224)


def preprocess(image: np.ndarray, info: ModelInfo) -> Tensor:
    """uint8 [H, W, C] to float32 [C, S, S]: short side to `resize_side`, center crop, normalize.

    The resize is Pillow's bicubic, as published; tensors resized otherwise differ visibly.
    """
    return normalize(cropped(image, info), info)


def cropped(image: np.ndarray, info: ModelInfo) -> np.ndarray:
    """The pixels of `preprocess`, before they are normalized: uint8 [S, S, C], a quarter as heavy.

    Raises `UserError` when the image has other channels than the model.
    """
    require_channels(image, info)
    side = resize_side(info.image_size)

    def middle(band: Image.Image) -> np.ndarray:
        resized = tv.resize(band, side, InterpolationMode.BICUBIC)
        return np.asarray(tv.center_crop(resized, [info.image_size, info.image_size]))

    return by_band(middle, _middle(image))


def by_band(function: Callable[[Image.Image], np.ndarray], image: np.ndarray) -> np.ndarray:
    """`function` on uint8 [H, W, C] as a Pillow image; where C is not 3, on each channel by itself.

    Pillow has no image of 2 or 5 channels, and takes the fourth for opacity, which its resize
    multiplies into the others. Of three it treats each by itself too.
    """
    if image.shape[2] == 3:
        return function(Image.fromarray(image))
    bands = [np.ascontiguousarray(image[..., i]) for i in range(image.shape[2])]
    return np.stack([function(Image.fromarray(band)) for band in bands], axis=-1)


def require_channels(image: np.ndarray, info: ModelInfo) -> None:
    """Raise `UserError` when the image has other channels than the model."""
    if image.ndim != 3 or image.shape[2] != info.channels:
        shape = " x ".join(map(str, image.shape))
        raise UserError(f"an image of {shape} for a model of {info.channels} channels: convert it")


def normalize(image: np.ndarray, info: ModelInfo) -> Tensor:
    """uint8 [H, W, C] to float32 [C, H, W]: to [0, 1], minus the mean, over the deviation.

    Raises `UserError` when the image has other channels than the model.
    """
    require_channels(image, info)
    x_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean = torch.tensor(info.mean, dtype=torch.float32)[:, None, None]
    std = torch.tensor(info.std, dtype=torch.float32)[:, None, None]
    return ((x_CHW - mean) / std).contiguous()


def normalized(x_BHWC: Tensor, info: ModelInfo) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] where they are, to the same bits as `normalize`.

    The result is channels-last in memory, as the pixels came.
    """
    x_BCHW = x_BHWC.permute(0, 3, 1, 2).float().div_(255)
    # Plain numbers, in float32 as there: a tensor of them would be a copy that the host waits for.
    means, stds = np.array([info.mean, info.std], np.float32).tolist()
    for channel, mean, std in zip(x_BCHW.unbind(1), means, stds, strict=True):
        channel.sub_(mean).div_(std)
    return x_BCHW


def _middle(image: np.ndarray) -> np.ndarray:
    """Cut the ends off a very long strip: they are outside the crop, and resized they fill memory.

    A 1 x 60,000 px strip would become 256 x 15,360,000.
    """
    keep = LONGEST * min(image.shape[:2])
    top, left = (max(0, side - keep) // 2 for side in image.shape[:2])
    return image[top : top + keep, left : left + keep]
