"""Models for other programs: timm's hub folder, the published checkpoints' layout, ONNX."""

from dino_core.models.export.to_dino import export_dino
from dino_core.models.export.to_onnx import Exported, export_onnx
from dino_core.models.export.to_timm import export_timm

__all__ = ["Exported", "export_dino", "export_onnx", "export_timm"]
