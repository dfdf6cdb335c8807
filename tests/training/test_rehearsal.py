"""What a rehearsal counts, by a clock that moves when something is done and not otherwise."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from dino_core.data import open_source
from dino_core.data.store import fill
from dino_core.training import FeedConfig, Recipe, planned
from dino_core.training import rehearsal as rehearsal_module
from dino_core.training import resident as resident_module
from dino_core.training.feed import FromSource, ViewDataset
from dino_core.training.rehearsal import STEPS, Pace, Rehearsal, rehearse

DECODING, STEP, COMPILING, CUTTING = 0.5, 2.0, 30.0, 8.0  # seconds by that clock
IMAGES, TRIED = 64, 16


@pytest.fixture
def source(pictures):
    return open_source(pictures)


@pytest.fixture
def clock(monkeypatch):
    """Seconds: of an image that is loaded, a batch that is cut from files, a step, the first."""
    clock = SimpleNamespace(now=0.0, steps=0, loaded=0, cut=0)

    def loading(source, images, *args, tell, **options):
        store = fill(source, images, *args, **options)
        for done in range(1, len(images) + 1):
            clock.now += DECODING
            clock.loaded += 1
            tell(done, len(images))
        return store

    def step(_state, batches, _settings):
        for _ in batches:
            clock.steps += 1
        clock.now += STEP + COMPILING * (clock.steps == 1)

    items = ViewDataset.__getitems__

    def cutting(self, keys):
        streamed = isinstance(self.pictures, FromSource)
        clock.now += CUTTING * streamed
        clock.cut += streamed
        return items(self, keys)

    monkeypatch.setattr(rehearsal_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(rehearsal_module, "train_step", step)
    monkeypatch.setattr(resident_module, "fill", loading)
    monkeypatch.setattr(resident_module, "TRIED", TRIED)
    monkeypatch.setattr(ViewDataset, "__getitems__", cutting)
    return clock


def in_memory(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, feed=FeedConfig(resident="always"))


def test_from_files_a_step_takes_the_cutting_too(source, tiny, clock):
    told = rehearse(tiny, source)
    assert (clock.steps, clock.cut, clock.loaded) == (STEPS, STEPS, 0)
    assert told.seconds_per_step == pytest.approx(STEP + CUTTING)
    assert told.seconds_before == pytest.approx(COMPILING)


def test_images_for_memory_are_loaded_once_and_counted_apart(source, tiny, clock):
    """A few of them are, and judged by these what all take."""
    told = rehearse(in_memory(tiny), source)
    assert (clock.steps, clock.cut, clock.loaded) == (STEPS, 0, TRIED)
    assert told.seconds_per_step == pytest.approx(STEP)
    assert told.seconds_before == pytest.approx(COMPILING + IMAGES * DECODING)


def test_memory_stands_for_a_cache_that_is_to_be_made(source, tiny, clock, tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_CACHE", str(tmp_path))
    recipe = dataclasses.replace(tiny, feed=FeedConfig(stored_size=37, cache=True))
    told = rehearse(recipe, source)
    assert (clock.cut, clock.loaded) == (0, TRIED)
    assert told.seconds_before == pytest.approx(COMPILING + IMAGES * DECODING)
    assert list(tmp_path.iterdir()) == []
    resident_module.cached_store(source, 37)
    told = rehearse(recipe, source)
    assert (clock.cut, clock.loaded) == (0, TRIED)  # no more than before
    assert told.seconds_before == 0


def test_memory_counts_the_images_that_were_not_loaded(source, tiny, clock, monkeypatch):
    monkeypatch.setattr(rehearsal_module, "_resident_peak", lambda: 10**9)
    assert rehearse(tiny, source).memory == 10**9
    others = (IMAGES - TRIED) * 48 * 48 * 3
    assert rehearse(in_memory(tiny), source).memory == 10**9 + others


def test_what_happens_once_is_taken_off_the_time_once(source, tiny, clock):
    """Of 1,000 s the loading and compiling, then nine tenths of what is left are for steps."""
    recipe = planned(
        "auto",
        source,
        flags=lambda r: dataclasses.replace(in_memory(tiny), steps=r.steps, workers=0),
        max_seconds=1000,
    )
    assert recipe.steps == int(0.9 * (1000 - COMPILING - IMAGES * DECODING) / STEP)


@pytest.mark.parametrize(
    ("before", "check", "checks", "left"),
    [
        (0, 0, 10, 100),
        (30, 0, 10, 70),
        (30, 0.5, 10, 64.5),  # eleven checks, with the one before the first step
        (30, 25, 1, 35),  # half of what is left, at least
        (30, 25.1, 0, 70),  # two would take more than half of all
        (130, 0, 10, 0),
    ],
)
def test_what_is_left_of_100_seconds(tiny, before, check, checks, left):
    quality = dataclasses.replace(tiny.quality, checks=10)
    told = Rehearsal(8, 1.0, before, check, None, 0, 0)
    recipe = dataclasses.replace(tiny, quality=quality)
    assert told.checks(recipe, 100) == checks
    assert told.left_to_train(recipe, 100) == pytest.approx(left)


def test_a_long_rehearsal_says_how_far_it_is(source, tiny, clock, monkeypatch):
    monkeypatch.setitem(globals(), "COMPILING", 0.0)
    said: list[str] = []
    rehearse(in_memory(tiny), source, tell=said.append)
    assert said == [f"trying 20 steps: step {n} of 20, 2 s each" for n in (3, 6, 12)]
    monkeypatch.setitem(globals(), "STEP", 0.2)
    rehearse(in_memory(tiny), source, tell=said.append)
    assert len(said) == 3


def test_a_rehearsal_ends_when_its_time_is_over(source, tiny, clock, monkeypatch):
    rehearse(in_memory(tiny), source, max_seconds=COMPILING + 4.5 * STEP)
    assert clock.steps == 5
    monkeypatch.setattr(rehearsal_module.distributed, "cores", lambda: 2)
    rehearse(dataclasses.replace(in_memory(tiny), workers=None), source, max_seconds=9 * STEP)
    assert clock.steps == 5 + 2 * 5  # half of the time for each number of workers


@pytest.fixture
def paces(monkeypatch):
    """Seconds of a step by the number of workers; keeps how many steps were asked for."""
    seconds, asked = {0: 1.0, 1: 1.0}, []

    def pace(self, workers, count):
        asked.append((workers, count))
        return Pace(seconds[workers], 0.0, whole=count * seconds[workers] <= self.max_seconds)

    monkeypatch.setattr(rehearsal_module._Trial, "pace", pace)
    monkeypatch.setattr(rehearsal_module.distributed, "cores", lambda: 2)
    return SimpleNamespace(seconds=seconds, asked=asked)


@pytest.mark.parametrize(("none", "one", "faster"), [(1.0, 1.5, 0), (1.0, 1.0, 0), (2.0, 1.5, 1)])
def test_the_faster_number_of_workers_is_taken_said_and_kept(
    source, tiny, paces, none, one, faster
):
    paces.seconds.update({0: none, 1: one})
    said: list[str] = []
    recipe = planned(
        "auto",
        source,
        flags=lambda r: dataclasses.replace(tiny, steps=r.steps, workers=None),
        max_seconds=1000,
        tell=said.append,
    )
    assert paces.asked == [(0, STEPS // 2), (1, STEPS // 2)]
    sentence = f"workers = {faster}: a step takes {none:g} s without a data worker, {one:g} s"
    assert [s.startswith(sentence) for s in said].count(True) == 1
    assert recipe.workers == faster
    assert recipe.steps == 900 // min(none, one)
    assert Recipe.from_json(recipe.to_json()).workers == faster  # so a resume has the same


def test_time_that_is_too_short_to_try_both_means_one_worker(source, tiny, paces):
    paces.seconds.update({0: 1.0, 1: 2.0})
    said: list[str] = []
    recipe = dataclasses.replace(tiny, workers=None)
    told = rehearse(recipe, source, max_seconds=15, tell=said.append)
    assert (told.workers, told.seconds_per_step, said) == (1, 2.0, [])


@pytest.mark.parametrize(("workers", "cores"), [(0, 2), (1, 2), (None, 3)])
def test_workers_are_not_tried_where_they_are_given_or_cores_are_many(
    source, tiny, paces, monkeypatch, workers, cores
):
    monkeypatch.setattr(rehearsal_module.distributed, "cores", lambda: cores)
    told = rehearse(dataclasses.replace(tiny, workers=workers), source)
    assert told.workers == workers
    assert paces.asked == [(1 if workers is None else workers, STEPS)]


def test_steps_are_really_taken_with_both(source, tiny, monkeypatch):
    monkeypatch.setattr(rehearsal_module.distributed, "cores", lambda: 2)
    told = rehearse(dataclasses.replace(tiny, workers=None), source)
    assert told.workers in (0, 1) and told.seconds_per_step > 0
    assert np.isfinite(told.seconds_before)
