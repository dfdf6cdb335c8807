"""A folder that timm opens: `model.safetensors` under its names, and `config.json`.

    timm.create_model("local-dir:folder", pretrained=True)

The same files uploaded to the Hugging Face hub are a model there.
"""

from pathlib import Path
from typing import Any

from dino_core.errors import UserError
from dino_core.files import whole_folder, write_json
from dino_core.models.create import timm_arguments
from dino_core.models.info import ModelInfo
from dino_core.models.model import Model
from dino_core.models.preprocess import resize_side
from dino_core.models.weights import as_stored, write_tensors


def export_timm(model: Model, folder: Path) -> None:
    """Write `folder`, which must not exist yet.

    timm gives the same features at the native size. At other sizes it resamples position embeddings
    in its own way, which for `pos_embed: dino` is another one (`pos_embed.py`). Raises `UserError`
    when the folder exists or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder}: is already there; choose a new folder")
    state = {key: as_stored(t) for key, t in model.backbone.vit.state_dict().items()}
    with whole_folder(folder) as aside:
        write_tensors(aside / "model.safetensors", state, {"format": "pt"})
        write_json(aside / "config.json", config(model))


def config(model: Model) -> dict[str, Any]:
    """What timm needs to build the network again and to prepare its images, as its hub has it."""
    info = model.info
    return {
        "architecture": info.architecture,
        "num_classes": 0,
        "num_features": model.backbone.embed_dim,
        "global_pool": "token" if info.patch_size > 1 else "avg",
        "model_args": {**timm_arguments(info), **info.options, "in_chans": info.channels},
        "pretrained_cfg": _pretrained(info),
    }


def _pretrained(info: ModelInfo) -> dict[str, Any]:
    """Without names of first layer and classifier: nothing is to be adapted."""
    return {
        "input_size": [info.channels, info.image_size, info.image_size],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": info.image_size / resize_side(info.image_size),
        "crop_mode": "center",
        "mean": list(info.mean),
        "std": list(info.std),
        "num_classes": 0,
        "license": info.license or None,
    }
