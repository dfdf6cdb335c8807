"""Attention rollout: how much of each patch reaches CLS, or another patch, through ALL layers.

    rollout(model, image)                   # float32 [h, w], what CLS is made of
    rollout(model, image, query=(3, 7))     # what the last token of that patch is made of

Abnar & Zuidema 2020 (arXiv:2005.00928): half of a token is itself (the residual), half is what its
heads attend to, so a layer mixes tokens by 0.5 I + 0.5 mean(heads), and the layers' product is the
rollout. Only one row of that product is shown, so it is walked backwards from the last layer, a row
vector times one matrix after the other, and of each matrix only a block of rows is ever there.

Shape legend: N tokens (prefix first), A heads, D head width, M rows of a block, L layers.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dino_core.errors import UserError
from dino_core.lenses.attention import Plan, plan, query_token, resized
from dino_core.models.attention import queries_and_keys, self_attention_modules, unshared

if TYPE_CHECKING:
    from dino_core.models import Model

MOST_KEPT = 4 * 2**30  # bytes; a ViT-L stays below it at every size, a ViT-g/14 to 1,300 px square


def rollout(
    model: "Model",
    image: np.ndarray,
    *,
    size: int | None = None,
    query: tuple[int, int] | None = None,
    rows: int = 512,
) -> np.ndarray:
    """Each patch's share in the CLS token (`query` None) or in the patch at (row, column).

    `image`: uint8 [H, W, C]; `size`: short side in pixels (None: `plan`'s default); `rows`: of an
    attention matrix at once, which changes memory and nothing else. Returns float32 [h, w], all
    values >= 0; the sum is what CLS and registers leave of 1. Raises `UserError` as `look` does,
    for an XCiT, and where queries and keys of all layers would take more than 4 GiB.
    """
    self_attention_modules(model.backbone.vit)  # XCiT is told so before any size is
    fed = plan(model, image.shape[0], image.shape[1], size=size)
    _affordable(model, image, fed)
    token = query_token(model, fed, query)
    pixels = model.normalize(resized(image, fed.height, fed.width))
    backbone = unshared(model.backbone)
    with torch.no_grad(), queries_and_keys(backbone.vit) as layers:
        backbone(pixels[None].to(model.device))
        share_N = walked_back(layers, token, rows)
    patches_N = share_N[backbone.num_prefix_tokens :]
    return patches_N.reshape(fed.grid).cpu().numpy().astype(np.float32, copy=False)


def walked_back(layers: list[tuple[Tensor, Tensor]], token: int, rows: int) -> Tensor:
    """Row `token` of the layers' product, float32 [N], summing to 1; `layers` is used up.

    `layers`: scaled queries and keys [1, A, N, D] of each layer, first layer first. Rows of a
    softmax sum to 1, and so do those of 0.5 I + 0.5 mean(heads): nothing is left to normalize.
    """
    share_N = torch.zeros_like(layers[-1][1][0, 0, :, 0])
    share_N[token] = 1
    while layers:
        q_AND, k_AND = (x[0] for x in layers.pop())  # a layer that was walked is let go
        share_N = 0.5 * share_N + 0.5 * _attended(share_N, q_AND, k_AND, rows)
    return share_N


def _attended(share_N: Tensor, q_AND: Tensor, k_AND: Tensor, rows: int) -> Tensor:
    """`share_N` times the heads' mean attention, [N]."""
    attended_N = torch.zeros_like(share_N)
    for start in range(0, len(share_N), rows):
        share_M = share_N[start : start + rows]
        if not share_M.any():  # in the last layer one row alone has a share
            continue
        for q_ND, k_ND in zip(q_AND, k_AND, strict=True):
            attention_MN = (q_ND[start : start + rows] @ k_ND.T).softmax(dim=-1)
            attended_N += share_M @ attention_MN
    return attended_N / len(q_AND)


def _affordable(model: "Model", image: np.ndarray, fed: Plan) -> None:
    """Raise `UserError`, with a size that works, where what is kept of the layers is too much."""
    kept = _kept(model, fed)
    if kept <= MOST_KEPT:
        return
    patch = model.backbone.patch_size
    shape, fitting = image.shape[:2], min(fed.height, fed.width)
    while fitting > patch and _kept(model, plan(model, *shape, size=fitting)) > MOST_KEPT:
        fitting -= patch
    raise UserError(
        f"{fed.width} x {fed.height} px: rollout keeps queries and keys of all "
        f"{model.backbone.depth} layers, {kept / 2**30:.1f} GB here, and the limit is "
        f"{MOST_KEPT / 2**30:.1f} GB; use size {fitting} or smaller"
    )


def _kept(model: "Model", fed: Plan) -> int:
    """Bytes of float32 queries and keys of all layers."""
    backbone = model.backbone
    tokens = backbone.num_prefix_tokens + fed.tokens
    return 2 * 4 * backbone.depth * tokens * backbone.embed_dim
