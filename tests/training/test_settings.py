"""The recipe setting by setting: names, kinds, explanations, and what may be typed."""

from dataclasses import asdict, fields, is_dataclass

import pytest

from dino_core.errors import UserError
from dino_core.training.recipe import OptimConfig, Recipe
from dino_core.training.recipes import RECIPES
from dino_core.training.settings import changed, settings


def leaves(value, prefix=""):
    for one in fields(value):
        inner = getattr(value, one.name)
        yield from (
            leaves(inner, f"{prefix}{one.name}.")
            if is_dataclass(inner)
            else [(f"{prefix}{one.name}", inner)]
        )


def test_every_field_is_a_setting_and_nothing_else():
    found = {setting.name: setting.value for setting in settings(Recipe())}
    assert found == dict(leaves(Recipe()))


def test_kinds_choices_and_explanations_are_those_of_the_fields():
    of = {setting.name: setting for setting in settings(Recipe())}
    assert (of["optim.lr"].kind, of["optim.lr"].spelled()) == ("number", "0.0005")
    assert "per 256 images" in of["optim.lr"].help and of["optim.lr"].group == "optim"
    assert (of["steps"].kind, of["steps"].optional, of["steps"].spelled()) == ("whole", True, "")
    assert of["precision"].choices == ("fp32", "bf16", "fp16")
    assert (of["crops.global_scale"].kind, of["crops.global_scale"].spelled()) == (
        "numbers", "0.4, 1",
    )  # fmt: skip
    assert of["head.batch_norm"].kind == "flag"


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_spelled_is_read_as_it_was(name):
    recipe = RECIPES[name]
    spelled = {setting.name: setting.spelled() for setting in settings(recipe)}
    assert changed(recipe, spelled) == recipe
    assert changed(Recipe(), spelled) == recipe


def test_only_what_is_named_changes():
    recipe = changed(Recipe(), {"optim.lr": "1e-3", "batch_size": 64, "steps": "", "seed": "7.0"})
    before, after = asdict(Recipe()), asdict(recipe)
    assert recipe.optim == OptimConfig(lr=1e-3) and recipe.batch_size == 64 and recipe.seed == 7
    del before["optim"], after["optim"]
    assert {name for name in before if before[name] != after[name]} == {"batch_size", "seed"}


@pytest.mark.parametrize(
    ("name", "typed", "sentence"),
    [
        ("optim.speed", "1", "optim.speed: the recipe has no such setting"),
        ("optim", "1", "optim: the recipe has no such setting"),
        ("optim.lr", "fast", "optim.lr is 'fast'; it has to be a number"),
        ("optim.lr", "nan", "a finite number"),
        ("batch_size", "2.5", "batch_size is '2.5'; it has to be a whole number"),
        ("batch_size", "", "a number"),
        ("precision", "int8", "one of fp32, bf16, fp16"),
        ("head.batch_norm", "perhaps", "yes or no"),
        ("crops.global_scale", "0.4", "2 numbers, e.g. 0.4, 1"),
        ("crops.global_scale", "a, b", "numbers with commas between"),
    ],
)
def test_what_cannot_be_is_a_sentence(name, typed, sentence):
    with pytest.raises(UserError) as error:
        changed(Recipe(), {name: typed})
    assert sentence in str(error.value)
