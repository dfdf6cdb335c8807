"""The layouts in which DINO itself was published, for the programs written for it.

From a run the full checkpoint: `student`, `teacher`, `epoch`, `args`, `dino_loss`; without the
optimizer, so the published training code resumes from it with fresh moments. From anything else the
backbone alone. Only tensors, numbers and dicts are written: torch's weights-only reader opens them.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_core.errors import UserError
from dino_core.files import read_json, whole_file
from dino_core.models.create import family_of
from dino_core.models.info import ModelInfo
from dino_core.models.layouts import xcit
from dino_core.models.layouts.keys import State
from dino_core.models.model import checkpoint_named, load_model
from dino_core.models.weights import Weights, as_stored, read_safetensors, read_weights
from dino_core.runs import Checkpoint, Run

_BLOCK = r"blocks\.\d+\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)"
_STAGE = r"layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])"
_BATCH_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
PUBLISHED = {
    "vit": rf"cls_token|pos_embed|(patch_embed\.proj|norm|{_BLOCK})\.(weight|bias)",
    "resnet": rf"(conv1|bn1|{_STAGE})\.{_BATCH_NORM}",
    "xcit": r".+",
}
"""Key names of the networks that DINO was published with; others have no such layout."""


def export_dino(spec: str, path: Path, root: Path | None = None) -> list[str]:
    """Write what `spec` names to `path`, in the published layout; returns the top-level names.

    `runs/NAME` and `runs/NAME@STEP` give the full checkpoint, whatever else `load_model` knows the
    backbone alone. Raises `UserError` for networks that DINO was not published with.
    """
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path}: a published checkpoint is one file; let its name end in .pth")
    found = checkpoint_named(spec, Path.cwd() if root is None else root)
    if found is None:
        model = load_model(spec, device="cpu", root=root)
        content: dict[str, Any] = _published(model.backbone.vit.state_dict(), model.info, spec)
    else:
        content = _full(*found, spec)
    with whole_file(path) as aside:
        torch.save(content, aside)
    return list(content)


def _full(run: Run, checkpoint: Checkpoint, spec: str) -> dict[str, Any]:
    student = read_weights(checkpoint.path / "student.safetensors")
    teacher = read_weights(checkpoint.path / "teacher.safetensors")
    tensors, _ = read_safetensors(checkpoint.path / "optimizer.safetensors")
    if "center" not in tensors or student.head is None:
        raise UserError(f"{checkpoint.path}: has no center or no head, so it is no whole run")
    # Published training wraps the student for distributed training, and the teacher only where
    # batch norm has statistics to share.
    wrapped = any(key.endswith("running_mean") for key in teacher.backbone | (teacher.head or {}))
    return {
        "student": _network(student, "module.", spec),
        "teacher": _network(teacher, "module." if wrapped else "", spec),
        "epoch": _epochs_done(run, checkpoint.step),
        "args": _arguments(student),
        "dino_loss": {"center": tensors["center"].float()},
    }


def _network(weights: Weights, prefix: str, spec: str) -> State:
    backbone = _published(weights.backbone, weights.info, spec)
    return {f"{prefix}backbone.{key}": tensor for key, tensor in backbone.items()} | {
        f"{prefix}head.{key}": as_stored(tensor) for key, tensor in (weights.head or {}).items()
    }


def _published(state: State, info: ModelInfo, spec: str) -> State:
    family = family_of(info.architecture)
    strangers = [key for key in state if not re.fullmatch(PUBLISHED.get(family, ""), key)]
    if strangers:
        raise UserError(
            f"{spec}: DINO was published with plain ViTs, XCiTs and ResNets, and no layout of its "
            f"holds {strangers[0]} ({info.architecture}); export it with --to timm"
        )
    renamed = xcit.to_published(state) if family == "xcit" else state
    return {key: as_stored(tensor) for key, tensor in renamed.items()}


def _epochs_done(run: Run, step: int) -> int:
    """Whole passes over the data, as far as the recipe tells."""
    recipe = read_json(run.path / "recipe.json")
    images, batch = recipe.get("images", 0), recipe.get("batch_size", 0)
    return step // (images // batch) if batch and images >= batch else 0


def _arguments(student: Weights) -> dict[str, Any]:
    """The published flags that say what was built; the others are in the run's recipe."""
    head: dict[str, Tensor] = student.head or {}
    info = student.info
    return {
        "arch": re.sub(r"_patch\d+_\d+$|_\d+$", "", info.architecture),
        "patch_size": info.patch_size,
        "out_dim": head["last_layer.weight_v"].shape[0],
        "use_bn_in_head": any(key.endswith("running_mean") for key in head),
    }
