"""Plain ViTs: DINO, whose published names are timm's, and DINOv2 with and without registers.

The number of attention heads cannot be seen in the weights; all published ones have 64 channels a
head, and others are refused.
"""

import math
from typing import Any

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo, PosEmbedMode
from dino_core.models.layouts.keys import State, count, image_norm, renamed, require, unchunked

HEAD_WIDTH = 64
DINO = {192: ("tiny", 12), 384: ("small", 12), 768: ("base", 12), 1024: ("large", 24)}
DINOV2 = {384: ("small", 12), 768: ("base", 12), 1024: ("large", 24), 1536: ("giant", 40)}


def recognizes(state: State) -> bool:
    """Anything: this is the family that is tried last, and says what is missing."""
    return True


def to_timm(state: State, name: str) -> State:
    """DINOv2's published names as timm has them; plain ViTs have the same names in both."""
    state = unchunked(state)
    if "blocks.0.ls1.gamma" in state:
        state.pop("mask_token", None)  # stands for hidden patches in DINOv2's training, never after
    if "register_tokens" in state:
        # timm gives positions to patches only: the class token takes its own in.
        require(state, ("cls_token", "pos_embed"), "a ViT", name)
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return renamed(state, (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2.")))  # of the giant


def describe(state: State, name: str) -> ModelInfo:
    """The ModelInfo of a plain ViT or DINOv2 backbone, from the shapes of its weights."""
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")
    require(state, needed, "a ViT, XCiT, ResNet or ConvNeXt", name)
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 4 or state["pos_embed"].ndim != 3 or kernel.shape[2] != kernel.shape[3]:
        raise UserError(f"{name}: its patch or position embedding has an unknown shape")
    width, channels, patch = kernel.shape[:3]
    image_size = patch * _native_side(state, name)
    known = {"patch_size": patch, "image_size": image_size, **image_norm(channels)}
    depth = count(state, "blocks")
    if "blocks.0.ls1.gamma" in state:
        return _dinov2(width, depth, "reg_token" in state, name, known)
    if width % HEAD_WIDTH:
        raise UserError(
            f"{name}: a width of {width} is not of {HEAD_WIDTH} channels a head, so the number of "
            "heads cannot be told; save it with save_weights, which writes it down"
        )
    size, usual = DINO.get(width, ("tiny", 12))
    options: dict[str, Any] = {} if depth == usual else {"depth": depth}
    if width not in DINO:
        options |= {"embed_dim": width, "num_heads": width // HEAD_WIDTH}
    if "reg_token" in state:
        options |= {"reg_tokens": state["reg_token"].shape[1], "no_embed_class": True}
    return ModelInfo(f"vit_{size}_patch16_224", options=options, **known)


def _dinov2(width: int, depth: int, registers: bool, name: str, known: dict[str, Any]) -> ModelInfo:
    if width not in DINOV2:
        raise UserError(f"{name}: layer scale and a width of {width}: not a published DINOv2")
    # Published with the 0.1 offset and no antialiasing; the ones with registers the other way.
    mode: PosEmbedMode = "timm" if registers else "dino"
    size, usual = DINOV2[width]
    architecture = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    options = {} if depth == usual else {"depth": depth}
    return ModelInfo(architecture, pos_embed=mode, options=options, **known)


def _native_side(state: State, name: str) -> int:
    """Patches along a side of the native, square image."""
    patches = state["pos_embed"].shape[1] - (0 if "reg_token" in state else 1)
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise UserError(
            f"{name}: a position embedding of {patches} patches is not of a square image"
        )
    return side
