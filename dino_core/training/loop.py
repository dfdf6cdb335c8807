"""The training loop: owns files, progress and signals around the pure step.

    run = train(recipe, open_source("photos/"), Run("runs/mine"))

It ends in one of three ways: finished, stopped (Ctrl-C, SIGTERM or a file named `stop` in the run's
folder; a checkpoint is written first), or with a `UserError`. `resume=True` takes a run up again at
its newest checkpoint.
"""

import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import timm
import torch
from tqdm import tqdm

import dino_core
from dino_core import distributed
from dino_core.data import Quarantine, Source
from dino_core.errors import UserError
from dino_core.files import write_json
from dino_core.models import ModelInfo, device_of, load_model, load_strictly
from dino_core.rng import torch_seed
from dino_core.runs import Run
from dino_core.training.checkpoint import load_checkpoint, save_checkpoint
from dino_core.training.feed import Batch, create_loader
from dino_core.training.network import create_student, create_teacher
from dino_core.training.optim import create_optimizer
from dino_core.training.recipe import Recipe
from dino_core.training.step import Schedules, StepMetrics, TrainState, as_floats, train_step


def train(recipe: Recipe, source: Source, run: Run, *, resume: bool = False) -> Run:
    """Train on `source` as `recipe` says, writing everything into `run`.

    Without `resume` the run's folder must not hold a run yet. With it, a run with a checkpoint goes
    on from there under its OWN recipe (`recipe` is then ignored), and one without starts.
    Raises `UserError` for settings that cannot work, a source without usable images, a full disk,
    or a loss that is no longer finite.
    """
    if distributed.world_size() > 1:
        raise UserError("this version trains in one process: start it without torchrun")
    recipe, resumed = _settle(recipe, source, run, resume)
    torch.set_num_threads(recipe.threads)
    device = device_of(recipe.device)
    state = create_state(recipe, device)
    if resumed:
        checkpoint = run.checkpoint()
        load_checkpoint(checkpoint, state)
        run.cut_metrics(checkpoint.step)
        run.log(f"resumed at step {checkpoint.step}")
    else:
        provenance = {"data": source.spec, "versions": versions()}
        write_json(run.path / "recipe.json", {**recipe.to_json(), **provenance})
    for note in source.notes:
        run.log(note)
    _Loop(recipe, source, run, state, device).go()
    return run


def create_state(recipe: Recipe, device: torch.device) -> TrainState:
    """A fresh training state; its weights are a function of the recipe's seed."""
    torch.manual_seed(torch_seed(recipe.seed, "init"))
    student = create_student(recipe.backbone, recipe.head)
    if recipe.init is not None:
        _start_from(student.backbone.vit, recipe.init)
    student = student.to(device)
    return TrainState(
        student=student,
        teacher=create_teacher(student),
        optimizer=create_optimizer(recipe.optim.optimizer, student),
        center=torch.zeros(1, recipe.head.out_dim, device=device),
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
    )


def versions() -> dict[str, str]:
    """What the run was made with: bit-identity is promised for these alone."""
    return {
        "dino_core": dino_core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
    }


@dataclass
class _Loop:
    """One stretch of training, from the state's step to the end."""

    recipe: Recipe
    source: Source
    run: Run
    state: TrainState
    device: torch.device
    quarantine: Quarantine = field(default_factory=Quarantine)

    def go(self) -> None:
        with _stop_signals() as stop:
            self.run.write_status("running", step=self.state.step, steps=self.steps)
            try:
                self._steps(stop)
            except BaseException as error:
                self.run.write_status("failed", step=self.state.step, reason=str(error))
                self.run.log(f"failed at step {self.state.step}: {error}")
                raise
        self._save()
        outcome = "finished" if self.state.step == self.steps else "stopped"
        self.run.write_status(outcome, step=self.state.step, steps=self.steps)
        self._say(f"{outcome} at step {self.state.step} of {self.steps}")
        if len(self.quarantine):
            self.quarantine.write(self.run.path / "quarantine.jsonl")
            self._say(self.quarantine.sentence())

    @property
    def steps(self) -> int:
        assert self.recipe.steps is not None  # resolved before the first step
        return self.recipe.steps

    @property
    def info(self) -> ModelInfo:
        return self.recipe.backbone.info()

    def _steps(self, stop: "_Stop") -> None:
        recipe, state = self.recipe, self.state
        steps_per_epoch = recipe.steps_per_epoch(len(self.source))
        schedules = Schedules(recipe, steps_per_epoch)
        batches = iter(self._loader())
        meter = _Meter(self.run, recipe, state.step, self.steps, steps_per_epoch)
        with meter.bar:
            for step in range(state.step, self.steps):
                settings = schedules.settings(step)
                micro_batches = self._views(islice(batches, recipe.accumulate))
                metrics = train_step(state, micro_batches, settings)
                meter.update(step, metrics, settings.lr, settings.teacher_temp)
                if state.step % recipe.save_every == 0:
                    meter.flush()  # first, so that no state with a broken loss is ever saved
                    self._save()
                if stop.requested or self.run.stop_requested():
                    break
            meter.flush()

    def _views(self, batches: Iterator[Batch]) -> Iterator[list[torch.Tensor]]:
        for batch in batches:
            self.quarantine.add(batch.quarantined)
            yield batch.views(self.info, self.device)

    def _loader(self) -> torch.utils.data.DataLoader[Batch]:
        return create_loader(
            self.source,
            self.recipe,
            self.state.step,
            self.steps,
            workers=choose_workers(self.recipe.workers, self.device),
            pin=self.device.type == "cuda",
        )

    def _save(self) -> None:
        save_checkpoint(self.run, self.state, self.info, keep=self.recipe.keep)
        self.run.write_status("running", step=self.state.step, steps=self.steps)

    def _say(self, sentence: str) -> None:
        self.run.log(sentence)
        print(f"{self.run.path}: {sentence}", file=sys.stderr)


