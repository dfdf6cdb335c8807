"""Which device a name means."""

import torch

from dino_core.errors import UserError


def device_of(name: str = "auto") -> torch.device:
    """`cpu`, `cuda` (or `cuda:1`), `mps`; `auto` is the best there is, in the order CUDA, MPS, CPU.

    Raises `UserError` for a device that is unknown or not on this machine.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    kind, _, index = name.partition(":")
    if kind not in there or not (index == "" or index.isdecimal()):
        raise UserError(f"device {name}: unknown; use auto, cpu, cuda or mps")
    if not there[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device {name}: not on this machine; use auto, or cpu")
    return torch.device(name)
