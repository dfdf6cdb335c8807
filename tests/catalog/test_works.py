"""Long computations behind a page: once for all, told, cancelled, failed in a sentence."""

import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dino_core.catalog import works as module
from dino_core.catalog.works import Works, weight
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


def telling(begun: threading.Event, go_on: threading.Event) -> Any:
    def compute(progress):
        begun.set()
        assert go_on.wait(BOUND)
        progress(1, 2, "Counting")
        return "value"

    return compute


def test_what_nobody_asks_for_is_given_up_and_begun_anew(monkeypatch):
    works, begun, go_on = Works(), threading.Event(), threading.Event()
    left = works.ask("a", telling(begun, go_on))
    kept = works.ask("b", telling(threading.Event(), go_on), to_end=True)
    assert begun.wait(BOUND)
    monkeypatch.setattr(module, "UNASKED", -1.0)
    go_on.set()
    left.wait(BOUND)
    kept.wait(BOUND)
    assert left.state == "failed" and works.find("a") is None
    assert (kept.state, kept.value) == ("done", "value")
    monkeypatch.undo()
    again = works.ask("a", lambda progress: 1)
    again.wait(BOUND)
    assert again is not left and again.value == 1


@pytest.mark.parametrize("asks", [True, False])
def test_who_left_is_not_waited_for(monkeypatch, asks):
    """Two that nobody looks at hold both threads; a third one is in line, or not."""
    works, go_on = Works(), threading.Event()
    begun = [threading.Event(), threading.Event()]
    left = [works.ask(name, telling(one, go_on)) for name, one in zip("ab", begun, strict=True)]
    assert all(one.wait(BOUND) for one in begun)
    monkeypatch.setattr(module, "IN_THE_WAY", -1.0)
    if asks:
        wanted = works.ask("c", lambda progress: 3, to_end=True)
    go_on.set()
    for one in left:
        one.wait(BOUND)
    if asks:
        wanted.wait(BOUND)
        # The first to look up makes room; then nobody waits, and the other one may go on.
        assert wanted.value == 3 and "failed" in [one.state for one in left]
    else:
        assert [one.state for one in left] == ["done", "done"]


def test_looking_for_it_is_asking_for_it():
    works, go_on, begun = Works(), threading.Event(), threading.Event()
    work = works.ask("a", telling(begun, go_on))
    assert begun.wait(BOUND)  # or its first sign of progress would find itself left
    work._asked -= 1000
    assert works._is_left(work)
    works.find("a")
    assert not works._is_left(work)
    go_on.set()


@dataclass
class Holds:
    arrays: tuple[np.ndarray, ...]
    name: str = "four"


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [
        (np.zeros((3, 5), np.int16), 30),
        (b"12345", 5),
        ({"a": np.zeros(4, np.float32), "b": 7}, 16),
        (Holds((np.zeros(2), np.zeros(3, np.uint8))), 16 + 3 + 4),
        ([Holds((np.zeros(1),)), None], 8 + 4),
        (None, 0),
    ],
)
def test_a_value_weighs_what_its_arrays_do(value, bytes_):
    assert weight(value) == bytes_


def test_large_values_make_room_and_the_newest_stays():
    works = Works(most_bytes=1000)
    for key, size in (("a", 400), ("b", 500), ("c", 300), ("d", 5000)):
        works.ask(key, lambda progress, size=size: bytes(size)).wait(BOUND)
        there = [name for name in "abcd" if name in works._works]
        assert there == {"a": ["a"], "b": ["a", "b"], "c": ["b", "c"], "d": ["d"]}[key]


def test_the_end_of_the_program_waits_for_no_one_and_says_nothing():
    program = """
import threading
from concurrent.futures import ThreadPoolExecutor
from dino_core.catalog.works import Works

begun = threading.Barrier(3)

def asks_for_threads(progress):  # refused at the end: an error
    with ThreadPoolExecutor(1) as pool:
        for i in range(10**9):
            pool.submit(int).result()
            if i == 3:
                begun.wait()

def is_silent(progress):
    begun.wait()
    threading.Event().wait()

works = Works()
works.ask("a", asks_for_threads)
works.ask("b", is_silent)
begun.wait()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND, check=True
    )
    assert ended.stderr == ""
