"""The training loop: owns files, progress and signals around the pure step.

    run = train(recipe, open_source("photos/"), Run("runs/mine"))

It ends in one of three ways: finished, stopped (Ctrl-C, SIGTERM or a file named `stop` in the run's
folder; a checkpoint is written first), or with a `UserError`. `resume=True` takes a run up again at
its newest checkpoint.
"""

import os
import platform
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

import timm
import torch

import dino_core
from dino_core import distributed
from dino_core.data import Quarantine, Source
from dino_core.errors import UserError
from dino_core.files import held, write_json
from dino_core.models import ModelInfo, device_of, load_model, load_strictly
from dino_core.rng import torch_seed
from dino_core.runs import Checkpoint, Run
from dino_core.training.checkpoint import load_checkpoint, save_checkpoint
from dino_core.training.feed import Batch, feed
from dino_core.training.meter import Meter
from dino_core.training.network import create_student, create_teacher
from dino_core.training.optim import create_optimizer
from dino_core.training.recipe import Recipe
from dino_core.training.step import Schedules, TrainState, train_step


def train(recipe: Recipe, source: Source, run: Run, *, resume: bool = False) -> Run:
    """Train on `source` as `recipe` says, writing everything into `run`.

    Without `resume` the run's folder must not hold a run yet. With it, a run with a checkpoint goes
    on from there under its OWN recipe (`recipe` is then ignored), and one without starts.
    Raises `UserError` for settings that cannot work, a source without usable images or other than
    the one the run was started on, a full disk, or a loss that is no longer finite.
    """
    if distributed.world_size() > 1:
        raise UserError("this version trains in one process: start it without torchrun")
    checkpoint = _checkpoint_to_resume(run, resume)
    recipe = recipe.resolved(len(source)) if checkpoint is None else _recipe_of(run, source)
    device = device_of(recipe.device)
    busy = f"{run.path}: this run is being trained by another process; wait for it, or stop it"
    with held(run.path / ".training.lock", busy):
        torch.set_num_threads(recipe.threads)
        # What `init` gave is in the checkpoint, and may be gone from where it was.
        start = recipe if checkpoint is None else replace(recipe, init=None)
        state = create_state(start, device)
        loop = _Loop(recipe, source, run, state, device)
        (run.path / "stop").unlink(missing_ok=True)
        if checkpoint is None:
            provenance = {"data": source.spec, "images": len(source), "versions": versions()}
            write_json(run.path / "recipe.json", {**recipe.to_json(), **provenance})
        else:
            load_checkpoint(checkpoint, state)
            loop.say(f"goes on at step {state.step} under its own recipe, recipe.json")
        run.cut_metrics(state.step)
        for note in source.notes:
            loop.say(note)
        loop.go()
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
    quarantine: Quarantine = field(init=False)

    def __post_init__(self) -> None:
        self.quarantine = Quarantine.read(self.run.path / "quarantine.jsonl")

    def go(self) -> None:
        with _stop_signals() as stop:
            self.run.write_status("running", step=self.state.step, steps=self.steps)
            try:
                self._steps(stop)
                self._save()
            except BaseException as error:
                reason = str(error) or type(error).__name__
                self.run.write_status("failed", step=self.state.step, reason=reason)
                self.run.log(f"failed at step {self.state.step}: {reason}")
                raise
            outcome = "finished" if self.state.step == self.steps else "stopped"
            self.run.write_status(outcome, step=self.state.step, steps=self.steps)
        self.say(f"{outcome} at step {self.state.step} of {self.steps}")
        if len(self.quarantine):
            self.run.warn(self.state.step, self.quarantine.sentence())
            self.say(self.quarantine.sentence())

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
        meter = Meter(self.run, recipe, state.step, self.steps, steps_per_epoch)
        with meter.bar, closing(self._batches()) as batches:
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

    def _views(self, batches: Iterator[Batch | UserError]) -> Iterator[list[torch.Tensor]]:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            self.quarantine.add(batch.quarantined)
            yield batch.views(self.info, self.device)

    def _batches(self) -> Generator[Batch | UserError]:
        return feed(
            self.source,
            self.recipe,
            self.state.step,
            self.steps,
            workers=choose_workers(self.recipe.workers, self.device),
            pin=self.device.type == "cuda",
        )

    def _save(self) -> None:
        save_checkpoint(self.run, self.state, self.info, keep=self.recipe.keep)
        if len(self.quarantine):
            self.quarantine.write(self.run.path / "quarantine.jsonl")

    def say(self, sentence: str) -> None:
        self.run.log(sentence)
        print(f"{self.run.path}: {sentence}", file=sys.stderr)


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
        # Not print: the signal may have come in the middle of one.
        os.write(sys.stderr.fileno(), b"\nstopping after this step; the state is saved\n")

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
    return 1 if device.type == "cpu" else max(1, min(8, distributed.cores() - 1))


def _checkpoint_to_resume(run: Run, resume: bool) -> Checkpoint | None:
    """Where to go on, None to start; a sentence for every checkpoint that cannot be used."""
    if not run.exists():
        return None
    if not resume:
        raise UserError(
            f"{run.path}: a run is already there; add --resume to go on with it, or name another"
        )
    whole = run.checkpoints()
    for bad in run.incomplete():
        using = f"using {whole[-1].path.name}" if whole else "starting anew"
        missing = ", ".join(bad.missing())
        print(
            f"{run.path}: checkpoint {bad.path.name} is incomplete ({missing} missing); {using}",
            file=sys.stderr,
        )
    return whole[-1] if whole else None


def _recipe_of(run: Run, source: Source) -> Recipe:
    """The recipe that a run was started under; other data than it was started on is refused."""
    saved = run.recipe()
    saved.pop("versions", None)
    spec, images = saved.pop("data", source.spec), saved.pop("images", len(source))
    if images != len(source):
        raise UserError(
            f"{run.path}: was started on {images:,} images ({spec}), but {source.spec} has "
            f"{len(source):,}; resume it with the same data, or start a new run with --init"
        )
    return Recipe.from_json(saved)


def _start_from(vit: torch.nn.Module, spec: str) -> None:
    """Copy a model's backbone weights; one of another shape is a `UserError` that lists them."""
    load_strictly(vit, load_model(spec, device="cpu").backbone.vit.state_dict(), spec)
