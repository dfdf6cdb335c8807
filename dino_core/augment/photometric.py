"""The colors of a batch of views, on any device, every image with its own parameters.

The plain twin is `pil.py`; this is the same in float32, for a whole batch at once:

    batch = PhotometricBatch.collate(plans).to(device)
    x_BCHW = photometric(images, batch, mean, std)

Which images an operation touches is decided from the plans on the CPU, so nothing here waits for
the device. Pixels keep Pillow's scale, 0 to 255, until they are normalized; between operations
they are not rounded to whole numbers as Pillow's are.

Color needs red, green and blue. Images of another number of channels have none: brightness,
contrast, blur and solarize treat all their channels alike; saturation, hue and grayscale, which
only move colors, leave them as they are. Contrast then is about the mean of all channels.

Shapes: B images, C channels, H = W = S pixels, N images that one operation touches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dino_core.augment.plan import JITTER, ViewPlan
from dino_core.augment.planning import Plans

WHITE = 255.0
SLOTS = len(JITTER)  # color jitter has four operations, in each image's own order
COLORS = 3  # red, green and blue
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's "L"
OWN, GRAY, MEAN = range(3)
IN_CACHE = 2**20  # values that a CPU changes at a time: a few images stay in its cache


@dataclass(frozen=True)
class PhotometricBatch:
    """The photometric side of B plans as three tensors, made on the CPU.

    `blends` float32 [4, 3, B]: in each of the jitter's four slots, how much of the image itself, of
    its gray version and of the mean gray the result has (1, 0, 0 where nothing is done).
    `rows` int64 [R] and `values` float32 [R]: the images that the other operations touch and their
    parameters (hue shift, blur sigma, else 0), one group after the other; `counts` says how many
    each group has: hue in slot 0 to 3, grayscale, blur, solarize.
    """

    blends: Tensor
    rows: Tensor
    values: Tensor
    counts: tuple[int, ...]

    @classmethod
    def collate(cls, plans: Sequence[ViewPlan]) -> Self:
        """Gather the parameters of `plans`, one for each image of the batch, in its order."""
        blends = torch.zeros(SLOTS, 3, len(plans))
        blends[:, OWN] = 1
        weights = blends.numpy()  # a view of the same memory; scalar writes are far cheaper there
        groups: list[list[tuple[int, float]]] = [[] for _ in range(SLOTS + 3)]
        *hue, grayscale, blur, solarize = groups
        for row, plan in enumerate(plans):
            for slot, (operation, factor) in enumerate(plan.jitter):
                if operation == "hue":
                    hue[slot].append((row, factor))
                else:
                    weights[slot, :, row] = _blend_weights(operation, factor)
            if plan.grayscale:
                grayscale.append((row, 0.0))
            if plan.blur_sigma > 0:
                blur.append((row, plan.blur_sigma))
            if plan.solarize:
                solarize.append((row, 0.0))
        touched = [entry for group in groups for entry in group]
        return cls(
            blends=blends,
            rows=torch.tensor([row for row, _ in touched], dtype=torch.int64),
            values=torch.tensor([value for _, value in touched], dtype=torch.float32),
            counts=tuple(map(len, groups)),
        )

    @classmethod
    def of(cls, plans: Plans) -> Self:
        """The same of plans that were made together: what `collate` gathers one by one."""
        count = len(plans)
        blends = np.zeros((SLOTS, 3, count), np.float32)
        blends[:, OWN] = 1
        hue = []
        for slot in range(SLOTS):
            operations = plans.order[:, slot]
            factors = np.take_along_axis(plans.factors, operations[:, None], axis=1)[:, 0]
            for operation, name in enumerate(JITTER):
                if plans.strengths[operation] > 0:
                    rows = np.flatnonzero(plans.jittered & (operations == operation))
                    if name == "hue":
                        hue.append((rows, factors[rows]))
                    else:
                        weights = _blend_weights(name, factors[rows])
                        for kind, weight in enumerate(weights):
                            blends[slot, kind, rows] = weight
            if len(hue) == slot:
                hue.append((np.empty(0, np.int64), np.empty(0)))
        grayscale, blurred, solarized = map(
            np.flatnonzero, (plans.grayscale, plans.blur_sigma > 0, plans.solarize)
        )
        nothing = (np.zeros(len(grayscale)), np.zeros(len(solarized)))
        groups = [
            *hue,
            (grayscale, nothing[0]),
            (blurred, plans.blur_sigma[blurred]),
            (solarized, nothing[1]),
        ]
        return cls(
            blends=torch.from_numpy(blends),
            rows=torch.from_numpy(np.concatenate([rows for rows, _ in groups])),
            values=torch.from_numpy(
                np.concatenate([values for _, values in groups]).astype(np.float32)
            ),
            counts=tuple(len(rows) for rows, _ in groups),
        )

    def __len__(self) -> int:
        return self.blends.shape[-1]

    def part(self, start: int, end: int) -> Self:
        """The parameters of images `start` to `end - 1`; of a batch on the CPU."""
        rows, values, counts = [], [], []
        groups = zip(self.rows.split(self.counts), self.values.split(self.counts), strict=True)
        for group_rows, group_values in groups:  # each in ascending order
            first, last = np.searchsorted(group_rows.numpy(), [start, end]).tolist()
            rows.append(group_rows[first:last] - start)
            values.append(group_values[first:last])
            counts.append(last - first)
        blends = self.blends[..., start:end]
        return replace(
            self, blends=blends, rows=torch.cat(rows), values=torch.cat(values), counts=(*counts,)
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            blends=self.blends.to(device, non_blocking=non_blocking),
            rows=self.rows.to(device, non_blocking=non_blocking),
            values=self.values.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory (`DataLoader(pin_memory=True)` calls this)."""
        return replace(
            self,
            blends=self.blends.pin_memory(),
            rows=self.rows.pin_memory(),
            values=self.values.pin_memory(),
        )


