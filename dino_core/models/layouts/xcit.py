"""XCiT as published (facebookresearch/xcit, and DINO's on the torch hub), and as timm has it."""

from typing import Any

import torch

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo
from dino_core.models.layouts.keys import State, count, image_norm, renamed, require, without

SIZES = {  # width: name, usual depths, heads
    128: ("nano", (12,), 4),
    192: ("tiny", (12, 24), 4),
    384: ("small", (12, 24), 8),
    512: ("medium", (24,), 8),
    768: ("large", (24,), 16),
}
IMAGE_SIZE = 224  # native size of DINO's; positions are computed, so the weights do not tell


def recognizes(state: State) -> bool:
    """By its class-attention layers at the end."""
    return "cls_attn_blocks.0.norm1.weight" in state


def to_timm(state: State, name: str) -> State:
    """`pos_embeder` is `pos_embed`, and class attention has q, k and v apart; no classifier."""
    result = {}
    for key, tensor in without(state, "head.").items():
        if key.startswith("cls_attn_blocks.") and ".attn.qkv." in key:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                result[key.replace(".qkv.", f".{letter}.")] = third
        else:
            result[key] = tensor
    return renamed(result, (("pos_embeder.", "pos_embed."),))


def to_published(state: State) -> State:
    """The way back: the published layout of a backbone in timm's."""
    result = {}
    for key, tensor in renamed(state, (("pos_embed.", "pos_embeder."),)).items():
        if not key.startswith("cls_attn_blocks.") or ".attn." not in key or ".proj." in key:
            result[key] = tensor
        elif ".attn.q." in key:
            parts = [state[key.replace(".attn.q.", f".attn.{letter}.")] for letter in "qkv"]
            result[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return result


def describe(state: State, name: str) -> ModelInfo:
    """The ModelInfo of an XCiT backbone, from the shapes of its weights."""
    needed = ("cls_token", "blocks.0.attn.temperature", "patch_embed.proj.0.0.weight")
    require(state, needed, "an XCiT", name)
    patch = patch_size(state)
    if patch not in (8, 16):
        raise UserError(f"{name}: XCiT has patches of 8 or 16 px, not of {patch}")
    width = state["cls_token"].shape[-1]
    heads = state["blocks.0.attn.temperature"].shape[0]
    size, depths, usual_heads = SIZES.get(width, ("tiny", (12, 24), 4))
    depth, layers = count(state, "blocks"), count(state, "cls_attn_blocks")
    options: dict[str, Any] = {} if width in SIZES else {"embed_dim": width}
    options |= {} if depth in depths else {"depth": depth}
    options |= {} if heads == usual_heads else {"num_heads": heads}
    options |= {} if layers == 2 else {"cls_attn_layers": layers}
    options |= {} if any(k.startswith("pos_embed.") for k in state) else {"use_pos_embed": False}
    named = depth if depth in depths else depths[0]
    return ModelInfo(
        f"xcit_{size}_{named}_p{patch}_224",
        patch_size=patch,
        image_size=IMAGE_SIZE,
        options=options,
        **image_norm(state["patch_embed.proj.0.0.weight"].shape[1]),
    )


def patch_size(state: State) -> int:
    """It halves the image once per convolution before its patches: 4 times for 16 px."""
    convolutions = [k for k, t in state.items() if k.startswith("patch_embed.") and t.ndim == 4]
    return 2 ** len(convolutions)
