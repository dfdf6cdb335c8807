"""Starting from a model that is there (`init`): its backbone in a recipe, its weights in a student.

A ViT of another image size fits where patch and width agree: its position embedding is resampled,
as the model itself does at that size (published DINO: plain bicubic, see `models/pos_embed.py`).
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from dino_core.errors import UserError
from dino_core.models import ModelInfo, load_model, load_strictly
from dino_core.models.backbone import Backbone
from dino_core.models.vit import VitBackbone
from dino_core.training.recipe import Recipe

LARGEST_CROP = 224  # pixels: the paper's global crop, also for models of larger images
LOCAL = 96 / 224  # of the global crop's side: the paper's


def continued(recipe: Recipe, info: ModelInfo) -> Recipe:
    """`recipe` for going on from a model that `info` describes: its backbone, crops of its size."""
    patch = info.patch_size
    global_size = min(info.image_size, LARGEST_CROP // patch * patch)
    return replace(
        recipe,
        backbone=replace(
            recipe.backbone,
            architecture=info.architecture,
            patch_size=patch,
            image_size=info.image_size,
            channels=info.channels,
            mean=info.mean,
            std=info.std,
        ),
        crops=replace(
            recipe.crops,
            global_size=global_size,
            local_size=-(-round(global_size * LOCAL) // patch) * patch,
        ),
    )


def going_on(
    base: Recipe, flags: Callable[[Recipe], Recipe], tell: Callable[[str], None]
) -> Callable[[Recipe], Recipe]:
    """Where the user named a model to start from, `flags` puts in that model's backbone first."""
    init = flags(base).init
    if init is None or init == base.init:
        return flags
    info = load_model(init, device="cpu").info
    tell(
        f"--init {init}: goes on with its {info.architecture}, patches of {info.patch_size} px, "
        f"images of {info.image_size} px, whatever else is chosen"
    )
    return lambda recipe: flags(continued(recipe, info))


def start_from(backbone: Backbone, spec: str) -> None:
    """Copy a model's backbone weights. One that does not fit is a `UserError` that says why."""
    there = load_model(spec, device="cpu").backbone
    state = there.vit.state_dict()
    if there.info.image_size != backbone.info.image_size and "pos_embed" in state:
        state["pos_embed"] = _resampled(there, backbone, spec)
    load_strictly(backbone.vit, state, spec)


def _resampled(there: Backbone, wanted: Backbone, spec: str) -> torch.Tensor:
    """The model's position embedding at the size of another: [1, N, D]."""
    same = (there.info.patch_size, there.embed_dim) == (wanted.info.patch_size, wanted.embed_dim)
    if not (isinstance(there, VitBackbone) and isinstance(wanted, VitBackbone) and same):
        raise UserError(
            f"{spec}: is a {_described(there)}, and the recipe wants a {_described(wanted)}; only "
            f"the image size may differ: use --architecture {there.info.architecture} "
            f"--patch-size {there.info.patch_size}"
        )
    return there.pos_embed(wanted.vit.patch_embed.grid_size).detach().clone()


def _described(backbone: Backbone) -> str:
    info = backbone.info
    return f"{info.architecture} of width {backbone.embed_dim} with patches of {info.patch_size} px"
