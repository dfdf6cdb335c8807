"""What is planned before the first step: times, lengths, what has the last word, a full disk."""

import dataclasses
from types import SimpleNamespace

import pytest

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.runs import Run
from dino_core.training import Recipe, planned, seconds_of
from dino_core.training.rehearsal import rehearse


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400)],
)
def test_times_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "1h 30m", "0s", "soon"])
def test_what_is_no_time_is_a_sentence(text):
    with pytest.raises(UserError, match="write"):
        seconds_of(text)


def test_a_rehearsal_measures_and_leaves_nothing(pictures, tiny, tmp_path):
    told = rehearse(tiny, open_source(pictures))
    assert told.seconds_per_step > 0 and told.memory > 0
    assert told.checkpoint > 4 * 5 * 64**2  # more than a layer of the network
    assert told.images_per_second == pytest.approx(tiny.batch_size / told.seconds_per_step)
    assert list(tmp_path.iterdir()) == []


def test_a_time_is_made_steps_and_told(pictures, tmp_path):
    said: list[str] = []
    source = open_source(pictures)
    recipe = planned(
        "auto",
        source,
        run=Run(tmp_path / "run"),
        flags=lambda recipe: dataclasses.replace(recipe, device="cpu", threads=1, workers=0),
        max_seconds=5,
        tell=said.append,
    )
    assert recipe.resolved(len(source)).steps == recipe.steps
    assert recipe.threads == 1  # a flag has the last word
    assert any("images/s" in sentence and "on disk" in sentence for sentence in said)


def test_warm_ups_follow_a_length_that_the_user_set(pictures):
    source = open_source(pictures)
    recipe = planned("auto", source, flags=lambda r: dataclasses.replace(r, steps=2, device="cpu"))
    assert recipe.resolved(len(source)).steps == 2


def test_a_disk_that_is_too_full_is_refused(pictures, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("dino_core.training.plan.shutil.disk_usage", lambda _path: usage)

    def flags(recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, device="cpu", threads=1, workers=0)

    with pytest.raises(UserError, match="GB of disk"):
        planned("auto", open_source(pictures), run=Run(tmp_path / "x"), flags=flags, max_seconds=5)


@pytest.mark.parametrize(("steps", "asked", "checks"), [(8, None, 1), (45, None, 4), (8, 8, 8)])
def test_a_short_run_checks_seldom_unless_asked(steps, asked, checks, pictures):
    def flags(recipe: Recipe) -> Recipe:
        quality = recipe.quality
        if asked is not None:
            quality = dataclasses.replace(quality, checks=asked)
        return dataclasses.replace(recipe, steps=steps, device="cpu", quality=quality)

    assert planned("auto", open_source(pictures), flags=flags).quality.checks == checks


def test_what_was_planned_stands_in_the_log(pictures, tmp_path):
    said: list[str] = []
    run = Run(tmp_path / "runs" / "new")
    planned("auto", open_source(pictures), run=run, tell=said.append)
    logged = (run.path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in logged] == said != []


def test_a_plan_that_fails_leaves_no_folder(pictures, tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        planned("vits17", open_source(pictures), run=Run(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
