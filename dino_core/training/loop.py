"""The training loop: owns files, progress and signals around the pure step.

    run = train(recipe, open_source("photos/"), Run("runs/mine"))

It ends in one of three ways: finished, stopped (Ctrl-C, SIGTERM, a file named `stop` in the run's
folder, time that is up; a checkpoint is written first), or with a `UserError`. `resume=True` takes
a run up again at its newest good checkpoint.

When several steps in a row were not finite the run goes back, once, to its last checkpoint and
passes those steps over; the steps are part of what is saved, so that resuming stays exact.
"""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from dino_core import distributed
from dino_core.data import Quarantine, Source
from dino_core.errors import UserError
from dino_core.files import held, remove_leftovers, write_json
from dino_core.memory import keep_freed_memory
from dino_core.models import ModelInfo, device_of
from dino_core.runs import Run
from dino_core.training.checkpoint import (
    Progress,
    drop_after,
    note_progress,
    save_checkpoint,
)
from dino_core.training.feed import choose_workers, step_images, whole
from dino_core.training.heartbeat import beating
from dino_core.training.meter import Meter
from dino_core.training.monitor import Monitor
from dino_core.training.parallel import agreed, own_device, process_group
from dino_core.training.prefetch import Prepared, prepared
from dino_core.training.quality import Examiner, split
from dino_core.training.readings import Reading
from dino_core.training.recipe import Recipe
from dino_core.training.resident import Feed, decided
from dino_core.training.resume import changes, check_start, origin, saved_recipe, take_up
from dino_core.training.sinks import Sink, open_sinks
from dino_core.training.state import create_state, without_effect
from dino_core.training.step import Schedules, TrainState, train_step
from dino_core.training.stopping import Stop, stop_signals


def train(
    recipe: Recipe,
    source: Source,
    run: Run,
    *,
    resume: bool = False,
    max_seconds: float | None = None,
    tensorboard: bool = False,
    wandb: str | None = None,
) -> Run:
    """Train on `source` as `recipe` says, writing everything into `run`.

    Without `resume` the run's folder must not hold a run yet. With it, a run with a checkpoint goes
    on from there under its OWN recipe (`recipe` is then ignored), and one without starts. Processes
    that torchrun started train together; one that it started anew resumes. After `max_seconds` of
    wall time the run saves and stops. `tensorboard` and `wandb` (a project) get the metrics, too.

    Raises `UserError` for settings that cannot work, a source without usable images or other than
    the one the run was started on, a full disk, or a run that diverges twice.
    """
    stop = Stop(run, max_seconds)
    main = distributed.is_main()
    goes_on = main and check_start(run, resume or distributed.was_restarted())
    if goes_on:
        recipe = saved_recipe(run, source)
    training = split(recipe, len(source)).training
    recipe = recipe.resolved(len(training))
    device = own_device(device_of(recipe.device))
    if main and not goes_on:
        recipe = decided(recipe, source, training, device)
    busy = f"{run.path}: this run is being trained by another process; wait for it, or stop it"
    lock = held(run.path / ".training.lock", busy) if main else nullcontext()
    with lock, beating(run), process_group(device), stop_signals(stop):
        recipe = Recipe.from_json(agreed(recipe.to_json(), device))
        torch.set_num_threads(recipe.threads)
        if device.type == "cpu":
            keep_freed_memory()
        saved = agreed(goes_on and bool(run.checkpoints()), device)
        # What `init` gave is in the checkpoint, and may be gone from where it was.
        state = create_state(replace(recipe, init=None) if saved else recipe, device)
        progress = take_up(run, state) or Progress()
        loop = _Loop(recipe, source, run, state, progress, device, stop)
        if main:
            loop.prepare(fresh=not goes_on)
            loop.sinks = open_sinks(run, state.step, tensorboard, wandb)
        with loop:
            loop.go()
    return run


