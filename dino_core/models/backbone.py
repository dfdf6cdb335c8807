"""One small adapter around any timm ViT with a class token: tokens in the published way.

`Backbone` adds no parameter: `backbone.vit.state_dict()` has timm's key names, which for plain
ViTs are the published DINO ones. Covered are plain ViTs (DINO, DINOv2 with or without registers)
and Eva with rotary embeddings (DINOv3). The feature is always the class token, also where timm
would average.

Shape legend: B images, C channels, H x W pixels, N tokens (prefix first), D width.
"""

import difflib
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import is_model, is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo
from dino_core.models.pos_embed import resample_pos_embed

VIT_MODULES = ("vision_transformer", "eva", "deit")
OPTIONS = frozenset(
    {
        *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values"),
        *("reg_tokens", "num_reg_tokens", "no_embed_class", "pre_norm", "final_norm"),
    }
)
"""The options a `ModelInfo` may carry: shapes only. timm takes others that load files, and a
weights file from elsewhere must not choose those."""

_CACHED_SIZES = 32  # position embeddings kept by a frozen backbone; a photo collection has a few


class Backbone(nn.Module):
    """A timm ViT at any image size that is a multiple of its patch size."""

    def __init__(self, vit: Any, info: ModelInfo) -> None:
        super().__init__()
        self.vit = vit
        self.info = info
        self.embed_dim: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        self.num_heads: int = vit.blocks[0].attn.num_heads
        self.patch_size: int = info.patch_size
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self._frozen_pos_embed: dict[tuple[int, int], Tensor] | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The class token after the final norm, [B, D]."""
        return self.tokens(x_BCHW)[:, 0]

    def tokens(self, x_BCHW: Tensor) -> Tensor:
        """All tokens after the final norm, [B, N, D]: class token, registers, patches by row."""
        return self.intermediate(x_BCHW, 1)[0]

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
        prefix_BPD = torch.cat(prefix, dim=1).expand(len(x_BND), -1, -1)
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

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of an image. Raises `UserError` for a part of a patch."""
        p = self.patch_size
        if height % p or width % p or not height or not width:
            raise UserError(
                f"{height} x {width} px is not made of whole patches of {p} px; "
                "resize or crop the image to multiples of it"
            )
        return height // p, width // p

    def freeze(self) -> "Backbone":
        """Evaluate only, for good: no gradients, no drop path, position embeddings kept per size.

        Weights and device must not change afterwards.
        """
        self.eval().requires_grad_(False)
        self._frozen_pos_embed = {}
        return self

    def _rope_of(self, rope: Tensor, block: int) -> Tensor:
        """Learned (mixed) rotary embeddings have one per block, the others one for all."""
        return rope[block] if self.vit.rope_mixed else rope


def create_backbone(info: ModelInfo, *, drop_path_rate: float = 0.0) -> Backbone:
    """A freshly initialized backbone, drawn from torch's global generator (seed it first).

    The initialization is DINO's: truncated normal with deviation 0.02 for weights, position
    embedding, class token (timm's would be 1e-6) and registers; zero biases. Eva models further
    scale it down with depth, as timm does.
    Raises `UserError` for a name that timm does not know or that is no ViT with a class token.
    """
    check_architecture(info.architecture)
    strangers = sorted(info.options.keys() - OPTIONS)
    if strangers:
        raise UserError(
            f"{info.architecture}: unknown option {', '.join(strangers)}; "
            f"there are: {', '.join(sorted(OPTIONS))}"
        )
    vit = _create_vit(info, drop_path_rate)
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)
    return Backbone(vit, info)


def check_architecture(name: str) -> None:
    """Raise `UserError` unless timm knows `name` and it is of a ViT family."""
    if not is_model(name):
        near = difflib.get_close_matches(
            name,
            [m for family in VIT_MODULES for m in timm.list_models(module=family)],
            n=3,
            cutoff=0.5,
        )
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"{name}: timm has no model of this name{hint}")
    if not is_model_in_modules(name, VIT_MODULES):
        raise _not_a_vit(name)


def _create_vit(info: ModelInfo, drop_path_rate: float) -> Any:
    try:
        vit: Any = timm.create_model(
            info.architecture,
            pretrained=False,
            num_classes=0,
            global_pool="token",  # DINOv3 would be averaged, and some norms moved, by default
            dynamic_img_size=True,
            img_size=info.image_size,
            patch_size=info.patch_size,
            in_chans=info.channels,
            drop_path_rate=drop_path_rate,
            **info.options,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{info.architecture}: timm cannot build it so ({error})") from error
    plain = type(vit) in (VisionTransformer, Eva) and type(vit.patch_embed) is PatchEmbed
    if not plain or vit.cls_token is None:
        raise _not_a_vit(info.architecture)
    return vit


def _not_a_vit(name: str) -> UserError:
    return UserError(
        f"{name}: not a plain ViT, and attention needs a ViT with a class token; "
        "choose one, e.g. vit_small_patch16_224"
    )
