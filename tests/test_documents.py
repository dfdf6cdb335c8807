"""What the documents say is so: commands, file names, the ten lines of Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dino_core.data import open_source

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]

# What makes a training of minutes one of seconds: two steps, on few images, of a small network.
HASTE = """
import dataclasses
from dino_core.training import RECIPES, HeadConfig, OptimConfig
RECIPES["small"] = dataclasses.replace(
    RECIPES["small"], steps=2, batch_size=4, workers=0, precision="fp32",
    head=HeadConfig(out_dim=64, hidden_dim=32, bottleneck_dim=16),
    optim=OptimConfig(warmup_epochs=0),
)
"""


def test_ci_runs_the_readme_s_second_command_letter_by_letter():
    command = 'pip install -e ".[test]" && pytest'
    assert command in README
    assert f"command='{command}'" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_name_files_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    here = (ROOT / name).parent
    linked = [here / path for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)]
    named = [ROOT / path for path in re.findall(r"\b(?:scripts|apps)/[\w./-]+\.\w+", text)]
    assert not [str(path.relative_to(ROOT)) for path in linked + named if not path.exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_name_things_of_the_package_that_exist(name):
    """`dino_core.room.Name` in a text is a module, or a name that its source defines."""
    missing = []
    for dotted in re.findall(r"`(dino_core(?:\.\w+)+)`", (ROOT / name).read_text("utf-8")):
        *parents, last = dotted.split(".")
        home = ROOT.joinpath(*parents)
        if home.joinpath(last).is_dir() or home.joinpath(f"{last}.py").is_file():
            continue
        sources = [home.with_suffix(".py")] if home.with_suffix(".py").is_file() else []
        sources += home.glob("*.py")
        definition = re.compile(rf"^(?:class|def) {last}\b|^{last}\b.*=", re.MULTILINE)
        if not any(definition.search(path.read_text("utf-8")) for path in sources):
            missing.append(dotted)
    assert not missing


def test_the_ten_lines_of_python_run(tmp_path):
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    photos = tmp_path / "photos"
    photos.mkdir()
    scenes = open_source("scenes:8")
    for i in range(len(scenes)):
        Image.fromarray(scenes.image(i)).save(photos / f"{i}.png")
    result = subprocess.run(
        [sys.executable, "-c", HASTE + lines],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "Hits(" in result.stdout
    assert (tmp_path / "galleries" / "mine" / "gallery.json").is_file()
