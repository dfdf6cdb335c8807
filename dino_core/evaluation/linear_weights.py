"""Linear classifiers as files: the published ones of eval_linear, and ours.

Published: a `.pth` (or a safetensors file) with `linear.weight` [C, D] and `linear.bias` [C], as a
rule under `state_dict` and with `module.` before the names. Two layouts exist:

    k * width   class tokens of the last k blocks, the last block's at the end (ViT-S: k = 4)
    2 * width   class token and mean patch token of the last block INTERLEAVED: the published code
                stacks the two on a last axis and flattens, so the columns run
                class 0, mean 0, class 1, mean 1, ... (ViT-B: 1536)

Here columns always lie one part after the other: class tokens by block, then the mean patch token;
the interleaving is undone on reading. Ours are safetensors files that say in their metadata what
the columns are and what the classes are called.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.models import Model, write_tensors
from dino_core.models.published import one_network
from dino_core.models.weights import as_stored, read_safetensors, read_torch_file

WEIGHT, BIAS = "linear.weight", "linear.bias"
SUFFIX = ".safetensors"  # of a file that is not read as torch's
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)*(?:linear\.)?")


@dataclass(frozen=True)
class LinearWeights:
    """A classifier of frozen features, on the CPU."""

    weight_CD: Tensor  # float32; class tokens of `blocks` blocks, then the mean patch token
    bias_C: Tensor  # float32
    blocks: int
    avgpool: bool
    classes: list[str] | None = None  # None: the file does not say
    model_hash: str = ""  # of the model whose features it learned from; "": it does not say


def read_linear_weights(
    path: str | Path, model: Model, *, blocks: int | None = None, avgpool: bool | None = None
) -> LinearWeights:
    """Read a classifier that was made for features of `model`.

    The number of columns tells what they are; twice the width is class and mean patch token, unless
    `blocks=2` (or `avgpool=False`) says otherwise. Raises `UserError` when the file is missing,
    damaged, holds no linear classifier, or does not fit the model or what was asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == SUFFIX:
        content, metadata = read_safetensors(path)
    else:
        content, metadata = read_torch_file(path), {}
    weight_CD, bias_C = _pair(content, str(path))
    if "blocks" in metadata:
        found = _described(weight_CD, bias_C, metadata, str(path))
    else:
        kind = _told_from(weight_CD.shape[1], model, blocks, avgpool, str(path))
        plain_CD = deinterleaved(weight_CD) if kind == (1, True) else weight_CD
        found = LinearWeights(plain_CD, bias_C, *kind)
    _require_fit(found, model, blocks, avgpool, str(path))
    return found


def write_linear_weights(path: str | Path, linear: LinearWeights) -> None:
    """Write a classifier as safetensors, whole or not at all."""
    metadata = {"blocks": str(linear.blocks), "avgpool": str(int(linear.avgpool))}
    metadata |= {"classes": json.dumps(linear.classes), "model_hash": linear.model_hash}
    tensors = {WEIGHT: as_stored(linear.weight_CD), BIAS: as_stored(linear.bias_C)}
    with whole_file(Path(path)) as aside:
        write_tensors(aside, tensors, metadata)


def check_linear_place(path: Path) -> None:
    """Raise `UserError` for a name under which `read_linear_weights` reads another format."""
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: a head is saved as safetensors; let the name end in {SUFFIX}")


def deinterleaved(weight_CD: Tensor) -> Tensor:
    """Columns a0, b0, a1, b1, ... to a0, a1, ..., b0, b1, ..."""
    return torch.cat([weight_CD[:, 0::2], weight_CD[:, 1::2]], dim=1)


def interleaved(x_BD: Tensor) -> Tensor:
    """The published arrangement: a0, a1, ..., b0, b1, ... to a0, b0, a1, b1, ..."""
    first, second = x_BD.chunk(2, dim=1)
    return torch.stack([first, second], dim=2).flatten(1)


def _pair(content: Any, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias, float32, whatever stands before their names."""
    state = {
        _PREFIX.sub("", key): tensor for key, tensor in one_network(content, None, name).items()
    }
    weight, bias = state.get("weight"), state.get("bias")
    if state.keys() != {"weight", "bias"} or weight is None or bias is None:
        held = ", ".join(list(state)[:4])
        raise UserError(
            f"{name}: not a linear classifier, which is linear.weight and linear.bias (it holds "
            f"{held}); give the backbone's weights as the model instead"
        )
    if weight.ndim != 2 or tuple(bias.shape) != tuple(weight.shape[:1]):
        raise UserError(
            f"{name}: weight {_shape(weight)} and bias {_shape(bias)} are no linear classifier; "
            "they have to be classes x features, and classes"
        )
    return weight.float().clone(), bias.float().clone()


def _described(
    weight_CD: Tensor, bias_C: Tensor, metadata: dict[str, str], name: str
) -> LinearWeights:
    try:
        blocks, avgpool = int(metadata["blocks"]), bool(int(metadata["avgpool"]))
        classes = json.loads(metadata["classes"])
        if classes is not None and len(classes) != len(bias_C):
            raise ValueError(f"{len(classes)} names for {len(bias_C)} classes")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{name}: its description cannot be read ({error})") from None
    learned_from = metadata.get("model_hash", "")
    return LinearWeights(weight_CD, bias_C, blocks, avgpool, classes, learned_from)


def _told_from(
    dim: int, model: Model, blocks: int | None, avgpool: bool | None, name: str
) -> tuple[int, bool]:
    """Blocks and average pooling of a published file with `dim` columns."""
    width = model.backbone.embed_dim
    parts, rest = divmod(dim, width)
    deepest = max(1, model.backbone.depth)
    mean = parts == 2 and blocks in (None, 1) and avgpool is not False
    if rest or not parts or (parts > deepest and not mean):
        raise UserError(
            f"{name}: was made for {dim} features, but {model.spec} has {width} in each of "
            f"{deepest} blocks; take the classifier of this model"
        )
    return (1, True) if mean else (parts, False)


def _require_fit(
    found: LinearWeights, model: Model, blocks: int | None, avgpool: bool | None, name: str
) -> None:
    width = model.backbone.embed_dim * (found.blocks + found.avgpool)
    if found.weight_CD.shape[1] != width or not 1 <= found.blocks <= max(1, model.backbone.depth):
        raise UserError(
            f"{name}: was made for {found.weight_CD.shape[1]} features, but {model.spec} has "
            f"{model.backbone.embed_dim} in a block; take the classifier of this model"
        )
    if blocks not in (None, found.blocks) or avgpool not in (None, found.avgpool):
        mean = "with" if found.avgpool else "without"
        raise UserError(
            f"{name}: is a classifier of {found.blocks} blocks {mean} average pooling; leave the "
            "number of blocks and average pooling to the file"
        )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
