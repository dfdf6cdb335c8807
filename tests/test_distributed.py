"""What processes that torchrun starts say to it and to each other about a user's mistake."""

import json
import os
import signal
import time

import pytest

from dino_core import distributed
from dino_core.errors import UserError, command


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Makes this process one that torchrun started: number `rank` of attempt `count`."""

    def begin(count: int, rank: int = 0):
        place = tmp_path / f"attempt_{count}" / str(rank) / "error.json"
        place.parent.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        monkeypatch.setenv("RANK", str(rank))
        return place

    return begin


@command
def mistaken() -> None:
    raise UserError("photos: no such folder")


@command
def never() -> None:
    raise AssertionError("tried again")


def test_a_mistake_is_said_once_and_not_tried_again(attempt, capsys):
    told = attempt(0)
    with pytest.raises(SystemExit):
        mistaken()
    assert "photos: no such folder" in capsys.readouterr().err
    assert json.loads(told.read_text())["message"] == "photos: no such folder"
    for count in (1, 2):
        told = attempt(count)
        with pytest.raises(SystemExit) as ended:
            never()
        assert ended.value.code == 2
        assert capsys.readouterr().err == ""
        assert json.loads(told.read_text())["message"] == "photos: no such folder"


@pytest.fixture
def signals():
    """What catches SIGTERM and Ctrl-C is as before when the test has ended."""
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(kind) for kind in kinds]
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


@pytest.mark.usefixtures("signals")
def test_another_process_is_silent_once_the_first_has_spoken(attempt, capsys):
    attempt(0)
    distributed.leave_word("photos: no such folder", 0)
    own = attempt(0, rank=1)
    with pytest.raises(SystemExit) as ended:
        mistaken()
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""
    assert not own.exists()


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("how", ["the first says nothing", "torchrun ends it"])
def test_another_process_speaks_of_what_it_alone_has_met(attempt, capsys, monkeypatch, how):
    own = attempt(0, rank=1)
    began = time.time()
    monkeypatch.setattr(distributed, "TURN", 0.1 if how == "the first says nothing" else 600)
    if how == "torchrun ends it":
        waiting = distributed.time.sleep
        monkeypatch.setattr(
            distributed.time, "sleep", lambda s: (waiting(s), os.kill(os.getpid(), signal.SIGTERM))
        )
    with pytest.raises(SystemExit):
        mistaken()
    assert "photos: no such folder" in capsys.readouterr().err
    word = json.loads(own.read_text())
    assert began - 1 <= int(word["timestamp"]) <= time.time()


@pytest.mark.parametrize("left", ['{"message": {"message": "a defect of ours"}}', "{", ""])
def test_after_anything_else_a_restart_tries_again(attempt, left):
    attempt(0).write_text(left)
    attempt(1)
    assert distributed.left_word() is None
    with pytest.raises(AssertionError, match="tried again"):
        never()


def test_a_command_line_that_is_not_understood_counts_as_one(attempt):
    @command
    def parse() -> None:
        raise SystemExit(2)

    attempt(0)
    with pytest.raises(SystemExit):
        parse()
    attempt(1)
    assert "command line" in (distributed.left_word() or "")


def test_where_no_word_can_be_left_the_mistake_is_said_all_the_same(attempt, capsys):
    attempt(0).parent.rmdir()
    with pytest.raises(SystemExit) as ended:
        mistaken()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: photos: no such folder\n"


def test_without_torchrun_nothing_is_left_behind(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    distributed.leave_word("photos: no such folder", 0)
    assert distributed.left_word() is None
