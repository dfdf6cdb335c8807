"""One optimizer step of DINO, a function of (state, batch, settings): no I/O, no printing.

Drop path draws from torch's global generator, which the step seeds by its settings first.

Order, as published: set lr and weight decay; teacher and student forward; loss with the OLD center;
backward; clip per tensor; freeze the last layer; optimizer; teacher EMA; center. A step whose loss
or gradients are not finite, in any process, changes nothing in any; that is decided on the device.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_core.rng import torch_seed
from dino_core.training.loss import dino_loss, teacher_targets, updated_center
from dino_core.training.network import Network
from dino_core.training.optim import clip_per_tensor, ema_update, step_if
from dino_core.training.parallel import averaged, summed, true_everywhere, without_sync
from dino_core.training.recipe import Precision, Recipe
from dino_core.training.schedules import cosine_schedule, teacher_temperature

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Phase = Callable[[str], AbstractContextManager[None]]  # what a benchmark times the parts with


def _untimed(_name: str) -> AbstractContextManager[None]:
    return nullcontext()


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
    caller: nn.Module | None = None
    """The student as training calls it where several processes share the work; None for alone."""
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
    backbone_frozen: bool = False
    """Whether only the head moves, and the backbone waits for it."""
    watch: bool = True
    """Whether this step also measures what `Watched` says, in one more pass over the targets."""


@dataclass(frozen=True)
class Watched:
    """Signs of collapse, over the global views that the teacher saw, as scalars on the device."""

    teacher_entropy: Tensor
    """Mean entropy of a view's targets, in nats: ln K where all prototypes are the same to it."""
    kl_uniform: Tensor
    """KL(mean target || uniform), in nats: ln K where all views share one prototype."""
    used_prototypes: Tensor
    """How many prototypes are some view's first."""
    feature_std: Tensor
    """Deviation of the teacher's L2-normalized features, times sqrt(D): near 1 for features that
    point everywhere, 0 where all are the same."""


@dataclass(frozen=True)
class StepMetrics:
    """What a step measured, over all processes, as scalars on the device; reading one waits."""

    loss: Tensor
    grad_norm: Tensor
    """Sum of the per-tensor gradient norms before clipping."""
    finite: Tensor
    """bool: whether the step was done. False: loss or gradients were not finite, nothing moved."""
    center_norm: Tensor
    watched: Watched | None = None
    features: Tensor | None = None
    """float32 [n, D], the teacher's features of this process's last micro-batch, when watching."""


class Schedules:
    """A recipe's schedules for a number of steps per epoch: `settings(step)` for any step."""

    def __init__(
        self, recipe: Recipe, steps_per_epoch: int, rank: int = 0, accumulate: int = 1
    ) -> None:
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.rank = rank
        self.accumulate = accumulate
        steps = recipe.epochs * steps_per_epoch if recipe.steps is None else recipe.steps
        optim = recipe.optim
        lr = optim.lr * recipe.batch_size / 256
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
            accumulate=self.accumulate,
            precision=recipe.precision,
            seed=torch_seed(recipe.seed, "drop path", step, self.rank),
            backbone_frozen=step < recipe.optim.head_warmup_epochs * self.steps_per_epoch,
            watch=(step + 1) % recipe.log_every == 0,
        )


