"""What the sizes on offer say must be what a look at them then does."""

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from dino_core.errors import UserError
from dino_core.lenses import look, plan
from dino_core.lenses.sizes import forward_flops, sizes


def test_every_size_on_offer_is_what_is_then_fed(model):
    offered = sizes(model, 60, 90, seconds=0.1, fed=plan(model, 60, 90))
    rising = [one.size for one in offered]
    assert rising == sorted(set(rising)) and 2 <= len(rising) <= 64
    image = np.zeros((60, 90, 3), np.uint8)
    for one in offered[:3]:
        attention = look(model, image, size=one.size)
        assert attention.image_size == (one.plan.height, one.plan.width)
    assert offered[-1].seconds > offered[0].seconds


def test_nothing_is_offered_that_is_refused(model):
    offered = sizes(model, 300, 300, seconds=0.1, fed=plan(model, 300, 300))
    patch = model.backbone.patch_size
    plan(model, 300, 300, size=offered[-1].size)
    step = offered[1].size - offered[0].size
    with pytest.raises(UserError, match="patches"):
        plan(model, 300, 300, size=offered[-1].size + step + patch)


def test_the_size_that_was_run_costs_what_it_took(model):
    fed = plan(model, 64, 64, size=64)
    offered = {one.size: one for one in sizes(model, 64, 64, seconds=0.25, fed=fed)}
    assert offered[64].seconds == pytest.approx(0.25)


def test_flops_are_those_that_torch_counts(model):
    with FlopCounterMode(display=False) as counter:
        model.backbone(model.normalize(np.zeros((64, 64, 3), np.uint8))[None])
    patches = plan(model, 64, 64, size=64).tokens
    embedding = 2 * patches * (8 * 8 * 3) * model.backbone.embed_dim
    assert forward_flops(model, patches) + embedding == counter.get_total_flops()
