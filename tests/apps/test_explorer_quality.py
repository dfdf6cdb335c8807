"""The page of quality: what it says without labels or splits; duplicates, a review, a new table."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from explore import loading, options, permission, queueing, words
from PIL import Image
from streamlit.testing.v1 import AppTest

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery.cleaned import Cleaned
from dino_core.gallery.images import read_table, write_table
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.gallery.notes import Notes

ROOT = Path(__file__).resolve().parents[2]
LEAKING = 3  # images of a split that are in the other one too


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures of three classes, of which three validation images are equal to training ones."""
    folder = tmp_path_factory.mktemp("photos")
    source = open_source("scenes:36")
    for index in range(36):
        split, name = ("val" if index % 4 == 3 else "train"), "abc"[index % 3]
        path = folder / split / name / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(index)).resize((48, 48)).save(path)
    for index in range(LEAKING):
        shutil.copy(folder / "train" / "abc"[index] / f"{index:02}.png",
                    folder / "val" / "abc"[index] / f"copy {index}.png")  # fmt: skip
    return folder


def planted(out: Path, make_gallery: Any, photos: Path) -> Path:
    """A gallery of the pictures: equal files have one feature, one image lies far from all."""
    make_gallery(out, str(photos), spread=0.15)
    images = read_table(out)
    features = np.load(out / "features.npy")
    rows = {id: row for row, id in enumerate(images["id"])}
    for index in range(LEAKING):
        first, copy = (rows[f"{name}"] for name in (
            f"train/{'abc'[index]}/{index:02}.png", f"val/{'abc'[index]}/copy {index}.png"
        ))  # fmt: skip
        features[copy] = features[first]
    features[rows["train/a/12.png"]] *= -1
    images.loc[rows["train/a/12.png"], "label"] = None  # or its label would be the doubtful thing
    write_table(out, images)
    np.save(out / "features.npy", features)
    near, scores = neighbor_graph(features, 10)
    np.savez(out / "neighbors.npz", rows=near, scores=scores)
    return out


# -- without a browser ------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Run the page at an address."""
    monkeypatch.setattr(loading, "begin", lambda: None)
    monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path)])
    monkeypatch.setattr(permission, "host", lambda: "127.0.0.1")

    def run(**values: str) -> AppTest:
        options.options.cache_clear()
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        for name, value in ({"page": "quality"} | values).items():
            page.query_params[name] = value
        return settled(page.run())

    yield run
    options.options.cache_clear()


def settled(page: AppTest) -> AppTest:
    """Once nothing is computed any more."""
    for _ in range(200):
        if not any("Cancel" in button.label for button in page.button):
            break
        page.run()
    assert not page.exception
    return page


def said(page: AppTest) -> str:
    texts = [element.proto.body for element in page.get("html")]
    return " ".join(texts + [element.value for element in (*page.error, *page.caption)])


def button(page: AppTest, label: str) -> Any:
    return next(one for one in page.button if label in one.label)


def test_without_labels_and_splits_the_page_says_what_would_make_them(
    run: Any, tmp_path: Path, make_gallery: Any
) -> None:
    out = make_gallery(tmp_path / "galleries" / "plain", "scenes:24")
    images = read_table(out)
    images["label"] = None
    write_table(out, images)
    assert "have no labels" in said(run(tab="labels"))
    assert "have no splits" in said(run(tab="leaks"))
    assert "No duplicates" in said(run(tab="duplicates", alike="1"))


def test_a_single_image_cannot_be_compared(run: Any, tmp_path: Path, make_gallery: Any) -> None:
    make_gallery(tmp_path / "galleries" / "one", "scenes:1")
    assert "too few images" in said(run())


def test_a_group_is_decided_and_undone_on_the_disk(
    run: Any, tmp_path: Path, make_gallery: Any, photos: Path
) -> None:
    out = planted(tmp_path / "galleries" / "planted", make_gallery, photos)
    page = run(tab="leaks", alike="1")
    assert f"<b>{LEAKING} groups</b> of {2 * LEAKING} images lie in more than one split" in said(
        page
    )
    settled(button(page, "Remove 1, keep 1").click().run())
    reviews = {id: one.decision for id, one in Notes(out).reviews().items()}
    assert sorted(reviews.values()) == ["keep", "remove"]
    assert all(id.startswith("train") == (word == "remove") for id, word in reviews.items())
    settled(button(page, "Decide 4 as suggested").click().run())
    assert len(Notes(out).reviews()) == 2 * LEAKING
    settled(button(page, "Undo").click().run())
    assert {id: one.decision for id, one in Notes(out).reviews().items()} == reviews
    settled(button(page, "Undo").click().run())
    assert Notes(out).reviews() == {}


