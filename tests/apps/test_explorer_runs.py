"""The page of runs: watched while they grow, stopped, and started from a form."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from explore import permission, running
from explore.here import Here
from explore.options import Options

from dino_core.errors import UserError
from dino_core.runs import Run
from dino_core.training.recipe import Recipe

STEPS = 300
START_BOUND = 200.0  # seconds; importing torch alone may take a minute on a busy machine


def grow(run: Run, first: int, last: int) -> None:
    run.append_metrics(
        {"step": step, "loss": 9 - step / 100, "momentum": 0.996, "images_per_second": 90.0}
        for step in range(first, last, 10)
    )
    run.write_status("running", step=last, steps=STEPS)


@pytest.fixture(scope="module")
def run(explorer: tuple[str, Path]) -> Run:
    """A run that this very process seems to be training."""
    run = Run(explorer[1] / "runs" / "watched")
    run.path.mkdir(parents=True)
    recipe = Recipe(steps=STEPS).to_json() | {"data": "/photos", "images": 900}
    (run.path / "recipe.json").write_text(json.dumps(recipe))
    (run.path / "probes").mkdir()
    run.warn(90, "its entropy fell; raise the teacher temperature")
    run.log("epoch 1: loss 8.9")
    grow(run, 0, 100)
    return run


def test_a_run_is_watched_while_it_grows_and_asked_to_stop(
    explorer: tuple[str, Path], run: Run, page: Any
) -> None:
    address, _ = explorer
    page.goto(address + "?page=runs&of=watched")
    card = page.locator(".st-key-run_watched")
    card.get_by_text("running, step 100 of 300").wait_for()
    card.get_by_text("Step 90: its entropy fell").wait_for()
    card.get_by_text("vit_small_patch16_224 on /photos").wait_for()
    page.locator("[data-testid=stVegaLiteChart] svg").first.wait_for()
    titles = page.locator("[data-testid=stColumn] h3").all_inner_texts()
    assert titles == ["Loss, nats", "Images per second", "Teacher momentum"]

    grow(run, 100, 200)  # the page looks again by itself
    card.get_by_text("running, step 200 of 300").wait_for()
    card.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(100)
    assert until(lambda: (run.path / "stop").exists(), page)
    run.write_status("stopped", step=200, steps=STEPS, reason="it was asked to stop")
    card.get_by_role("button", name="Resume").wait_for()
    card.get_by_text("It was asked to stop").wait_for()

    run.write_status("running", step=200, steps=STEPS)  # resumed, in a terminal
    card.get_by_role("button", name="Stop").wait_for()
    card.get_by_role("button", name="See what it learned").click()
    page.wait_for_url("**page=emergence**run=watched**")


def test_the_form_starts_what_was_typed(explorer: tuple[str, Path], page: Any) -> None:
    """Up to the sentence about a value that cannot be: nothing is started by it."""
    address, root = explorer
    page.goto(address + "?page=runs&view=Start a run&recipe=tiny64")
    page.get_by_label("Images").wait_for(timeout=1000 * START_BOUND)  # torch is being loaded
    page.get_by_label("Images").fill("scenes:40")
    page.get_by_label("Name of the run").fill("typed")
    page.get_by_text("The run", exact=True).click()
    field = page.get_by_role("textbox", name="Batch size")
    assert re.fullmatch(r"\d+", field.get_attribute("placeholder"))
    field.fill("many")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("batch_size is 'many'; it has to be a number").wait_for()
    assert not (root / "runs" / "typed").exists()


def test_what_the_form_sends_is_what_is_launched(tmp_path: Path, monkeypatch: Any) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(running, "start", lambda *args, **kwargs: sent.append((args, kwargs)))
    monkeypatch.setattr(running.st, "rerun", lambda: None)
    monkeypatch.setattr(permission, "options", Options)
    monkeypatch.setattr(permission, "host", lambda: "127.0.0.1")
    monkeypatch.setattr(running.address, "change", lambda **values: sent.append(values))
    here = Here(tmp_path, "starter", None)  # type: ignore[arg-type]
    typed = {"optim.lr": "0.001", "batch_size": "8"}
    running._start(here, "auto", typed, "scenes:40", "mine", "30m", None)
    (args, kwargs), landed = sent
    assert args == ("auto", "scenes:40", tmp_path / "runs" / "mine")
    assert kwargs["changes"] == typed and kwargs["max_seconds"] == 1800
    assert landed == {"view": None, "of": "mine"}

    said: list[str] = []
    monkeypatch.setattr(running.st, "error", said.append)
    for data, out, time in (
        ("", "mine", ""), ("nowhere", "mine", ""), ("scenes:40", "../up", ""),
        ("scenes:40", "a", "x"),
    ):  # fmt: skip
        running._start(here, "auto", {}, data, out, time, None)
    said = [one.replace("\\", "") for one in said]
    assert len(said) == 4 and len(sent) == 2
    assert "nowhere: no such folder" in said[1] and "../up: give it a name" in said[2]


def test_open_to_the_network_only_who_has_the_token_changes_things(monkeypatch: Any) -> None:
    session: dict[str, Any] = {}
    monkeypatch.setattr(permission.st, "session_state", session)
    monkeypatch.setattr(permission, "host", lambda: "0.0.0.0")
    monkeypatch.setattr(permission, "options", lambda: type("Options", (), {"token": "sesame"}))
    with pytest.raises(UserError, match="needs its token"):
        permission.check()
    permission.check("sesame")
    session["token"] = "sesame"
    permission.check()


def until(true: Any, page: Any) -> bool:
    """Whether it becomes true while the page lives on."""
    for _ in range(600):
        if true():
            return True
        page.wait_for_timeout(100)
    return False
