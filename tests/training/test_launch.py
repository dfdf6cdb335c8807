"""Runs in processes of their own: begun, watched, ended and taken up again from outside."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_core.augment import MultiCrop
from dino_core.errors import UserError
from dino_core.files import held, write_json
from dino_core.processes import describe_process, this_process
from dino_core.runs import Run
from dino_core.training import BackboneConfig, HeadConfig, OptimConfig, QualityConfig, Recipe
from dino_core.training.__main__ import told, undisturbed
from dino_core.training.launch import follow, list_runs, overview, resume, start, stop

PATIENCE = 120  # seconds; a guard, not a mark

TINY = Recipe(
    backbone=BackboneConfig("test_vit", patch_size=8, image_size=32, drop_path=0),
    crops=MultiCrop(global_size=32, local_size=16, local_count=2),
    head=HeadConfig(out_dim=64, hidden_dim=64, bottleneck_dim=32),
    optim=OptimConfig(warmup_epochs=0.5, freeze_last_layer=0.5),
    quality=QualityConfig(checks=0),
    steps=100_000,
    batch_size=4,
    precision="fp32",
    device="cpu",
    threads=1,
    workers=0,
    log_every=1,
)


def wait_until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


def told_by(run: Run) -> str:
    return (run.path / "output.txt").read_text()


def set_steps(run: Run, steps: int) -> None:
    (run.path / "recipe.json").write_text(json.dumps({**run.recipe(), "steps": steps}))


def test_a_run_from_start_to_end(tmp_path):
    """Begun in its own session, refused a second time, stopped, resumed, followed to its end."""
    run = start(TINY, "scenes:24", "runs/one", root=tmp_path)
    status = run.status()
    assert status["state"] == "running", told_by(run)
    assert os.getsid(status["process"]["pid"]) == status["process"]["pid"]
    for again in (lambda: start(TINY, "scenes:24", "runs/one", root=tmp_path), lambda: resume(run)):
        with pytest.raises(UserError, match="is running already"):
            again()
    assert run.status()["process"] == status["process"]
    wait_until(lambda: len(run.metrics()) >= 2)
    assert stop(run, wait=PATIENCE)
    assert run.status()["state"] == "stopped"
    stopped = run.checkpoint().step
    with pytest.raises(UserError, match="already there; resume it"):
        start(TINY, "scenes:24", "runs/one", root=tmp_path)

    set_steps(run, stopped + 3)
    assert resume(run) is run
    news = list(follow(run, every=0.05))
    assert news[-1].status["state"] == "finished"
    assert [row["step"] for told in news for row in told.metrics] == list(range(stopped + 3))
    assert any("goes on at step" in line for told in news for line in told.lines)
    with pytest.raises(UserError, match="is finished"):
        resume(run)
    assert [one.name for one in list_runs(tmp_path)] == ["one"]


def test_what_keeps_a_run_from_starting_is_told_at_once_and_can_be_mended(tmp_path):
    with pytest.raises(UserError, match=r"^nowhere: no such file"):
        start(TINY, "nowhere", "runs/two", root=tmp_path)
    run = Run(tmp_path / "runs" / "two")
    assert run.status()["state"] == "failed" and "nowhere" in run.status()["reason"]
    assert list_runs(tmp_path) == []


@pytest.mark.soak
def test_a_run_outlives_the_process_that_started_it_and_its_own_death(tmp_path):
    code = (
        "import json, sys\n"
        "from dino_core.training import Recipe\n"
        "from dino_core.training.launch import start\n"
        "recipe = Recipe.from_json(json.loads(sys.argv[1]))\n"
        "start(recipe, 'scenes:24', 'runs/three', root=sys.argv[2])\n"
    )
    recipe = json.dumps(TINY.to_json())
    subprocess.run([sys.executable, "-c", code, recipe, str(tmp_path)], check=True)
    run = Run(tmp_path / "runs" / "three")
    wait_until(lambda: len(run.metrics()) >= 2)
    os.kill(run.status()["process"]["pid"], signal.SIGKILL)
    wait_until(lambda: run.status()["state"] == "dead")
    assert list(follow(run))[-1].status["state"] == "dead"
    set_steps(run, 5)
    resume(run)  # it has no checkpoint: it starts
    wait_until(lambda: run.status()["state"] == "finished")
    assert [row["step"] for row in run.metrics()] == list(range(5))


@pytest.mark.soak
def test_two_processes_train_together(tmp_path):
    run = start(TINY, "scenes:24", "runs/pair", root=tmp_path, processes=2)
    assert run.recipe()["versions"]["world_size"] == 2
    wait_until(lambda: len(run.metrics()) >= 2)
    assert stop(run, wait=PATIENCE)
    stopped = run.checkpoint().step
    set_steps(run, stopped + 2)
    resume(run)
    wait_until(lambda: run.status()["state"] == "finished")
    assert [row["step"] for row in run.metrics()] == list(range(stopped + 2))
    assert run.recipe()["versions"]["world_size"] == 2


@pytest.mark.soak
def test_settings_can_be_chosen_by_the_run_itself(tmp_path):
    run = start("auto", "scenes:24", "runs/auto", root=tmp_path)
    assert "K = 1024" in (run.path / "log.txt").read_text()
    assert run.recipe()["batch_size"] == 2
    assert stop(run, wait=PATIENCE)
    with pytest.raises(UserError, match="no such recipe"):
        start("vits17", "scenes:24", "runs/none", root=tmp_path)


@pytest.mark.soak
def test_two_starts_at_once_make_one_run(tmp_path):
    outcomes: list[object] = []

    def begin() -> None:
        try:
            outcomes.append(start(TINY, "scenes:24", "runs/four", root=tmp_path))
        except UserError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = [one for one in outcomes if isinstance(one, Run)]
    assert len(runs) == 1 and runs[0].status()["state"] == "running"
    assert all("is being started" in str(one) for one in outcomes if isinstance(one, UserError))
    assert stop(runs[0], wait=PATIENCE)


def test_a_stop_amid_an_import_waits_for_its_end():
    """Raised in there it would be swallowed, or leave a module half made."""
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("imported")
    assert done == ["imported"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.soak
def test_a_run_that_is_still_starting_can_be_stopped(tmp_path):
    run = start(TINY, "scenes:24", "runs/five", root=tmp_path, patience=0)
    wait_until(lambda: run.status() != {})
    assert stop(run, wait=PATIENCE)
    assert run.status()["state"] == "stopped", told_by(run)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "one")
    write_json(run.path / "recipe.json", TINY.to_json())
    return run


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="other files in it"):
        start(TINY, "scenes:24", "photos", root=tmp_path)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.jpg"]
    with pytest.raises(UserError, match="is a file"):
        start(TINY, "scenes:24", "photos/1.jpg", root=tmp_path)


def test_a_run_that_is_being_started_is_not_started_twice(run):
    with (
        held(run.path / ".launch.lock", ""),
        pytest.raises(UserError, match="is being started by another process"),
    ):
        resume(run)


def test_where_no_run_is(tmp_path):
    run = Run(tmp_path / "runs" / "none")
    assert not stop(run)
    with pytest.raises(UserError, match="no run is there"):
        resume(run)
    assert [news.status for news in follow(run)] == []
    assert not run.path.exists()


def test_the_status_of_a_run_that_fails_before_its_first_step(run):
    run.write_status("stopped", step=7, steps=9)
    with pytest.raises(UserError), told(run):
        assert run.status() | {"state": "starting", "step": 7, "steps": 9} == run.status()
        raise UserError("photos: is gone")
    status = run.status()
    assert (status["state"], status["reason"], status["step"]) == ("failed", "photos: is gone", 7)


def test_a_refused_second_process_does_not_write_over_the_status_of_the_first(run):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        run.write_status("running", process=describe_process(child.pid))
        with pytest.raises(UserError), told(run):
            raise UserError("this run is being trained by another process")
        assert run.status()["state"] == "running"
    finally:
        child.communicate(b"\n")


def test_news_come_once_and_in_order(run):
    """Also when the metrics are cut back under the reader, as a run does that goes back."""
    run.write_status("running")
    run.log("one")
    run.append_metrics([{"step": step} for step in range(4)])
    news = follow(run, every=0)
    first = next(news)
    assert [line[-3:] for line in first.lines] == ["one"]
    assert [row["step"] for row in first.metrics] == [0, 1, 2, 3]
    run.append_metrics([{"step": 4}, {"step": 4, "knn": 31.0}])
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5')
    assert [row["step"] for row in next(news).metrics] == [4, 4]
    run.cut_metrics(2)
    run.append_metrics([{"step": step} for step in range(2, 7)])
    assert [row["step"] for row in next(news).metrics] == [5, 6]
    run.log("two")
    run.write_status("finished")
    assert [line[-3:] for one in news for line in one.lines] == ["two"]


def test_a_run_in_one_line(run):
    run.append_metrics([{"step": s, "loss": 5.0 - s, "images_per_second": 8.0} for s in range(3)])
    run.append_metrics([{"step": 2, "knn": 31.0}, {"step": 3, "loss": None}])
    run.write_status("running", step=4, steps=10)
    line = overview(run)
    assert (line.name, line.state, line.step, line.steps) == ("one", "running", 4, 10)
    assert (line.loss, line.knn) == (3.0, 31.0)
    assert line.seconds_left == 6 * TINY.batch_size / 8
    assert 0 <= line.silence < PATIENCE
    run.write_status("failed", step=4, steps=10, reason="the disk is full")
    assert (overview(run).reason, overview(run).seconds_left) == ("the disk is full", None)


def test_watching_needs_no_torch(tmp_path):
    code = "import sys, dino_core.training.launch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_stop_is_a_request_on_disk(run):
    run.write_status("running", process=this_process())
    assert stop(run)
    assert run.stop_requested()


def command(*words: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).resolve().parents[2] / "scripts" / "runs.py"
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)


def test_a_second_terminal(run, tmp_path):
    run.append_metrics([{"step": 3, "loss": 4.0, "images_per_second": 1.0}])
    run.write_status("running", step=4, steps=40)
    root = ("--root", str(tmp_path))
    listed = command("list", *root).stdout.splitlines()
    assert listed[1].split() == ["one", "running", "4/40", "4.000", "-", "2.4", "min", "left"]
    assert "still at it" in command("stop", "one", "--wait", "0", *root).stdout
    assert run.stop_requested()
    for row, shown in (({"rankme": 8.25}, "RankMe 8.2"), ({"knn": 31.0}, "k-NN 31.0 %")):
        run.append_metrics([{"step": 3, "steps_done": 4} | row])
        assert shown in command("list", *root).stdout
    run.write_status("stopped", step=4, steps=40, reason="it was asked to stop")
    assert "is not running (stopped at step 4 of 40" in command("stop", "one", *root).stdout
    unknown = command("follow", "two", *root)
    assert unknown.returncode == 2
    assert unknown.stderr.endswith("(there are: one)\n")
