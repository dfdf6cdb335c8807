"""The page that compares two galleries: once in a browser, and its states without one."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from dino_core.gallery.images import read_table, write_table

ROOT = Path(__file__).resolve().parents[2]
COUNT = 120


def neighbors(gallery: Path, k: int) -> list[list[int]]:
    """Each image's neighbors, by the plain definition."""
    features = np.load(gallery / "features.npy").astype(np.float64)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -9)
    return np.argsort(-similarity, axis=1)[:, :k].tolist()


def in_address(page: Any) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def rows(page: Any, key: str) -> list[int]:
    cards = page.locator(f".st-key-{key} .card")
    return cards.evaluate_all("cards => cards.map((card) => Number(card.dataset.row))")


def test_figures_lists_and_maps_of_two_galleries(explorer: Any, page: Any) -> None:
    address, root = explorer
    folders = [root / "galleries" / name for name in ("scenes", "again")]
    page.goto(f"{address}?page=compare&gallery=scenes&k=8&with=again")
    page.wait_for_selector(".st-key-compare_second .card")

    first, second = (neighbors(folder, 8) for folder in folders)
    shared = [{*a} & {*b} for a, b in zip(first, second, strict=True)]
    mean = np.mean([len(both) / 8 for both in shared])
    told = page.locator(".compare-figures dd").all_inner_texts()
    assert told[0] == f"{mean:.0%}" and told[2] == str(COUNT)
    assert re.fullmatch(r"0\.\d\d|1\.00", told[1])
    assert page.locator(".compare-bars li").count() == 9

    # what moved most stands first, and a click shows both its lists
    captions = page.locator(".st-key-compare_grid .name").all_inner_texts()
    grid = rows(page, "compare_grid")
    assert captions == [f"{len(shared[row])} of 8" for row in grid] and len(grid) == 24
    assert captions[0] == f"{min(map(len, shared))} of 8"
    one = grid[5]
    page.locator(".st-key-compare_grid .card").nth(5).click()
    page.wait_for_function(f"location.search.includes('image=scenes%2F{one:06d}')")
    page.locator(".st-key-compare_image code", has_text=f"scenes/{one:06d}").wait_for()
    for key, lists in (("compare_first", first), ("compare_second", second)):
        page.wait_for_selector(f".st-key-{key} .card[data-row='{lists[one][0]}']")
        assert rows(page, key) == lists[one]
        names = page.locator(f".st-key-{key} .name").all_inner_texts()
        assert [name.startswith("✓") for name in names] == [
            row in shared[one] for row in lists[one]
        ]
    page.go_back()
    page.locator(".st-key-compare_image code", has_text=f"scenes/{grid[0]:06d}").wait_for()
    assert "image" not in in_address(page)

    # the maps, drawn once and kept
    page.get_by_text("Aligned maps").click()
    page.wait_for_selector(".scatter[data-ready=true]")
    assert in_address(page)["view"] == "maps"
    assert [path.name[:6] for path in (folders[0] / "comparisons").iterdir()] == ["again-"]
    page.get_by_text("again", exact=True).click()
    page.wait_for_function("location.search.includes('show=second')")
    page.get_by_text("Lines lead").wait_for(state="detached")
    page.get_by_text("Images whose neighbors stay").wait_for()

    page.reload()
    page.wait_for_selector(".scatter[data-ready=true]")
    assert in_address(page) == {
        "page": "compare", "gallery": "scenes", "k": "8", "with": "again", "view": "maps",
        "show": "second",
    }  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_gallery: Callable[..., Path]) -> Any:
    """Run the page for the gallery `mine` of 40 scenes, with these values in the address."""
    from explore import loading, options, working

    monkeypatch.setattr(loading, "begin", lambda: None)
    monkeypatch.setattr(working, "AT_ONCE", 60)
    monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path), "--gallery", "mine"])
    make_gallery(tmp_path / "galleries" / "mine", "scenes:40")

    def run(**address: str) -> AppTest:
        options.options.cache_clear()
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        for name, value in (address | {"page": "compare"}).items():
            page.query_params[name] = value
        return page.run()

    yield run
    options.options.cache_clear()


def said(page: AppTest) -> str:
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [element.value for element in (*page.error, *page.warning, *page.caption)]
    return re.sub(r"<style>.*?</style>|<[^>]+>", "", " ".join(texts), flags=re.DOTALL)


def test_alone_it_says_what_to_build(run):
    page = run()
    assert "No other gallery holds images of mine" in said(page)
    next(button for button in page.button if button.label == "Build a gallery").click().run()
    assert page.query_params["page"] == "galleries"


def test_without_common_images_it_names_what_is_half_made(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "foreign", "scenes:50-60")
    (tmp_path / "galleries" / "half").mkdir()
    (tmp_path / "galleries" / "half" / "building.json").write_text("{}")
    text = said(run())
    assert "Nothing to compare with yet" in text
    assert "half is half made, so it cannot be compared with yet." in text


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ("foreign", "mine and foreign have no image in common"),
        ("half", "half is half made"),
        ("gone", "There is no gallery gone any more"),
        ("mine", "This is the gallery that is open"),
    ],
)
def test_a_gallery_that_cannot_be_compared_with_is_said_and_others_are_offered(
    run, tmp_path, make_gallery, other, sentence
):
    make_gallery(tmp_path / "galleries" / "some", "scenes:20")
    make_gallery(tmp_path / "galleries" / "foreign", "scenes:50-60")
    (tmp_path / "galleries" / "half").mkdir()
    (tmp_path / "galleries" / "half" / "building.json").write_text("{}")
    page = run(**{"with": other})
    assert sentence in said(page)
    (offer,) = [button for button in page.button if button.label.startswith("Compare with")]
    assert offer.label == "Compare with some (20 in common)"
    page = offer.click().run()
    assert page.query_params["with"] == "some"
    assert "20 images of mine left out: not in both." in said(page)


def test_images_that_an_update_brought_are_found(run, tmp_path, make_gallery):
    other = make_gallery(tmp_path / "galleries" / "other", "scenes:50-60")
    page = run()
    assert "Nothing to compare with yet" in said(page)
    mine = read_table(tmp_path / "galleries" / "mine").head(10)
    write_table(other, read_table(other).assign(content_hash=mine["content_hash"]))
    info = json.loads((other / "gallery.json").read_text())
    info["update"] = {"time": "2026-01-02T03:04:05+00:00", "added": 0, "gone": 0, "changed": 10}
    (other / "gallery.json").write_text(json.dumps(info))
    page.run()
    assert "30 images of mine left out" in said(page)


def test_one_common_image_is_too_few(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "one", "scenes:39-45")
    page = run()
    assert "mine and one have only one image in common, too few to have neighbors" in said(page)


def test_an_image_that_only_this_gallery_has_is_said(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "some", "scenes:20")
    assert "000030 is only in mine" in said(run(image="scenes/000030"))
    assert "mine has no image 000099" in said(run(image="scenes/000099"))
    assert "000007" in said(run(image="scenes/000007"))


def test_a_gallery_deleted_meanwhile_is_a_sentence(run, tmp_path, make_gallery, monkeypatch):
    from explore.tabs import compare

    other = make_gallery(tmp_path / "galleries" / "some", "scenes:20")
    open_now = compare.open_gallery

    def deleted_first(path: Path) -> Any:
        shutil.rmtree(other)
        return open_now(path)

    monkeypatch.setattr(compare, "open_gallery", deleted_first)
    assert "some: no such gallery" in said(run())
