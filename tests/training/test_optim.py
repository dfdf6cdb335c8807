"""Clipping, EMA and LARS: fast and plain twins agree, and the details are the published ones."""

import copy

import pytest
import torch
from torch import nn

from dino_core.training.optim import (
    LARS,
    clip_per_tensor,
    clip_per_tensor_plain,
    create_optimizer,
    ema_update,
    ema_update_plain,
    parameter_groups,
)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
    network(torch.randn(3, 6)).pow(2).sum().mul(50).backward()
    return network


def gradients(network: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("limit", [0.0, 0.3, 3.0, 1e9])
def test_clipping_agrees_with_its_plain_twin(network, limit):
    plain = copy.deepcopy(network)
    for ours, theirs in zip(plain.parameters(), network.parameters(), strict=True):
        ours.grad = theirs.grad.clone()
    total = clip_per_tensor(network.parameters(), limit)
    total_plain = clip_per_tensor_plain(plain.parameters(), limit)
    torch.testing.assert_close(total, total_plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(network), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_clipping_is_per_tensor_not_global(network):
    before = gradients(network)
    limit = sorted(g.norm() for g in before)[len(before) // 2].item()
    clip_per_tensor(network.parameters(), limit)
    for was, now in zip(before, gradients(network), strict=True):
        expected = was if was.norm() < limit else was * limit / (was.norm() + 1e-6)
        torch.testing.assert_close(now, expected)


def test_clipping_skips_parameters_without_gradient(network):
    network[0].bias.grad = None
    clip_per_tensor(network.parameters(), 1.0)
    assert network[0].bias.grad is None


def test_ema_agrees_with_its_plain_twin_and_leaves_buffers_alone():
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    teachers = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())
    student[1].running_mean += 1
    ema_update(teachers[0], student, 0.9)
    ema_update_plain(teachers[1], student, 0.9)
    for ours, theirs in zip(teachers[0].parameters(), teachers[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.all(teachers[0][1].running_mean == 0)


def test_only_biases_and_vectors_escape_weight_decay(network):
    decayed, free = parameter_groups(network)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in free["params"]} == {1}
    assert free["weight_decay"] == 0


def test_lars_takes_the_trusted_step_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([{"params": [weight], "weight_decay": 0.1}, {"params": [bias]}], lr=0.5)
    weight.grad, bias.grad = torch.tensor([[0.7, -0.4]]), torch.tensor([2.0])
    optimizer.step()
    decayed = torch.tensor([[0.7 + 0.3, -0.4 + 0.4]])  # gradient + 0.1 * weight, norm 1
    torch.testing.assert_close(
        weight.detach(), torch.tensor([[3.0, 4.0]]) - 0.5 * 0.001 * 5 * decayed
    )
    torch.testing.assert_close(bias.detach(), torch.tensor([0.0]))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimizer_moves_the_weights(network, name):
    optimizer = create_optimizer(name, network)
    before = network[0].weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(before, network[0].weight)
