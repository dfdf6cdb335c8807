"""The page of neighbors: one pass in a browser, and what it says where there is nothing to show."""

import html
import json
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from explore import loading, options
from streamlit.testing.v1 import AppTest

from dino_core.gallery import Gallery, filtered
from dino_core.gallery.agreement import count_votes, hardest
from dino_core.gallery.images import read_table, write_table

ROOT = Path(__file__).resolve().parents[2]


def wait_for_rows(page: Any, rows: Any) -> None:
    page.wait_for_function(
        "rows => { const cards = [...document.querySelectorAll('*')]"
        ".flatMap(one => [...(one.shadowRoot?.querySelectorAll('.card') ?? [])]);"
        "return JSON.stringify(cards.map(one => +one.dataset.row)) === rows; }",
        arg=json.dumps([int(row) for row in rows]).replace(" ", ""),
    )


def wait_for_address(page: Any, **wanted: str | None) -> None:
    """Until the address has these values; it is written when the page has been drawn."""

    def has_them(url: str) -> bool:
        values = parse_qs(urlsplit(url).query)
        return all(values.get(name, [None])[0] == value for name, value in wanted.items())

    page.wait_for_url(has_them)


def test_search_by_name_walk_filter_and_judge(explorer: Any, page: Any) -> None:
    address, root = explorer
    gallery = Gallery.open(root / "galleries" / "scenes")
    ids = gallery.images["id"].tolist()
    page.goto(f"{address}?page=neighbors&gallery=scenes")

    # a name: several are meant, one is taken
    page.get_by_placeholder("part of a name").fill("00001")
    page.keyboard.press("Enter")
    suggested = page.locator(".st-key-suggestions button")
    suggested.first.wait_for()
    meant = [id for id in ids if id.rsplit("/", 1)[-1].startswith("00001")][:8]
    assert suggested.all_inner_texts() == meant
    suggested.nth(2).click()
    first = meant[2]
    wait_for_rows(page, gallery.search(first, 24).rows)
    wait_for_address(page, image=first)
    assert "Exact: compared with every one of 120 images." in page.inner_text(".st-key-found")

    # a click walks on, Back returns
    second = gallery.search(first, 24).rows[0]
    page.locator(".card").first.click()
    wait_for_rows(page, gallery.search(ids[second], 24).rows)
    wait_for_address(page, image=ids[second])
    page.go_back()
    wait_for_rows(page, gallery.search(first, 24).rows)

    # a link with a filter is exact among what passes
    label = gallery.images["label"].iloc[5]
    allowed = filtered(gallery.images, "label", [label])
    query = f"&k=6&by=label&is%20label={quote(label)}&image={quote(first)}"
    page.goto(f"{address}?page=neighbors&gallery=scenes{query}")
    found = gallery.search(first, 6, where=allowed)
    wait_for_rows(page, found.rows)
    assert f"the {allowed.sum()} images that pass the filter" in page.inner_text(".st-key-found")
    told = [float(one) for one in page.locator(".score").all_inner_texts()]
    assert told == pytest.approx(found.scores.tolist(), abs=0.0051)

    # on the map they are lit; classes, and the hardest image's own neighbors
    page.get_by_text("On the map").click()
    page.wait_for_selector(".scatter[data-ready=true]")
    wait_for_address(page, **{"as": "map"})
    page.get_by_text("Classes", exact=True).click()
    votes = count_votes(*gallery.neighbors(), gallery.images["label"])
    hard = hardest(votes, 240)
    wait_for_rows(page, hard[:24])
    assert f"{votes.right.mean():.1%}" in page.inner_text(".st-key-classes")
    page.locator(".card").first.click()
    wait_for_address(page, image=ids[hard[0]], view=None)
    assert page.inner_text(".st-key-query code") == ids[hard[0]]


# -- without a browser ------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the page at an address."""
    monkeypatch.setattr(loading, "begin", lambda: None)
    monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path)])
    options.options.cache_clear()

    def run(**address: str) -> AppTest:
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        for name, value in ({"page": "neighbors"} | address).items():
            page.query_params[name] = value
        page.run()
        while page.get("progress"):
            time.sleep(0.05)
            page.run()
        return page

    yield run
    options.options.cache_clear()


def said(page: AppTest) -> str:
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [one.value for one in (*page.error, *page.warning, *page.info, *page.caption)]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", " ".join(texts))))


@pytest.fixture
def few(make_gallery, tmp_path):
    return make_gallery(tmp_path / "galleries" / "few", "scenes:40")


def test_without_an_image_it_says_how_to_start(run, few):
    assert "Start from an image" in said(run())


def test_an_image_that_is_not_here_is_named(run, few):
    assert "scenes/nowhere: is not in this gallery" in said(run(image="scenes/nowhere"))


def test_the_vote_is_told(run, few):
    gallery = Gallery.open(few)
    text = said(run(image=gallery.images["id"].iloc[3]))
    assert "24 nearest" in text
    assert "for its own label" in text
    assert gallery.images["label"].iloc[3] in text


def test_a_filter_that_nothing_passes_gets_a_sentence(run, few):
    images = read_table(few)
    write_table(few, images.assign(weight=[float(i) for i in range(40)], kind=["a", "b"] * 20))
    asked = {"by": "weight,kind", "in weight": "4..4.5", "is kind": "b"}
    text = said(run(image=images["id"].iloc[3], **asked))
    assert "No image passes the filter" in text
    asked["is kind"] = "a"
    assert "the 1 images that pass the filter" in said(run(image=images["id"].iloc[3], **asked))


@pytest.mark.parametrize("spelled", ["", "x..y", "9..1", "-5..900", "nan..nan", "2", "1e999..-."])
def test_an_odd_range_in_the_address_does_no_harm(run, few, spelled):
    images = read_table(few)
    write_table(few, images.assign(weight=[float(i) for i in range(40)]))
    page = run(image=images["id"].iloc[3], by="weight", **{"in weight": spelled})
    assert "nearest" in said(page)


def test_without_labels_there_are_no_classes(run, few):
    write_table(few, read_table(few).assign(label=None))
    assert "These images have no labels" in said(run(view="classes"))


def test_neighbors_found_approximately_say_their_recall(run, few):
    info = json.loads((few / "gallery.json").read_text())
    info["graph"] = {"method": "ivf", "recall": 0.987, "judged": 1000}
    (few / "gallery.json").write_text(json.dumps(info))
    assert "found approximately: 98.7 % of the true ones" in said(run(view="classes"))


def test_classes_of_exact_neighbors_say_so(run, few):
    text = said(run(view="classes"))
    assert "The neighbors are exact." in text
    assert "elect its own label" in text


def test_one_image_has_no_neighbor(run, make_gallery, tmp_path):
    one = make_gallery(tmp_path / "galleries" / "one", "scenes:1")
    image = read_table(one)["id"].iloc[0]
    assert "There is no other image to compare it with" in said(run(image=image))
    assert "nothing to judge" in said(run(view="classes"))
