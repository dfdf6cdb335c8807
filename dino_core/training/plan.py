"""What a run will cost, from twenty real steps; and as many steps as fit into a given time."""

import contextlib
import re
import resource
import sys
import time
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.models import ModelInfo, device_of
from dino_core.training.feed import Batch, feed
from dino_core.training.quality import split
from dino_core.training.recipe import Recipe
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, TrainState, train_step

STEPS = 20
SETTLED = 5  # steps that are not timed: caches, lazily made kernels, workers starting up
USABLE = 0.9  # of a time budget: the rest is for quality checks and saving

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def seconds_of(duration: str) -> float:
    """`90s`, `30m`, `1.5h`, `2d` or `1h30m` in seconds; a `UserError` for anything else."""
    parts = _DURATION.findall(duration.strip())
    if not parts or "".join(number + unit for number, unit in parts) != duration.strip():
        raise UserError(f"{duration!r} is not a time; write 90s, 30m, 1.5h or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"{duration!r} leaves no time for anything; write e.g. 30m")
    return seconds


@dataclass(frozen=True)
class Rehearsal:
    """What a step and a checkpoint of a recipe cost on this machine."""

    batch_size: int
    seconds_per_step: float
    memory: int
    """Peak in bytes: of the GPU, or of this process where a CPU computes."""
    checkpoint: int
    """Bytes of one checkpoint on disk."""

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.seconds_per_step

    def steps_in(self, seconds: float) -> int:
        """Steps that fit, at least one."""
        return max(1, int(USABLE * seconds / self.seconds_per_step))

    def sentence(self, recipe: Recipe, steps: int) -> str:
        kept = recipe.keep + 1 if recipe.keep else max(1, steps // recipe.save_every)
        return (
            f"{steps:,} steps of {self.batch_size} images: about "
            f"{spoken(steps * self.seconds_per_step)} ({self.images_per_second:.0f} images/s), "
            f"{self.memory / 2**30:.1f} GB of memory, {kept * self.checkpoint / 2**20:,.0f} MB on "
            "disk"
        )


def spoken(seconds: float) -> str:
    """A duration as a person says it: 40 s, 25 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def rehearse(recipe: Recipe, source: Source, steps: int = STEPS) -> Rehearsal:
    """Take `steps` real steps on a state that is then thrown away.

    Raises `UserError` for settings that cannot work and for images that cannot be read.
    """
    images = split(recipe, len(source)).training
    recipe = recipe.resolved(len(images))
    device = device_of(recipe.device)
    torch.set_num_threads(recipe.threads)
    state = create_state(recipe, device)
    seconds = _time_steps(state, recipe, source, images, steps, device)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()
    return Rehearsal(recipe.batch_size, seconds, memory, _checkpoint_bytes(state))


def _time_steps(
    state: TrainState,
    recipe: Recipe,
    source: Source,
    images: np.ndarray,
    steps: int,
    device: torch.device,
) -> float:
    """Seconds per step, the first ones left out."""
    per_epoch = recipe.steps_per_epoch(len(images))
    schedules = Schedules(recipe, per_epoch, accumulate=recipe.accumulate(1))
    assert recipe.steps is not None
    numbers = [i % recipe.steps for i in range(steps)]
    workers = 1 if recipe.workers is None else recipe.workers
    started, timed = time.perf_counter(), 0
    info = recipe.backbone.info()
    with contextlib.closing(feed(source, images, recipe, numbers, workers, pin=False)) as batches:
        for i, number in enumerate(numbers):
            if i == min(SETTLED, steps - 1):
                _wait_for(device)
                started, timed = time.perf_counter(), 0
            settings = schedules.settings(number)
            chosen = islice(batches, settings.accumulate)
            train_step(state, (_views(batch, info, device) for batch in chosen), settings)
            timed += 1
    _wait_for(device)
    return (time.perf_counter() - started) / timed


def _views(batch: Batch | UserError, info: ModelInfo, device: torch.device) -> list[torch.Tensor]:
    if isinstance(batch, UserError):
        raise batch
    return batch.views(info, device)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def _checkpoint_bytes(state: TrainState) -> int:
    tensors = [*state.student.state_dict().values(), *state.teacher.state_dict().values()]
    for moments in state.optimizer.state.values():
        tensors += [value for value in moments.values() if isinstance(value, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
