"""Saving a training state and taking it up again: safetensors and JSON only.

`student.safetensors` and `teacher.safetensors` hold backbone and head under their published names
with the model's description; `optimizer.safetensors` holds the moments under
`<moment>.<parameter>`, and the center; `state.json` the step and the loss scaler.
"""

import shutil
from pathlib import Path

import torch
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
from dino_core.training.step import TrainState


def save_checkpoint(run: Run, state: TrainState, info: ModelInfo, keep: int = 0) -> Path:
    """Write the state as a whole checkpoint of `run`; then drop all but the newest `keep`.

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
        write_json(aside / "state.json", {"step": state.step, "scaler": state.scaler.state_dict()})
    if keep:
        for old in run.checkpoints()[:-keep]:
            shutil.rmtree(old.path)
    return path


def load_checkpoint(checkpoint: Checkpoint, state: TrainState) -> None:
    """Put a saved state into `state`, which must have been made from the same recipe."""
    _load_network(checkpoint.path / "student.safetensors", state.student)
    _load_network(checkpoint.path / "teacher.safetensors", state.teacher)
    _load_optimizer(checkpoint.path / "optimizer.safetensors", state)
    saved = read_json(checkpoint.path / "state.json")
    if saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    state.step = saved["step"]


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
            tensors[f"{moment}.{name}"] = torch.as_tensor(value)
    return {key: value.detach().contiguous().cpu() for key, value in tensors.items()}


def _load_optimizer(path: Path, state: TrainState) -> None:
    parameters = dict(state.student.published_parameters())
    device = state.center.device
    for key, value in load_file(path).items():
        if key == "center":
            state.center = value.to(device)
            continue
        moment, _, name = key.partition(".")
        if name not in parameters:
            raise UserError(f"{path}: {key} belongs to no parameter of this model")
        # AdamW's step counter stays on the CPU unless its kernel is fused on a GPU.
        place = value if moment == "step" and device.type == "cpu" else value.to(device)
        state.optimizer.state[parameters[name]][moment] = place