class _Meter:
    """Progress: a bar on a terminal, one line per epoch elsewhere, and `metrics.jsonl`.

    Metrics are read one step late, so that the host never waits for the step it has just started.
    """

    def __init__(
        self, run: Run, recipe: Recipe, start: int, steps: int, steps_per_epoch: int
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=start, unit="step", disable=not self.terminal, dynamic_ncols=True
        )
        self.waiting: tuple[int, StepMetrics, float, float] | None = None
        self.rows: list[dict[str, float]] = []
        self.epoch_losses: list[float] = []
        self.clock, self.clock_step = time.perf_counter(), start

    def update(self, step: int, metrics: StepMetrics, lr: float, teacher_temp: float) -> None:
        late, self.waiting = self.waiting, (step, metrics, lr, teacher_temp)
        if late is not None:
            self._read(*late)
        self.bar.update()

    def flush(self) -> None:
        """Read what is still waiting."""
        late, self.waiting = self.waiting, None
        if late is not None:
            self._read(*late)

    def _read(self, step: int, metrics: StepMetrics, lr: float, teacher_temp: float) -> None:
        values = as_floats(metrics)
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"{self.run.path}: the loss of step {step} is not finite; the last checkpoint is "
                f"kept: resume with --precision fp32 or a lower --lr in a new run"
            )
        self.epoch_losses.append(values["loss"])
        if (step + 1) % self.recipe.log_every == 0 or step + 1 == self.steps:
            self._log(step, values, lr, teacher_temp)
        if (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.steps:
            self._epoch_line(step, lr)

    def _log(self, step: int, values: dict[str, float], lr: float, teacher_temp: float) -> None:
        now = time.perf_counter()
        images = (step + 1 - self.clock_step) * self.recipe.global_batch
        speed = images / (now - self.clock)
        self.clock, self.clock_step = now, step + 1
        row = {"step": step, "epoch": step / self.steps_per_epoch, **values}
        row |= {"lr": lr, "teacher_temp": teacher_temp, "images_per_second": speed}
        self.run.append_metrics([{key: _rounded(value) for key, value in row.items()}])
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, lr {lr:.1e}, {speed:.0f} img/s")

    def _epoch_line(self, step: int, lr: float) -> None:
        epoch = step // self.steps_per_epoch + 1
        loss = float(np.mean(self.epoch_losses))
        self.epoch_losses.clear()
        line = f"epoch {epoch}: step {step + 1}/{self.steps}, loss {loss:.4f}, lr {lr:.2e}"
        self.run.log(line)
        if not self.terminal:
            print(line, file=sys.stderr, flush=True)


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Within: Ctrl-C or SIGTERM asks for a stop after this step; a second one ends it at once."""
    stop = _Stop()

    def ask(_signal: int, _frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("\nstopping after this step; the state is saved", file=sys.stderr)

    try:
        previous = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller's signals are the caller's
        yield stop
        return
    try:
        yield stop
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Processes that decode and crop: one where the CPU computes too, else up to eight."""
    if asked is not None:
        return asked
    cores = os.cpu_count() or 1
    return 1 if device.type == "cpu" else max(1, min(8, cores - 1))


def _settle(recipe: Recipe, source: Source, run: Run, resume: bool) -> tuple[Recipe, bool]:
    """The recipe to train under, and whether there is a checkpoint to go on from."""
    if len(source) == 0:
        raise UserError(f"{source.spec}: no images to train on")
    if not run.exists():
        return recipe.resolved(len(source)), False
    if not resume:
        raise UserError(
            f"{run.path}: a run is already there; add --resume to go on with it, or name another"
        )
    if run.status().get("state") == "running":
        raise UserError(f"{run.path}: this run is being trained by another process; stop it first")
    if not run.checkpoints():
        return recipe.resolved(len(source)), False
    saved = run.recipe()
    saved.pop("versions", None)
    saved.pop("data", None)
    (run.path / "stop").unlink(missing_ok=True)
    return Recipe.from_json(saved), True


def _start_from(vit: torch.nn.Module, spec: str) -> None:
    """Copy a model's backbone weights; one of another shape is a `UserError` that lists them."""
    load_strictly(vit, load_model(spec, device="cpu").backbone.vit.state_dict(), spec)


def _rounded(value: float) -> float:
    """Seven digits are what a float32 holds; more only make the file larger."""
    return value if isinstance(value, int) else float(f"{value:.7g}")
