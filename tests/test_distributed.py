"""What processes that torchrun starts say to it and to each other about a user's mistake."""

import json

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


def test_another_process_waits_for_the_first_and_speaks_if_it_is_silent(
    attempt, capsys, monkeypatch
):
    attempt(0, rank=1)
    waited = []
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    with pytest.raises(SystemExit):
        mistaken()
    assert waited == [distributed.TURN]
    assert "photos: no such folder" in capsys.readouterr().err


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


def test_without_torchrun_nothing_is_left_behind(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    distributed.leave_word("photos: no such folder")
    assert distributed.left_word() is None
