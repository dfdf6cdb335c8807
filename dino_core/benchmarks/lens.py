"""Looking: CLS attention of all layers and heads, beside one bare forward and full attention maps.

    measure()  ->  ViT-S/16 and ViT-S/8 at 224 and 480 px

The limit is the forward alone, with fused attention. The plain twin turns fused attention off and
keeps each layer's full N x N maps, of which it then takes the CLS rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dino_core import distributed
from dino_core.benchmarks import drawing
from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured, in_alternation, ratio
from dino_core.errors import at_least
from dino_core.models import Backbone, ModelInfo, create_backbone, device_of
from dino_core.models.attention import attention_modules, cls_rows

MARK = 1.3  # forwards that a look may take


def measure(
    *,
    architecture: str = "vit_small_patch16_224",
    patch_sizes: Sequence[int] = (16, 8),
    image_sizes: Sequence[int] = (224, 480),
    threads: int = 0,
    rounds: int = 5,
    device: str = "auto",
    moves: int = 40,
) -> list[Measured]:
    """Look at one image of each size with an untrained model of each patch size.

    Then move the page's controls `moves` times in a browser (see `drawing`), unless that is 0.
    Raises `UserError` where there is no browser for it, before anything is measured.
    """
    at_least(1, rounds=rounds)
    at_least(0, moves=moves)
    if moves:
        drawing.require()
    where, before = device_of(device), torch.get_num_threads()
    torch.set_num_threads(threads or distributed.cores())
    try:
        results = []
        for patch in patch_sizes:
            backbone = create_backbone(ModelInfo(architecture, patch, 224)).to(where).freeze()
            for size in image_sizes:
                x_BCHW = torch.randn(1, 3, size, size, device=where)
                results.append(_measured(backbone, architecture, x_BCHW, rounds))
        return results + (drawing.measure(moves=moves) if moves else [])
    finally:
        torch.set_num_threads(before)


def _measured(backbone: Backbone, architecture: str, x_BCHW: Tensor, rounds: int) -> Measured:
    def forward() -> None:
        with torch.inference_mode():
            backbone(x_BCHW)

    contenders = {
        "look": lambda: cls_rows(backbone, x_BCHW),
        "plain": lambda: full_rows(backbone, x_BCHW),
        "forward": forward,
    }
    device, side = x_BCHW.device, x_BCHW.shape[-1]
    seconds = in_alternation(contenders, rounds, device=device)
    forwards = ratio(seconds["look"], seconds["forward"])
    return Measured(
        name=f"lens {architecture} patch {backbone.patch_size} at {side} px",
        hardware=hardware(device),
        milliseconds=1000 * median(seconds["look"]),
        ratio_to_plain=ratio(seconds["plain"], seconds["look"]),
        share_of_limit=ratio(seconds["forward"], seconds["look"]),
        limit="one forward",
        notes=(f"takes {forwards:.2f} forwards; the mark is {MARK}",),
    )


def full_rows(backbone: Backbone, x_BCHW: Tensor) -> Tensor:
    """The plain twin of `cls_rows`: full attention maps, kept until the end, then their first rows.

    For blocks of timm's plain attention. No other thread may use the backbone meanwhile.
    """
    with torch.no_grad(), _full_maps(backbone) as maps:
        backbone(x_BCHW)
    return torch.stack([map_BANN[:, :, 0] for map_BANN in maps])


@contextmanager
def _full_maps(backbone: Backbone) -> Iterator[list[Tensor]]:
    modules: list[Any] = attention_modules(backbone.vit)
    maps: list[Tensor] = []
    fused = [module.fused_attn for module in modules]
    hooks = [
        module.attn_drop.register_forward_hook(lambda _module, _args, out: maps.append(out))
        for module in modules
    ]
    for module in modules:
        module.fused_attn = False
    try:
        yield maps
    finally:
        for module, hook, was in zip(modules, hooks, fused, strict=True):
            hook.remove()
            module.fused_attn = was
