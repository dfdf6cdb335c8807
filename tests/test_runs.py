"""The run folder: which checkpoint counts, what a dead process looks like."""

import subprocess
import sys
import time

import pytest

from dino_core.errors import UserError
from dino_core.files import write_json
from dino_core.processes import is_alive, this_process
from dino_core.runs import CHECKPOINT_FILES, SILENCE, Run, list_runs


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "runs" / "one")
    write_json(run.path / "recipe.json", {})
    return run


def make_checkpoint(run: Run, step: int, leave_out: str = "") -> None:
    folder = run.checkpoint_path(step)
    folder.mkdir(parents=True)
    for name in CHECKPOINT_FILES:
        if name != leave_out:
            (folder / name).touch()


def test_the_newest_whole_checkpoint_counts(run):
    make_checkpoint(run, 100)
    make_checkpoint(run, 1000)
    make_checkpoint(run, 2000, leave_out="teacher.safetensors")
    assert run.checkpoint().step == 1000
    assert [c.step for c in run.checkpoints()] == [100, 1000]
    assert [c.missing() for c in run.incomplete()] == [["teacher.safetensors"]]


def test_an_absent_checkpoint_is_a_sentence_that_lists_the_others(run):
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.checkpoint()
    make_checkpoint(run, 100)
    with pytest.raises(UserError, match=r"step 300 \(there are: 100\)"):
        run.checkpoint(300)


def test_what_is_being_written_is_not_a_checkpoint(run):
    (run.path / "checkpoints" / ".step-00000500.x.tmp").mkdir(parents=True)
    assert run.checkpoints() == [] and run.incomplete() == []


def test_metrics_survive_a_line_cut_short_and_are_cut_back(run):
    run.append_metrics([{"step": step, "loss": 1.0} for step in range(5)])
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 4]
    run.cut_metrics(3)
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]


def test_a_process_that_is_gone_is_dead(run):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    described = {**this_process(), "pid": child.pid}
    assert not is_alive(described)  # right pid, another process's start time
    child.communicate(b"\n")
    run.write_status("running", step=3)
    assert run.status()["state"] == "running"
    write_json(run.path / "status.json", {"state": "running", "process": {"pid": child.pid}})
    assert run.status()["state"] == "dead"


def test_a_restarted_machine_makes_its_runs_dead(run):
    process = this_process() | {"boot": "the one before"}
    run.write_status("running", process=process)
    assert run.status()["state"] == "dead"


def test_a_run_on_another_machine_is_known_by_its_heartbeat(run):
    nobody = {"pid": 1, "started": 1, "boot": "another"}
    run.write_status("running", process=nobody, host="elsewhere.example")
    assert run.status()["state"] == "running"
    late = time.time() - SILENCE - 1
    run.write_status("running", process=nobody, host="elsewhere.example", heartbeat=late)
    assert run.status()["state"] == "dead"


def test_runs_are_listed_by_recipe(run, tmp_path):
    (tmp_path / "runs" / "not-a-run").mkdir()
    assert [found.name for found in list_runs(tmp_path)] == ["one"]
    assert list_runs(tmp_path / "nowhere") == []
