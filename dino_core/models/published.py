"""Layouts in which DINO weights were published, brought to one: timm's key names, and a ModelInfo.

Known: the backbone alone; a full checkpoint with `student` and `teacher`; either wrapped in
`state_dict` or `model`; names starting with `module.` (distributed training), `_orig_mod.`
(compiled), `backbone.`, `head.`; and what is in `layouts/`: DINO's ViTs, XCiTs and ResNets, DINOv2
with and without registers, DINOv3, ConvNeXt.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo
from dino_core.models.layouts import convnext, dinov3, resnet, vit, xcit
from dino_core.models.layouts.keys import State

LAYOUTS: tuple[Any, ...] = (dinov3, xcit, resnet, convnext, vit)  # the first that recognizes
WRAPPERS = ("state_dict", "model")
OTHER_HEADS = ("dino_head", "ibot_head")  # DINOv2's and v3's own, beside the backbone

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
        elif part not in OTHER_HEADS:
            strangers.append(key)
    if strangers:
        more = f" and {len(strangers) - 8} more" if len(strangers) > 8 else ""
        raise UserError(
            f"{name}: besides backbone and head it holds {', '.join(strangers[:8])}{more}"
        )
    head = {_published_head_key(key): tensor for key, tensor in parts["head"].items()}
    return parts["backbone"], head or None


def to_timm_layout(state: State, name: str) -> State:
    """A published backbone under timm's names; timm's own stay as they are."""
    return _layout(state).to_timm(state, name)


def infer_info(state: State, name: str) -> ModelInfo:
    """The ModelInfo of a backbone in timm's layout, from names and shapes."""
    return _layout(state).describe(state, name)


def _layout(state: State) -> Any:
    return next(layout for layout in LAYOUTS if layout.recognizes(state))


def _published_head_key(key: str) -> str:
    for new, published in _NEW_WEIGHT_NORM.items():
        key = key.replace(new, published)
    return key
