"""Weight files: write ours, read ours and every published DINO layout, strictly.

Ours is safetensors: keys `backbone.<published key>` and `head.<published key>`, and a `ModelInfo`
in the metadata, as JSON. Safetensors from elsewhere and `.pth` files have no such description;
their architecture is told from the shapes (`published.py`).
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.models.info import ModelInfo
from dino_core.models.published import infer_info, one_network, split_network, to_timm_layout

Part = Literal["student", "teacher"]
State = dict[str, Tensor]

_LISTED = 8  # keys named in an error before it says how many more there are


@dataclass(frozen=True)
class Weights:
    """One network as read from a file: keys without `backbone.` and `head.`, tensors on the CPU."""

    info: ModelInfo
    backbone: State
    head: State | None


def save_weights(
    path: str | Path,
    info: ModelInfo,
    backbone_state: Mapping[str, Tensor],
    head_state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network as safetensors, whole or not at all; floats as `dtype` if one is given.

    Raises `UserError` when the disk is full or cannot be written.
    """
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone_state.items()}
    tensors |= {f"head.{name}": tensor for name, tensor in (head_state or {}).items()}
    stored = {name: as_stored(tensor, dtype) for name, tensor in tensors.items()}
    with whole_file(Path(path)) as aside:
        write_tensors(aside, stored, info.to_metadata())


def write_tensors(path: Path, tensors: State, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; a full disk, reported in safetensors' own way, is a sentence."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be written ({error})") from None


def read_weights(path: str | Path, part: Part | None = None) -> Weights:
    """Read a `.safetensors`, `.pth` or `.pt` file of any known layout.

    `part` chooses the network of a full checkpoint (the teacher if left out). No code in a file is
    ever run. Raises `UserError`, naming the file, when it is missing, damaged, holds anything but
    weights, lacks `part`, or is in a layout that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        return _published(read_torch_file(path), path, part)
    tensors, metadata = read_safetensors(path)
    if not ModelInfo.described_by(metadata):
        return _published(tensors, path, part)
    if part is not None and part != path.stem:
        raise UserError(f"{path}: holds one network, there is no {part} to choose")
    try:
        info = ModelInfo.from_metadata(metadata)
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: its description of the model cannot be read ({error})") from None
    backbone, head = split_network(tensors, str(path))
    return Weights(info, backbone, head)


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], name: str, *, assign: bool = False
) -> None:
    """Copy `state` into `module`; keys or shapes that do not fit are a `UserError` listing them.

    With `assign` the tensors become the parameters, which a module without memory (meta) needs.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in state.items()}
    shapes = [
        f"{key} is {_shape(given[key])} instead of {_shape(wanted[key])}"
        for key in wanted
        if key in given and given[key] != wanted[key]
    ]
    problems = [
        _listed("missing", (key for key in wanted if key not in given)),
        _listed("unknown", (key for key in given if key not in wanted)),
        _listed("of another shape", shapes),
    ]
    if any(problems):
        raise UserError(f"{name}: the weights do not fit: {'; '.join(filter(None, problems))}")
    module.load_state_dict(dict(state), assign=assign)


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """All tensors and the metadata of a safetensors file, or a `UserError`."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from None


def read_torch_file(path: Path) -> Any:
    """What a `.pth` file holds, through torch's weights-only reader: tensors and plain values.

    Published checkpoints keep their command line (`argparse.Namespace`) and learning rates (numpy
    scalars); these types, which are data, are allowed here and nowhere else. A `UserError` names
    whatever else a file asks for.
    """
    try:
        with torch.serialization.safe_globals(_plain_types()):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class) (\S+)", str(error))
        if asked:
            what = next(filter(None, asked.groups()))
            raise UserError(
                f"{path}: refused, it asks to run or build {what}, which is not weights; "
                "save only the state dict, or better a safetensors file"
            ) from None
        raise _not_torch(path) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError):
        raise _not_torch(path) from None


def _published(content: Any, path: Path, part: Part | None) -> Weights:
    name = str(path)
    backbone, head = split_network(one_network(content, part, name), name)
    backbone = to_timm_layout(backbone, name)
    return Weights(infer_info(backbone, name), backbone, head)


def _plain_types() -> list[Any]:
    """What the reader may build besides tensors; the tuples give the names used in old files."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    return [argparse.Namespace, np.dtype, *kinds, *((scalar, name) for name in names)]


def _not_torch(path: Path) -> UserError:
    return UserError(f"{path}: not a whole torch weights file; copy or download it again")


def as_stored(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """On the CPU, contiguous, sharing memory with no other (safetensors refuses shared memory)."""
    target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", target, copy=True).contiguous()


def _listed(what: str, items: Iterable[str]) -> str:
    found = list(items)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{what}: {', '.join(found[:_LISTED])}{more}" if found else ""


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
