"""`load_model(spec)`: a frozen backbone by its one spelling, ready to look at images.

    starter                          the small ViT that comes with this package
    runs/NAME  runs/NAME@1000        a run of yours: its teacher, newest checkpoint or step 1000
    runs/NAME:student                its student
    path/weights.safetensors  .pth   any published DINO layout (`:student`, `:teacher` to choose)
    timm:vit_small_patch16_224.dino  any pretrained ViT, XCiT, ResNet or ConvNeXt of timm

Relative paths start at `root`, which is the current folder unless given.
"""

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core.errors import UserError
from dino_core.models import preprocess
from dino_core.models.backbone import Backbone
from dino_core.models.create import create_backbone
from dino_core.models.device import device_of
from dino_core.models.info import ModelInfo
from dino_core.models.pretrained import read_timm
from dino_core.models.weights import Part, Weights, load_strictly, read_weights
from dino_core.rng import torch_seed
from dino_core.runs import Checkpoint, Run

STARTER = Path(__file__).parent / "starter" / "starter.safetensors"
FILE_KINDS = (".safetensors", ".pth", ".pt")

_SPEC = re.compile(r"(?P<path>.+?)(?:@(?P<step>\d+))?(?::(?P<part>student|teacher))?")


class Model:
    """A backbone that will not change any more, with the preprocessing its weights expect."""

    def __init__(self, backbone: Backbone, spec: str, device: torch.device) -> None:
        self.backbone = backbone.to(device).freeze()
        self.info: ModelInfo = backbone.info
        self.spec = spec
        self.device = device

    @cached_property
    def hash(self) -> str:
        """sha256 over the sorted names, shapes and fp32 values of the backbone, in hexadecimal.

        The same on every device, and for weights stored in fewer bits.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.vit.state_dict().items()):
            digest.update(f"{name}:{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def preprocess(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, C] to float32 [C, S, S] at the native size S, on the CPU."""
        return preprocess.preprocess(image, self.info)

    def normalize(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, C] to float32 [C, H, W], size unchanged, on the CPU."""
        return preprocess.normalize(image, self.info)

    def describe(self) -> dict[str, Any]:
        """What an app says about the model; plain JSON values."""
        info, backbone = self.info, self.backbone
        return {
            "spec": self.spec,
            "label": f"{self.spec} ({info.architecture}, patch {info.patch_size})",
            "architecture": info.architecture,
            "parameters": sum(p.numel() for p in backbone.parameters()),
            "embed_dim": backbone.embed_dim,
            "depth": backbone.depth,
            "heads": backbone.num_heads,
            "patch_size": info.patch_size,
            "image_size": info.image_size,
            "registers": backbone.num_prefix_tokens - 1,
            "pos_embed": info.pos_embed,
            "license": info.license or "unknown",
        }

    def __repr__(self) -> str:
        return f"Model({self.spec!r}, {self.info.architecture}, {self.device})"


def load_model(spec: str | Path, *, device: str = "auto", root: str | Path | None = None) -> Model:
    """The model that `spec` names (see the top of this file), frozen, on `device`.

    Raises `UserError` when there is no such model, the file is damaged or not weights, a key or
    shape does not fit, or a pretrained model cannot be had offline. Torch's global random state is
    left as it was.
    """
    target = device_of(device)
    spec = str(spec)
    weights = _read(spec, Path.cwd() if root is None else Path(root))
    return Model(_filled_backbone(weights, spec), spec, target)


def checkpoint_named(spec: str, root: Path) -> tuple[Run, Checkpoint] | None:
    """The checkpoint that `runs/NAME` or `runs/NAME@STEP` names; None for all other spellings.

    Raises `UserError` for a run without that checkpoint.
    """
    path, step, part = _parsed(spec)
    run = Run(root / Path(path).expanduser())
    if part is not None or spec == "starter" or not (run.exists() or run.checkpoints()):
        return None
    return run, run.checkpoint(step)


def untrained(model: Model, seed: int = 0) -> Model:
    """The same architecture with fresh weights of `seed`, on the same device: what chance gives."""
    return Model(_seeded_backbone(model.info, seed), f"{model.spec} (random init)", model.device)


def _filled_backbone(weights: Weights, name: str) -> Backbone:
    """A backbone around the weights, in fp32, without drawing random ones first.

    The tensors are copied: those just read may be windows onto a file that others can change.
    """
    with torch.device("meta"):
        backbone = create_backbone(weights.info)
    if {name for name, _ in backbone.named_buffers()} - backbone.state_dict().keys():
        backbone = _seeded_backbone(weights.info, seed=0)  # rotary tables are in no file
    state = {key: _copied(tensor) for key, tensor in weights.backbone.items()}
    load_strictly(backbone.vit, state, name, assign=True)
    return backbone


def _copied(tensor: Tensor) -> Tensor:
    """In fp32, but for the counters of batch norm."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to("cpu", dtype, copy=True)


def _seeded_backbone(info: ModelInfo, seed: int) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "backbone"))
        return create_backbone(info)


def _read(spec: str, root: Path) -> Weights:
    if spec.startswith("timm:"):
        return read_timm(spec.removeprefix("timm:"))
    path, step, part = _parsed(spec)
    if spec == "starter":
        if not STARTER.is_file():
            raise UserError("starter: its weights are missing from this installation; reinstall it")
        return read_weights(STARTER)
    place = root / Path(path).expanduser()
    run = Run(place)
    if run.exists() or run.checkpoints():
        return read_weights(run.checkpoint(step).path / f"{part or 'teacher'}.safetensors")
    if step is None and place.suffix in FILE_KINDS:
        return read_weights(place, part)
    raise _unknown(spec, place, root)


def _parsed(spec: str) -> tuple[str, int | None, Part | None]:
    """Path, step and part of a spelling."""
    match = _SPEC.fullmatch(spec.strip())
    if not match:
        raise UserError(
            "the model has no name; use starter, runs/NAME, a weights file or timm:NAME"
        )
    part: Part | None = match["part"]  # type: ignore[assignment]  # the pattern allows no other
    return match["path"], None if match["step"] is None else int(match["step"]), part


def _unknown(spec: str, place: Path, root: Path) -> UserError:
    if place.is_dir():
        return UserError(f"{spec}: a folder, but not a run: it has no recipe.json")
    if place.is_file():
        return UserError(f"{spec}: not a weights file; those end in {', '.join(FILE_KINDS)}")
    hint = "use starter, runs/NAME, a weights file or timm:NAME"
    if (root / "runs" / spec).is_dir():
        hint = f"did you mean runs/{spec}?"
    return UserError(f"{spec}: no such model in {root}; {hint}")
