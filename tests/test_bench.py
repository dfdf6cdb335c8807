"""The script of benchmarks: every subcommand's smallest run, and what it saves."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from dino_core.benchmarks.data import write_jpegs
from dino_core.benchmarks.measuring import Measured
from scripts import bench

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "bench.py"

SMALLEST = {
    "data": "--images 2 --rounds 1 --device cpu",
    "embed": "--architecture vit_tiny_patch16_224 --image-size 32 --images 2 --batch-size 2 "
    "--workers 0 --rounds 1 --device cpu",
    "search": "--images 300 --dim 8 --queries 1 --rounds 1",
    "lens": "--architecture vit_tiny_patch16_224 --patch-sizes 16 --image-sizes 32 --rounds 1 "
    "--moves 0 --device cpu",
}
SLOW = {  # half a minute to minutes each
    "train": "--only ViT-T/8:64+32 --batch-size 2 --steps 1 --rounds 1 --device cpu --workers 0",
    "map": "--images 300 --dim 8",
    "million": "--images 1000 --dim 8 --no-browser",
    "apps": "--names lens --rounds 1",
}


def words(name: str, options: str, saved: Path) -> list[str]:
    chosen = [word.replace(":", " ") for word in options.split()]
    return [str(SCRIPT), name, *chosen, "--json", str(saved)]


def check(saved: Path, said: str) -> None:
    assert said.endswith(f"saved in {saved}\n")
    results = json.loads(saved.read_text())
    assert isinstance(results, list) and results
    for result in results:
        assert set(result) == {field.name for field in fields(Measured)}
        assert result["hardware"] and isinstance(result["phases"], dict)
        assert (result["images_per_second"] or result["milliseconds"]) > 0
        assert f"{result['name']}  ({result['hardware']})" in said


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_saves_what_it_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has loaded torch already."""
    data = ""
    if name == "data":
        write_jpegs(tmp_path, 2, size=(64, 48))
        data = f" --data {tmp_path}"
    saved = tmp_path / "made" / "out.json"
    monkeypatch.setattr(sys, "argv", words(name, SMALLEST[name] + data, saved))
    bench.main()
    check(saved, capsys.readouterr().out)


@pytest.mark.parametrize(
    "name", ["search", *(pytest.param(name, marks=pytest.mark.soak) for name in SLOW)]
)
def test_a_benchmark_runs_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    saved, options = tmp_path / "made" / "out.json", (SMALLEST | SLOW)[name]
    command = [sys.executable, *words(name, options, saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    check(saved, done.stdout)
