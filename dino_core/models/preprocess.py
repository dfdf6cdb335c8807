"""The published evaluation transform, scaled to a model's native size."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from dino_core.models.info import ModelInfo


def resize_side(image_size: int) -> int:
    """The short side before the center crop: 256 for 224, and so in proportion."""
    return round(image_size * 256 / 224)


def preprocess(image: np.ndarray, info: ModelInfo) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, S, S]: short side to `resize_side`, center crop, normalize.

    The resize is Pillow's bicubic, as published; tensors resized otherwise differ visibly.
    """
    resized = tv.resize(
        Image.fromarray(image), resize_side(info.image_size), InterpolationMode.BICUBIC
    )
    cropped = tv.center_crop(resized, [info.image_size, info.image_size])
    return normalize(np.asarray(cropped), info)


def normalize(image: np.ndarray, info: ModelInfo) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W]: to [0, 1], minus the mean, over the deviation."""
    x_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean = torch.tensor(info.mean)[:, None, None]
    std = torch.tensor(info.std)[:, None, None]
    return ((x_CHW - mean) / std).contiguous()
