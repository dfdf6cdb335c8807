"""The script that makes galleries."""

import importlib.util
import sys
from pathlib import Path

import pytest

from dino_core.gallery import Gallery

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "embed.py"


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The script in this very process: the exit status, and the lines that it said."""
    specification = importlib.util.spec_from_file_location("embed_script", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "embed_script", script)
    specification.loader.exec_module(script)

    def run(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out.splitlines() + [line for line in said.err.splitlines() if status]

    return run


def test_a_folder_that_cannot_be_read_makes_no_gallery(embed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "broken.jpg").write_bytes(b"none")
    status, (said,) = embed("--data", str(data), "--out", "galleries/g", "--workers", "0")
    assert status == 2
    assert said.startswith(f"error: {data}: no image in it can be read (1 tried; broken.jpg: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_patches_are_added_to_a_gallery_that_is_there(embed, tmp_path):
    out = tmp_path / "g"
    command = ("--data", "scenes:6", "--out", str(out), "--maps", "pca")
    status, said = embed(*command)
    assert status == 0 and len(said) == 1 and Gallery.open(out).patches is None
    status, said = embed(*command, "--patches", "5")
    assert status == 0 and len(Gallery.open(out).patches) == 30
    plan = "30 patches, 5 an image, take about 5.94 kB on the disk (198 bytes each, coded SQ8)"
    assert said[1] == plan and said[2].startswith(f"{out}/patches: 30 patches of 6 images; ")
    status, said = embed(*command, "--patches", "all")
    assert status == 2 and "holds 5 patches of each image" in said[-1]
    status, said = embed(*command, "--patches", "all", "--redo")
    assert status == 0 and len(Gallery.open(out).patches) == 6 * 64
    status, said = embed(*command, "--patches", "0")
    assert status == 2 and said[-1] == "error: --patches 0: must be 1 or more"


def test_changed_images_bring_the_gallery_up_to_date_and_it_says_so(embed, tmp_path):
    out = tmp_path / "g"
    assert embed("--data", "scenes:12", "--out", str(out), "--maps", "pca")[0] == 0
    status, said = embed("--data", "scenes:4-13", "--out", str(out), "--maps", "pca")
    assert status == 2 and "--update to keep what it knows" in said[-1]
    status, said = embed("--data", "scenes:4-13", "--out", str(out), "--maps", "pca", "--update")
    assert status == 0 and said[1] == "1 added, 4 gone, 0 changed"
    assert len(Gallery.open(out)) == 9
    status, said = embed("--data", "scenes:4-13", "--out", str(out), "--maps", "pca")
    assert status == 0 and len(said) == 1
