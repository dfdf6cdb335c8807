"""Saving a training state and taking it up again: safetensors and JSON only.

`student.safetensors` and `teacher.safetensors` hold backbone and head under their published names
with the model's description; `optimizer.safetensors` holds the moments under
`<moment>.<parameter>`, and the center; `state.json` the step, the loss scaler and the `Progress`.
"""

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dino_core.errors import UserError
from dino_core.files import read_json, whole_folder, write_json
from dino_core.models import (
    ModelInfo,
    load_strictly,
    read_weights,
    save_weights,
    write_tensors,
)
from dino_core.runs import Checkpoint, Run
from dino_core.training.network import Network
from dino_core.training.recipe import Recipe
from dino_core.training.step import TrainState


@dataclass
class Progress:
    """What a run must know beside its tensors in order to go on as if nothing had happened."""

    skipped: list[list[int]] = field(default_factory=list)
    """Steps that are passed over, as [first, end): their batches broke the run once."""
    broken: list[int] = field(default_factory=list)
    """The latest steps, as long as they were not finite."""
    best_step: int | None = None
    """Where the quality check was best so far; that checkpoint is kept."""
    best_value: float | None = None
    start_value: float | None = None
    """The quality before the first step."""
    monitor: dict[str, Any] = field(default_factory=dict)
    """What the `Monitor` has seen and named; `{}` in checkpoints of before it was kept."""

    def skips(self, step: int) -> bool:
        return any(first <= step < end for first, end in self.skipped)


def save_checkpoint(
    run: Run, state: TrainState, info: ModelInfo, recipe: Recipe, progress: Progress
) -> Path:
    """Write the state as a whole checkpoint of `run`; then drop those that the recipe lets go.

    Raises `UserError` when the disk is full or read-only; older checkpoints are then untouched.
    """
    path = run.checkpoint_path(state.step)
    if path.exists():
        if not Checkpoint(state.step, path).missing():
            return path
        shutil.rmtree(path)  # cut short by a copy or a person; this one is whole
    with whole_folder(path) as aside:
        _save_network(aside / "student.safetensors", state.student, info)
        _save_network(aside / "teacher.safetensors", state.teacher, info)
        write_tensors(aside / "optimizer.safetensors", _optimizer_tensors(state))
        write_json(aside / "state.json", _described(state, progress))
    for old in _let_go(run.checkpoints(), recipe, progress):
        shutil.rmtree(old.path)
    return path


def _let_go(checkpoints: list[Checkpoint], recipe: Recipe, progress: Progress) -> list[Checkpoint]:
    """All but the newest `keep`, the best, and every one at a multiple of `keep_every`."""
    if not recipe.keep:
        return []
    every = recipe.keep_every
    return [
        old
        for old in checkpoints[: -recipe.keep]
        if old.step != progress.best_step and not (every and old.step % every == 0)
    ]


def drop_after(run: Run, step: int) -> None:
    """Remove the checkpoints of later steps than `step`."""
    for checkpoint in run.checkpoints():
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)


def load_checkpoint(checkpoint: Checkpoint, state: TrainState) -> Progress:
    """Put a saved state into `state`, which must have been made from the same recipe.

    Raises `UserError` for a damaged file; `state` is then of no use until another is loaded.
    """
    try:
        _load_network(checkpoint.path / "student.safetensors", state.student)
        _load_network(checkpoint.path / "teacher.safetensors", state.teacher)
        _load_optimizer(checkpoint.path / "optimizer.safetensors", state)
        saved = read_json(checkpoint.path / "state.json")
        if saved["scaler"]:
            state.scaler.load_state_dict(saved["scaler"])
        state.step = saved["step"]
        return Progress(**saved.get("progress", {}))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.path}: damaged ({error})") from error


def note_progress(checkpoint: Checkpoint, progress: Progress) -> None:
    """Write `progress` into a checkpoint that is already there."""
    path = checkpoint.path / "state.json"
    write_json(path, {**read_json(path), "progress": dataclasses.asdict(progress)})


def _described(state: TrainState, progress: Progress) -> dict[str, Any]:
    return {
        "step": state.step,
        "scaler": state.scaler.state_dict(),
        "progress": dataclasses.asdict(progress),
    }


def _save_network(path: Path, network: Network, info: ModelInfo) -> None:
    save_weights(path, info, network.backbone.vit.state_dict(), network.head.state_dict())


def _load_network(path: Path, network: Network) -> None:
    weights = read_weights(path)
    load_strictly(network.backbone.vit, weights.backbone, str(path))
    load_strictly(network.head, weights.head or {}, str(path))


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {"center": state.center}
    for name, parameter in state.student.published_parameters():
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{moment}.{name}"] = torch.as_tensor(value)
    return {key: value.detach().contiguous().cpu() for key, value in tensors.items()}


def _load_optimizer(path: Path, state: TrainState) -> None:
    parameters = dict(state.student.published_parameters())
    device = state.center.device
    state.optimizer.state.clear()
    for key, value in load_file(path).items():
        # A copy: what was read is a window onto a file, at any alignment.
        if key == "center":
            state.center = value.to(device, copy=True)
            continue
        moment, _, name = key.partition(".")
        if name not in parameters:
            raise UserError(f"{path}: {key} belongs to no parameter of this model")
        # A step counter lies on the device only where a fused kernel counts.
        there = "cpu" if moment == "step" and not state.optimizer.defaults.get("fused") else device
        state.optimizer.state[parameters[name]][moment] = value.to(there, copy=True)
