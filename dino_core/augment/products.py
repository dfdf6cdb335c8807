"""Crops as matrix products, for pixels that already lie on a GPU; uint8 in and out.

Resizing is linear along each axis, so a crop is A_h X A_w^T: X the pixels of its box, A_h and A_w
the weights of an antialiased bicubic, the flip folded into A_w. All crops of a batch become two
batched products, each crop with weights of its own:

    crops = crop_products(pixels, places, plans.boxes, plans.flip, size=224)

The plain twin is `crop.py` (which is faster on a CPU): within 2/255 of it and of Pillow.

Shapes: N crops, C channels, H and W the largest box of the crops made together, S the crop's side.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dino_core.augment.planning import Plans

CUBIC = -0.5  # Keys' parameter, as Pillow has it
REACH = 2.0  # pixels to each side that the bicubic kernel sees, before it is widened
AT_ONCE = 2**26  # values of the largest tensor in between: 128 MB in half precision, and four times
# that for the places that pixels are gathered from
ALIGNED = 16  # boxes are rounded up to this many pixels, as matrix units like them


@dataclass(frozen=True)
class CropBatch:
    """Where the pixels of N crops lie and how they are turned, made on the CPU.

    `table` int64 [6, N]: first byte of the image in the store, its width in pixels, then the box:
    top, left, height, width. `flip` bool [N]. `parts` are the crops made together: first, end, and
    the height and width that hold the boxes of all of them.
    """

    table: Tensor
    flip: Tensor
    size: int
    channels: int
    parts: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, plans: Plans, offsets: np.ndarray, widths: np.ndarray, channels: int = 3) -> Self:
        """`offsets` and `widths` int64 [B] of the images whose views `plans` has, view-major."""
        repeats = len(plans) // len(offsets)
        images = np.stack([np.tile(offsets, repeats), np.tile(widths, repeats)])
        table = np.concatenate([images, plans.boxes.T])
        return cls(
            table=torch.from_numpy(np.ascontiguousarray(table)),
            flip=torch.from_numpy(plans.flip),
            size=plans.size,
            channels=channels,
            parts=_parts(plans.boxes, plans.size, channels),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return replace(
            self,
            table=self.table.to(device, non_blocking=non_blocking),
            flip=self.flip.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        return replace(self, table=self.table.pin_memory(), flip=self.flip.pin_memory())


def _parts(boxes: np.ndarray, size: int, channels: int) -> tuple[tuple[int, int, int, int], ...]:
    """Divide crops, in their order, so that what is made together stays within `AT_ONCE`."""
    parts = []
    first, height, width = 0, 0, 0
    for row, (box_height, box_width) in enumerate(boxes[:, 2:].tolist()):
        higher, wider = max(height, _aligned(box_height)), max(width, _aligned(box_width))
        largest = max(channels * max(higher, size) * max(wider, size), size * (higher + wider))
        if row > first and (row + 1 - first) * largest > AT_ONCE:
            parts.append((first, row, height, width))
            first, higher, wider = row, _aligned(box_height), _aligned(box_width)
        height, width = higher, wider
    return (*parts, (first, len(boxes), height, width))


def _aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


@torch.no_grad()
def crop_products(pixels: Tensor, batch: CropBatch, dtype: torch.dtype | None = None) -> Tensor:
    """Cut the crops of `batch` out of a store of images.

    `pixels` uint8 [bytes]: images [height, width, C] one after the other, on the same device as
    `batch`. Products are of `dtype`: by default float16 on a GPU (whole numbers to 255 are exact
    in it), float32 elsewhere. Returns uint8 [N, C, S, S]. Nothing waits for the device.
    """
    if dtype is None:
        dtype = torch.float16 if pixels.device.type == "cuda" else torch.float32
    count, size = batch.table.shape[1], batch.size
    crops = torch.empty(
        (count, batch.channels, size, size), dtype=torch.uint8, device=pixels.device
    )
    with torch.autocast(pixels.device.type, enabled=False):
        for first, end, height, width in batch.parts:
            table, flip = batch.table[:, first:end], batch.flip[first:end]
            x_NCHW = _gathered(pixels, table, height, width, batch.channels).to(dtype)
            left_NSH = bicubic(table[4], height, size).to(dtype)
            right_NSW = bicubic(table[5], width, size)
            right_NSW = torch.where(flip[:, None, None], right_NSW.flip(1), right_NSW).to(dtype)
            x_NCHS = _whole(x_NCHW @ right_NSW.mT.unsqueeze(1))  # columns first, as Pillow does
            x_NCSS = _whole(left_NSH.unsqueeze(1) @ x_NCHS)
            crops[first:end] = x_NCSS.to(torch.uint8)
    return crops


def _gathered(pixels: Tensor, table: Tensor, height: int, width: int, channels: int) -> Tensor:
    """The boxes' pixels, uint8 [N, C, height, width]; beyond a box its last row or column."""
    offset, image_width, top, left, box_height, box_width = table[:, :, None]
    device = pixels.device
    y_NH = torch.minimum(torch.arange(height, device=device), box_height - 1) + top
    x_NW = torch.minimum(torch.arange(width, device=device), box_width - 1) + left
    rows_NH = offset + y_NH * image_width * channels
    first_NHW = rows_NH[:, :, None] + (x_NW * channels)[:, None, :]
    bytes_NCHW = first_NHW[:, None] + torch.arange(channels, device=device)[:, None, None]
    return pixels[bytes_NCHW.view(-1)].view(bytes_NCHW.shape)


def bicubic(lengths_N: Tensor, longest: int, size: int) -> Tensor:
    """Weights that resize `lengths_N` pixels to `size`, float32 [N, size, longest].

    Pillow's antialiased bicubic: the kernel is widened by the scale where it shrinks, cut off at
    the ends, and its weights sum to 1. Columns beyond a crop's own length are 0.
    """
    length_N11 = lengths_N[:, None, None].float()
    scale = length_N11 / size
    widened = scale.clamp(min=1)
    out_S1 = torch.arange(size, device=lengths_N.device)[:, None]
    center = (out_S1 + 0.5) * scale
    position_L = torch.arange(longest, device=lengths_N.device)
    # Pillow takes whole pixels from round(center - reach) to round(center + reach).
    first = (center - REACH * widened + 0.5).floor()
    end = (center + REACH * widened + 0.5).floor()
    seen = (position_L >= first) & (position_L < end) & (position_L < length_N11)
    weights = _cubic((position_L + 0.5 - center) / widened).masked_fill_(~seen, 0)
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel ("Cubic convolution interpolation", 1981, eq. 4)."""
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _whole(x: Tensor) -> Tensor:
    """Rounded to pixel values, after each pass, as Pillow does."""
    return x.round_().clamp_(0, 255)
