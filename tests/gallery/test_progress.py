"""Progress: bars in a terminal; in a log few lines, which say how far it is."""

import pytest

from dino_core.gallery import progress as module
from dino_core.gallery.progress import bars


class Clock:
    """A time that passes only when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_short_step_is_told_as_it_begins_and_as_it_ends(capsys, clock) -> None:
    with bars() as progress:
        for done in range(1201):
            progress(done, 1200, "Features of train")
        progress(1200, 1200, "Features of train")
        for done in range(3):
            progress(done, 2, "Features of test")
        progress(0, 1, "Drawing the map")
        progress(1, 1, "Drawing the map")
    assert capsys.readouterr().err.splitlines() == [
        "Features of train",
        "Features of train: 1,200 of 1,200",
        "Features of test",
        "Features of test: 2 of 2",
        "Drawing the map",
        "Drawing the map: done",
    ]


def test_a_long_step_is_told_at_each_tenth(capsys, clock) -> None:
    with bars() as progress:
        for done in range(201):
            clock.now += 1.0
            progress(done, 200, "Features")
    told = [f"Features: {done} of 200" for done in range(20, 201, 20)]
    assert capsys.readouterr().err.splitlines() == ["Features", *told]


def test_a_very_long_step_is_told_every_half_minute(capsys, clock) -> None:
    with bars() as progress:
        for done in range(10):
            clock.now += 15.0
            progress(done, 1_000_000, "Features")
    told = [f"Features: {done} of 1,000,000" for done in (2, 4, 6, 8)]
    assert capsys.readouterr().err.splitlines() == ["Features", *told]


def test_what_was_done_before_and_what_is_done_again(capsys, clock) -> None:
    with bars() as progress:
        progress(50, 100, "Features")  # resumed
        progress(100, 100, "Features")
        progress(0, 100, "Features")  # once more
        progress(100, 100, "Features")
        progress(30, 30, "Found")
        progress(30, 30, "Found")
        progress(0, 0, "Starting")
    assert capsys.readouterr().err.splitlines() == [
        "Features: 50 of 100",
        "Features: 100 of 100",
        "Features",
        "Features: 100 of 100",
        "Found: 30 of 30",
        "Starting",
    ]


def test_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bars() as progress:
        progress(50, 100, "Computing features")  # resumed
        progress(100, 100, "Computing features")
    drawn = capsys.readouterr().err
    assert "Computing features" in drawn and "100/100" in drawn
