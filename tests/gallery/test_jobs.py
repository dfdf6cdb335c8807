"""Builds in processes of their own: their state is on disk, and told as it is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_core.errors import UserError
from dino_core.gallery import Gallery, build_status, list_galleries, start_build, stop_build
from dino_core.gallery.jobs import reported, start_map
from dino_core.models import Model, save_weights
from dino_core.processes import this_process

PATIENCE = 120  # seconds; a guard, not a mark


def wait_until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def weights(model: Model, tmp_path: Path) -> str:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, model.info, model.backbone.vit.state_dict())
    return "tiny.safetensors"


def test_a_detached_build_from_start_to_end(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "galleries" / "few"
    pid = start_build(weights, "scenes:8", out, root=tmp_path)
    status = build_status(out)
    assert status["state"] == "running" and status["process"]["pid"] == pid
    assert os.getsid(pid) == pid  # a closed terminal or a killed parent does not take it along
    with pytest.raises(UserError, match=f"is being built already \\(process {pid}\\)"):
        start_build(weights, "scenes:8", out, root=tmp_path)
    wait_until(lambda: build_status(out)["state"] != "running")
    assert build_status(out)["state"] == "done", (out / "build.log").read_text()
    assert len(Gallery.open(out)) == 8
    assert [(one.name, one.state) for one in list_galleries(tmp_path)] == [("few", "whole")]


@pytest.mark.soak
def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    start_build("nobody.safetensors", "scenes:8", "galleries/none", root=tmp_path)
    out = tmp_path / "galleries" / "none"
    wait_until(lambda: build_status(out)["state"] != "running")
    assert build_status(out)["state"] == "failed"
    assert "nobody.safetensors: no such" in build_status(out)["message"]
    with pytest.raises(UserError, match="half made"):
        Gallery.open(out)


@pytest.mark.soak
def test_a_build_that_is_stopped_or_killed_is_finished_by_the_next(
    weights: str, tmp_path: Path
) -> None:
    out = tmp_path / "galleries" / "many"
    for end, state in ((stop_build, "stopped"), (kill, "dead")):
        start_build(weights, "scenes:4000", out, root=tmp_path)
        wait_until(lambda: build_status(out)["done"] > 0)
        assert end(out)
        wait_until(lambda state=state: build_status(out)["state"] == state)
        assert list_galleries(tmp_path)[0].state == "half made"
        assert "start it again" in build_status(out)["message"]
    assert not stop_build(out)


def kill(out: Path) -> bool:
    os.kill(build_status(out)["process"]["pid"], signal.SIGKILL)
    return True


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="other files in it"):
        start_build("starter", "scenes:8", "photos", root=tmp_path)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.jpg"]


@pytest.mark.parametrize("name", ["clusters", "heads", "comparisons"])
def test_a_folder_with_nothing_but_what_we_keep_beside_galleries_is_ours(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    with reported(tmp_path, None):
        pass
    assert build_status(tmp_path)["state"] == "done"


def test_no_map_is_begun_of_a_deleted_gallery(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="few is not there any more"):
        start_map("galleries/few", 15, 0.1, root=tmp_path)
    assert not (tmp_path / "galleries").exists()


def test_nothing_begun(tmp_path: Path) -> None:
    assert build_status(tmp_path)["state"] == "none"
    assert not stop_build(tmp_path)


def test_a_process_id_given_to_somebody_else_is_not_the_build(tmp_path: Path) -> None:
    process = this_process() | {"started": 1}
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "process": process}))
    assert build_status(tmp_path)["state"] == "dead"


def test_two_builders_in_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dino_core.gallery.jobs import reported\n"
        "with reported(Path(sys.argv[1]), None): print('in', flush=True); input()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="by another process"), reported(tmp_path, None):
            pass
        assert build_status(tmp_path)["state"] == "running"  # the refused one did not write over it
    finally:
        other.communicate("go on\n")
    assert build_status(tmp_path)["state"] == "done"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (KeyboardInterrupt(), "stopped", "start it again"),
        (UserError("photos: is gone"), "failed", "photos: is gone"),
        (ZeroDivisionError("oh"), "failed", "ZeroDivisionError: oh"),
    ],
)
def test_every_end_is_told(tmp_path: Path, error: BaseException, state: str, message: str) -> None:
    with pytest.raises(type(error)), reported(tmp_path, None) as say:
        say(3, 9, "Computing features")
        assert build_status(tmp_path)["message"] == "Computing features"
        raise error
    status = build_status(tmp_path)
    assert status["state"] == state and message in status["message"]
    assert (status["done"], status["total"]) == (3, 9)


def test_what_a_killed_build_left_half_written_goes_with_the_next(tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "status.json").write_text('{"state": "running"}')
    left = folder / ".status.json.abc.tmp"
    left.write_text('{"state": "run')
    with reported(folder, None):
        assert not left.exists()
