"""The heartbeat: fresh while a run is busy, silent and harmless afterwards."""

import dataclasses
import threading
import time

import pytest

from dino_core.data import open_source
from dino_core.files import read_json, write_json
from dino_core.processes import this_process
from dino_core.runs import SILENCE, Run
from dino_core.training import QualityConfig, train
from dino_core.training.heartbeat import EVERY, beating
from dino_core.training.loop import _Loop

PATIENCE = 60.0  # seconds; a guard, not a mark


def wait_for_beat(run: Run) -> None:
    before = run.status()["heartbeat"]
    limit = time.monotonic() + PATIENCE
    while run.status()["heartbeat"] == before:
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_only_the_heartbeat_is_touched(tmp_path):
    run = Run(tmp_path)
    run.write_status("running", step=7, steps=9)
    said = run.status()
    with beating(run, every=0.005):
        wait_for_beat(run)
    assert run.status() | {"heartbeat": 0} == said | {"heartbeat": 0}
    assert run.status()["heartbeat"] > said["heartbeat"]
    assert beats() == []


def test_it_comes_often_enough_for_whoever_watches_from_elsewhere():
    assert 10 * EVERY < SILENCE


def test_it_ends_with_its_block_however_that_ends(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt), beating(run, every=0.001):
        raise KeyboardInterrupt
    assert beats() == []
    assert not (tmp_path / "status.json").exists()  # it has nothing of its own to say


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_what_has_ended_stays_as_it_is(state, tmp_path):
    run = Run(tmp_path)
    run.write_status(state)
    written = (tmp_path / "status.json").read_bytes()
    run.beat()
    assert (tmp_path / "status.json").read_bytes() == written


def test_another_process_does_not_lend_its_life(tmp_path):
    run = Run(tmp_path)
    run.write_status("running", process=this_process() | {"started": 1}, heartbeat=1.0)
    run.beat()
    assert read_json(tmp_path / "status.json")["heartbeat"] == 1.0


def test_a_beat_never_puts_back_what_was_said_before(tmp_path):
    """The writer says 200 things while a thread beats as fast as it can: none is undone."""
    run = Run(tmp_path)
    run.write_status("running", step=0)
    with beating(run, every=0):
        for step in range(1, 201):
            run.write_status("running", step=step)
            assert read_json(tmp_path / "status.json")["step"] == step
        run.write_status("finished", step=200)
        for _ in range(20):
            assert read_json(tmp_path / "status.json")["state"] == "finished"
            time.sleep(0.001)


def test_a_status_that_cannot_be_read_does_not_end_it(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "status.json").write_text("{")
    with beating(run, every=0.001):
        time.sleep(0.02)
        assert len(beats()) == 1
        write_json(tmp_path / "status.json", {})


def test_a_run_beats_while_it_saves_and_checks(pictures, tiny, tmp_path, monkeypatch, assert_same):
    """And ends with the same bytes as one in whose time no heartbeat was due."""
    quality = QualityConfig(checks=3, hold_out=0.25, probes=1)
    recipe, source = dataclasses.replace(tiny, quality=quality), open_source(pictures)
    quiet = train(recipe, source, Run(tmp_path / "quiet"))
    monkeypatch.setattr(beating.__wrapped__, "__defaults__", (0.005,))
    run, waited = Run(tmp_path / "run"), []

    def slow(name: str) -> None:
        plain = getattr(_Loop, name)

        def waiting(loop: _Loop) -> None:
            if loop.state.step == 4:
                wait_for_beat(run)
                waited.append(name)
            plain(loop)

        monkeypatch.setattr(_Loop, name, waiting)

    slow("_check")
    slow("_save")
    train(recipe, source, run)
    assert waited == ["_check", "_save"]
    assert_same(run, quiet)
