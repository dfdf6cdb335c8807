"""Frames as the published video segmentation feeds them: their size, and their patch tokens.

    size = fed_size(frame.shape[0], frame.shape[1], 480, patch=8)      # (480, 832) of 480 x 854
    features = patch_features(model, frame, *size)                    # float [h, w, D], length 1

The short side becomes 480 px, the other side keeps the shape, rounded down to a multiple of 64 px;
bilinear without antialiasing, but for frames that shrink by more than half again.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_core.errors import UserError
from dino_core.models import Model, preprocess
from dino_core.models.info import IMAGENET_STD

SIZE = 480
STEP = 64  # pixels at 480: the long side is a multiple of it
PUBLISHED_STD = (0.228, 0.224, 0.225)  # the first was meant to be 0.229
ALIASED = 1.5  # frames that shrink by more are antialiased; DAVIS's own shrink by 1.15 at most
CELL = 32  # pixels: what the sides of images are multiples of where a network has no patches
MAX_TOKENS = 65_536  # of a frame; the context holds nine of them


def fed_size(height: int, width: int, size: int, patch: int) -> tuple[int, int]:
    """(height, width) in pixels that a frame is fed at: short side `size`, in whole patches.

    The long side (the width, of a square) is rounded down to a multiple of 64 px at 480, of as much
    less at smaller sizes; in near squares it ends below the other. Raises `UserError` where that
    makes too many patches.
    """
    unit = CELL if patch == 1 else patch
    step = max(int(STEP * size / SIZE) // unit, 1) * unit
    short = max(size // unit, 1) * unit
    long = max(int(size * max(height, width) / min(height, width)) // step, 1) * step
    if short * long > MAX_TOKENS * unit**2:
        raise UserError(
            f"frames of {width} x {height} px make more than {MAX_TOKENS:,} patches of {unit} px "
            f"at size {size}; use a smaller one"
        )
    return (long, short) if height > width else (short, long)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, C] bilinear at another size; antialiased where it shrinks a lot."""
    if image.shape[:2] == (height, width):
        return image
    shrink = max(image.shape[0] / height, image.shape[1] / width)
    x_CHW = torch.from_numpy(image).permute(2, 0, 1).float()
    antialias = shrink > ALIASED
    x_CHW = F.interpolate(x_CHW[None], (height, width), mode="bilinear", antialias=antialias)[0]
    return x_CHW.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def patch_features(
    model: Model, frame: np.ndarray, height: int, width: int, *, as_published: bool = False
) -> Tensor:
    """The last block's patch tokens of a frame, uint8 [H, W, C], fed at the size given.

    float32 [h, w, D] of length 1, on the model's device.
    """
    info = model.info
    if as_published and info.std == IMAGENET_STD:
        info = replace(info, std=PUBLISHED_STD)
    pixels = preprocess.normalize(resized(frame, height, width), info).to(model.device)
    backbone = model.backbone
    with torch.inference_mode():
        tokens_ND = backbone.tokens(pixels[None])[0, backbone.num_prefix_tokens :].float()
        return F.normalize(tokens_ND, dim=-1).view(*backbone.grid(height, width), -1)
