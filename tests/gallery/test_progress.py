"""Progress without a terminal: one line a step, nothing else."""

import pytest

from dino_core.gallery.progress import bars


def test_one_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as progress:
        for done in range(5):
            progress(done, 4, "Computing features")
        progress(0, 1, "Drawing the map")
        progress(1, 1, "Drawing the map")
    assert capsys.readouterr().err == "Computing features\nDrawing the map\n"


def test_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bars() as progress:
        progress(50, 100, "Computing features")  # resumed
        progress(100, 100, "Computing features")
    drawn = capsys.readouterr().err
    assert "Computing features" in drawn and "100/100" in drawn
