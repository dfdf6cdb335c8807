"""Numbers to TensorBoard and Weights & Biases: only when asked, with the packages played here."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.runs import Run
from dino_core.training import QualityConfig, train


@pytest.fixture
def board(monkeypatch) -> list[tuple]:
    """What is written to a TensorBoard: (name, value, step)."""
    written: list[tuple] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append(("opened", folder, purge_step))

        def add_scalar(self, *scalar: object) -> None:
            written.append(scalar)

        def close(self) -> None:
            written.append(("closed",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return written


def test_tensorboard_gets_what_the_file_gets(board, pictures, tiny, tmp_path):
    recipe = dataclasses.replace(tiny, steps=4, quality=QualityConfig(checks=1, hold_out=0.25))
    run = train(recipe, open_source(pictures), Run(tmp_path / "run"), tensorboard=True)
    assert board[0] == ("opened", str(run.path / "tensorboard"), 0)
    assert board[-1] == ("closed",)
    sent = {(name, step): value for name, value, step in board[1:-1]}
    for row in run.metrics():
        for name in ("loss", "teacher_entropy", "knn"):
            if name in row:
                assert sent[name, row["step"]] == pytest.approx(row[name], rel=1e-5)
    assert ("knn", 3) in sent


def test_weights_and_biases_gets_it_when_asked(monkeypatch, pictures, tiny, tmp_path):
    logged, asked = [], {}
    session = SimpleNamespace(
        log=lambda numbers, step: logged.append((step, numbers)),
        finish=lambda: logged.append("end"),
    )
    module = ModuleType("wandb")
    module.init = lambda **settings: asked.update(settings) or session
    monkeypatch.setitem(sys.modules, "wandb", module)
    recipe = dataclasses.replace(tiny, steps=4)
    train(recipe, open_source(pictures), Run(tmp_path / "mine"), wandb="project")
    assert asked["project"] == "project" and asked["name"] == "mine"
    assert asked["config"]["batch_size"] == recipe.batch_size
    assert [entry[0] for entry in logged[:-1]] == [0, 1, 2, 3] and logged[-1] == "end"


@pytest.mark.parametrize(
    ("flags", "package"), [({"tensorboard": True}, "tensorboard"), ({"wandb": "x"}, "wandb")]
)
def test_a_missing_package_is_a_sentence(flags, package, monkeypatch, pictures, tiny, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        train(tiny, open_source(pictures), Run(tmp_path / "run"), **flags)
