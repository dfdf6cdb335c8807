"""The script that draws what augmentation does."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts import preview as preview_script

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "preview.py"
WORDS = (str(SCRIPT), "--data", "scenes:24", "--out", "sheet.png")


@pytest.fixture
def preview(tmp_path, monkeypatch):
    """`preview(*words)` in this process, which has loaded torch already."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", [*WORDS, *words])
        preview_script.main()

    return run


def test_it_draws_what_training_would_choose_and_says_which(preview, tmp_path, capsys):
    """Scenes are large enough for the 64 and 32 px that `auto` starts from on a CPU."""
    preview("--images", "2")
    assert "2 of 24 images, as recipe auto sees them: 2 crops of" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 0


def test_a_recipe_can_be_named(preview, capsys):
    preview("--images", "1", "--recipe", "cifar")
    said = capsys.readouterr().out
    assert "recipe cifar sees them: 2 crops of 32 px and 6 of 16 px" in said


def test_an_unknown_recipe_is_a_sentence(preview, capsys):
    with pytest.raises(SystemExit) as end:
        preview("--recipe", "vits17")
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "")
    assert "no such recipe" in said.err
