"""A few real steps before a run, on a state that is then thrown away: what a recipe costs here.

    rehearsal = rehearse(recipe, source, max_seconds=60, tell=print)
    rehearsal.images_per_second, rehearsal.seconds_before, rehearsal.workers

The images come the way that the run will have them: from files, the cache, memory, or out of the
GPU's. What happens once (loading them, compiling, workers starting) is counted apart from what a
step takes.
"""

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dino_core import distributed
from dino_core.data import Source
from dino_core.memory import keep_freed_memory
from dino_core.models import device_of
from dino_core.runs import Run
from dino_core.training.durations import spoken
from dino_core.training.feed import choose_workers, whole
from dino_core.training.parallel import agreed, own_device, process_group
from dino_core.training.prefetch import prepared
from dino_core.training.quality import Examiner, split
from dino_core.training.recipe import Recipe
from dino_core.training.resident import Feed, decided, trial_feed
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, StepSettings, TrainState, train_step

STEPS = 20
SETTLED = 5  # steps that are not timed: caches, lazily made kernels, workers starting up
CHECKED = 128  # images, held out and voting, that are looked at to see how long a check takes
LOOKING = 0.1  # of a time budget, spent on quality checks at most
FEW_CORES = 2  # beside which the best number of data workers is found by trying
SILENCE = 5.0  # seconds until the first word on how far it is; each next one twice as late

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsal:
    """What a step and a checkpoint of a recipe cost on this machine."""

    batch_size: int
    seconds_per_step: float
    seconds_before: float
    """Once, before steps take their usual time: all images loaded, blocks compiled."""
    seconds_per_check: float
    """Of a quality check; 0 where the recipe makes none."""
    workers: int | None
    """Data workers that turned out faster; as the recipe has it where they were not tried."""
    memory: int
    """Peak in bytes: of the GPU, or of this process where a CPU computes."""
    checkpoint: int
    """Bytes of one checkpoint on disk."""

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.seconds_per_step

    def checks(self, recipe: Recipe, seconds: float) -> int:
        """As many quality checks as the recipe asks for, and a tenth of the time bears: one at
        least, besides that before the first step, but none where these two take half of it."""
        if 2 * self.seconds_per_check > seconds / 2:
            return 0
        most = int(LOOKING * seconds / max(self.seconds_per_check, 1e-3)) - 1
        return min(recipe.quality.checks, max(1, most))

    def seldom_checked(self, recipe: Recipe, seconds: float) -> Recipe:
        quality = replace(recipe.quality, checks=self.checks(recipe, seconds))
        return replace(recipe, quality=quality)

    def left_to_train(self, recipe: Recipe, seconds: float) -> float:
        """The time without what happens once, and without the checks; of what is left beside the
        first, half at least."""
        left, checks = max(0.0, seconds - self.seconds_before), self.checks(recipe, seconds)
        looking = (checks + 1) * self.seconds_per_check if checks else 0.0
        return max(left / 2, left - looking)

    def disk(self, recipe: Recipe, steps: int) -> int:
        """Bytes that the kept checkpoints take, and one more while it is written."""
        kept = recipe.keep + 1 if recipe.keep else max(1, steps // recipe.save_every)
        return (kept + 1) * self.checkpoint

    def sentence(self, recipe: Recipe, steps: int) -> str:
        before = f"{spoken(self.seconds_before)} to get going, then "
        return (
            f"{before if self.seconds_before >= 1 else ''}"
            f"{steps:,} step{'s' if steps > 1 else ''} of {self.batch_size} images: about "
            f"{spoken(steps * self.seconds_per_step)} ({self.images_per_second:.3g} images/s), "
            f"{self.memory / 2**30:.1f} GB of memory, "
            f"{self.disk(recipe, steps) / 2**20:,.0f} MB on disk"
        )


def rehearse(
    recipe: Recipe,
    source: Source,
    max_seconds: float = math.inf,
    tell: Tell = lambda sentence: None,
) -> Rehearsal:
    """Take `STEPS` real steps, fewer after `max_seconds`, on a state that is then thrown away.

    Where a CPU of few cores computes and the recipe leaves the number of data workers open, half of
    the steps are taken without one and half beside one. `tell` hears how far it is when that takes
    long. Processes that train together take the steps together, and all hold what the first one
    measured. Raises `UserError` for settings that cannot work and for images that cannot be read.
    """
    images = split(recipe, len(source)).training
    recipe = recipe.resolved(len(images))
    device = own_device(device_of(recipe.device))
    if distributed.is_main():
        recipe = decided(recipe, source, images, device)
    with process_group(device, "rehearsal"):
        recipe = Recipe.from_json(agreed(recipe.to_json(), device))
        torch.set_num_threads(recipe.threads)
        if device.type == "cpu":
            keep_freed_memory()
        trial = _Trial(recipe, source, images, device, max_seconds, tell)
        loading = trial.load()
        workers, pace = _paced(trial, recipe, device, tell)
        check = 0.0
        if distributed.is_main():
            check = _time_check(trial.state, replace(recipe, workers=workers), source)
        measured_here = (
            *(recipe.batch_size, pace.seconds, loading + trial.settling, check, workers),
            *(trial.memory(), _checkpoint_bytes(trial.state)),
        )
        return Rehearsal(*agreed(measured_here, device))


@dataclass(frozen=True)
class Pace:
    """What steps take with one number of data workers."""

    seconds: float
    """Of a step, the first ones left out."""
    settling: float
    """By how much the first ones took longer."""
    whole: bool
    """Whether there was time for all steps that were to be taken."""


def _paced(
    trial: "_Trial", recipe: Recipe, device: torch.device, tell: Tell
) -> tuple[int | None, Pace]:
    """The recipe's number of data workers, or none or one, whichever is faster where both may be.

    Beside few cores either can be far slower than the other: a worker takes a core from the
    computing, and without one that waits for images that are dear. That is the worse mistake, so
    it is one where time is too short to tell (`feed.choose_workers`).
    """
    if recipe.workers is not None or device.type != "cpu" or distributed.cores() > FEW_CORES:
        return recipe.workers, trial.pace(choose_workers(recipe.workers, device), STEPS)
    paces = [trial.pace(workers, STEPS // 2) for workers in (0, 1)]
    none, one = (pace.seconds for pace in paces)
    if not all(pace.whole for pace in paces):
        return 1, paces[1]
    workers = int(one < none)
    tell(
        f"workers = {workers}: a step takes {none:.3g} s without a data worker, {one:.3g} s "
        "beside one"
    )
    return workers, paces[workers]


@dataclass
class _Trial:
    """A state that is thrown away, and the steps that it takes."""

    recipe: Recipe
    source: Source
    images: np.ndarray
    device: torch.device
    max_seconds: float
    tell: Tell
    state: TrainState = field(init=False)
    feed: Feed = field(init=False)
    settling: float = field(default=0.0, init=False)
    """Seconds by which first steps took longer than others, at most."""
    taken: int = field(default=0, init=False)
    """Steps, in `spent` seconds."""
    spent: float = field(default=0.0, init=False)
    word: float = field(default=SILENCE, init=False)
    """Seconds after which the next word on how far it is is due."""

    def __post_init__(self) -> None:
        self.state = create_state(self.recipe, self.device)
        say = self.tell if distributed.is_main() else lambda sentence: None
        self.feed = trial_feed(self.recipe, self.source, self.images, self.device, say)

    def load(self) -> float:
        """Load the images of the trial; the seconds that all those of the run take."""
        ends: list[float] = []
        self.feed.loads = lambda done, images: ends.append(time.perf_counter())
        self.feed.load()
        if len(ends) < 2:  # they stay in their files, or a cache was there
            return 0.0
        return (ends[-1] - ends[0]) / (len(ends) - 1) * len(self.images)

    def pace(self, workers: int, count: int) -> Pace:
        """Take `count` steps, fewer where their share of `max_seconds` is over before."""
        share = self.max_seconds * count / STEPS
        ends = [time.perf_counter()]
        spent_before, self.feed.workers = self.spent, workers
        with closing(self._views(count)) as views:
            for settings in self._settings(count):
                train_step(self.state, islice(views, settings.accumulate), settings)
                _wait_for(self.device)
                ends.append(time.perf_counter())
                took = agreed(ends[-1] - ends[0], self.device)
                self.taken, self.spent = self.taken + 1, spent_before + took
                self._tell_how_far()
                if len(ends) > 3 and took > share:
                    break
        first = min(SETTLED, len(ends) // 2)
        seconds = agreed((ends[-1] - ends[first]) / (len(ends) - 1 - first), self.device)
        settling = max(0.0, ends[first] - ends[0] - first * seconds)
        self.settling = max(self.settling, settling)
        return Pace(seconds, settling, whole=len(ends) == 1 + count)

    def memory(self) -> int:
        """Peak in bytes, with all images of the run where those of the trial lie in memory."""
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else _resident_peak()
        store = self.feed.store
        if store is None or store.file is not None or (on_gpu and not store.pixels.is_cuda):
            return peak
        others = len(self.images) / len(store.images) - 1
        return peak + int(others * store.pixels.numel())

    def _steps(self, count: int) -> list[int]:
        assert self.recipe.steps is not None  # resolved
        return [i % self.recipe.steps for i in range(self.taken, self.taken + count)]

    def _settings(self, count: int) -> Iterator[StepSettings]:
        schedules = Schedules(
            self.recipe,
            self.recipe.steps_per_epoch(len(self.images)),
            distributed.rank(),
            self.recipe.accumulate(distributed.world_size()),
        )
        return map(schedules.settings, self._steps(count))

    def _views(self, count: int) -> Generator[list[Tensor]]:
        batches = self.feed.batches(self._steps(count))
        with closing(prepared(batches, self.recipe.backbone.info(), self.device)) as made:
            for batch in made:
                yield whole(batch).views

    def _tell_how_far(self) -> None:
        if self.spent < self.word:
            return
        self.tell(
            f"trying {STEPS} steps: step {self.taken} of {STEPS}, "
            f"{self.spent / self.taken:.2g} s each"
        )
        self.word = 2 * self.spent


def _time_check(state: TrainState, recipe: Recipe, source: Source) -> float:
    """Seconds of a quality check, by one of few images, whose probes are thrown away."""
    parts = split(recipe, len(source))
    if not len(parts.held_out):
        return 0.0
    workers = choose_workers(recipe.workers, state.center.device)
    with tempfile.TemporaryDirectory() as folder:
        examiner = Examiner(Run(folder), recipe, source, parts, workers=workers)
        images, few = examiner.images, max(CHECKED, recipe.quality.k)
        examiner.held_out, examiner.bank = examiner.held_out[:few], examiner.bank[:few]
        started = time.perf_counter()
        examiner.check(state)
        return (time.perf_counter() - started) * images / examiner.images


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
