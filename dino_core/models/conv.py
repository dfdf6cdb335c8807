"""Convolutional networks, ResNet and ConvNeXt: the feature is the mean over the last map's cells.

They take images of any size and have neither patches nor attention. In `tokens` the pooled feature
stands where a ViT has its class token, and the cells of the last map (one for 32 x 32 px) where a
ViT has its patches, so that collections and searches need not know the difference.

Shape legend: B images, C channels, H x W pixels, h x w cells, N tokens (feature first), D width.
"""

from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor

from dino_core.errors import UserError
from dino_core.models.backbone import Backbone
from dino_core.models.info import ModelInfo

STRIDE = 32  # pixels from one cell of the last map to the next


class ConvBackbone(Backbone):
    """A timm `ResNet` or `ConvNeXt` at any image size."""

    def __init__(self, vit: Any, info: ModelInfo) -> None:
        if info.patch_size != 1:
            raise UserError(
                f"{info.architecture}: a convolutional network has no patches; "
                f"set the patch size to 1 instead of {info.patch_size}"
            )
        super().__init__(vit, info, vit.num_features)
        self.depth = self.num_heads = 0

    def intermediate(self, x_BCHW: Tensor, n: int) -> list[Tensor]:
        """As any backbone does; only the last layer has a feature to give."""
        if n > 1:
            raise UserError(
                f"{self.info.architecture}: a convolutional network has one feature, that of its "
                f"last layer, so those of {n} layers cannot be given; ask for 1"
            )
        self.grid(*x_BCHW.shape[-2:])
        cells_BDhw = self.vit.forward_features(x_BCHW)
        pooled_BD = self.vit.forward_head(cells_BDhw, pre_logits=True)
        cells_BDhw = self.vit.head.norm(cells_BDhw) if self._norm_after_pool else cells_BDhw
        return [torch.cat([pooled_BD[:, None], cells_BDhw.flatten(2).transpose(1, 2)], dim=1)]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells. Raises `UserError` for images too small to have any."""
        if isinstance(self.vit, ConvNeXt):  # patches that do not fill up are dropped
            rows, columns = height // STRIDE, width // STRIDE
        else:  # padded
            rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        if not rows or not columns:
            raise UserError(
                f"{height} x {width} px is too small for {self.info.architecture}; "
                f"enlarge the image to {STRIDE} px or more"
            )
        return rows, columns

    @property
    def _norm_after_pool(self) -> bool:
        """ConvNeXt norms the pooled feature, and DINOv3 its cells likewise; ResNet has no norm."""
        return hasattr(getattr(self.vit, "head", None), "norm")
