"""The training loop: owns files, progress and signals around the pure step.

    run = train(recipe, open_source("photos/"), Run("runs/mine"))

It ends in one of three ways: finished, stopped (Ctrl-C, SIGTERM, a file named `stop` in the run's
folder, time that is up; a checkpoint is written first), or with a `UserError`. `resume=True` takes
a run up again at its newest good checkpoint.

When several steps in a row were not finite the run goes back, once, to its last checkpoint and
passes those steps over; the steps are part of what is saved, so that resuming stays exact.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch

from dino_core import distributed
from dino_core.data import Quarantine, Source
from dino_core.errors import UserError
from dino_core.files import held, write_json
from dino_core.models import ModelInfo, device_of
from dino_core.runs import Run
from dino_core.training.checkpoint import (
    Progress,
    drop_after,
    load_checkpoint,
    note_progress,
    save_checkpoint,
)
from dino_core.training.feed import Batch, feed, step_images
from dino_core.training.meter import Meter
from dino_core.training.monitor import Monitor
from dino_core.training.parallel import own_device, process_group
from dino_core.training.quality import Examiner, Split, split
from dino_core.training.readings import Reading
from dino_core.training.recipe import Recipe
from dino_core.training.resume import (
    changes,
    check_start,
    circumstances,
    last_good,
    newest_good,
    saved_recipe,
)
from dino_core.training.sinks import Sink, open_sinks
from dino_core.training.state import create_state
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
    goes_on = check_start(run, resume or distributed.was_restarted())
    if goes_on:
        recipe = saved_recipe(run, source)
    images = split(recipe, len(source))
    recipe = recipe.resolved(len(images.training))
    device = own_device(device_of(recipe.device))
    busy = f"{run.path}: this run is being trained by another process; wait for it, or stop it"
    lock = held(run.path / ".training.lock", busy) if distributed.is_main() else nullcontext()
    with lock, process_group(device), stop_signals(stop):
        torch.set_num_threads(recipe.threads)
        found = newest_good(run, recipe, device) if goes_on else None
        state, progress = found or (create_state(recipe, device), Progress())
        loop = _Loop(recipe, source, images, run, state, progress, device, stop)
        if distributed.is_main():
            loop.prepare(fresh=found is None)
        loop.sinks = (
            open_sinks(run, state.step, tensorboard, wandb) if distributed.is_main() else []
        )
        with loop:
            loop.go()
    return run


@dataclass
class _Loop:
    """Training from the state's step to the end."""

    recipe: Recipe
    source: Source
    images: Split
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
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        recipe, run = self.recipe, self.run
        assert recipe.steps is not None  # resolved before the first step
        self.steps = recipe.steps
        self.steps_per_epoch = recipe.steps_per_epoch(len(self.images.training))
        self.main = distributed.is_main()
        self.workers = choose_workers(recipe.workers, self.device)
        self.quarantine = Quarantine.read(run.path / "quarantine.jsonl")
        self.schedules = Schedules(
            recipe,
            self.steps_per_epoch,
            distributed.rank(),
            recipe.accumulate(distributed.world_size()),
        )
        self.examiner = Examiner(run, recipe, self.source, self.images, self.workers)
        self.monitor = Monitor(recipe.head.out_dim, 2 * recipe.batch_size, self.steps)
        self.meter = Meter(run, recipe, self.state.step, self.steps_per_epoch, self.sinks)

    def prepare(self, fresh: bool) -> None:
        """Write down what the run is before its first step, or say where it goes on."""
        run, source = self.run, self.source
        (run.path / "stop").unlink(missing_ok=True)
        if fresh:
            origin = {"data": source.spec, "images": len(source), "versions": circumstances()}
            write_json(run.path / "recipe.json", {**self.recipe.to_json(), **origin})
        else:
            self.say(f"goes on at step {self.state.step} under its own recipe, recipe.json")
            if changed := changes(run):
                self.say(changed)
        run.cut_metrics(self.state.step)
        for note in source.notes:
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
        self.say(f"{outcome} at step {self.state.step} of {self.steps}{why}")
        # Last of all: whoever follows the run leaves when it reads this.
        self._status(outcome, reason="" if finished else self.stop.reason)

    def _train(self) -> None:
        if self.state.step == 0 and self.examiner.due(0):
            self._check()
            self._save()  # the start may turn out to have been the best
        while True:
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
                self._read(Reading.of(step, settings, metrics, self.stop.wanted()))
                self._milestones()
                if self.stopping or (distributed.world_size() == 1 and self.stop.wanted()):
                    self._read(None)
                    return
        state.step = self.steps  # its last steps may be among those passed over
        self._read(None)

    def _milestones(self) -> None:
        """Check quality and save where that is due."""
        step = self.state.step
        check = self.examiner.due(step)
        minutes = self.recipe.save_minutes
        late = minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes
        if check or late or step % self.recipe.save_every == 0:
            self._read(None)  # first, so that a broken loss is known before a state is saved
            if check:
                self._check()
            self._save()

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
        self._count(waiting, numbers)

    def _count(self, reading: Reading, numbers: dict[str, float]) -> None:
        # fp16 overflows now and then by design: its scaler passes such a step over, scales less.
        by_design = self.recipe.precision == "fp16" and numbers["loss"] == numbers["loss"]
        if numbers["finite"] or by_design:
            self.progress.broken.clear()
            return
        broken = self.progress.broken
        broken.append(reading.step)
        if len(broken) >= self.recipe.guards.bad_steps:
            raise _Diverged(broken[0], broken[-1] + 1)

    def _go_back(self, diverged: "_Diverged") -> None:
        """Return to the last good checkpoint, and pass over the steps that broke the run."""
        first, end = diverged.first, diverged.end
        broke = f"loss or gradients of steps {first} to {end - 1} were not finite"
        if self.progress.skipped:
            self._write_down(range(first, end))
            raise UserError(
                f"{self.run.path}: {broke}, the second time; the images of these steps are in "
                f"failed.json: look at them, or start anew in fp32 or at a lower --lr"
            )
        self.waiting = None
        checkpoint = last_good(self.run, first)
        if checkpoint is None:
            self.state = create_state(self.recipe, self.device)
            self.progress = Progress()
        else:
            self.progress = load_checkpoint(checkpoint, self.state)
        self.progress.skipped.append([first, end])
        self.warn(f"{broke}: goes back to step {self.state.step} and passes these over", first)
        if self.main:
            drop_after(self.run, first)  # they know nothing of the steps to pass over
            if checkpoint is not None:
                note_progress(checkpoint, self.progress)
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

    def _views(self, batches: Iterator[Batch | UserError]) -> Iterator[list[torch.Tensor]]:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            self.quarantine.add(batch.quarantined)
            yield batch.views(self.info, self.device)

    def _batches(self, steps: Sequence[int]) -> Generator[Batch | UserError]:
        return feed(
            self.source,
            self.images.training,
            self.recipe,
            steps,
            workers=self.workers,
            pin=self.device.type == "cuda",
        )

    # -- files ------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self.recipe.backbone.info()

    def _check(self) -> None:
        if not (self.main and self.examiner.due(self.state.step)):
            return
        quality = self.examiner.check(self.state)
        self.meter.quality(quality)
        progress = self.progress
        if progress.best_value is None or quality.value > progress.best_value:
            progress.best_step, progress.best_value = quality.step, quality.value
        if progress.start_value is None:
            progress.start_value = quality.value
        self._compare(quality.value)

    def _compare(self, value: float) -> None:
        """Say so when a run that started from a trained model has become worse than its start."""
        start = self.progress.start_value
        if self.recipe.init is None or start is None or value >= FALLEN * start:
            return
        self.warn(
            f"worse than {self.recipe.init}, from which it started ({value:.1f} now, {start:.1f} "
            f"then): lower --lr, or keep the best, step {self.progress.best_step}"
        )

    def _save(self) -> None:
        if self.main:
            save_checkpoint(self.run, self.state, self.info, self.recipe, self.progress)
            if len(self.quarantine):
                self.quarantine.write(self.run.path / "quarantine.jsonl")
        self.saved_at = time.monotonic()

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


FALLEN = 0.95  # of the quality at the start, below which a run that continues a model is warned


class _Diverged(Exception):
    """Steps `first` .. `end - 1` were not finite."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__(f"steps {first} to {end - 1} were not finite")
        self.first, self.end = first, end


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Processes that decode and crop: one where the CPU computes too, else up to eight."""
    if asked is not None:
        return asked
    mine = distributed.cores() // distributed.local_world_size()
    return 1 if device.type == "cpu" else max(1, min(8, mine - 1))
