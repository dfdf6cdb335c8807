"""Several processes that train as one: their group, and what they sum over it.

Every function does nothing, at no cost, where a process trains alone. Gradients are averaged by
torch's `DistributedDataParallel`; the sums here are those that it does not know of: the center,
the metrics, and whether a step was finite.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_core import distributed
from dino_core.errors import UserError
from dino_core.training.rendezvous import agent_store

# The first process alone checks quality and saves while the others wait for its next sum.
PATIENCE = timedelta(hours=2)


@contextmanager
def process_group(device: torch.device, purpose: str = "training") -> Iterator[None]:
    """Within: this process belongs to the group that torchrun started (nccl on GPUs, else gloo).

    Raises `UserError` when some process does not come, or comes for another purpose.
    """
    if distributed.world_size() == 1:
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=agent_store(),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        timeout=PATIENCE,
    )
    try:
        if agreed(purpose, device) != purpose:
            raise UserError(
                "some processes see a run at --out where others see none: let it lie on a disk "
                "that all machines share"
            )
        yield
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """This process's own GPU where several share a machine."""
    if device.type != "cuda" or distributed.world_size() == 1:
        return device
    own = torch.device("cuda", distributed.local_rank())
    torch.cuda.set_device(own)
    return own


def in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if in_group():
        dist.all_reduce(tensor)
    return tensor


def averaged(tensor: Tensor) -> Tensor:
    """The mean over all processes, in place."""
    return summed(tensor).div_(dist.get_world_size()) if in_group() else tensor


def true_everywhere(flag: Tensor) -> Tensor:
    """A bool scalar: whether `flag` holds in every process. Stays on its device."""
    if not in_group():
        return flag
    lowest = flag.to(torch.int32)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return lowest.bool()


def agreed(value: Any, device: torch.device) -> Any:
    """What the first process holds, in all of them: any value that JSON can say."""
    if not in_group():
        return value
    text = json.dumps(value).encode()
    length = torch.tensor([len(text)], device=device)
    dist.broadcast(length, src=0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if distributed.is_main():
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(data, src=0)
    return json.loads(bytes(data.cpu().tolist()))


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network to call in training: averages gradients over the group during `backward`."""
    if not in_group():
        return network
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    # Running statistics are the same everywhere already. Set here, since torch 2.13 gave the
    # argument another name.
    wrapped.broadcast_buffers = False
    return wrapped


def without_sync(network: nn.Module) -> AbstractContextManager[None]:
    """Within: gradients pile up here and are not averaged yet."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def synchronize_batch_norm(network: nn.Module) -> None:
    """Let every batch norm take its statistics over the batch of all processes, in place."""
    if not in_group():
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in _SYNCED:
                raise UserError(f"several processes cannot share a {type(module).__name__} yet")
            module.__class__ = _SYNCED[type(module)]


class _Sum(torch.autograd.Function):
    """The sum over all processes; each gets the sum of their gradients."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return summed(x.clone())

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return summed(gradient.clone())


class _SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the group. Unlike torch's `SyncBatchNorm` it runs on CPUs, too.

    Keys, parameters and running statistics are those of the module that it takes the place of.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            rows = x.numel() // x.shape[1]
            count = summed(torch.full((1,), float(rows), device=x.device))
            mean = _Sum.apply(x.sum(axes)) / count
            deviation = x - mean.view(shape)
            variance = _Sum.apply(deviation.square().sum(axes)) / count
            self._remember(mean.detach(), variance.detach(), count)
            normed = deviation * (variance + self.eps).rsqrt().view(shape)
            if self.weight is not None:
                normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running statistics, with the unbiased variance, as torch keeps them."""
        if self.running_mean is None or self.running_var is None:
            return
        momentum = 0.1 if self.momentum is None else self.momentum
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


class _Synced1d(_SyncedBatchNorm, nn.BatchNorm1d):
    pass


class _Synced2d(_SyncedBatchNorm, nn.BatchNorm2d):
    pass


_SYNCED: dict[type, type] = {nn.BatchNorm1d: _Synced1d, nn.BatchNorm2d: _Synced2d}
