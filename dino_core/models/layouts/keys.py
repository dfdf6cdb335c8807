"""What the layouts share: key names, and what is known of images when only weights are there."""

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dino_core.errors import UserError

State = dict[str, Tensor]

_CHUNKED = re.compile(r"^blocks\.\d+\.(?=\d+\.)")


def renamed(state: State, names: Iterable[tuple[str, str]]) -> State:
    """The same tensors with each (old, new) piece of a key replaced, in order."""
    pairs = list(names)
    result = {}
    for key, tensor in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        result[key] = tensor
    return result


def without(state: State, *prefixes: str) -> State:
    """The state less what is no part of a backbone."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


def unchunked(state: State) -> State:
    """DINOv2 and v3 trained in chunks: `blocks.CHUNK.INDEX.*`, where INDEX alone counts up."""
    return {_CHUNKED.sub("blocks.", key): tensor for key, tensor in state.items()}


def count(state: State, prefix: str) -> int:
    """How many of `prefix.0.`, `prefix.1.`, ... there are."""
    numbered = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    found = {int(match[1]) for key in state if (match := numbered.match(key))}
    return 1 + max(found, default=-1)


def image_norm(channels: int) -> dict[str, Any]:
    """ImageNet's mean and deviation for color; for other channels none are known."""
    known = {} if channels == 3 else {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    return {"channels": channels, **known}


def require(state: State, keys: tuple[str, ...], what: str, name: str) -> None:
    """Raise `UserError` unless all `keys` are there."""
    missing = [key for key in keys if key not in state]
    if missing:
        held = ", ".join(list(state)[:4])
        raise UserError(
            f"{name}: not {what} in a known layout: {', '.join(missing)} missing (holds {held} ...)"
        )