@dataclass
class _Loop:
    """Training from the state's step to the end."""

    recipe: Recipe
    source: Source
    run: Run
    state: TrainState
    progress: Progress
    device: torch.device
    stop: Stop
    sinks: Sequence[Sink] = ()
    quarantine: Quarantine = field(init=False)
    waiting: Reading | None = None
    """Numbers of the step before, not read yet."""
    stopping: bool = False
    late: bool = False
    """What some process wanted when the numbers were last read."""
    saved_at: float = field(default_factory=time.monotonic)
    latest: float | None = None
    """Of the newest check, where there are labels."""

    def __post_init__(self) -> None:
        recipe, run = self.recipe, self.run
        assert recipe.steps is not None  # resolved before the first step
        self.steps = recipe.steps
        self.images = split(recipe, len(self.source))
        self.steps_per_epoch = recipe.steps_per_epoch(len(self.images.training))
        self.main = distributed.is_main()
        self.workers = choose_workers(recipe.workers, self.device)
        mine = "" if self.main else f"-{distributed.rank()}"
        self.listed = run.path / f"quarantine{mine}.jsonl"
        self.quarantine = Quarantine.read(self.listed)
        training = self.images.training
        self.feed = Feed(self.source, training, recipe, self.device, self.workers, self.say)
        self.schedules = Schedules(
            recipe,
            self.steps_per_epoch,
            distributed.rank(),
            recipe.accumulate(distributed.world_size()),
        )
        self.examiner = Examiner(run, recipe, self.source, self.images, self.workers)
        self.monitor = Monitor(recipe.head.out_dim, 2 * recipe.batch_size, self.steps)
        self.monitor.remember(self.progress.monitor)
        self.meter = Meter(run, recipe, self.state.step, self.steps_per_epoch, self.sinks)

    def prepare(self, fresh: bool) -> None:
        """Write down what the run is before its first step, or say where it goes on."""
        run, source = self.run, self.source
        (run.path / "stop").unlink(missing_ok=True)
        for folder in (run.path, run.path / "checkpoints", run.path / "probes"):
            remove_leftovers(folder)
        if fresh:
            described = {**self.recipe.to_json(), **origin(source, self.device)}
            write_json(run.path / "recipe.json", described)
        else:
            self.say(
                f"goes on at step {self.state.step} under its own recipe, recipe.json; settings "
                "given now do not count"
            )
            if self.state.step == self.steps:
                self.say(f"is at its end; to train on, start a new run with --init {run.path}")
            if changed := changes(run, self.device):
                self.say(changed)
        run.cut_metrics(self.state.step)
        for note in [*source.notes, *without_effect(self.recipe, self.state.student)]:
            self.say(note)

    def __enter__(self) -> None:
        self.meter.sinks = self.sinks
        self.meter.bar.__enter__()

    def __exit__(self, *error: object) -> None:
        self.meter.bar.__exit__(*error)
        for sink in self.sinks:
            sink.close()

    def go(self) -> None:
        self._status("running")
        try:
            self._train()
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self._status("failed", reason=reason)
            if self.main:
                self.run.log(f"failed at step {self.state.step}: {reason}")
            raise
        finished = self.state.step == self.steps
        outcome = "finished" if finished else "stopped"
        why = "" if finished else f", since {self.stop.reason}; --resume goes on"
        if len(self.quarantine):
            self.warn(self.quarantine.sentence())
        if finished:
            self._judge()
        self.say(f"{outcome} at step {self.state.step} of {self.steps}{why}")
        # Last of all: whoever follows the run leaves when it reads this.
        self._status(outcome, reason="" if finished else self.stop.reason)

    def _train(self) -> None:
        while True:
            if self.state.step == 0 and self.examiner.due(0):
                self._check()
                self._save()  # the start may turn out to have been the best
            try:
                self._stretch()
                break
            except _Diverged as diverged:
                self._go_back(diverged)
        self._save()

    def _stretch(self) -> None:
        """Steps until the end, a wish to stop, or `_Diverged`."""
        state = self.state
        left = [s for s in range(state.step, self.steps) if not self.progress.skips(s)]
        with closing(self._batches(left)) as batches:
            for step in left:
                state.step = step
                settings = self.schedules.settings(step)
                micro_batches = self._views(islice(batches, settings.accumulate))
                metrics = train_step(state, micro_batches, settings)
                wishes = {"stop": self.stop.wanted(), "late": self._is_late()}
                self._read(Reading.of(step, settings, metrics, **wishes))
                self._milestones()
                if self.stopping or (distributed.world_size() == 1 and self.stop.wanted()):
                    self._read(None)
                    return
        if state.step < self.steps:  # its last steps are among those passed over
            state.step = self.steps
            self._milestones()
        self._read(None)

    def _milestones(self) -> None:
        """Check quality and save where that is due."""
        step = self.state.step
        check = self.examiner.due(step)
        if check or self.late or step % self.recipe.save_every == 0:
            self._read(None)  # first, so that a broken loss is known before a state is saved
            if check:
                self._check()
            self._save()

    def _is_late(self) -> bool:
        """Whether a checkpoint is due by the clock. The first process's clock counts for all."""
        minutes = self.recipe.save_minutes if self.main else 0
        return minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes

    # -- numbers ----------------------------------------------------------------------------

    def _read(self, reading: Reading | None) -> None:
        """Take in the numbers of the step before; `reading` waits for its turn."""
        waiting, self.waiting = self.waiting, reading
        if waiting is None:
            return
        numbers = waiting.numbers()
        self.meter.update(waiting, numbers)
        for warning in self.monitor.see(waiting.step, numbers):
            self.warn(warning.sentence, waiting.step)
            if warning.collapse and self.recipe.guards.on_collapse == "stop":
                self.stop.reason = self.stop.reason or warning.sentence
        self.stopping = self.stopping or numbers["stop"] > 0
        self.late = self.late or numbers["late"] > 0
        self._count(waiting, numbers)

    def _count(self, reading: Reading, numbers: dict[str, float]) -> None:
        broken = self.progress.broken
        if numbers["finite"]:
            broken.clear()
            return
        broken.append(reading.step)
        # fp16 overflows now and then by design: its scaler passes such a step over, scales less.
        by_design = self.recipe.precision == "fp16" and math.isfinite(numbers["loss"])
        if len(broken) >= (OVERFLOWS if by_design else self.recipe.guards.bad_steps):
            raise _Diverged(broken[0], broken[-1] + 1)

    def _go_back(self, diverged: "_Diverged") -> None:
        """Return to the last good checkpoint, and pass over the steps that broke the run."""
        first, end = diverged.first, diverged.end
        broke = f"loss or gradients of steps {first} to {end - 1} were not finite"
        skipped = self.progress.skipped
        if skipped:
            self._write_down([step for part in [*skipped, [first, end]] for step in range(*part)])
            raise UserError(
                f"{self.run.path}: {broke}, the second time; the images of these steps are in "
                f"failed.json: look at them, or start anew in fp32 or at a lower --lr"
            )
        self.waiting = None
        if self.main:
            drop_after(self.run, first)  # they know nothing of the steps to pass over
        found = take_up(self.run, self.state)
        if found is None:
            self.state = create_state(self.recipe, self.device)
        self.progress = found or Progress()
        self.monitor.remember(self.progress.monitor)
        self.progress.skipped.append([first, end])
        self.warn(f"{broke}: goes back to step {self.state.step} and passes these over", first)
        if self.main:
            if found is not None:
                note_progress(self.run.checkpoint(self.state.step), self.progress)
            self.run.cut_metrics(self.state.step)

    def _write_down(self, steps: Sequence[int]) -> None:
        if not self.main:
            return
        chosen = step_images(self.images.training, self.recipe, steps)
        listed = [
            {"step": step, "images": [self.source.ids[int(i)] for i in images]}
            for step, (_, images) in zip(steps, chosen, strict=True)
        ]
        write_json(self.run.path / "failed.json", listed)

    # -- images -----------------------------------------------------------------------------

    def _views(self, batches: Iterator[Prepared | UserError]) -> Iterator[list[torch.Tensor]]:
        for batch in map(whole, batches):
            self.quarantine.add(batch.quarantined)
            yield batch.views

    def _batches(self, steps: Sequence[int]) -> Generator[Prepared | UserError]:
        return prepared(self.feed.batches(steps), self.info, self.device)

    # -- files ------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self.recipe.backbone.info()

    def _check(self) -> None:
        if not (self.main and self.examiner.due(self.state.step)):
            return
        quality = self.examiner.check(self.state)
        self.meter.quality(quality)
        if quality.knn is None:  # without labels nothing measured here says which is the best
            return
        self.latest, progress = quality.knn, self.progress
        if progress.best_value is None or quality.knn > progress.best_value:
            progress.best_step, progress.best_value = quality.step, quality.knn
        if progress.start_value is None:
            progress.start_value = quality.knn
        self._compare(quality.knn)

    def _compare(self, value: float) -> None:
        """Say so when a run that started from a trained model has become worse than its start."""
        start = self.progress.start_value
        if self.recipe.init is None or start is None or value >= FALLEN * start:
            return
        self.warn(
            f"worse than {self.recipe.init}, from which it started ({value:.1f} now, {start:.1f} "
            f"then): lower --lr, or keep the best, step {self.progress.best_step}"
        )

    def _judge(self) -> None:
        """Say so when all the training did not help."""
        start = self.progress.start_value
        if self.latest is None or start is None or self.latest > start:
            return
        before = self.recipe.init or "the untrained network"
        self.say(
            f"its k-NN, {self.latest:.1f} %, is not above that of {before}, {start:.1f} %: train "
            "longer, or on more images"
        )

    def _save(self) -> None:
        self.progress.monitor = self.monitor.memory()
        if self.main:
            self._write_checkpoint()
        if len(self.quarantine):
            self.quarantine.write(self.listed)
        self.saved_at, self.late = time.monotonic(), False

    def _write_checkpoint(self) -> None:
        try:
            save_checkpoint(self.run, self.state, self.info, self.recipe, self.progress)
        except UserError as error:
            good = self.run.checkpoints()
            left = f"that of step {good[-1].step} is there" if good else "there is none yet"
            reason = "the disk is full" if "No space left" in str(error) else str(error)
            raise UserError(
                f"{self.run.path}: the checkpoint of step {self.state.step} cannot be written "
                f"({reason}), {left}: make room, then --resume goes on"
            ) from error

    def _status(self, state: str, **more: object) -> None:
        if self.main:
            self.run.write_status(state, step=self.state.step, steps=self.steps, **more)

    def warn(self, sentence: str, step: int | None = None) -> None:
        if self.main:
            self.run.warn(self.state.step if step is None else step, sentence)
            self.say(f"warning: {sentence}")

    def say(self, sentence: str) -> None:
        if self.main:
            self.meter.say(f"{self.run.path}: {sentence}")


OVERFLOWS = 30  # in a row, after which fp16 is not scaling but broken
FALLEN = 0.95  # of the quality at the start, below which a run that continues a model is warned


class _Diverged(Exception):
    """Steps `first` .. `end - 1` were not finite."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__(f"steps {first} to {end - 1} were not finite")
        self.first, self.end = first, end
