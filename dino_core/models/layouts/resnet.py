"""ResNets: torchvision's names, which DINO published its ResNet-50 under, are timm's."""

from typing import Any

from dino_core.errors import UserError
from dino_core.models.info import ModelInfo
from dino_core.models.layouts.keys import State, count, image_norm, require, without

NAMES: dict[tuple[tuple[int, ...], bool], str] = {  # blocks a stage, whether bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
WIDE = {"resnet50": "wide_resnet50_2", "resnet101": "wide_resnet101_2"}
IMAGE_SIZE = 224


def recognizes(state: State) -> bool:
    """By its first stage."""
    return "layer1.0.conv1.weight" in state


def to_timm(state: State, name: str) -> State:
    """The same names; the classifier, if any, is left out."""
    return without(state, "fc.")


def describe(state: State, name: str) -> ModelInfo:
    """The ModelInfo of a ResNet, from the shapes of its weights."""
    require(state, ("conv1.weight", "layer4.0.conv2.weight"), "a ResNet", name)
    counts = tuple(count(state, f"layer{stage}") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    architecture = NAMES.get((counts, bottleneck), "resnet50" if bottleneck else "resnet18")
    options: dict[str, Any] = {} if (counts, bottleneck) in NAMES else {"layers": list(counts)}
    width, per_group = state["layer1.0.conv2.weight"].shape[:2]
    if (width, per_group) == (128, 128) and architecture in WIDE:
        architecture = WIDE[architecture]
    elif (width, per_group) != (64, 64):
        raise UserError(
            f"{name}: a ResNet of another width or with groups, which its weights do not tell "
            "apart; take it from timm, e.g. timm:resnext50_32x4d.a1h_in1k"
        )
    norm = image_norm(state["conv1.weight"].shape[1])
    return ModelInfo(architecture, patch_size=1, image_size=IMAGE_SIZE, options=options, **norm)
