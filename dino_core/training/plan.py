"""What to do with these images on this machine, and what it costs, from twenty real steps.

    recipe = planned("auto", source, max_seconds=seconds_of("30m"), tell=print)

Settings come from the number and size of the images, the device and the time (`auto.py`), or from
a named recipe; the length from the speed that was measured here.
"""

import contextlib
import math
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from dino_core import distributed
from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.memory import keep_freed_memory
from dino_core.models import device_of
from dino_core.runs import Run
from dino_core.training.auto import Choice, Speed, choose, fit_to_time, measured, spoken, warmed_up
from dino_core.training.feed import choose_workers, feed, whole
from dino_core.training.parallel import agreed, own_device, process_group
from dino_core.training.quality import Examiner, split
from dino_core.training.recipe import Recipe
from dino_core.training.recipes import named
from dino_core.training.starting import going_on
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, TrainState, train_step

STEPS = 20
SETTLED = 5  # steps that are not timed: caches, lazily made kernels, workers starting up
SAMPLE = 32  # images whose size is looked at
FEW = 100  # steps below which a run is told to be too short
TRYING = 0.2  # of a time budget, which the rehearsal takes besides, at most
LOOKING = 0.1  # of a time budget, spent on quality checks at most
APART = 10  # steps between checks, at least, where nobody asked for more of them
AUTO = "auto"

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


