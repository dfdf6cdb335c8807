"""The script that draws what augmentation does."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "preview.py"


def preview(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--data", "scenes:24", "--out", "sheet.png", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_it_draws_what_training_would_choose_and_says_which(tmp_path):
    """Scenes are large enough for the 64 and 32 px that `auto` starts from on a CPU."""
    done = preview(tmp_path, "--images", "2")
    assert done.returncode == 0, done.stderr
    assert "2 of 24 images, as recipe auto sees them: 2 crops of" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 0


def test_a_recipe_can_be_named(tmp_path):
    done = preview(tmp_path, "--images", "1", "--recipe", "cifar")
    assert "recipe cifar sees them: 2 crops of 32 px and 6 of 16 px" in done.stdout
    unknown = preview(tmp_path, "--recipe", "vits17")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no such recipe" in unknown.stderr
