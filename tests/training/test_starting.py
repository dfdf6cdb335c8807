"""Starting from a model that is there: of the same size, of another, and of another kind."""

import dataclasses

import pytest
import torch

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.models import load_model
from dino_core.models.info import ModelInfo
from dino_core.runs import Run
from dino_core.training import RECIPES, OptimConfig, Recipe, planned, train
from dino_core.training.starting import continued
from dino_core.training.state import create_state


@pytest.fixture(scope="module")
def trained(pictures, tiny, tmp_path_factory) -> Run:
    recipe = dataclasses.replace(tiny, steps=1, optim=OptimConfig(warmup_epochs=0))
    return train(recipe, open_source(pictures), Run(tmp_path_factory.mktemp("init") / "run"))


def at(tiny: Recipe, init: Run, **backbone: object) -> Recipe:
    changed = dataclasses.replace(tiny.backbone, **backbone)
    return dataclasses.replace(tiny, backbone=changed, init=str(init.path))


@pytest.mark.parametrize("size", [32, 64, 16])
def test_a_start_at_any_size_sees_what_the_model_sees_there(size, tiny, trained):
    """The same features at the new native size, where the model itself resamples as published."""
    state = create_state(at(tiny, trained, image_size=size), torch.device("cpu"))
    model = load_model(str(trained.path), device="cpu")
    images_BCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours_BD = state.teacher.backbone(images_BCHW)
        theirs_BD = model.backbone(images_BCHW)
    torch.testing.assert_close(ours_BD, theirs_BD, rtol=0, atol=1e-6)


def test_a_run_starts_from_a_model_of_another_size(pictures, tiny, trained, tmp_path):
    run = train(at(tiny, trained, image_size=64), open_source(pictures), Run(tmp_path / "run"))
    assert run.status()["state"] == "finished"


@pytest.mark.parametrize("backbone", [{"patch_size": 16}, {"architecture": "vit_tiny_patch16_224"}])
def test_another_patch_or_width_is_one_sentence(backbone, tiny, trained):
    recipe = at(tiny, trained, image_size=64, **backbone)
    with pytest.raises(UserError, match="only the image size may differ: use --architecture test"):
        create_state(recipe, torch.device("cpu"))


@pytest.mark.parametrize(
    ("native", "patch", "crops"),
    [(224, 16, (224, 96)), (64, 8, (64, 32)), (518, 14, (224, 98)), (32, 8, (32, 16))],
)
def test_crops_follow_the_model_in_whole_patches(native, patch, crops):
    recipe = continued(RECIPES["continue"], ModelInfo("vit_small_patch16_224", patch, native))
    assert (recipe.crops.global_size, recipe.crops.local_size) == crops
    assert (recipe.backbone.patch_size, recipe.backbone.image_size) == (patch, native)


@pytest.mark.parametrize("name", ["continue", "auto"])
def test_a_plan_takes_the_backbone_of_the_model_that_the_user_names(name, pictures, trained):
    said: list[str] = []

    def flags(recipe: Recipe) -> Recipe:
        optim = dataclasses.replace(recipe.optim, lr=0.125)
        return dataclasses.replace(recipe, init=str(trained.path), device="cpu", optim=optim)

    recipe = planned(name, open_source(pictures), flags=flags, tell=said.append)
    assert (recipe.backbone.architecture, recipe.backbone.image_size) == ("test_vit", 32)
    assert recipe.crops.global_size == 32
    assert recipe.optim.lr == 0.125  # a flag has the last word
    assert any("goes on with its test_vit" in sentence for sentence in said)


def test_without_a_model_named_a_recipe_keeps_its_own(pictures):
    ours, theirs = planned("continue", open_source(pictures)), RECIPES["continue"]
    assert (ours.backbone, ours.crops, ours.init) == (theirs.backbone, theirs.crops, theirs.init)


def test_the_head_alone_warms_up_in_a_fifth_of_a_short_run():
    from dino_core.training.auto import fit_to_time

    recipe = fit_to_time(RECIPES["continue"], 9_469, 600.0, 10.0).recipe
    epochs = recipe.steps / recipe.steps_per_epoch(9_469 - recipe.held_out(9_469))
    assert recipe.optim.head_warmup_epochs == pytest.approx(epochs / 5)
    assert OptimConfig().head_warmup_epochs == 0
