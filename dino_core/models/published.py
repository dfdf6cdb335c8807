"""Layouts in which DINO weights were published, brought to one: timm's key names, and a ModelInfo.

Known: the backbone alone; a full checkpoint with `student` and `teacher`; either wrapped in
`state_dict` or `model`; names starting with `module.` (distributed training), `_orig_mod.`
(compiled), `backbone.`, `head.`; DINOv2 with and without registers. The number of attention heads
cannot be seen in the weights; all published ones have 64 channels a head, and others are refused.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo, PosEmbedMode

State = dict[str, Tensor]

HEAD_WIDTH = 64
WRAPPERS = ("state_dict", "model")
DINO = {192: ("tiny", 12), 384: ("small", 12), 768: ("base", 12), 1024: ("large", 24)}
DINOV2 = {384: ("small", 12), 768: ("base", 12), 1024: ("large", 24), 1536: ("giant", 40)}

_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")
_NEW_WEIGHT_NORM = {  # torch renamed the two factors of weight norm
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def one_network(content: Any, part: str | None, name: str) -> State:
    """The state dict of one network in a checkpoint; of two, `part` (the teacher if None)."""
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: holds a {type(content).__name__}, not a state dict of weights")
    parts = [key for key in ("student", "teacher") if isinstance(content.get(key), Mapping)]
    if parts:
        chosen = part or ("teacher" if "teacher" in parts else parts[0])
        if chosen not in parts:
            raise UserError(f"{name}: holds no {chosen}, only the {parts[0]}")
        return one_network(content[chosen], None, name)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return one_network(content[wrapper], part, name)
    if part is not None:
        raise UserError(f"{name}: holds one network, there is no {part} to choose")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        what = ", ".join(others[:8]) or "nothing"
        raise UserError(f"{name}: not a state dict of weights (besides tensors it holds: {what})")
    return dict(content)


def split_network(state: Mapping[str, Tensor], name: str) -> tuple[State, State | None]:
    """Backbone and head (None if absent) of a network, both with the published key names.

    Names without `backbone.` throughout are a backbone alone. Mixed ones are a `UserError`.
    """
    plain = {_PREFIX.sub("", key): tensor for key, tensor in state.items()}
    if not any(key.startswith("backbone.") for key in plain):
        return plain, None
    parts: dict[str, State] = {"backbone": {}, "head": {}}
    strangers = []
    for key, tensor in plain.items():
        part, _, rest = key.partition(".")
        if part in parts:
            parts[part][_PREFIX.sub("", rest)] = tensor
        else:
            strangers.append(key)
    if strangers:
        more = f" and {len(strangers) - 8} more" if len(strangers) > 8 else ""
        raise UserError(
            f"{name}: besides backbone and head it holds {', '.join(strangers[:8])}{more}"
        )
    head = {_published_head_key(key): tensor for key, tensor in parts["head"].items()}
    return parts["backbone"], head or None


def to_timm_layout(state: State, name: str) -> State:
    """DINOv2's published names as timm has them; plain ViTs have the same names in both."""
    if "storage_tokens" in state or any("rope" in key for key in state):
        raise UserError(
            f"{name}: rotary position embeddings (DINOv3) are not read from published files; "
            "use timm's copy, e.g. timm:vit_small_patch16_dinov3.lvd1689m"
        )
    state = dict(state)
    if "blocks.0.ls1.gamma" in state:
        state.pop("mask_token", None)  # stands for hidden patches in DINOv2's training, never after
    if "register_tokens" in state:
        # timm gives positions to patches only: the class token takes its own in.
        _require(state, ("cls_token", "pos_embed"), name)
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    names = (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))  # the gated MLP of the giant
    for old, new in names:
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


def infer_info(state: State, name: str) -> ModelInfo:
    """The ModelInfo of a plain ViT or DINOv2 backbone, from the shapes of its weights."""
    _require(
        state, ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"), name
    )
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 4 or state["pos_embed"].ndim != 3 or kernel.shape[2] != kernel.shape[3]:
        raise UserError(f"{name}: its patch or position embedding has an unknown shape")
    width, channels, patch = kernel.shape[:3]
    image_size = patch * _native_side(state, name)
    known = {"patch_size": patch, "image_size": image_size, "channels": channels, **_norm(channels)}
    depth = 1 + max(int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key))
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


def _norm(channels: int) -> dict[str, Any]:
    """ImageNet's mean and deviation for color; for other channels none are known."""
    return {} if channels == 3 else {"mean": (0.5,) * channels, "std": (0.5,) * channels}


def _require(state: State, keys: tuple[str, ...], name: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        held = ", ".join(list(state)[:4])
        raise UserError(
            f"{name}: not a ViT in a known layout: {', '.join(missing)} missing (holds {held} ...)"
        )


def _published_head_key(key: str) -> str:
    for new, published in _NEW_WEIGHT_NORM.items():
        key = key.replace(new, published)
    return key


def xcit_patch_size(state: Mapping[str, Tensor]) -> int:
    """An XCiT halves the image once per convolution before its patches: 4 times for 16 px."""
    convolutions = [k for k, t in state.items() if k.startswith("patch_embed.") and t.ndim == 4]
    return 2 ** len(convolutions)