def planned(
    name: str,
    source: Source,
    *,
    run: Run | None = None,
    flags: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    max_seconds: float | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Recipe:
    """The recipe `name` (or `auto`), changed by `flags`, as long as `max_seconds` allow.

    `flags` puts in what the user asked for, and has the last word. `tell` hears what was chosen and
    why, and what it will cost; afterwards it stands in the log of `run`. Processes that train
    together rehearse together, too, and come to the same recipe.

    Raises `UserError` for a name that is none, images that cannot be trained on, and a disk that is
    too full for `run`.
    """
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        tell(sentence)

    recipe = _planned(name, source, run, flags, max_seconds, say)
    if run is not None and distributed.is_main():
        for sentence in said:
            run.log(sentence)
    return _seldom_checked(recipe, flags, len(source))


def _planned(
    name: str,
    source: Source,
    run: Run | None,
    flags: Callable[[Recipe], Recipe],
    max_seconds: float | None,
    tell: Callable[[str], None],
) -> Recipe:
    auto = name == AUTO
    flags = going_on(Recipe() if auto else named(name), flags, tell)
    chosen = _chosen(flags, source, max_seconds) if auto else Choice(flags(named(name)), [])
    if auto:
        chosen = _own_length(chosen, flags, len(source))
    for reason in chosen.reasons:
        tell(reason)
    if max_seconds is None:
        return chosen.recipe
    tell("trying it out ...")
    rehearsal = rehearse(chosen.recipe, source, TRYING * max_seconds)
    speed, seconds = (
        rehearsal.images_per_second,
        rehearsal.left_to_train(chosen.recipe, max_seconds),
    )
    if auto:
        fitted = _chosen(flags, source, seconds, measured(chosen.recipe, speed))
    else:
        fitted = fit_to_time(chosen.recipe, len(source), seconds, speed)
        fitted = Choice(flags(fitted.recipe), fitted.reasons)
    fitted = Choice(rehearsal.seldom_checked(fitted.recipe, max_seconds), fitted.reasons)
    for reason in fitted.reasons:
        if reason not in chosen.reasons:
            tell(reason)
    images = len(split(fitted.recipe, len(source)).training)
    steps = fitted.recipe.resolved(images).steps
    assert steps is not None
    tell(rehearsal.sentence(fitted.recipe, steps))
    if steps < FEW:
        tell("so few steps teach next to nothing: give it more time, or a faster machine")
    if run is not None:
        _check_disk(run, rehearsal.disk(fitted.recipe, steps))
    return fitted.recipe


def _own_length(choice: Choice, flags: Callable[[Recipe], Recipe], images: int) -> Choice:
    """Where the user set the length of the run, its warm-ups follow; not those the user set."""
    recipe = choice.recipe
    if flags(replace(recipe, steps=None, epochs=-1)) == replace(recipe, steps=None, epochs=-1):
        return choice
    reasons = [r for r in choice.reasons if not r.startswith(("steps =", "epochs ="))]
    return Choice(flags(warmed_up(recipe, images)), reasons)


def _seldom_checked(recipe: Recipe, flags: Callable[[Recipe], Recipe], images: int) -> Recipe:
    """In a short run no more than a check every `APART` steps, unless the user set their number."""
    unset = replace(recipe.quality, checks=-1)
    if flags(replace(recipe, quality=unset)).quality.checks != -1 or not recipe.quality.checks:
        return recipe
    trained_on = images - recipe.held_out(images)
    steps = recipe.steps or recipe.epochs * max(1, recipe.steps_per_epoch(trained_on))
    few = min(recipe.quality.checks, max(1, steps // APART))
    return replace(recipe, quality=replace(recipe.quality, checks=few))


def _check_disk(run: Run, needed: int) -> None:
    place = next(
        path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{run.path}: the run needs {needed / 2**30:.1f} GB of disk, and {free / 2**30:.1f} GB "
            "are free: make room, name another folder, or keep fewer checkpoints (--keep)"
        )


def _chosen(
    flags: Callable[[Recipe], Recipe],
    source: Source,
    max_seconds: float | None,
    images_per_second: Speed | None = None,
) -> Choice:
    if len(source) < 2:
        raise UserError(f"{source.spec}: one image is too few to learn from")
    device = device_of(flags(Recipe()).device)
    choice = choose(
        len(source),
        median_side(source),
        device=device.type,  # type: ignore[arg-type]
        memory=torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else None,
        seconds=max_seconds,
        cores=distributed.cores(),
        processes=distributed.world_size(),
        images_per_second=images_per_second,
    )
    return Choice(flags(choice.recipe), choice.reasons)


def median_side(source: Source) -> float:
    """The median short side in pixels, of `SAMPLE` images spread over the source."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int):
        try:
            sides.append(min(source.image(int(index)).shape[:2]))
        except BadImage:
            continue
    if not sides:
        raise UserError(f"{source.spec}: none of the {SAMPLE} images looked at can be read")
    return float(np.median(sides))


@dataclass(frozen=True)
class Rehearsal:
    """What a step and a checkpoint of a recipe cost on this machine."""

    batch_size: int
    seconds_per_step: float
    seconds_per_check: float
    """Of a quality check; 0 where the recipe makes none."""
    memory: int
    """Peak in bytes: of the GPU, or of this process where a CPU computes."""
    checkpoint: int
    """Bytes of one checkpoint on disk."""

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.seconds_per_step

    def checks(self, recipe: Recipe, seconds: float) -> int:
        """As many quality checks as the recipe asks for, and a tenth of the time bears."""
        most = int(LOOKING * seconds / max(self.seconds_per_check, 1e-3)) - 1
        return min(recipe.quality.checks, max(1, most))

    def seldom_checked(self, recipe: Recipe, seconds: float) -> Recipe:
        quality = replace(recipe.quality, checks=self.checks(recipe, seconds))
        return replace(recipe, quality=quality)

    def left_to_train(self, recipe: Recipe, seconds: float) -> float:
        """The time without the checks; half of it at least, however long those take."""
        looking = (self.checks(recipe, seconds) + 1) * self.seconds_per_check
        return max(seconds / 2, seconds - looking)

    def disk(self, recipe: Recipe, steps: int) -> int:
        """Bytes that the kept checkpoints take, and one more while it is written."""
        kept = recipe.keep + 1 if recipe.keep else max(1, steps // recipe.save_every)
        return (kept + 1) * self.checkpoint

    def sentence(self, recipe: Recipe, steps: int) -> str:
        return (
            f"{steps:,} step{'s' if steps > 1 else ''} of {self.batch_size} images: about "
            f"{spoken(steps * self.seconds_per_step)} ({self.images_per_second:.3g} images/s), "
            f"{self.memory / 2**30:.1f} GB of memory, "
            f"{self.disk(recipe, steps) / 2**20:,.0f} MB on disk"
        )


def rehearse(recipe: Recipe, source: Source, max_seconds: float = math.inf) -> Rehearsal:
    """Take `STEPS` real steps, fewer after `max_seconds`, on a state that is then thrown away.

    Processes that train together take them together, and all hold what the first one measured.
    Raises `UserError` for settings that cannot work and for images that cannot be read.
    """
    images = split(recipe, len(source)).training
    recipe = recipe.resolved(len(images))
    device = own_device(device_of(recipe.device))
    with process_group(device, "rehearsal"):
        recipe = Recipe.from_json(agreed(recipe.to_json(), device))
        torch.set_num_threads(recipe.threads)
        if device.type == "cpu":
            keep_freed_memory()
        state = create_state(recipe, device)
        seconds = _time_steps(state, recipe, source, images, max_seconds)
        check = _time_check(state, recipe, source) if distributed.is_main() else 0.0
        on_gpu = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) if on_gpu else _resident_peak()
        measured_here = (recipe.batch_size, seconds, check, memory, _checkpoint_bytes(state))
        return Rehearsal(*agreed(measured_here, device))


def _time_steps(
    state: TrainState, recipe: Recipe, source: Source, images: np.ndarray, max_seconds: float
) -> float:
    """Mean seconds per step, the first ones left out."""
    schedules = Schedules(
        recipe,
        recipe.steps_per_epoch(len(images)),
        distributed.rank(),
        recipe.accumulate(distributed.world_size()),
    )
    assert recipe.steps is not None
    steps = [i % recipe.steps for i in range(STEPS)]
    info, device = recipe.backbone.info(), state.center.device
    workers, pin = choose_workers(recipe.workers, device), device.type == "cuda"
    ends = [time.perf_counter()]
    with contextlib.closing(feed(source, images, recipe, steps, workers, pin)) as batches:
        for step in steps:
            settings = schedules.settings(step)
            chosen = islice(batches, settings.accumulate)
            train_step(state, (whole(batch).views(info, device) for batch in chosen), settings)
            _wait_for(device)
            ends.append(time.perf_counter())
            if agreed(len(ends) > 3 and ends[-1] - ends[0] > max_seconds, device):
                break
    first = min(SETTLED, len(ends) // 2)
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


def _time_check(state: TrainState, recipe: Recipe, source: Source) -> float:
    """Seconds of a quality check, whose probes are thrown away."""
    parts = split(recipe, len(source))
    if not len(parts.held_out):
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        examiner = Examiner(
            Run(folder),
            recipe,
            source,
            parts,
            workers=choose_workers(recipe.workers, state.center.device),
        )
        started = time.perf_counter()
        examiner.check(state)
        return time.perf_counter() - started


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
