"""DINOv3 and EUPE as published: ViTs with rotary positions, registers and scaled layers.

timm computes the rotary periods anew, in fp32, where the published files hold them in bf16; they
are compared, because another schedule would be another model under the same names.
"""

import torch
from timm.models import is_model

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo
from dino_core.models.layouts.keys import (
    State,
    count,
    image_norm,
    renamed,
    require,
    unchunked,
    without,
)

SIZES = {  # (width, whether its MLP is gated): name, usual depth
    (192, False): ("tiny", 12),
    (384, False): ("small", 12),
    (384, True): ("small_plus", 12),
    (768, False): ("base", 12),
    (1024, False): ("large", 24),
    (1280, True): ("huge_plus", 32),
    (4096, True): ("7b", 40),
}
BASE = 100.0  # of the rotary periods
IMAGE_SIZE = 256  # the published evaluation's; nothing in the weights depends on it

_NAMES = (
    *(("storage_tokens", "reg_token"), ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")),
    *(("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x."), ("mlp.w3.", "mlp.fc2.")),
)


def recognizes(state: State) -> bool:
    """By its registers' own name; in timm's layout by scaled layers without a position table."""
    scaled = {"blocks.0.gamma_1", "reg_token"} <= state.keys() and "pos_embed" not in state
    return "storage_tokens" in state or scaled


def to_timm(state: State, name: str) -> State:
    """The published names as timm has them; what only training needed is left out."""
    if "storage_tokens" not in state:
        return dict(state)
    state = unchunked(state)
    _check_periods(state, name)
    # Mask token and the norm of local crops serve in training; projectors are EUPE's teachers.
    state = without(state, "mask_token", "local_cls_norm.", "rope_embed.periods", "projectors.")
    return renamed(_split_biases(state, name), _NAMES)


def describe(state: State, name: str) -> ModelInfo:
    """The ModelInfo of a DINOv3 backbone, from the shapes of its weights."""
    require(state, ("cls_token", "patch_embed.proj.weight"), "a DINOv3 ViT", name)
    width, channels, patch = state["patch_embed.proj.weight"].shape[:3]
    gated = "blocks.0.mlp.fc1_g.weight" in state
    if (width, gated) not in SIZES:
        raise UserError(f"{name}: rotary positions and a width of {width}: not a published DINOv3")
    size, usual = SIZES[width, gated]
    biased = "blocks.0.attn.q_bias" in state
    architecture = f"vit_{size}_patch16_dinov3{'_qkvb' if biased else ''}"
    if not is_model(architecture):
        raise UserError(
            f"{name}: a DINOv3 of {width} channels {'with' if biased else 'without'} attention "
            "biases, which timm does not have"
        )
    depth = count(state, "blocks")
    return ModelInfo(
        architecture,
        patch_size=patch,
        image_size=IMAGE_SIZE // patch * patch,
        pos_embed="timm",
        options={} if depth == usual else {"depth": depth},
        **image_norm(channels),
    )


def _split_biases(state: State, name: str) -> State:
    """One bias for q, k and v becomes two: that of k is masked to zero. All zero, there is none."""
    masks = {key: tensor for key, tensor in state.items() if key.endswith("qkv.bias_mask")}
    biases = {key: tensor for key, tensor in state.items() if key.endswith("qkv.bias")}
    rest = {key: t for key, t in state.items() if key not in masks and key not in biases}
    if not any(bias.any() for bias in biases.values()):
        return rest
    for key, bias in biases.items():
        q, k, v = bias.chunk(3)
        masked = masks.get(f"{key}_mask")
        if k.any() and (masked is None or masked.chunk(3)[1].any()):
            raise UserError(f"{name}: {key} moves the attention keys, which no DINOv3 does")
        rest[key.replace("qkv.bias", "q_bias")] = q
        rest[key.replace("qkv.bias", "v_bias")] = v
    return rest


def _check_periods(state: State, name: str) -> None:
    periods = state.get("rope_embed.periods")
    if periods is None:
        return
    number = len(periods)
    expected = BASE ** (torch.arange(number) / number)
    if not torch.allclose(periods.float(), expected, rtol=0.01):  # bf16 is good to 0.4 %
        raise UserError(f"{name}: its rotary periods are not those of a published DINOv3")
