"""Exact resume: whatever ended a run, it goes on as if nothing had happened."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.rng import generator
from dino_core.runs import Run
from dino_core.training import QualityConfig, Recipe, train
from dino_core.training.stopping import Stop, stop_signals

REPOSITORY = Path(__file__).resolve().parents[2]

ON_AND_ON = """
import json, sys
from dino_core.data import open_source
from dino_core.runs import Run
from dino_core.training import Recipe, train
recipe = Recipe.from_json(json.loads(sys.argv[1]))
train(recipe, open_source(sys.argv[2]), Run(sys.argv[3]), resume=True)
"""


def timeless(run: Run) -> list[dict[str, float]]:
    """What it logged, but for its speed."""
    return [{**row, "images_per_second": 0} for row in run.metrics()]


def start(recipe: Recipe, data: Path, run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", ON_AND_ON, json.dumps(recipe.to_json()), str(data), str(run)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.soak
@pytest.mark.parametrize(("precision", "workers", "kills"), [("fp32", 1, 20), ("bf16", 0, 5)])
def test_killed_at_random_moments(precision, workers, kills, pictures, tiny, tmp_path, assert_same):
    """SIGKILL in the middle of anything: importing, a step, a check, a save."""
    recipe = dataclasses.replace(
        tiny,
        precision=precision,
        workers=workers,
        steps=40 * kills,
        save_every=3,
        quality=QualityConfig(checks=8, hold_out=0.25, probes=1),
    )
    whole = train(recipe, open_source(pictures), Run(tmp_path / "whole"))
    killed = Run(tmp_path / "killed")
    moments = random.Random(precision)
    done = 0
    while done < kills:
        process = start(recipe, pictures, killed.path)
        time.sleep(moments.uniform(2.5, 6.5))
        process.send_signal(signal.SIGKILL)
        ended = process.wait(timeout=60)
        done += ended == -signal.SIGKILL
        assert ended in (0, -signal.SIGKILL)
        if ended == 0:
            break
    assert start(recipe, pictures, killed.path).wait(timeout=600) == 0
    assert_same(killed, whole)
    assert timeless(killed) == timeless(whole)
    assert not list(killed.path.rglob("*.tmp"))  # what a kill in the middle of a save left
    assert done >= kills / 2  # else the run was too short to say anything


def test_a_truncated_checkpoint_is_left_for_the_one_before(
    pictures, tiny, tmp_path, capsys, assert_same
):
    source = open_source(pictures)
    whole = train(tiny, source, Run(tmp_path / "whole"))
    run = Run(tmp_path / "run")
    train(tiny, source, run, max_seconds=1e-9)
    while run.checkpoint().step < 6:
        train(tiny, source, run, resume=True, max_seconds=1e-9)
    broken = run.checkpoint().path / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1000])
    capsys.readouterr()
    train(tiny, source, run, resume=True)
    said = capsys.readouterr().err
    assert "step-00000006: damaged" in said
    assert "goes on at step 5" in said
    assert_same(run, whole)


def test_when_all_are_damaged_it_says_so_and_deletes_nothing(pictures, tiny, tmp_path):
    run = train(tiny, open_source(pictures), Run(tmp_path / "run"))
    for checkpoint in run.checkpoints():
        (checkpoint.path / "student.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        train(tiny, open_source(pictures), run, resume=True)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [4, 8, 12]


def test_a_disk_that_is_full_for_a_while(pictures, tiny, tmp_path, monkeypatch, assert_same):
    """The save at step 8 fails; the run ends in a sentence, and goes on from step 4 exactly."""
    source = open_source(pictures)
    whole = train(tiny, source, Run(tmp_path / "whole"))
    from dino_core.training import checkpoint

    write = checkpoint.write_tensors

    def full(path: Path, *rest: object) -> None:
        if "step-00000008" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *rest)

    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(UserError, match="the disk is full"):
            train(tiny, source, run)
    assert [found.step for found in run.checkpoints()] == [4]
    assert run.status()["state"] == "failed"
    train(tiny, source, run, resume=True)
    assert_same(run, whole)


def test_other_circumstances_are_told(pictures, tiny, tmp_path, capsys):
    source, run = open_source(pictures), Run(tmp_path / "run")
    train(tiny, source, run, max_seconds=1e-9)
    recipe = run.recipe()
    recipe["versions"]["torch"] = "1.13.1"
    (run.path / "recipe.json").write_text(json.dumps(recipe))
    capsys.readouterr()
    train(tiny, source, run, resume=True)
    said = capsys.readouterr().err
    assert "not bit for bit as it would have: torch 1.13.1 then" in said


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_its_recipe(
    pictures, tiny, tmp_path, assert_same
):
    source = open_source(pictures)
    whole = train(tiny, source, Run(tmp_path / "whole"))
    run = Run(tmp_path / "run")
    train(tiny, source, run, max_seconds=1e-9)
    shutil.rmtree(run.path / "checkpoints")
    other = dataclasses.replace(tiny, seed=7, batch_size=4)
    train(other, source, run, resume=True)
    assert run.recipe()["seed"] == tiny.seed
    assert_same(run, whole)


def test_as_many_images_of_other_names_are_refused(pictures, tiny, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(pictures, folder)
    run = train(tiny, open_source(folder), Run(tmp_path / "run"))
    first = next(folder.rglob("*.png"))
    first.rename(first.with_name("another.png"))
    with pytest.raises(UserError, match="other names than before"):
        train(tiny, open_source(folder), run, resume=True)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels_from_start_to_resume(channels, tiny, tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for i in range(64):
        pixels = generator(0, "tests", "channels", i).integers(0, 256, (48, 40, channels))
        np.save(folder / f"{i:02d}.npy", pixels.astype(np.uint8))
    statistics = {"mean": (0.5,) * channels, "std": (0.2,) * channels}
    backbone = dataclasses.replace(tiny.backbone, channels=channels, **statistics)
    quality = QualityConfig(checks=1, hold_out=0.25, probes=1)
    recipe = dataclasses.replace(tiny, backbone=backbone, quality=quality, steps=6)
    source = open_source(folder, channels=channels)
    run = Run(tmp_path / "run")
    train(recipe, source, run, max_seconds=1e-9)
    assert run.channels() == channels
    train(recipe, source, run, resume=True)
    assert run.status()["state"] == "finished"
    assert (run.path / "probes" / "step-00000006" / "attention-0.bin").is_file()


def test_only_a_second_ctrl_c_ends_a_run_at_once(tmp_path):
    stop = Stop(Run(tmp_path))
    with stop_signals(stop):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # forwarded within the same moment
        assert stop.reason == "it was interrupted"
        stop.asked -= 10
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_newest_best_and_every_kth_are_kept(pictures, tiny, tmp_path):
    recipe = dataclasses.replace(tiny, save_every=1, keep=2, keep_every=5)
    run = train(recipe, open_source(pictures), Run(tmp_path / "run"))
    assert [found.step for found in run.checkpoints()] == [5, 10, 11, 12]


def test_a_minute_that_is_over_is_a_reason_to_save(pictures, tiny, tmp_path):
    recipe = dataclasses.replace(tiny, save_every=1000, save_minutes=1e-9, keep=0)
    run = train(recipe, open_source(pictures), Run(tmp_path / "run"))
    assert [found.step for found in run.checkpoints()] == [2, 4, 6, 8, 10, 12]


def test_time_that_is_up_says_so(tmp_path):
    assert not Stop(Run(tmp_path)).wanted()
    assert not Stop(Run(tmp_path), max_seconds=3600).wanted()
    stop = Stop(Run(tmp_path), max_seconds=0)
    assert stop.wanted()
    assert stop.reason == "its time is up"
    (tmp_path / "stop").touch()
    asked = Stop(Run(tmp_path))
    assert asked.wanted()
    assert asked.reason == "it was asked to stop"


def test_torchrun_restarting_implies_resume(pictures, tiny, tmp_path, monkeypatch):
    source, run = open_source(pictures), Run(tmp_path / "run")
    train(tiny, source, run, max_seconds=1e-9)
    with pytest.raises(UserError, match="add --resume"):
        train(tiny, source, run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train(tiny, source, run)
    assert run.status()["state"] == "finished"


@pytest.mark.soak
def test_a_run_on_300_damaged_files_finishes(tiny, tmp_path):
    """Whatever becomes of each file: the good ones are trained on, the bad ones are listed."""
    from tests.data.test_mutated import mutants

    folder, bad = tmp_path / "mutants", set()
    folder.mkdir()
    for mutant in mutants(300):
        (folder / mutant.name).write_bytes(mutant.data)
        if mutant.reasons and mutant.reasons != ".":
            bad.add(mutant.name)
    recipe = dataclasses.replace(tiny, steps=300 // tiny.batch_size, workers=1, save_every=100)
    run = train(recipe, open_source(folder), Run(tmp_path / "run"))
    assert run.status()["state"] == "finished"
    lines = (run.path / "quarantine.jsonl").read_text().splitlines()
    listed = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert len(bad & listed.keys()) > 0.9 * len(bad)  # the last images of an epoch wait
    assert all(listed.values())
