"""What every backbone looks like to the rest: a small adapter around a timm model.

An adapter adds no parameter: `backbone.vit.state_dict()` has timm's key names, which for plain ViTs
and for ResNets are the published DINO ones. `vit` is timm's module of whatever family; it keeps the
name of the first, under which every optimizer state so far was saved.

Shape legend: B images, C channels, H x W pixels, N tokens (prefix first), D width.
"""

from typing import Any, Self

from torch import Tensor, nn

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo


class Backbone(nn.Module):
    """A timm model that turns images of any size (in multiples of `patch_size`) into features."""

    patch_size: int
    """Sides of images are multiples of this; 1 for convolutional networks, which have no patches.
    """
    depth: int
    """Layers with class-token attention: blocks of a ViT, class-attention layers of an XCiT."""
    num_heads: int
    """Attention heads a layer; like `depth`, 0 for convolutional networks."""
    num_prefix_tokens: int
    """Tokens before those of the grid: the class token (or what stands for it), and registers."""

    def __init__(self, vit: Any, info: ModelInfo, embed_dim: int) -> None:
        super().__init__()
        self.vit = vit
        self.info = info
        self.embed_dim = embed_dim
        self.patch_size = info.patch_size
        self.num_prefix_tokens = 1

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The feature of each image, [B, D]: class token after the final norm, or pooled cells."""
        return self.tokens(x_BCHW)[:, 0]

    def tokens(self, x_BCHW: Tensor) -> Tensor:
        """[B, N, D]: the feature, then registers if any, then the `grid` by row."""
        return self.intermediate(x_BCHW, 1)[0]

    def intermediate(self, x_BCHW: Tensor, n: int) -> list[Tensor]:
        """The tokens that the last `n` layers give, each after the final norm, in forward order.

        Raises `UserError` when the network has fewer layers that know its feature.
        """
        raise NotImplementedError

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of an image. Raises `UserError` for a part of a patch."""
        p = self.patch_size
        if height % p or width % p or not height or not width:
            raise UserError(
                f"{height} x {width} px is not made of whole patches of {p} px; "
                "resize or crop the image to multiples of it"
            )
        return height // p, width // p

    def freeze(self) -> Self:
        """Evaluate only, for good: no gradients, no drop path, batch norm as it was trained.

        Weights and device must not change afterwards.
        """
        self.eval().requires_grad_(False)
        return self
