"""At which sizes an image can be looked at, and what each costs, told before anything is run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dino_core.errors import UserError
from dino_core.lenses.attention import Plan, plan

if TYPE_CHECKING:
    from dino_core.models import Model

SMALLEST = 4  # patches on the short side: below that there is nothing to see
MOST = 64  # sizes offered


@dataclass(frozen=True)
class SizeCost:
    """One size on offer: the short side asked for, what is fed, and an estimate of its cost."""

    size: int  # pixels on the short side, a multiple of the patch
    plan: Plan
    seconds: float  # for one look


def sizes(model: "Model", height: int, width: int, *, seconds: float, fed: Plan) -> list[SizeCost]:
    """All sizes that `look` accepts for an image of `height` x `width` pixels, in rising order.

    Every multiple of the patch, thinned evenly to 64 at most, or `fed` alone for a strip so long
    that four patches on its short side are too many. `seconds` is what a look of size
    `fed` took; others are scaled by their matrix products, `forward_flops`.
    """
    patch = model.backbone.patch_size
    plans: list[tuple[int, Plan]] = []
    for patches in range(SMALLEST, 4096):
        try:
            plans.append((patches * patch, plan(model, height, width, size=patches * patch)))
        except UserError:  # beyond the limit, and so is all that follows
            break
    thinned = plans[:: -(-len(plans) // MOST) or 1] or [(min(fed.height, fed.width), fed)]
    rate = forward_flops(model, fed.tokens) / max(seconds, 1e-6)
    return [SizeCost(size, at, forward_flops(model, at.tokens) / rate) for size, at in thinned]


def forward_flops(model: "Model", patches: int) -> float:
    """Multiplications and additions of the matrix products of one forward.

    For each of L blocks over N tokens of width D: 24 N D^2 (projections and an MLP of width 4 D)
    and 4 N^2 D (attention).
    """
    backbone = model.backbone
    tokens, width = patches + backbone.num_prefix_tokens, backbone.embed_dim
    return backbone.depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)
