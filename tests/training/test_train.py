"""Whole runs, small enough for two cores: they learn, resume exactly, and refuse in sentences."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dino_core.augment import MultiCrop
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.files import held
from dino_core.models import load_model
from dino_core.runs import Run
from dino_core.training import (
    RECIPES,
    BackboneConfig,
    HeadConfig,
    OptimConfig,
    QualityConfig,
    Recipe,
    train,
)
from scripts import train as train_script

REPOSITORY = Path(__file__).resolve().parents[2]

TINY = Recipe(
    backbone=BackboneConfig("test_vit", patch_size=8, image_size=32, drop_path=0.1),
    crops=MultiCrop(global_size=32, local_size=16, local_count=2),
    head=HeadConfig(out_dim=64, hidden_dim=64, bottleneck_dim=32),
    optim=OptimConfig(lr=0.01, warmup_epochs=0.5, freeze_last_layer=0.5),
    quality=QualityConfig(checks=0),
    steps=4,
    batch_size=4,
    precision="fp32",
    device="cpu",
    threads=1,
    workers=0,
    save_every=2,
    log_every=1,
)


@pytest.fixture(scope="module")
def source():
    return open_source("scenes:24")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> Run:
    """Four steps without interruption."""
    return train(TINY, source, Run(tmp_path_factory.mktemp("runs") / "whole"))


def weights(run: Run, step: int | None = None) -> dict[str, torch.Tensor]:
    folder = run.checkpoint(step).path
    files = ("student", "teacher", "optimizer")
    return {f"{f}.{k}": v for f in files for k, v in load_file(folder / f"{f}.safetensors").items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def test_a_run_leaves_what_the_design_says(whole):
    assert [c.step for c in whole.checkpoints()] == [2, 4]
    assert whole.status()["state"] == "finished"
    rows = whole.metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["lr"] == 0  # the published schedule starts at exactly 0
    assert all(math.isfinite(row["loss"]) for row in rows)
    recipe = whole.recipe()
    assert recipe["threads"] == 1
    assert recipe["versions"]["torch"] == torch.__version__
    assert recipe["data"] == "scenes:24"


def test_its_checkpoints_load_as_models(whole, source):
    teacher = load_model(str(whole.path))
    early = load_model(f"{whole.path}@2")
    student = load_model(f"{whole.path}:student")
    assert len({teacher.hash, early.hash, student.hash}) == 3
    features = teacher.backbone(teacher.preprocess(source.image(0))[None])
    assert features.shape == (1, 64)


def test_resumed_is_bit_identical(whole, source, tmp_path):
    run = Run(tmp_path / "resumed")
    _train_until(run, source, step=2)
    train(TINY, source, run, resume=True)
    assert_same(weights(run), weights(whole))
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3]


def _train_until(run: Run, source, step: int) -> None:
    """Train and ask to stop once `step` is saved, as `touch stop` would."""
    run.path.mkdir(parents=True)

    class Stopping(Run):
        def stop_requested(self) -> bool:
            return bool(self.checkpoints()) and self.checkpoints()[-1].step >= step

    train(TINY, source, Stopping(run.path))
    assert run.checkpoint().step == step
    assert run.status()["state"] == "stopped"


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_the_result(workers, whole, source, tmp_path):
    run = train(dataclasses.replace(TINY, workers=workers), source, Run(tmp_path / "workers"))
    assert_same(weights(run), weights(whole))


def test_resume_starts_when_there_is_nothing_to_resume(source, tmp_path):
    run = train(dataclasses.replace(TINY, steps=3), source, Run(tmp_path / "new"), resume=True)
    assert run.checkpoint().step == 3


def test_an_existing_run_is_not_overwritten(whole, source):
    with pytest.raises(UserError, match="a run is already there; add --resume"):
        train(TINY, source, whole)


def test_accumulation_and_bf16_run(source, tmp_path):
    recipe = dataclasses.replace(TINY, batch_size=8, micro_batch=4, precision="bf16", steps=2)
    run = train(recipe, source, Run(tmp_path / "accumulated"))
    assert math.isfinite(run.metrics()[-1]["loss"])


def test_a_run_starts_from_another_model(whole, source, tmp_path):
    one_step_at_rate_0 = OptimConfig(warmup_epochs=1 / 6)
    recipe = dataclasses.replace(TINY, init=str(whole.path), steps=1, optim=one_step_at_rate_0)
    run = train(recipe, source, Run(tmp_path / "continued"))
    start, theirs = load_model(f"{run.path}:student"), load_model(str(whole.path))
    assert start.hash == theirs.hash


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 25}, "batch of 25 is larger than the data"),
        ({"crops": MultiCrop(global_size=30)}, "--global-size 30 is not a multiple"),
        ({"optim": OptimConfig(warmup_epochs=10)}, "use --warmup-epochs"),
        ({"steps": None, "epochs": 0}, "no steps"),
        ({"device": "cuda:99"}, "cuda"),
    ],
)
def test_settings_that_cannot_work_are_sentences(source, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        train(dataclasses.replace(TINY, **change), source, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["batch_size", "micro_batch", "save_every", "log_every"])
def test_counts_below_one_are_sentences(source, tmp_path, field):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} 0: must be 1 or more"):
        train(dataclasses.replace(TINY, **{field: 0}), source, Run(tmp_path / "run"))


def copy_of(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.path, folder / "copy"))


def test_a_damaged_newest_checkpoint_is_named_and_made_again(whole, source, tmp_path, capsys):
    run = copy_of(whole, tmp_path)
    (run.checkpoint(4).path / "teacher.safetensors").unlink()
    train(TINY, source, run, resume=True)
    said = capsys.readouterr().err
    assert "step-00000004 is incomplete (teacher.safetensors missing); using step-00000002" in said
    assert_same(weights(run), weights(whole))


def test_resuming_on_other_data_is_refused(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    with pytest.raises(UserError, match=r"started on 24 images .* has 20"):
        train(TINY, open_source("scenes:20"), run, resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_cleanly(whole, source, tmp_path):
    run = copy_of(whole, tmp_path)
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "stop").touch()
    train(TINY, source, run, resume=True)
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3]
    assert_same(weights(run), weights(whole))


def test_a_second_trainer_is_refused(whole, source, tmp_path):
    run = copy_of(whole, tmp_path)
    with (
        held(run.path / ".training.lock", "taken"),
        pytest.raises(UserError, match="trained by another process"),
    ):
        train(TINY, source, run, resume=True)


def test_a_model_to_start_from_is_not_needed_again(whole, source, tmp_path):
    start = copy_of(whole, tmp_path)
    run = Run(tmp_path / "continued")
    recipe = dataclasses.replace(TINY, init=str(start.path))
    train(recipe, source, run)
    shutil.rmtree(start.path)
    shutil.rmtree(run.checkpoint(4).path)
    train(recipe, source, run, resume=True)
    assert run.checkpoint().step == 4


def test_a_full_disk_keeps_the_last_checkpoint(source, tmp_path, monkeypatch):
    run = Run(tmp_path / "run")

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    class Filling(Run):
        def checkpoint_path(self, step: int) -> Path:
            if step == 4:
                monkeypatch.setattr("dino_core.models.weights.save_file", full)
            return super().checkpoint_path(step)

    with pytest.raises(UserError, match="the disk is full"):
        train(TINY, source, Filling(run.path))
    assert run.checkpoint().step == 2
    assert run.status()["state"] == "failed"
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_broken_images_ends_in_one_sentence(tmp_path, workers):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    recipe = dataclasses.replace(TINY, workers=workers)
    with pytest.raises(UserError, match="can be read") as caught:
        train(recipe, open_source(tmp_path), Run(tmp_path / "run"))
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_some_broken_images_are_replaced_and_reported(source, tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(source.read(i))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    recipe = dataclasses.replace(TINY, optim=OptimConfig(warmup_epochs=1))
    run = train(recipe, open_source(tmp_path), Run(tmp_path / "run"))
    report = (run.path / "quarantine.jsonl").read_text()
    assert json.loads(report)["id"] == "bad.jpg"
    assert "1 image was left out" in (run.path / "warnings.jsonl").read_text()


def test_recipes_survive_json():
    for recipe in RECIPES.values():
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_the_paper_recipe_is_the_papers():
    recipe = RECIPES["vits16"]
    assert recipe.batch_size == 512
    assert recipe.optim.lr * recipe.batch_size / 256 == 0.001
    assert (recipe.head.out_dim, recipe.crops.views, recipe.epochs) == (65536, 10, 100)


def test_ctrl_c_saves_and_resume_finishes(tmp_path, monkeypatch, capsys):
    """The command itself: interrupted in the middle, it saves, and --resume ends the run. Only what
    is interrupted needs a process of its own."""
    out, script = tmp_path / "runs" / "interrupted", REPOSITORY / "scripts" / "train.py"
    arguments = (
        "--data scenes:24 --out OUT --recipe small --steps 50000 --batch-size 4 --global-size 32 "
        "--local-size 16 --local-count 2 --architecture test_vit --image-size 32 --out-dim 64 "
        "--hidden-dim 64 --workers 0 --threads 1 --log-every 1 --device cpu"
    )
    words = [str(script), *arguments.replace("OUT", str(out)).split()]
    command = [sys.executable, *words]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/", env=os.environ)
    run = Run(out)
    deadline = time.monotonic() + 120
    while len(run.metrics()) < 3 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert run.status()["state"] == "stopped"
    stopped = run.checkpoint().step
    assert 3 <= stopped < 50_000

    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as refused:
        train_script.main()
    assert refused.value.code == 2
    assert "add --resume" in capsys.readouterr().err

    (out / "recipe.json").write_text(json.dumps({**run.recipe(), "steps": stopped + 2}))
    monkeypatch.setattr(sys, "argv", [*words, "--resume"])
    train_script.main()
    assert run.status()["state"] == "finished"
    assert [row["step"] for row in run.metrics()] == list(range(stopped + 2))
