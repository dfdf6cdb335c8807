"""One optimizer step of DINO, a function of (state, batch, settings): no I/O, no printing.

Drop path draws from torch's global generator, which the step seeds by its settings first.

Order, as published: set lr and weight decay; teacher and student forward; loss with the OLD center;
backward; clip per tensor; freeze the last layer; optimizer; teacher EMA; center.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_core.rng import torch_seed
from dino_core.training.loss import dino_loss, teacher_targets, updated_center
from dino_core.training.network import Network
from dino_core.training.optim import clip_per_tensor, ema_update
from dino_core.training.recipe import Precision, Recipe
from dino_core.training.schedules import cosine_schedule, teacher_temperature

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TrainState:
    """Everything that a step changes."""

    student: Network
    teacher: Network
    optimizer: torch.optim.Optimizer
    center: Tensor
    """float32 [1, K], on the device."""
    scaler: torch.amp.GradScaler
    """Loss scaling for fp16; disabled otherwise."""
    step: int = 0
    """Optimizer steps done."""


@dataclass(frozen=True)
class StepSettings:
    """The numbers one step uses, read off the schedules."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temp: float
    freeze_last_layer: bool
    student_temp: float
    center_momentum: float
    clip_grad: float
    accumulate: int
    precision: Precision
    seed: int
    """Seeds this step's drop path, on every device."""


@dataclass(frozen=True)
class StepMetrics:
    """What a step measured, as scalars on the device: reading one waits for the step."""

    loss: Tensor
    grad_norm: Tensor
    """Sum of the per-tensor gradient norms before clipping."""


class Schedules:
    """A recipe's schedules for a number of steps per epoch: `settings(step)` for any step."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        steps = recipe.epochs * steps_per_epoch if recipe.steps is None else recipe.steps
        optim = recipe.optim
        lr = optim.lr * recipe.global_batch / 256
        warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
        self.lr = cosine_schedule(lr, optim.min_lr, steps, warmup_steps)
        self.weight_decay = cosine_schedule(optim.weight_decay, optim.weight_decay_end, steps)
        self.momentum = cosine_schedule(recipe.teacher.momentum, 1.0, steps)

    def settings(self, step: int) -> StepSettings:
        recipe, teacher = self.recipe, self.recipe.teacher
        epoch = step // self.steps_per_epoch
        frozen_steps = recipe.optim.freeze_last_layer * self.steps_per_epoch
        return StepSettings(
            lr=float(self.lr[step]),
            weight_decay=float(self.weight_decay[step]),
            momentum=float(self.momentum[step]),
            teacher_temp=teacher_temperature(
                epoch,
                teacher.warmup_teacher_temp,
                teacher.teacher_temp,
                teacher.warmup_teacher_temp_epochs,
            ),
            freeze_last_layer=step < frozen_steps,
            student_temp=teacher.student_temp,
            center_momentum=teacher.center_momentum,
            clip_grad=recipe.optim.clip_grad,
            accumulate=recipe.accumulate,
            precision=recipe.precision,
            seed=torch_seed(recipe.seed, "drop path", step),
        )


def train_step(
    state: TrainState, micro_batches: Iterable[Sequence[Tensor]], settings: StepSettings
) -> StepMetrics:
    """Do one optimizer step in place.

    `micro_batches` yields `settings.accumulate` batches; each is a list of groups of normalized
    views, float [n_i, C, S_i, S_i], view-major, the first group being the two global views.
    """
    _set_rates(state.optimizer, settings)
    torch.manual_seed(settings.seed)
    state.optimizer.zero_grad(set_to_none=True)
    losses, teacher_sum, rows = [], torch.zeros_like(state.center), 0
    for groups in micro_batches:
        with mixed_precision(state.center.device, settings.precision):
            with torch.no_grad():
                teacher_NK = state.teacher(groups[:1]).float()
            student_NK = state.student(groups)
        targets_NK = teacher_targets(teacher_NK, state.center, settings.teacher_temp)
        loss = dino_loss(student_NK, targets_NK, settings.student_temp)
        state.scaler.scale(loss / settings.accumulate).backward()
        losses.append(loss.detach())
        teacher_sum += teacher_NK.sum(dim=0, keepdim=True)
        rows += len(teacher_NK)

    state.scaler.unscale_(state.optimizer)
    grad_norm = clip_per_tensor(state.student.parameters(), settings.clip_grad)
    if settings.freeze_last_layer:
        for parameter in state.student.head.last_layer.parameters():
            parameter.grad = None  # not zero: the optimizer must skip its weight decay too
    state.scaler.step(state.optimizer)
    state.scaler.update()
    ema_update(state.teacher, state.student, settings.momentum)
    state.center = updated_center(state.center, teacher_sum, rows, settings.center_momentum)
    state.step += 1
    return StepMetrics(loss=torch.stack(losses).mean(), grad_norm=grad_norm)


@contextmanager
def mixed_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Matrix products in `precision`, everything that wants fp32 in fp32; nothing at all for fp32.

    On a CPU, bf16 attention goes through plain matrix products: the backward of torch's fused
    kernel took 38 % of a step there (ViT-T/8 at 48 and 24 px, AVX512-BF16), 2.3 s against 1.3 s.
    """
    if precision == "fp32":
        yield
        return
    plain_attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, _AUTOCAST[precision]), plain_attention:
        yield


def _set_rates(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    for group in optimizer.param_groups:
        group["lr"] = settings.lr
    # Only the first group is decayed; the second holds biases and 1-D tensors.
    optimizer.param_groups[0]["weight_decay"] = settings.weight_decay


def as_floats(metrics: StepMetrics) -> dict[str, float]:
    """Read a step's metrics to the host, in one copy."""
    values = torch.stack([metrics.loss.float(), metrics.grad_norm.float()]).cpu()
    loss, grad_norm = np.asarray(values, dtype=float)
    return {"loss": float(loss), "grad_norm": float(grad_norm)}
