"""The map, measured: what a turn says, and how turns become figures."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from dino_core.benchmarks import map as module
from dino_core.benchmarks.features import write_features
from dino_core.benchmarks.map import measure, ours_turn


def turn_of(seconds: float) -> dict:
    """What a process says that took so long for everything."""
    names = ("first", "cpu", "second", "second cpu", "layout")
    return dict.fromkeys(names, seconds) | {"phases": {"neighbors": 7.0}, "images": 80}


def test_turns_become_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"ours": 2.0, "umap_learn": 6.0}

    def pretended(name: str, features: Path, turns: list[dict]):
        def run() -> None:
            np.save(features.with_name(f"{name}.npy"), np.load(features)[:, :2])
            turns.append(turn_of(took[name]))

        return run

    monkeypatch.setattr(module, "_in_fresh_process", pretended)
    first, second = measure(images=80, dim=4, rounds=3)
    assert (first.milliseconds, first.ratio_to_plain) == (2000, 3)
    assert first.phases == {"neighbors": 7.0}
    assert (second.milliseconds, second.ratio_to_plain, second.share_of_limit) == (2000, 3, 1)
    assert "fresh process" in first.name and "trustworthiness on 80: " in first.notes[2]


def test_a_turn_of_ours_says_all_that_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_features(tmp_path / "features.npy", 60, 8)
    ours_turn(str(path), time.time())
    said = json.loads(capsys.readouterr().out)
    assert said.keys() >= turn_of(0).keys()
    assert sum(said["phases"].values()) <= 1000 * said["first"] + 1
    assert np.load(tmp_path / "ours.npy").shape == (60, 2)


@pytest.mark.soak
def test_against_umap_learn_in_fresh_processes() -> None:
    first, second = measure(images=300, dim=8)
    assert first.ratio_to_plain and second.ratio_to_plain
    assert first.ratio_to_plain > 1 / 5  # a tenth of the mark, which is 2
