"""The projection head: published numbers, key names, what trains, copies, autocast."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_core.models import ProjectionHead, load_strictly

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_published_numbers(norm_last_layer):
    golden = np.load(GOLDEN / f"head_norm{int(norm_last_layer)}.npz")
    head = ProjectionHead(48, 96, hidden_dim=64, bottleneck_dim=32, norm_last_layer=norm_last_layer)
    names = [name for name in golden if name.startswith("state.")]
    state = {name.removeprefix("state."): torch.from_numpy(golden[name]) for name in names}
    load_strictly(head, state, "golden")
    logits = head(torch.from_numpy(golden["x"])).detach()
    np.testing.assert_allclose(logits, golden["y"], rtol=0, atol=1e-6)
    trainable = [name for name, p in head.named_parameters() if p.requires_grad]
    assert sorted(trainable) == sorted(golden["trainable"])


@pytest.mark.parametrize(
    ("layers", "batch_norm", "keys"),
    [
        (0, False, ["mlp"]),
        (1, True, ["mlp"]),
        (2, False, ["mlp.0", "mlp.2"]),
        (3, False, ["mlp.0", "mlp.2", "mlp.4"]),
        (3, True, ["mlp.0", "mlp.1", "mlp.3", "mlp.4", "mlp.6"]),
    ],
)
def test_published_key_names(layers, batch_norm, keys):
    head = ProjectionHead(8, 12, 16, 4, layers=layers, batch_norm=batch_norm)
    weights = [name for name in head.state_dict() if name.endswith(".weight")]
    assert [name.removesuffix(".weight") for name in weights] == keys
    assert {"last_layer.weight_g", "last_layer.weight_v"} <= head.state_dict().keys()
    assert head(torch.randn(5, 8)).shape == (5, 12)


def test_initialization_is_the_published_one():
    torch.manual_seed(0)
    head = ProjectionHead(400, 500, 300, 256)
    for linear in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert abs(linear.weight.std() - 0.02) < 1e-3
        assert not linear.bias.any()
    v = head.last_layer.weight_v
    assert v.abs().max() <= 1 / 16 < v.abs().max() * 1.01  # uniform up to 1 / sqrt(256)
    assert (head.last_layer.weight_g == 1).all()


def test_logits_of_unit_prototypes_are_cosines():
    assert ProjectionHead(8, 50, 16, 4)(1000 * torch.randn(64, 8)).abs().max() <= 1 + 1e-6


def test_a_copy_after_a_forward_pass_gives_the_same():
    head = ProjectionHead(8, 12, 16, 4)
    x = torch.randn(5, 8)
    logits = head(x)
    logits.sum().backward()
    assert torch.equal(copy.deepcopy(head)(x), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_normalizes_in_full_precision(dtype):
    """In fp16 the squares of large features would overflow and the logits be zero."""
    head = ProjectionHead(8, 12, 16, 4)
    x = 1e4 * torch.randn(5, 8)
    with torch.autocast("cpu", dtype):
        logits = head(x)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), head(x), atol=0.05, rtol=0)


def test_free_prototype_lengths_train():
    head = ProjectionHead(8, 12, 16, 4, norm_last_layer=False)
    head(torch.randn(5, 8)).square().sum().backward()
    assert head.last_layer.weight_g.grad.abs().min() > 0
