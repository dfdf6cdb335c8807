"""Position embeddings at sizes other than the native one, as published and as timm has it.

The two differ, and not by rounding: the published code adds 0.1 to the grid before it divides by
the native grid, hands the quotient to a bicubic resize as the scale (so every sampling position
moves a little) and does not antialias; timm resizes to the exact grid with antialiasing. At 96 px
on a 224 px model that is a relative difference of about 20 %.

Either way the resize is linear and separable, so it is two small matrix products: unlike the
gradient of a bicubic resize, theirs is the same every time on a GPU.

Shape legend: H, W native grid; h, w wanted grid; P prefix tokens; D width.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_core.models.info import PosEmbedMode

OFFSET = 0.1  # the published guard against rounding down, which also shifts the samples


def resample_pos_embed(
    pos_embed: Tensor,
    native: tuple[int, int],
    grid: tuple[int, int],
    prefix: int,
    mode: PosEmbedMode = "dino",
) -> Tensor:
    """Position embedding for another grid: [1, P + H*W, D] to float32 [1, P + h*w, D].

    The first `prefix` entries (class token, registers) stay as they are. Differentiable.
    """
    if grid == native:
        return pos_embed
    with torch.autocast(pos_embed.device.type, enabled=False):
        prefix_1PD, patches_1ND = pos_embed.float().split([prefix, native[0] * native[1]], dim=1)
        patches_HWD = patches_1ND.reshape(*native, -1)
        rows_hH = resize_matrix(native[0], grid[0], mode, pos_embed.device)
        columns_wW = resize_matrix(native[1], grid[1], mode, pos_embed.device)
        patches_hWD = torch.einsum("hH,HWD->hWD", rows_hH, patches_HWD)
        patches_hwD = torch.einsum("wW,hWD->hwD", columns_wW, patches_hWD)
        return torch.cat([prefix_1PD, patches_hwD.reshape(1, grid[0] * grid[1], -1)], dim=1)


@lru_cache(maxsize=256)
def resize_matrix(native: int, wanted: int, mode: PosEmbedMode, device: torch.device) -> Tensor:
    """What a bicubic resize along one axis does, as float32 [wanted, native]; rows sum to 1.

    It is the resize of the identity, so the coefficients are torch's own.
    """
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(native)[None, None]  # an image whose rows alone are resized
        if mode == "dino":
            scale = ((wanted + OFFSET) / native, 1.0)
            resized = F.interpolate(identity, scale_factor=scale, mode="bicubic")
        else:
            resized = F.interpolate(identity, (wanted, native), mode="bicubic", antialias=True)
        return resized[0, 0].to(device)
