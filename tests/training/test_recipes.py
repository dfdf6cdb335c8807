"""Every recipe has the numbers that were published or decided on, written here a second time."""

import dataclasses
import re
from pathlib import Path

import pytest

from dino_core.augment import MultiCrop
from dino_core.errors import UserError
from dino_core.models.create import family_of
from dino_core.training import RECIPES, OptimConfig, QualityConfig, recipes
from dino_core.training.recipes import named

MODULES = Path(recipes.__file__).parent

# batch, peak rate, (global px, local px, locals), K, (first, last teacher temperature, epochs
# between), epochs, images in the data it is for
NUMBERS = {
    "small": (64, 5e-4, (64, 32, 4), 1024, (0.04, 0.04, 0), 20, 3_000),
    "starter": (32, 5e-4, (48, 24, 4), 1024, (0.04, 0.04, 0), 20, 19_469),
    "continue": (128, 5e-5, (224, 96, 8), 1024, (0.04, 0.04, 0), 50, 3_000),
    "photos": (256, 5e-4, (128, 64, 6), 1024, (0.04, 0.04, 0), 300, 3_000),
    "cifar": (1024, 1e-3, (32, 16, 6), 2048, (0.04, 0.04, 0), 200, 50_000),
    "tiny64": (512, 1e-3, (64, 32, 6), 4096, (0.04, 0.04, 0), 200, 100_000),
    "imagenette": (512, 1e-3, (128, 64, 6), 4096, (0.04, 0.04, 0), 300, 9_469),
    "vits16": (512, 1e-3, (224, 96, 8), 65536, (0.04, 0.04, 0), 100, 1_281_167),
    "vits16_boosted": (1024, 2e-3, (224, 96, 8), 65536, (0.04, 0.07, 30), 300, 1_281_167),
    "vits16_released": (1024, 2e-3, (224, 96, 10), 65536, (0.04, 0.07, 30), 800, 1_281_167),
    "vits8": (1024, 2e-3, (224, 96, 10), 65536, (0.04, 0.07, 30), 800, 1_281_167),
    "vitb16": (1024, 3e-3, (224, 96, 10), 65536, (0.04, 0.07, 50), 400, 1_281_167),
    "vitb8": (1056, 2.0625e-3, (224, 96, 10), 65536, (0.03, 0.07, 50), 300, 1_281_167),
    "resnet50": (4080, 4.78125, (224, 96, 6), 60000, (0.04, 0.07, 50), 800, 1_281_167),
    "no_multicrop": (1024, 2e-3, (224, None, 0), 65536, (0.04, 0.07, 30), 300, 1_281_167),
    "xcit_small": (1024, 2e-3, (224, 96, 8), 65536, (0.04, 0.07, 30), 300, 1_281_167),
}

# timm architecture, patch, global scale, local scale, clip, epochs with still prototypes, lowest
# rate, prototypes of norm 1, weight decay from and to
PUBLISHED = {
    "vits16": ("vit_small", 16, (0.4, 1), (0.05, 0.4), 3, 1, 1e-6, True, (0.04, 0.4)),
    "vits16_boosted": ("vit_small", 16, (0.4, 1), (0.05, 0.4), 3, 1, 1e-6, False, (0.04, 0.4)),
    "vits16_released": ("vit_small", 16, (0.25, 1), (0.05, 0.25), 0, 1, 1e-5, False, (0.04, 0.4)),
    "vits8": ("vit_small", 8, (0.4, 1), (0.05, 0.4), 3, 1, 1e-6, False, (0.04, 0.4)),
    "vitb16": ("vit_base", 16, (0.25, 1), (0.05, 0.25), 0.3, 3, 2e-6, True, (0.04, 0.4)),
    "vitb8": ("vit_base", 8, (0.25, 1), (0.05, 0.25), 3, 3, 2e-6, True, (0.04, 0.4)),
    "resnet50": ("resnet50", 1, (0.14, 1), (0.05, 0.14), 0, 1, 0.0048, True, (1e-6, 1e-6)),
    "no_multicrop": ("vit_small", 16, (0.14, 1), None, 0, 1, 1e-5, True, (0.04, 0.4)),
}


