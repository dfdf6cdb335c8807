"""ConvNeXt as published (also DINOv3's, which are distilled ones), and as timm has it."""

import re
from typing import Any

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo
from dino_core.models.layouts.keys import State, count, image_norm, renamed, require, without

NAMES: dict[tuple[int, tuple[int, ...]], str] = {  # width of the first stage, blocks a stage
    (96, (3, 3, 9, 3)): "convnext_tiny",
    (96, (3, 3, 27, 3)): "convnext_small",
    (128, (3, 3, 27, 3)): "convnext_base",
    (192, (3, 3, 27, 3)): "convnext_large",
    (256, (3, 3, 27, 3)): "convnext_xlarge",
}
IMAGE_SIZE = 224

_BLOCK = re.compile(r"^stages\.(\d)\.(?=\d+\.)")
_DOWN = re.compile(r"^downsample_layers\.(?=[1-3]\.)")


def recognizes(state: State) -> bool:
    """By its first block, in either layout."""
    firsts = {"stages.0.0.dwconv.weight", "stages.0.blocks.0.conv_dw.weight"}
    return not firsts.isdisjoint(state)


def to_timm(state: State, name: str) -> State:
    """The published names as timm has them; the classifier, if any, is left out."""
    if "downsample_layers.0.0.weight" not in state:
        return without(state, "head.fc.")
    result = {}
    for key, tensor in without(state, "head.", "norms.").items():  # DINOv3 names its norm twice
        key = _BLOCK.sub(r"stages.\1.blocks.", key.replace("downsample_layers.0.", "stem."))
        if _DOWN.match(key):
            _, stage, rest = key.split(".", 2)
            key = f"stages.{stage}.downsample.{rest}"
        result[f"head.{key}" if key.startswith("norm.") else key] = tensor
    return renamed(result, (("dwconv", "conv_dw"), ("pwconv", "mlp.fc")))


def describe(state: State, name: str) -> ModelInfo:
    """The ModelInfo of a ConvNeXt, from the shapes of its weights."""
    require(state, ("stem.0.weight", "head.norm.weight"), "a ConvNeXt", name)
    width, channels = state["stem.0.weight"].shape[:2]
    counts = tuple(count(state, f"stages.{stage}.blocks") for stage in range(4))
    dims = tuple(state[f"stages.{i}.blocks.0.norm.weight"].shape[0] for i in range(4))
    if any(".grn." in key for key in state):
        raise UserError(f"{name}: ConvNeXt V2 is not read from published files; take it from timm")
    options: dict[str, Any] = {}
    if dims != tuple(width * 2**stage for stage in range(4)):
        options["dims"] = list(dims)
    architecture = NAMES.get((width, counts))
    if architecture is None:
        architecture, options = "convnext_tiny", {"depths": list(counts), "dims": list(dims)}
    norm = image_norm(channels)
    return ModelInfo(architecture, patch_size=1, image_size=IMAGE_SIZE, options=options, **norm)
