"""Plain ViTs with a class token: DINO, DINOv2 with or without registers, DINOv3 (rotary).

The feature is always the class token, also where timm would average; position embeddings at other
sizes are the published ones (`pos_embed.py`).

Shape legend: B images, C channels, H x W pixels, N tokens (P prefix tokens first), D width.
"""

from typing import Any, Self

import torch
from torch import Tensor

from dino_core.models.backbone import Backbone
from dino_core.models.info import ModelInfo
from dino_core.models.pos_embed import resample_pos_embed

_CACHED_SIZES = 32  # position embeddings kept by a frozen backbone; a photo collection has a few


class VitBackbone(Backbone):
    """A timm `VisionTransformer` or `Eva` at any image size made of whole patches."""

    def __init__(self, vit: Any, info: ModelInfo) -> None:
        super().__init__(vit, info, vit.embed_dim)
        self.depth = len(vit.blocks)
        self.num_heads = vit.blocks[0].attn.num_heads
        self.num_prefix_tokens = vit.num_prefix_tokens
        self._frozen_pos_embed: dict[tuple[int, int], Tensor] | None = None

    def intermediate(self, x_BCHW: Tensor, n: int) -> list[Tensor]:
        """The tokens that the last `n` blocks give, each after the final norm, in forward order."""
        x_BND, rope = self.embed(x_BCHW)
        first = self.depth - n
        kept = []
        for index, block in enumerate(self.vit.blocks):
            x_BND = block(x_BND) if rope is None else block(x_BND, rope=self._rope_of(rope, index))
            if index >= first:
                kept.append(self.vit.norm(x_BND))
        return kept

    def embed(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """What enters the first block: tokens [B, N, D], and the rotary embedding if there is one.

        Raises `UserError` when the image is not made of whole patches.
        """
        vit = self.vit
        grid = self.grid(*x_BCHW.shape[-2:])
        x_BND = vit.patch_embed(x_BCHW).flatten(1, 2)
        prefix = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        prefix_BPD = torch.cat(prefix, dim=1).expand(x_BND.shape[0], -1, -1)
        pos_embed = None if vit.pos_embed is None else self.pos_embed(grid)
        if pos_embed is not None and vit.no_embed_class:  # registers: positions for patches only
            x_BND = torch.cat([prefix_BPD, x_BND + pos_embed], dim=1)
        else:
            x_BND = torch.cat([prefix_BPD, x_BND], dim=1)
            x_BND = x_BND if pos_embed is None else x_BND + pos_embed
        rope = getattr(vit, "rope", None)
        return vit.norm_pre(vit.pos_drop(x_BND)), rope and rope.get_embed(shape=list(grid))

    def pos_embed(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding for a grid (rows, columns), [1, N, D]; a frozen model keeps it."""
        vit, cache = self.vit, self._frozen_pos_embed
        kept = None if cache is None else cache.get(grid)  # one look: other threads may clear it
        if kept is not None:
            return kept
        prefix = 0 if vit.no_embed_class else self.num_prefix_tokens
        native = vit.patch_embed.grid_size
        mode = self.info.pos_embed
        if cache is None:
            return resample_pos_embed(vit.pos_embed, native, grid, prefix, mode)
        with torch.inference_mode(False), torch.no_grad():
            resampled = resample_pos_embed(vit.pos_embed, native, grid, prefix, mode)
        if len(cache) >= _CACHED_SIZES:
            cache.clear()
        cache[grid] = resampled
        return resampled

    def freeze(self) -> Self:
        """As any backbone does; besides, position embeddings are kept per size."""
        self._frozen_pos_embed = {}
        return super().freeze()

    def _rope_of(self, rope: Tensor, block: int) -> Tensor:
        """Learned (mixed) rotary embeddings have one per block, the others one for all."""
        return rope[block] if self.vit.rope_mixed else rope
