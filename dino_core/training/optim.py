"""What moves the student: parameter groups, clipping, AdamW / SGD / LARS.

Published details that re-implementations miss: everything that is not a bias or 1-D is decayed (so
position embedding, class token and the head's `weight_g` too); clipping is per parameter tensor,
not by the global norm, and comes before the last layer is frozen.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OptimizerName = Literal["adamw", "sgd", "lars"]


def is_regularized(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter, as published."""
    return not (name.endswith(".bias") or parameter.ndim == 1)


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Two groups: decayed, and not decayed (weight_decay 0). Frozen parameters are left out."""
    trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trainable if is_regularized(name, p)]
    free = [p for name, p in trainable if not is_regularized(name, p)]
    return [{"params": decayed}, {"params": free, "weight_decay": 0.0}]


def create_optimizer(name: OptimizerName, network: nn.Module) -> Optimizer:
    """An optimizer whose learning rate and weight decay the step sets before every use."""
    groups = parameter_groups(network)
    # One fused kernel per group instead of a dozen passes over the moments; and it can skip a step
    # on the device.
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=_can_skip(network))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=_can_skip(network))
    return LARS(groups)


def step_if(optimizer: Optimizer, finite: Tensor) -> None:
    """`optimizer.step()` where the bool scalar `finite` is true; else weights and moments stay.

    Decided on the device: fused kernels and `LARS` look at `found_inf` themselves. On MPS, which
    has none that do, the host waits for the answer.
    """
    if isinstance(optimizer, LARS) or optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(finite):
        optimizer.step()


def clip_per_tensor(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale each gradient tensor to at most `limit` in L2 norm, in place, without a host sync.

    A limit of 0 clips nothing. Returns the sum of the norms before clipping, a scalar tensor.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(grads)
    if limit > 0:
        coefficients = [(limit / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
        torch._foreach_mul_(grads, coefficients)
    return torch.stack(norms).sum()


def clip_per_tensor_plain(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The plain twin of `clip_per_tensor`: one tensor at a time, asking the device each time."""
    total = 0.0
    for p in parameters:
        if p.grad is None:
            continue
        norm = p.grad.norm(2)
        total += norm.item()
        coefficient = limit / (norm + 1e-6)
        if limit > 0 and coefficient < 1:
            p.grad.mul_(coefficient)
    return torch.tensor(total)


@torch.no_grad()
def ema_update(
    teacher: nn.Module, student: nn.Module, momentum: float, finite: Tensor | None = None
) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameters only, not buffers.

    Where the bool scalar `finite` is false the teacher stays as it is, to the bit.
    """
    theirs = [p.detach() for p in student.parameters()]
    ours = [p.detach() for p in teacher.parameters()]
    if finite is None or finite.device.type == "cpu":  # where looking costs nothing: one pass
        if finite is None or finite:
            torch._foreach_lerp_(ours, theirs, 1 - momentum)
        return
    one, nothing = torch.ones_like(finite, dtype=torch.float32), torch.zeros_like(finite).float()
    torch._foreach_mul_(ours, torch.where(finite, momentum * one, one))
    torch._foreach_add_(
        ours, torch._foreach_mul(theirs, torch.where(finite, (1 - momentum) * one, nothing))
    )


@torch.no_grad()
def ema_update_plain(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The plain twin of `ema_update`."""
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.mul_(momentum).add_(s, alpha=1 - momentum)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as BYOL and the published code use it.

    The rate of each decayed tensor is scaled by `trust * |w| / |g|`, g with its weight decay;
    biases and 1-D tensors take plain momentum steps.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.0, momentum: float = 0.9, trust: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    found_inf: Tensor | None = None
    """float32 scalar, 1 where the next step is to change nothing (see `step_if`)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)

    def _step_one(self, p: Tensor, group: dict[str, Any]) -> None:
        update = p.grad
        assert update is not None
        if p.ndim > 1:
            update = update.add(p, alpha=group["weight_decay"])
            weight_norm, update_norm = p.norm(), update.norm()
            scale = group["trust"] * weight_norm / update_norm
            usable = (weight_norm > 0) & (update_norm > 0)
            update = update * torch.where(usable, scale, torch.ones_like(scale))
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        moved = buffer * group["momentum"] + update
        change = -group["lr"] * moved
        if self.found_inf is not None:
            skip = self.found_inf > 0
            moved = torch.where(skip, buffer, moved)
            change = torch.where(skip, torch.zeros_like(change), change)
        buffer.copy_(moved)
        p.add_(change)


def _can_skip(network: nn.Module) -> bool:
    """Whether there are fused kernels that heed `found_inf` for the device of this network."""
    return next(network.parameters()).device.type in ("cpu", "cuda")
