"""What the benchmark of drawing says must have been drawn."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dino_core.benchmarks import drawing
from dino_core.errors import UserError


def test_every_control_is_moved_and_timed(browser):
    with ThreadPoolExecutor(1) as aside:  # this thread's Playwright is the tests' own
        [one] = aside.submit(drawing.measure, [64], moves=3).result()
    assert set(one.phases) == {"layer", "opacity", "attention kept", "head"}
    assert all(time > 0 for time in one.phases.values())
    assert one.milliseconds is not None and min(one.phases.values()) <= one.milliseconds


def test_without_the_page_s_files_it_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"overlay\.js"):
        drawing.measure(assets=tmp_path)