def train_step(
    state: TrainState,
    micro_batches: Iterable[Sequence[Tensor]],
    settings: StepSettings,
    phase: Phase = _untimed,
) -> StepMetrics:
    """Do one optimizer step in place.

    `micro_batches` yields `settings.accumulate` batches; each is a list of groups of normalized
    views, float [n_i, C, S_i, S_i], view-major, the first group being the two global views.
    `phase(name)` is entered for each part of the step, by whoever wants to time it.
    """
    _set_rates(state.optimizer, settings)
    torch.manual_seed(settings.seed)
    state.optimizer.zero_grad(set_to_none=True)
    before = _statistics(state)
    student = state.caller or state.student
    watch = _Watch(state.center) if settings.watch else None
    losses, teacher_sum, rows = [], torch.zeros_like(state.center), 0
    for i, groups in enumerate(micro_batches, start=1):
        last = i == settings.accumulate
        autocast = mixed_precision(state.center.device, settings.precision)
        with phase("teacher"), autocast, torch.no_grad():
            features_ND = state.teacher.features(groups[:1])
            teacher_NK = state.teacher.head(features_ND).float()
        targets_NK = teacher_targets(teacher_NK, state.center, settings.teacher_temp)
        with nullcontext() if last else without_sync(student):
            with phase("student"), mixed_precision(state.center.device, settings.precision):
                student_NK = student(groups)
            with phase("loss"):
                loss = dino_loss(student_NK, targets_NK, settings.student_temp)
            with phase("backward"):
                state.scaler.scale(loss / settings.accumulate).backward()
        losses.append(loss.detach())
        teacher_sum += teacher_NK.sum(dim=0, keepdim=True)
        rows += len(teacher_NK)
        if watch:
            watch.add(targets_NK, features_ND)

    with phase("clip"):
        state.scaler.unscale_(state.optimizer)
        grad_norm = clip_per_tensor(state.student.parameters(), settings.clip_grad)
        _freeze(state.student, settings)
    loss = averaged(torch.stack(losses).mean())
    finite = true_everywhere(loss.isfinite() & grad_norm.isfinite())
    with phase("optimizer"):
        step_if(state.optimizer, finite)
        state.scaler.update()
    with phase("EMA"):
        ema_update(state.teacher, state.student, settings.momentum, finite)
    _keep_unless(finite, before)
    everywhere = summed(torch.cat([teacher_sum.flatten(), teacher_sum.new_full((1,), rows)]))
    center = updated_center(
        state.center, everywhere[None, :-1], everywhere[-1], settings.center_momentum
    )
    state.center = torch.where(finite, center, state.center)
    state.step += 1
    return StepMetrics(
        loss=loss,
        grad_norm=grad_norm,
        finite=finite,
        center_norm=state.center.norm(),
        watched=watch.read() if watch else None,
        features=features_ND.float() if watch else None,
    )


class _Watch:
    """Gathers what `Watched` tells, over the micro-batches of a step."""

    def __init__(self, center_1K: Tensor) -> None:
        self.target_sum_K = torch.zeros_like(center_1K[0])
        self.first_K = torch.zeros_like(center_1K[0])
        self.entropies: list[Tensor] = []
        self.deviations: list[Tensor] = []

    def add(self, targets_NK: Tensor, features_ND: Tensor) -> None:
        self.target_sum_K += targets_NK.sum(dim=0)
        self.first_K[targets_NK.argmax(dim=1)] = 1
        self.entropies.append(torch.special.entr(targets_NK).sum(dim=1).mean())
        normed_ND = nn.functional.normalize(features_ND.float(), dim=1)
        self.deviations.append(normed_ND.std(dim=0).mean() * normed_ND.shape[1] ** 0.5)

    def read(self) -> Watched:
        mean_K = summed(self.target_sum_K)
        mean_K = mean_K / mean_K.sum()
        return Watched(
            teacher_entropy=averaged(torch.stack(self.entropies).mean()),
            kl_uniform=math.log(len(mean_K)) - torch.special.entr(mean_K).sum(),
            used_prototypes=(summed(self.first_K) > 0).sum().float(),
            feature_std=averaged(torch.stack(self.deviations).mean()),
        )


def _freeze(student: Network, settings: StepSettings) -> None:
    """Drop the gradients of what waits: not zeros, the optimizer must skip its weight decay too."""
    if settings.freeze_last_layer:
        for parameter in student.head.last_layer.parameters():
            parameter.grad = None
    if settings.backbone_frozen:
        for parameter in student.backbone.parameters():
            parameter.grad = None


def _statistics(state: TrainState) -> list[tuple[Tensor, Tensor]]:
    """The buffers that a forward pass changes (batch norm's), each with a copy of its value."""
    buffers = [*state.student.buffers(), *state.teacher.buffers()]
    return [(buffer, buffer.clone()) for buffer in buffers]


def _keep_unless(finite: Tensor, before: list[tuple[Tensor, Tensor]]) -> None:
    """Where `finite` is false, put back what the buffers held before the step."""
    for buffer, old in before:
        buffer.copy_(torch.where(finite, buffer, old))


@contextmanager
def mixed_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Matrix products in `precision`, everything that wants fp32 in fp32; nothing at all for fp32.

    On a CPU, the attention of backbones that are not packed (`models/packed.py`) goes through plain
    matrix products, too: the backward of torch's fused kernel in bf16 is slow there (docs/log.md).
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
