"""The script that makes galleries."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "embed.py"


def test_a_folder_that_cannot_be_read_makes_no_gallery(tmp_path):
    data, out = tmp_path / "data", tmp_path / "galleries" / "g"
    data.mkdir()
    (data / "broken.jpg").write_bytes(b"none")
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {data}: no image in it can be read (1 tried; broken.jpg: "
    )
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
