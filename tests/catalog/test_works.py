"""Long computations behind a page: once for all, told, cancelled, failed in a sentence."""

import threading

import pytest

from dino_core.catalog.works import Works
from dino_core.errors import UserError

BOUND = 60.0  # seconds


def test_all_who_ask_get_what_was_computed_once():
    works, begun, go_on = Works(), [], threading.Event()

    def compute(progress):
        begun.append(1)
        progress(3, 7, "Counting")
        assert go_on.wait(BOUND)
        return "value"

    first = works.ask("a", compute)
    assert works.ask("a", compute) is first is works.find("a")
    go_on.set()
    first.wait(BOUND)
    assert (first.state, first.value, first.done, first.total) == ("done", "value", 3, 7)
    assert works.ask("a", compute).value == "value" and begun == [1]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("the disk is full; free some"), "the disk is full; free some"),
        (ZeroDivisionError("by zero"), "This could not be computed (by zero)"),
    ],
)
def test_a_failure_stays_until_it_is_forgotten(error, sentence):
    works = Works()

    def fail(progress):
        raise error

    work = works.ask("a", fail)
    work.wait(BOUND)
    assert (work.state, work.message) == ("failed", sentence)
    assert works.ask("a", fail) is work
    works.forget("a")
    again = works.ask("a", lambda progress: 1)
    again.wait(BOUND)
    assert again.value == 1


def test_who_cancels_ends_it_at_its_next_word():
    works, cancelled = Works(), threading.Event()
    begun = threading.Event()

    def compute(progress):
        begun.set()
        assert cancelled.wait(BOUND)
        progress(1, 2, "Counting")
        return "too late"

    work = works.ask("a", compute)
    assert begun.wait(BOUND)
    works.cancel("a")
    cancelled.set()
    work.wait(BOUND)
    assert (work.state, work.value) == ("failed", None) and "cancelled" in work.message


def test_only_so_many_values_are_kept_and_none_that_is_computed_is_dropped():
    works, go_on = Works(kept=2), threading.Event()
    running = works.ask("running", lambda progress: go_on.wait(BOUND))
    for key in range(4):
        works.ask(key, lambda progress: 1).wait(BOUND)
    assert works.find("running") is running and works.find(3) is not None
    assert works.find(0) is None and works.find(1) is None
    go_on.set()
