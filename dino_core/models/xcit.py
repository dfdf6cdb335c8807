"""XCiT: attention between channels, and a class token that attends to the patches at the end.

Its blocks mix channels, so they have no map of the image to show; the class token comes in with the
last layers (two, as published), and these have one, like a ViT's.

Shape legend: B images, C channels, H x W pixels, N tokens (the class token first), D width.
"""

from typing import Any

import torch
from torch import Tensor

from dino_core.errors import UserError
from dino_core.models.backbone import Backbone
from dino_core.models.info import ModelInfo


class XcitBackbone(Backbone):
    """A timm `Xcit` at any image size that is a multiple of its patch size, 8 or 16."""

    def __init__(self, vit: Any, info: ModelInfo) -> None:
        super().__init__(vit, info, vit.embed_dim)
        self.depth = len(vit.cls_attn_blocks)
        self.num_heads = vit.cls_attn_blocks[0].attn.num_heads

    def intermediate(self, x_BCHW: Tensor, n: int) -> list[Tensor]:
        """As any backbone does; only the class-attention layers have a class token to give."""
        if n > self.depth:
            raise UserError(
                f"{self.info.architecture}: its class token exists in the last {self.depth} layers "
                f"only, so {n} cannot be given; ask for {self.depth} or fewer"
            )
        kept = []
        x_BND = self._patches(x_BCHW)
        x_BND = torch.cat([self.vit.cls_token.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        for index, block in enumerate(self.vit.cls_attn_blocks):
            x_BND = block(x_BND)
            if index >= self.depth - n:
                kept.append(self.vit.norm(x_BND))
        return kept

    def _patches(self, x_BCHW: Tensor) -> Tensor:
        """The patch tokens before the class token comes in, [B, N - 1, D]."""
        rows, columns = self.grid(*x_BCHW.shape[-2:])
        x_BND, _ = self.vit.patch_embed(x_BCHW)
        if self.vit.pos_embed is not None:
            position_BDhw = self.vit.pos_embed(1, rows, columns)
            x_BND = x_BND + position_BDhw.flatten(2).transpose(1, 2)
        for block in self.vit.blocks:
            x_BND = block(x_BND, rows, columns)
        return x_BND
