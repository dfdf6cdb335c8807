"""Which timm models can be a backbone, and building one.

DINO's crops come in several sizes, so only families that take any size are here, and each needs a
feature that is defined at every size: a class token, or a mean over the last map.
"""

import difflib
from typing import Any, Literal

import timm
from timm.layers import PatchEmbed
from timm.models import get_pretrained_cfg, is_model, is_model_in_modules
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import nn

from dino_core.errors import UserError
from dino_core.models.backbone import Backbone
from dino_core.models.conv import ConvBackbone
from dino_core.models.info import ModelInfo
from dino_core.models.vit import VitBackbone
from dino_core.models.xcit import XcitBackbone

Family = Literal["vit", "xcit", "resnet", "convnext"]

MODULES: dict[Family, tuple[str, ...]] = {
    "vit": ("vision_transformer", "eva", "deit"),
    "xcit": ("xcit",),
    "resnet": ("resnet",),
    "convnext": ("convnext",),
}
"""timm's modules of each family."""

OPTIONS: dict[Family, frozenset[str]] = {
    "vit": frozenset(
        {
            *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm"),
            *("reg_tokens", "num_reg_tokens", "no_embed_class", "pre_norm", "final_norm"),
            "init_values",
        }
    ),
    "xcit": frozenset(
        {
            *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "cls_attn_layers"),
            *("use_pos_embed", "tokens_norm", "eta"),
        }
    ),
    "resnet": frozenset({"layers", "channels", "base_width", "cardinality", "stem_width"}),
    "convnext": frozenset({"depths", "dims", "kernel_sizes", "ls_init_value"}),
}
"""The options a `ModelInfo` may carry: shapes only. timm takes others that load files, and a
weights file from elsewhere must not choose those."""


def create_backbone(info: ModelInfo, *, drop_path_rate: float = 0.0) -> Backbone:
    """A freshly initialized backbone, drawn from torch's global generator (seed it first).

    Initialized as published: ViTs and XCiT truncated normal with deviation 0.02, ConvNeXt likewise,
    ResNet as torchvision does (the last norm of a block is not zeroed). Raises `UserError` for an
    architecture that timm does not know or that cannot be a backbone, and for impossible options.
    """
    family = family_of(info.architecture)
    strangers = sorted(info.options.keys() - OPTIONS[family])
    if strangers:
        raise UserError(
            f"{info.architecture}: unknown option {', '.join(strangers)}; "
            f"there are: {', '.join(sorted(OPTIONS[family]))}"
        )
    net = _create(info, drop_path_rate)
    if family == "vit":
        return _vit_backbone(net, info)
    kinds: dict[Family, tuple[type[nn.Module], type[XcitBackbone | ConvBackbone]]] = {
        "xcit": (Xcit, XcitBackbone),
        "resnet": (ResNet, ConvBackbone),
        "convnext": (ConvNeXt, ConvBackbone),
    }
    kind, adapter = kinds[family]
    if type(net) is not kind:
        raise _not_a_backbone(info.architecture)
    return adapter(net, info)


def family_of(architecture: str) -> Family:
    """The family of a timm name. Raises `UserError` for others, saying why they cannot be used."""
    if not is_model(architecture):
        known = [m for names in MODULES.values() for n in names for m in timm.list_models(module=n)]
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"{architecture}: timm has no model of this name{hint}")
    for family, modules in MODULES.items():
        if is_model_in_modules(architecture, modules):
            return family
    raise _not_a_backbone(architecture)


def has_patches(architecture: str) -> bool:
    """Whether images must be multiples of a patch; where not, `ModelInfo.patch_size` is 1."""
    return family_of(architecture) in ("vit", "xcit")


def timm_arguments(info: ModelInfo) -> dict[str, Any]:
    """What `timm.create_model` is given for this architecture besides channels and options."""
    return _ARGUMENTS[family_of(info.architecture)](info)


def _create(info: ModelInfo, drop_path_rate: float) -> Any:
    try:
        return timm.create_model(
            info.architecture,
            pretrained=False,
            num_classes=0,
            in_chans=info.channels,
            drop_path_rate=drop_path_rate,
            **timm_arguments(info),
            **info.options,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{info.architecture}: timm cannot build it so ({error})") from error


def _vit_arguments(info: ModelInfo) -> dict[str, Any]:
    return {
        "global_pool": "token",  # DINOv3 would be averaged, and some norms moved, by default
        "dynamic_img_size": True,
        "img_size": info.image_size,
        "patch_size": info.patch_size,
    }


def _xcit_arguments(info: ModelInfo) -> dict[str, Any]:
    if info.patch_size not in (8, 16):
        raise UserError(
            f"{info.architecture}: XCiT has patches of 8 or 16 px, not of {info.patch_size}"
        )
    return {"img_size": info.image_size, "patch_size": info.patch_size}


_ARGUMENTS: dict[Family, Any] = {
    "vit": _vit_arguments,
    "xcit": _xcit_arguments,
    "resnet": lambda info: {"zero_init_last": False},
    "convnext": lambda info: {},
}


def _vit_backbone(vit: Any, info: ModelInfo) -> VitBackbone:
    plain = type(vit) in (VisionTransformer, Eva) and type(vit.patch_embed) is PatchEmbed
    if not plain or vit.cls_token is None:
        raise UserError(
            f"{info.architecture}: not a plain ViT with a class token, which DINO trains; "
            "choose one, e.g. vit_small_patch16_224"
        )
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)
    return VitBackbone(vit, info)


def _not_a_backbone(name: str) -> UserError:
    there = "choose a ViT, XCiT, ResNet or ConvNeXt, e.g. vit_small_patch16_224"
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        return UserError(
            f"{name}: made for images of one size, and DINO's crops come in several; {there}"
        )
    return UserError(f"{name}: not of a family that is known here; {there}")