def test_a_threshold_of_the_address_holds_on_every_tab(
    run: Any, tmp_path: Path, make_gallery: Any, photos: Path
) -> None:
    planted(tmp_path / "galleries" / "planted", make_gallery, photos)
    for values, none in (({"alone": "-1"}, True), ({}, False)):
        page = run(tab="review", alike="1", **values)
        (show,) = (one for one in page.get("button_group") if one.proto.label == "Show")
        told = [option.content for option in show.proto.options]
        assert f"Leaks {2 * LEAKING}" in told and "Duplicates 0" in told
        assert ("Outliers 0" in told) == none, "one lies far from all others"


@pytest.mark.parametrize(
    ("now", "changed", "suggestion", "meant"),
    [
        ({"decision": "keep", "new label": None}, {"decision": "keep"}, None, ("keep", None)),
        ({"decision": None, "new label": "cat"}, {"new label": "cat"}, "dog", ("relabel", "cat")),
        ({"decision": "keep", "new label": "cat"}, {"new label": "cat"}, None, ("relabel", "cat")),
        ({"decision": "relabel", "new label": None}, {"decision": "relabel"}, "dog",
         ("relabel", "dog")),
        ({"decision": "relabel", "new label": None}, {"decision": "relabel"}, None, (None, None)),
        ({"decision": "relabel", "new label": None}, {"new label": None}, "dog", (None, None)),
        ({"decision": "remove", "new label": "cat"}, {"decision": "remove"}, None,
         ("remove", None)),
        ({"decision": None, "new label": None}, {"decision": None}, "dog", (None, None)),
    ],
)  # fmt: skip
def test_what_an_edited_row_means(now: Any, changed: Any, suggestion: Any, meant: Any) -> None:
    assert queueing._meant(now, changed, suggestion) == meant


def test_a_table_that_could_not_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: dict[str, Any] = {}
    works: dict[Any, Any] = {}
    said: list[str] = []
    outcomes = iter([UserError("the disk is full"), Cleaned(tmp_path / "a.csv", 3, 0, 0, 0, 0, 0)])

    def write(*_: Any) -> Cleaned:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def work(key: Any, _what: str, function: Any, **_: Any) -> Any:  # once a key, as the real one
        if key not in works:
            works[key] = function(None)
        return works[key]

    fake = SimpleNamespace(session_state=session, code=lambda *_, **__: None)
    for name, value in (("st", fake), ("work", work), ("write_cleaned", write)):
        monkeypatch.setattr(queueing, name, value)
    monkeypatch.setattr(permission, "check", lambda: None)
    monkeypatch.setattr(permission, "may_act", lambda: True)
    for name in ("error", "success"):
        monkeypatch.setattr(words, name, lambda text: said.append(text))
    here: Any = SimpleNamespace(root=tmp_path, gallery=None)
    for _ in range(2):
        queueing._write(here, "a.csv")
        queueing._written(here)
        assert "writing" not in session
    assert said[0] == "the disk is full" and said[1].startswith("Written to")


# -- in a browser -----------------------------------------------------------------------------


def test_review_leaks_and_write_a_new_table(
    explorer: Any, page: Any, make_gallery: Any, photos: Path
) -> None:
    address, root = explorer
    out = planted(root / "galleries" / "planted", make_gallery, photos)
    page.goto(f"{address}?page=quality&gallery=planted&tab=leaks&alike=1")
    page.locator(".cards img").first.wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('.cards img')].every((one) => one.naturalWidth > 0)"
    )
    assert page.locator(".cards figure.remove.open").count() == LEAKING
    page.get_by_role("button", name="Remove 1, keep 1").first.click()
    page.locator(".cards figure.remove:not(.open)").first.wait_for()

    page.get_by_role("button", name="Decide one by one").click()
    table = page.locator("[data-testid=stDataFrame] canvas").first
    table.wait_for()
    assert "show=leak" in page.url and "tab=review" in page.url
    place = page.locator(".st-key-quality_at h3")
    place.filter(has_text="3 of 6").wait_for()
    page.locator(".st-key-one-remove button").click()
    place.filter(has_text="4 of 6").wait_for()
    assert [one.decision for one in Notes(out).reviews().values()].count("remove") == 2

    # in the table itself: the decision of the fifth row
    box = table.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 135, box["y"] + 35 + 60 * 4 + 30)
    page.keyboard.press("Enter")
    page.locator("#portal input").wait_for()
    page.keyboard.type("remove")
    page.keyboard.press("Enter")
    page.locator(".st-key-quality_result b", has_text="3").wait_for()
    assert [one.decision for one in Notes(out).reviews().values()].count("remove") == 3

    page.reload()  # nothing is lost
    page.locator(".st-key-quality_result b", has_text="3").wait_for()
    page.locator(".st-key-write-table button").click()
    page.get_by_text("Written to").wait_for()
    source = open_source(root / "cleaned" / "planted-cleaned.csv")
    assert len(source) == 36 + LEAKING - 3
    assert not {f"train/{'abc'[i]}/{i:02}.png" for i in range(LEAKING)} & {
        name.split("photos", 1)[-1].partition("/")[2] for name in source.ids
    }