@torch.no_grad()
def photometric(
    images: Tensor, batch: PhotometricBatch, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Jitter, grayscale, blur and solarize each image as planned, then normalize.

    `images` uint8 [B, C, S, S], on the same device as `batch`; `mean` and `std` per channel, of
    pixels scaled to [0, 1]. Returns float32 [B, C, S, S], under autocast too.
    """
    if len(images) != len(batch):
        raise ValueError(f"{len(images)} images, but parameters for {len(batch)}")
    with torch.autocast(images.device.type, enabled=False):
        x_BCHW = images.to(torch.float32, copy=True)
        if x_BCHW.device.type == "cpu":
            few = max(1, IN_CACHE // max(1, x_BCHW[:1].numel()))
            for start in range(0, len(batch), few):
                part_NCHW = x_BCHW[start : start + few]
                _change_colors(part_NCHW, batch.part(start, start + len(part_NCHW)))
                _normalize(part_NCHW, mean, std)
            return x_BCHW
        _change_colors(x_BCHW, batch)
        return _normalize(x_BCHW, mean, std)


def _change_colors(x_BCHW: Tensor, batch: PhotometricBatch) -> None:
    """All that the plans ask for, in place, in the published order."""
    rows = batch.rows.split(batch.counts)
    values = batch.values.split(batch.counts)
    grayscale, blur, solarized = rows[SLOTS:]
    if x_BCHW.shape[1] == COLORS:
        for slot in range(SLOTS):
            _blend(x_BCHW, batch.blends[slot])
            _edit(x_BCHW, rows[slot], partial(shift_hue, shift_N=values[slot]))
        _edit(x_BCHW, grayscale, lambda x: gray(x).expand_as(x))
    else:
        for slot in range(SLOTS):
            _blend_colorless(x_BCHW, batch.blends[slot])
    _edit(x_BCHW, blur, partial(gaussian_blur, sigma_N=values[SLOTS + 1]))
    _edit(x_BCHW, solarized, solarize)


def gray(x_BCHW: Tensor) -> Tensor:
    """Brightness as the eye weighs it, [B, 1, H, W]."""
    red, green, blue = x_BCHW.unbind(1)
    luma_BHW = red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return luma_BHW.unsqueeze(1)


def shift_hue(x_NCHW: Tensor, shift_N: Tensor) -> Tensor:
    """Turn each image's colors by `shift_N` of the color circle, value and chroma kept.

    HSV and back in closed form, free of branches. With each channel c as its share
    (c - low) / chroma, the hue in sixths of the circle is sign(g - b) * (1 + g + b - r). Back:
    red is full from hue 5 to 1, green from 1 to 3, blue from 3 to 5, with ramps of one sixth.
    """
    red, green, blue = x_NCHW.unbind(1)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue) - low
    hue = (green + blue - red - low) / chroma.clamp(min=1e-6) + 1  # gray has any hue: chroma is 0
    hue = torch.copysign(hue, green - blue) + 6 * shift_N[:, None, None]
    hue = hue - 6 * (hue / 6).floor()
    share = torch.stack(((hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()), dim=1)
    return low.unsqueeze(1) + chroma.unsqueeze(1) * share.clamp_(0, 1)


def gaussian_blur(x_NCHW: Tensor, sigma_N: Tensor) -> Tensor:
    """Blur square images as Pillow's `GaussianBlur(sigma)` does, each with its own sigma.

    A product with one banded matrix from the left (rows) and the right (columns).
    """
    kernel_NSS = blur_matrices(sigma_N, x_NCHW.shape[-1])
    return torch.einsum("nyh,nchw,nxw->ncyx", kernel_NSS, x_NCHW, kernel_NSS)


def blur_matrices(sigma_N: Tensor, size: int) -> Tensor:
    """The linear map of Pillow's Gaussian blur along one axis, [N, size, size].

    Pillow blurs three times with an extended box (Gwosdek et al., "Theoretical foundations of
    Gaussian convolution by extended box filtering", 2011): radius r = l + a, weight 1 for offsets
    up to l and a for l + 1, over 2r + 1; edge pixels are repeated. The box's weights up to an
    offset t sum to clip((t + r + 1) / (2r + 1), 0, 1), so its matrix is a difference of these,
    with all that lies beyond an edge counted to the edge.
    """
    variance = sigma_N.square() / 3
    whole = ((12 * variance + 1).sqrt().sub(1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1).square()))
    radius = (whole + part)[:, None, None]
    position = torch.arange(size, device=sigma_N.device, dtype=sigma_N.dtype)
    offset_SS = position[:-1] - position[:, None]
    up_to = ((offset_SS + radius + 1) / (2 * radius + 1)).clamp_(0, 1)
    up_to = torch.nn.functional.pad(up_to, (1, 0), value=0.0)
    up_to = torch.nn.functional.pad(up_to, (0, 1), value=1.0)
    box_NSS = up_to.diff(dim=-1)
    return box_NSS @ box_NSS @ box_NSS


def solarize(x_BCHW: Tensor) -> Tensor:
    """Invert what is bright, from 128 of 255 on: the darker of a pixel and its negative."""
    return torch.minimum(x_BCHW, WHITE - x_BCHW)


def _blend_weights(operation: str, factor: float | np.ndarray) -> tuple[float | np.ndarray, ...]:
    """Brightness, contrast and saturation as weights of the image, its gray, and its mean gray."""
    return {
        "brightness": (factor, 0.0, 0.0),
        "contrast": (factor, 0.0, 1 - factor),
        "saturation": (factor, 1 - factor, 0.0),
    }[operation]


def _blend(x_BCHW: Tensor, weights_3B: Tensor) -> None:
    """Mix each image, in place, with its gray version and its mean gray, clipped to 0..255."""
    own, own_gray, mean_gray = weights_3B[:, :, None, None, None]
    gray_B1HW = gray(x_BCHW)
    mean_B111 = gray_B1HW.mean(dim=(2, 3), keepdim=True)
    other_B1HW = gray_B1HW.mul_(own_gray).add_(mean_B111 * mean_gray)
    x_BCHW.mul_(own).add_(other_B1HW).clamp_(0, WHITE)


def _blend_colorless(x_BCHW: Tensor, weights_3B: Tensor) -> None:
    """`_blend` where there is no color: an image is its own gray version."""
    own, own_gray, mean_gray = weights_3B[:, :, None, None, None]
    mean_B111 = x_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    x_BCHW.mul_(own + own_gray).add_(mean_B111 * mean_gray).clamp_(0, WHITE)


def _edit(x_BCHW: Tensor, rows_N: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """Replace some images of the batch, in place, by what `operation` makes of them."""
    if len(rows_N):
        x_BCHW.index_copy_(0, rows_N, operation(x_BCHW.index_select(0, rows_N)))


def _normalize(x_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation, both of pixels in [0, 1].

    Plain numbers, channel by channel: a tensor made from them here would be a copy to the device
    that the host waits for.
    """
    for channel, middle, spread in zip(x_BCHW.unbind(1), mean, std, strict=True):
        channel.sub_(middle * WHITE).div_(spread * WHITE)
    return x_BCHW
