"""Device names."""

import pytest
import torch

from dino_core.errors import UserError
from dino_core.models import device_of


def test_cpu_is_always_there():
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(1, 0, "cuda"), (1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")]
)
def test_auto_is_the_best_there_is(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert device_of() == torch.device(best)


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x"])
def test_unknown(name):
    with pytest.raises(UserError, match="unknown; use auto"):
        device_of(name)


def test_not_on_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device cuda: not on this machine"):
        device_of("cuda")


def test_a_second_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match="device cuda:1: not on this machine"):
        device_of("cuda:1")
