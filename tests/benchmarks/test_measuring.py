"""Alternation, ratios and the text of a result."""

import itertools
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from dino_core.benchmarks.measuring import (
    Elsewhere,
    Measured,
    Phases,
    in_alternation,
    ratio,
    report,
)
from dino_core.errors import UserError


def test_contenders_take_turns_and_the_order_turns_round() -> None:
    calls: list[str] = []
    seconds = in_alternation(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1
    )
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [len(rounds) for rounds in seconds.values()] == [3, 3]


def test_ratio_is_the_median_of_quotients_not_the_quotient_of_medians() -> None:
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0


def test_phases_add_up_by_name() -> None:
    phases = Phases()
    for _ in range(2):
        with phases("sleep"):
            time.sleep(0.01)
    assert list(phases.milliseconds) == ["sleep"]
    assert phases.per(2)["sleep"] >= 10


def test_a_phase_inside_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 3.0, 3.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    phases = Phases()
    with phases("outer"), phases("inner"):
        pass
    assert phases.milliseconds == {"outer": 1500.0, "inner": 2000.0}


def counting(start: int) -> Callable[[], object]:
    """A turn that fails at its third."""
    count = itertools.count(start)

    def turn() -> None:
        if next(count) == 3:
            raise UserError("three is too many")

    return turn


def test_a_contender_elsewhere_takes_turns_and_tells_what_went_wrong() -> None:
    with closing(Elsewhere(counting, 1)) as turn:
        turn()
        turn()
        with pytest.raises(UserError, match="three is too many"):
            turn()
    assert turn.process.exitcode == 0


def test_a_report_says_what_was_measured_and_nothing_else() -> None:
    measured = Measured(
        name="train vit", hardware="a box", images_per_second=1234.5, ratio_to_plain=2.5,
        phases={"decode": 1.0, "student": 3.0}, notes=("One thread.",),
    )  # fmt: skip
    text = report([measured])
    assert "1,234.5 images/s" in text
    assert "2.50 times its plain twin" in text
    assert text.index("student") < text.index("decode")
    assert "ms)" not in text.splitlines()[0]
    assert "limit" not in text
    assert measured.as_dict()["share_of_limit"] is None


@pytest.mark.parametrize("key", ["name", "hardware", "images_per_second", "ratio_to_plain",
                                 "share_of_limit", "phases", "milliseconds"])  # fmt: skip
def test_json_has_what_machines_read(key: str) -> None:
    assert key in Measured("a", "b").as_dict()
