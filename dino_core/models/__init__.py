"""Backbones, the projection head, and every weight layout that DINO was published in."""

from dino_core.models.backbone import Backbone
from dino_core.models.create import create_backbone, has_patches
from dino_core.models.device import device_of
from dino_core.models.head import ProjectionHead
from dino_core.models.info import ModelInfo
from dino_core.models.model import Model, load_model, untrained
from dino_core.models.weights import (
    Weights,
    load_strictly,
    read_weights,
    save_weights,
    write_tensors,
)

__all__ = [
    "Backbone",
    "Model",
    "ModelInfo",
    "ProjectionHead",
    "Weights",
    "create_backbone",
    "device_of",
    "has_patches",
    "load_model",
    "load_strictly",
    "read_weights",
    "save_weights",
    "untrained",
    "write_tensors",
]
