"""Labels carried from frame to frame by the likeness of patches: nothing is trained.

Each patch of a new frame takes the labels of the patches most like it among the first frame and the
last few (Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk", 2020, as DINO's
evaluation on DAVIS does it). Tensors in, tensors out; no files, no model.

    follower = Follower(first_features, one_hot(mask, [1, 2], grid), Propagation())
    soft = follower.step(features)              # float [h, w, C] of the next frame
    segmented(soft, height, width)              # int64 [H, W], which channel each pixel is

Shape legend: h x w patches, D width of the features, F context frames, C channels of labels
(background first), T target patches, K context patches, H x W pixels.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_core.lenses.render import nearest

TILE = 8  # patches a side of the targets that are compared at once; larger tiles compare in vain


@dataclass(frozen=True)
class Propagation:
    """How labels are carried on; the values are the published ones."""

    frames: int = 7  # last frames, beside the first
    radius: int = 12  # rows and columns of patches, each way, that a label may come from; 0: all
    topk: int = 5  # patches of the whole context that a target takes its labels from
    temperature: float = 0.1


class Follower:
    """Follows labels through one video; keeps the first frame and the last `how.frames`."""

    def __init__(self, first_hwD: Tensor, labels_hwC: Tensor, how: Propagation) -> None:
        """`first_hwD`: L2-normalized features of the first frame, `labels_hwC` its labels."""
        self.first = (first_hwD, labels_hwC)
        self.last: deque[tuple[Tensor, Tensor]] = deque(maxlen=how.frames)
        self.how = how

    def step(self, features_hwD: Tensor) -> Tensor:
        """The soft labels, float [h, w, C], of the next frame, by its L2-normalized features.

        What was carried on is carried further as it is: shares per patch, before any stretching.
        """
        sources, labels = zip(self.first, *self.last, strict=True)
        soft_hwC = propagate(features_hwD, torch.stack(sources), torch.stack(labels), self.how)
        self.last.append((features_hwD, soft_hwC))
        return soft_hwC


def propagate(
    target_hwD: Tensor, sources_FhwD: Tensor, labels_FhwC: Tensor, how: Propagation
) -> Tensor:
    """The labels of a frame, float [h, w, C], from those of its context.

    Affinity is exp(cosine / temperature); of all context patches within the radius the `topk`
    count, and those as like as the last of them; their affinities, made to sum to 1, weigh their
    labels. Works tile by tile, with the window around each tile, so memory does not grow with the
    square of the patches; `propagate_plainly` says the same without tiles.
    """
    h, w, _ = target_hwD.shape
    reach = how.radius or max(h, w)
    out_hwC = labels_FhwC.new_empty(h, w, labels_FhwC.shape[-1])
    for top in range(0, h, TILE):
        for left in range(0, w, TILE):
            rows, columns = (slice(top, min(top + TILE, h)), slice(left, min(left + TILE, w)))
            near = (_around(rows, reach, h), _around(columns, reach, w))
            target_TD = target_hwD[rows, columns].flatten(0, 1)
            source_KD = sources_FhwD[:, near[0], near[1]].flatten(0, 2)
            label_KC = labels_FhwC[:, near[0], near[1]].flatten(0, 2)
            within_TK = _within(rows, near[0], columns, near[1], reach, target_hwD.device)
            within_TK = within_TK.repeat(1, len(sources_FhwD))
            similar_TK = (target_TD @ source_KD.T).masked_fill_(~within_TK, -torch.inf)
            out_TC = _weights(similar_TK, how).to(label_KC.dtype) @ label_KC
            out_hwC[rows, columns] = out_TC.view(rows.stop - top, columns.stop - left, -1)
    return out_hwC


def propagate_plainly(
    target_hwD: Tensor, sources_FhwD: Tensor, labels_FhwC: Tensor, how: Propagation
) -> Tensor:
    """`propagate` as it reads in the paper: one matrix of all affinities. For tests."""
    h, w, _ = target_hwD.shape
    affinity_TFN = torch.einsum("td,fnd->tfn", target_hwD.flatten(0, 1), sources_FhwD.flatten(1, 2))
    affinity_TFN = torch.exp(affinity_TFN / how.temperature)
    if how.radius:
        row, column = (axis.flatten() for axis in np.mgrid[:h, :w])
        for t in range(h * w):
            apart = np.maximum(abs(row - row[t]), abs(column - column[t]))
            affinity_TFN[t, :, torch.from_numpy(apart > how.radius)] = 0
    affinity_TK = affinity_TFN.flatten(1)
    k = min(how.topk, affinity_TK.shape[1])
    smallest_T1 = affinity_TK.sort(dim=1, descending=True).values[:, k - 1 : k]
    affinity_TK[affinity_TK < smallest_T1] = 0
    affinity_TK /= affinity_TK.sum(dim=1, keepdim=True)
    return (affinity_TK @ labels_FhwC.flatten(0, 2)).view(h, w, -1)


def one_hot(mask: np.ndarray, objects: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """The first frame's labels at patch resolution, float32 [h, w, 1 + objects].

    `mask`: integers [H, W]. The patch takes the label of the pixel at its center (nearest
    neighbors); whatever is not in `objects` is background, channel 0.
    """
    small = nearest(mask, *grid)
    channels = [small == number for number in objects]
    background = ~np.any(channels, axis=0) if channels else np.ones(grid, dtype=bool)
    return torch.from_numpy(np.stack([background, *channels], axis=-1).astype(np.float32))


def segmented(soft_hwC: Tensor, height: int, width: int) -> Tensor:
    """Which channel each pixel belongs to, int64 [height, width]; among equals the first.

    Bilinear enlargement, each channel stretched to 0..1 over the frame, then the largest.
    """
    large_CHW = F.interpolate(
        soft_hwC.permute(2, 0, 1)[None], (height, width), mode="bilinear", align_corners=False
    )[0]
    return stretched(large_CHW).argmax(dim=0)


def stretched(soft_CHW: Tensor) -> Tensor:
    """Each channel from its least to its largest value, as 0..1; an even one stays as it is.

    As published (`norm_mask`), but for even channels, which become 0 / 0 there.
    """
    low, high = soft_CHW.amin(dim=(1, 2), keepdim=True), soft_CHW.amax(dim=(1, 2), keepdim=True)
    even = high <= low
    return torch.where(even, soft_CHW, (soft_CHW - low) / torch.where(even, 1, high - low))


def _around(span: slice, reach: int, length: int) -> slice:
    """The rows (or columns) that any of `span` may take labels from."""
    return slice(max(span.start - reach, 0), min(span.stop + reach, length))


def _within(
    rows: slice,
    near_rows: slice,
    columns: slice,
    near_columns: slice,
    reach: int,
    device: torch.device,
) -> Tensor:
    """Which patches of the window each target may take labels from, bool [T, window]."""

    def close(span: slice, near: slice) -> np.ndarray:
        apart = np.arange(span.start, span.stop)[:, None] - np.arange(near.start, near.stop)
        return abs(apart) <= reach

    both = close(rows, near_rows)[:, None, :, None] & close(columns, near_columns)[None, :, None, :]
    window = (near_rows.stop - near_rows.start) * (near_columns.stop - near_columns.start)
    return torch.from_numpy(both.reshape(-1, window)).to(device)


def _weights(similar_TK: Tensor, how: Propagation) -> Tensor:
    """What each context patch counts for each target, [T, K]; rows sum to 1.

    Ties with the last of the `topk` count too, as published. Softmax is exp, and division by the
    sum, without overflow at small temperatures.
    """
    k = min(how.topk, similar_TK.shape[1])
    smallest_T1 = similar_TK.topk(k, dim=1).values[:, -1:]
    kept_TK = similar_TK.masked_fill(similar_TK < smallest_T1, -torch.inf)
    return (kept_TK / how.temperature).softmax(dim=1)
