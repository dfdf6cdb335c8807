"""The page of galleries: what it tells, who may change what, and one pass in a browser."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from explore import loading, making, options, permission
from explore.tabs import galleries
from streamlit.testing.v1 import AppTest

from dino_core.gallery import build_status, list_galleries

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The page, for a server with these arguments, bound to `host`, at this address."""
    monkeypatch.setattr(loading, "begin", lambda: None)

    def run(*arguments: str, host: str = "127.0.0.1", **values: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path), *arguments])
        for module in (permission, galleries):
            monkeypatch.setattr(module, "host", lambda: host)
        options.options.cache_clear()
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        page.query_params["page"] = "galleries"
        for name, value in values.items():
            page.query_params[name] = value
        return page.run()

    yield run
    options.options.cache_clear()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would have been started."""
    calls: list[tuple] = []
    for module in (making, galleries):
        monkeypatch.setattr(
            module, "start_build", lambda *args, **how: calls.append((*args, how)) or 1
        )
    monkeypatch.setattr(galleries, "start_map", lambda *args, **how: calls.append((*args, how)))
    return calls


def said(page: AppTest) -> str:
    """Everything the page says, tags taken out."""
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [element.value for element in (*page.error, *page.caption, *page.markdown)]
    return re.sub(r"<[^>]+>", "", re.sub(r"\\([^\w\s]|_)", r"\1", " ".join(texts)))


def press(page: AppTest, label: str) -> AppTest:
    return next(button for button in page.button if button.label == label).click().run()


def test_none_yet(run) -> None:
    page = run()
    assert "There is none yet" in said(page) and "scripts/embed.py" in said(page)


def test_every_state_is_told(run, tmp_path, make_gallery, started) -> None:
    folder = tmp_path / "galleries"
    make_gallery(folder / "whole", "scenes:20")
    shutil.copytree(folder / "whole", folder / "cut")
    (folder / "cut" / "neighbors.npz").write_bytes(b"PK")
    shutil.copytree(folder / "whole", folder / "broken")
    (folder / "broken" / "features.npy").unlink()
    (folder / "half").mkdir()
    plan = {"plan": {"model": "starter", "data": "/photos"}}
    (folder / "half" / "building.json").write_text(json.dumps(plan))
    text = said(run())
    assert "cut: is damaged (neighbors.npz cannot be read)" in text
    assert "broken: is damaged (features.npy is missing)" in text
    assert "half half made" in text and "/photos seen by starter" in text

    page = press(run(about="half"), "Go on")
    assert started.pop()[:3] == ("starter", "/photos", folder / "half")
    press(run(about="cut"), "Update")
    assert started.pop()[:3] == ("starter", "scenes:20", folder / "cut")
    page = press(run(about="broken"), "Build it again")
    assert started.pop()[:3] == ("starter", "scenes:20", folder / "broken")
    assert not page.error


def test_maps_of_other_settings(run, tmp_path, make_gallery, started) -> None:
    path = make_gallery(tmp_path / "galleries" / "whole", "scenes:20")
    page = run(about="whole", neighbors="30", distance="0.5")
    press(page, "Draw a map of these")
    assert started == [(path, 30, 0.5, {"root": tmp_path})]


def test_deleting_asks_for_the_name_and_tells_what_goes(run, tmp_path, make_gallery) -> None:
    path = make_gallery(tmp_path / "galleries" / "whole", "scenes:20")
    (path / "user").mkdir()
    (path / "user" / "tags.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    page = run(about="whole")
    assert "with it go 2 notes that people made" in said(page)
    delete = next(button for button in page.button if button.label == "Delete for good")
    assert delete.disabled
    field = next(field for field in page.text_input if field.label == "Type whole to delete it")
    page = field.set_value("whole").run()
    page = press(page, "Delete for good")
    assert not path.exists() and "There is none yet" in said(page)


def test_open_to_the_network_nothing_changes_without_the_token(
    run, tmp_path, make_gallery, started
) -> None:
    make_gallery(tmp_path / "galleries" / "whole", "scenes:20")
    closed = run(host="0.0.0.0", about="whole")
    assert "open to the network" in said(closed)
    changing = ("Update", "Draw a map of these", "Hold patches", "Delete for good")
    assert all(button.disabled for button in closed.button if button.label in changing)

    page = run("--token", "sesame", host="0.0.0.0", about="whole")
    token = next(field for field in page.text_input if field.label == "Token")
    page = token.set_value("wrong").run()
    assert "not the token" in said(page)
    assert all(button.disabled for button in page.button if button.label in changing)
    page = (
        next(field for field in page.text_input if field.label == "Token").set_value("sesame").run()
    )
    press(page, "Update")
    assert started[0][:2] == ("starter", "scenes:20")


def test_folders_outside_of_the_allowed_roots_are_refused(run, tmp_path, started) -> None:
    for name in ("allowed/cats", "secret"):
        (tmp_path / name).mkdir(parents=True)
    roots = ("--data-root", str(tmp_path / "allowed"), "--token", "sesame")
    refusals = set()
    for where in ("secret", "nowhere"):
        page = press(run(*roots, folder=str(tmp_path / where)), "Make the gallery")
        refusals.add(said(page).split(f"{where}: ")[1].split(";")[0])
        assert not started
    assert refusals == {"is not there, or lies outside of what this page may read"}
    page = press(run(*roots, folder=str(tmp_path / "allowed" / "cats")), "Make the gallery")
    assert started[0][:2] == ("starter", str(tmp_path / "allowed" / "cats"))
    listed = run(*roots, folder=str(tmp_path / "allowed"), browse="yes")
    labels = [button.label for button in listed.button]
    assert "cats (0 images)" in labels and not [one for one in labels if one.startswith("Up to")]


def test_a_gallery_may_be_given_a_name(run, tmp_path, started) -> None:
    page = run(folder="scenes:20")
    (field,) = (one for one in page.text_input if one.label == "Name")
    assert field.placeholder == "scenes-20-starter"
    for wrong in ("../elsewhere", ".hidden", "a b"):
        page = press(field.set_value(wrong).run(), "Make the gallery")
        assert f"{wrong}: give it a name" in said(page) and not started
        (field,) = (one for one in page.text_input if one.label == "Name")
    page = press(field.set_value("mine").run(), "Make the gallery")
    assert started[0][:3] == ("starter", "scenes:20", tmp_path / "galleries" / "mine")


def test_what_is_no_folder_is_said(run) -> None:
    for typed in ("~nobody_x", "a" * 5000, "a\0b", "nowhere"):
        assert "no such folder" in said(run(folder=typed, browse="yes"))


def test_strangers_browse_no_folders_and_see_no_paths(run, tmp_path, make_gallery) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    make_gallery(tmp_path / "galleries" / "whole", "scenes:20")
    (tmp_path / "galleries" / "whole" / "neighbors.npz").write_bytes(b"PK")
    words = ("--token", "sesame", "--data-root", str(tmp_path / "photos"))
    asked = {"folder": "photos", "browse": "yes"}
    page = run(*words, host="0.0.0.0", **asked)
    assert str(tmp_path) not in said(page) and "in ROOT/galleries" in said(page)
    assert not [box for box in page.toggle if box.label == "Browse folders"]
    assert str(tmp_path) not in said(run(*words, host="0.0.0.0", about="whole"))
    page = run(*words, host="0.0.0.0", **asked)
    field = next(field for field in page.text_input if field.label == "Token")
    page = field.set_value("sesame").run()
    assert "cats (0 images)" in [button.label for button in page.button]


def test_galleries_are_looked_into_again_when_they_change(
    run, tmp_path, make_gallery, monkeypatch
) -> None:
    path = make_gallery(tmp_path / "galleries" / "whole", "scenes:20")
    opened: list[Path] = []
    real = galleries.Gallery.open
    monkeypatch.setattr(galleries.Gallery, "open", lambda one: opened.append(one) or real(one))
    monkeypatch.setattr(galleries.time, "monotonic", lambda: 0.0)
    galleries._problems.cache_clear()
    page = run()
    page.run()
    assert opened == [path]
    (path / "neighbors.npz").unlink()
    assert "neighbors.npz is missing" in said(page.run())
    assert opened == [path, path]


def test_what_was_picked_in_a_deleted_gallery_is_forgotten(run, tmp_path, make_gallery) -> None:
    make_gallery(tmp_path / "galleries" / "whole", "scenes:20")
    page = run(about="whole", gallery="whole", image="scenes/000003", shown="1")
    field = next(field for field in page.text_input if field.label == "Type whole to delete it")
    page = press(field.set_value("whole").run(), "Delete for good")
    assert set(page.query_params) == {"page"}


def test_one_pass_in_a_browser(
    explorer: tuple[str, Path], page: Any, make_gallery: Callable[..., Path]
) -> None:
    address, root = explorer
    mine = make_gallery(root / "galleries" / "to-delete", "scenes:30")
    page.goto(address + "?page=galleries")
    card = page.locator(".st-key-gallery_card_to-delete")
    card.get_by_text("30 generated images · starter").wait_for()
    card.get_by_role("button", name="Manage").click()
    panel = page.locator(".st-key-gallery_panel")
    panel.get_by_role("heading", name="to-delete").wait_for()
    page.wait_for_function("location.search.includes('about=to-delete')")
    page.go_back()
    panel.get_by_role("heading", name="New gallery").wait_for()
    page.go_forward()
    panel.get_by_role("heading", name="to-delete").wait_for()

    panel.get_by_role("button", name="Update").click()  # of features by hand: another model's
    panel.get_by_text("made with other weights of starter").wait_for(timeout=200_000)
    assert build_status(mine)["state"] == "failed"

    field = panel.get_by_label("Type to-delete to delete it")
    field.fill("to-delete")
    field.press("Enter")
    panel.get_by_role("button", name="Delete for good").click()
    panel.get_by_role("heading", name="New gallery").wait_for()
    assert "to-delete" not in [entry.name for entry in list_galleries(root)]
    page.locator(".st-key-gallery_card_again").get_by_role("button", name="Open").click()
    page.locator("canvas").first.wait_for()
    page.wait_for_function("location.search.includes('gallery=again')")
    assert "page=" not in page.url
