"""A fresh state is what its recipe says."""

from dataclasses import replace

import pytest
import torch

from dino_core.data import open_source
from dino_core.runs import Run
from dino_core.training import train
from dino_core.training.network import create_student
from dino_core.training.state import create_state, without_effect
from dino_core.training.step import Schedules, train_step

CPU = torch.device("cpu")


@pytest.mark.parametrize(("residual", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_student_and_teacher_keep_the_stream_that_was_asked_for(tiny, residual, dtype):
    state = create_state(replace(tiny, residual=residual), CPU)
    assert state.student.residual == state.teacher.residual == dtype


@pytest.mark.parametrize(("wish", "compiled"), [("off", False), ("auto", False), ("on", True)])
def test_blocks_run_compiled_where_that_was_asked_for(tiny, wish, compiled):
    """By itself a CPU does not: it gains little, and needs a C++ compiler."""
    state = create_state(replace(tiny, compile=wish), CPU)
    assert state.student.compiled == state.teacher.compiled == compiled


def test_a_half_precision_stream_changes_the_loss_a_little(tiny):
    size = tiny.crops.global_size
    views = torch.randn(2 * tiny.batch_size, 3, size, size, generator=torch.manual_seed(0))
    losses = {}
    for residual in ("fp32", "bf16"):
        recipe = replace(tiny, residual=residual, precision="bf16", steps=10)
        state, schedules = create_state(recipe, CPU), Schedules(recipe, steps_per_epoch=5)
        losses[residual] = float(train_step(state, [[views]], schedules.settings(0)).loss)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


@pytest.mark.parametrize(
    ("architecture", "settings", "said"),
    [
        ("test_vit", {"residual": "bf16", "precision": "bf16", "compile": "on"}, []),
        ("test_vit", {"residual": "bf16"}, ["--residual bf16 changes nothing at --precision fp32"]),
        ("resnet18", {}, []),
        (
            "resnet18",
            {"residual": "bf16", "precision": "bf16", "compile": "on"},
            ["--residual bf16 changes nothing: resnet18", "--compile on changes nothing: resnet18"],
        ),
    ],
)
def test_settings_without_effect_are_named(tiny, architecture, settings, said):
    recipe = replace(tiny, backbone=replace(tiny.backbone, architecture=architecture), **settings)
    student = create_student(recipe.backbone, recipe.head)
    found = without_effect(recipe, student)
    assert [sentence[: len(start)] for sentence, start in zip(found, said, strict=True)] == said


def test_a_run_says_what_has_no_effect(pictures, tiny, tmp_path):
    run = train(replace(tiny, residual="bf16", steps=4), open_source(pictures), Run(tmp_path / "r"))
    assert "--residual bf16 changes nothing" in (run.path / "log.txt").read_text()