def test_every_recipe_is_in_the_table():
    assert NUMBERS.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_a_recipe(name):
    batch, peak, crops, prototypes, temperatures, epochs, images = NUMBERS[name]
    recipe, ours, teacher = RECIPES[name], RECIPES[name].crops, RECIPES[name].teacher
    assert recipe.batch_size == batch
    assert recipe.optim.lr * recipe.batch_size / 256 == pytest.approx(peak)
    locals_ = ours.local_size if ours.local_count else None
    assert (ours.global_size, locals_, ours.local_count) == crops
    assert recipe.head.out_dim == prototypes
    warm_up = teacher.warmup_teacher_temp_epochs
    assert (teacher.warmup_teacher_temp, teacher.teacher_temp, warm_up) == temperatures
    assert recipe.epochs == epochs
    assert (teacher.student_temp, teacher.center_momentum) == (0.1, 0.9)
    recipe.resolved(images - recipe.held_out(images))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rest_of_what_was_published(name):
    architecture, patch, globals_, locals_, clip, frozen, lowest, unit, decay = PUBLISHED[name]
    recipe = RECIPES[name]
    assert recipe.backbone.architecture.startswith(architecture)
    assert recipe.backbone.patch_size == patch
    assert recipe.crops.global_scale == globals_
    assert locals_ in (None, recipe.crops.local_scale)
    optim = recipe.optim
    assert (optim.clip_grad, optim.freeze_last_layer, optim.min_lr) == (clip, frozen, lowest)
    assert (optim.weight_decay, optim.weight_decay_end) == decay
    assert (optim.warmup_epochs, recipe.teacher.momentum) == (10, 0.996)
    assert recipe.head.norm_last_layer is unit
    convolutional = name == "resnet50"
    assert optim.optimizer == ("lars" if convolutional else "adamw")
    assert recipe.head.batch_norm is convolutional
    assert recipe.backbone.drop_path == (0 if convolutional else 0.1)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_built_and_fits_its_images(name):
    backbone, crops = RECIPES[name].backbone, RECIPES[name].crops
    backbone.info()
    family_of(backbone.architecture)
    assert backbone.image_size == (64 if name == "starter" else crops.global_size)
    assert RECIPES[name].batch_size % (RECIPES[name].micro_batch or 1) == 0


def test_continuing_is_gentle():
    recipe = RECIPES["continue"]
    assert recipe.init == "timm:vit_small_patch16_224.dino"
    assert recipe.optim.lr <= RECIPES["vits16"].optim.lr / 5
    assert recipe.teacher.momentum >= 0.996
    assert 0 < recipe.optim.head_warmup_epochs < recipe.epochs
    assert recipe.quality.checks > 0, "the guard compares with the start"


@pytest.mark.parametrize("path", sorted(MODULES.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_recipe_says_its_command_and_what_it_reached(path):
    text, name = path.read_text(), path.stem.rstrip("_")
    opening = text[: text.index('"""\n')]
    assert "scripts/train.py" in opening
    assert name == "small" or f"--recipe {name} " in opening, "its own command"
    told = re.search(r"k-NN|We have not trained it|What it was trained on", opening)
    assert told or name == "small", "a result with its source, or that there is none"
    assert name in RECIPES


@pytest.mark.parametrize("spelled", ["no_multicrop", "no-multicrop", "NO-MultiCrop"])
def test_hyphens_and_underscores(spelled):
    assert named(spelled) is RECIPES["no_multicrop"]


@pytest.mark.parametrize(
    ("spelled", "hint"), [("vits-16", "near: vits16"), ("??", "there are: auto, small")]
)
def test_an_unknown_recipe_is_a_sentence(spelled, hint):
    with pytest.raises(UserError, match=f"no such recipe .*{hint}"):
        named(spelled)


def test_all_conflicts_are_told_at_once():
    recipe = dataclasses.replace(
        RECIPES["vits16"],
        quality=QualityConfig(k=20, hold_out=0.9),
        crops=MultiCrop(global_size=225),
        optim=OptimConfig(warmup_epochs=10),
        steps=5,
    )
    with pytest.raises(UserError) as told:
        recipe.resolved(15)
    for part in ("batch of 512", "--k 20", "--global-size 225", "learning rate warms up"):
        assert part in str(told.value)
    assert "\n" not in str(told.value)


def test_a_head_that_warms_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="lower --head-warmup-epochs"):
        dataclasses.replace(RECIPES["continue"], epochs=9).resolved(1000)
