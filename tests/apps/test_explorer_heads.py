"""The page of heads: the matrix, the images that excite a head, and the lens they open in."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from explore import loading, models, options, permission
from streamlit.testing.v1 import AppTest

from dino_core.gallery import Gallery, atlas_building
from dino_core.gallery.atlas import Atlas
from dino_core.models import Model, load_model

ROOT = Path(__file__).resolve().parents[2]
COUNT = 20
PAINTED = """() => {
  const drawn = [...document.querySelectorAll('.st-key-heads_excited *')]
    .flatMap((host) => host.shadowRoot ? [...host.shadowRoot.querySelectorAll('canvas')] : []);
  return drawn.length && drawn.every((canvas) => {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return data[3] === 255 && new Set(data.filter((_, at) => at % 4 === 0)).size > 30;
  }) ? drawn.length : 0;
}"""


@pytest.fixture(scope="module")
def seer() -> Model:
    return load_model("starter", device="cpu")


@pytest.fixture(scope="module")
def make_atlas(seer: Model, make_gallery: Any) -> Any:
    """A gallery of that name with the starter's atlas, of maps of 6 x 6 patches."""

    def make(root: Path, name: str, atlas: bool = True) -> Gallery:
        path = make_gallery(root / "galleries" / name, f"scenes:{COUNT}")
        manifest = path / "gallery.json"
        changed = json.loads(manifest.read_text()) | {"model_hash": seer.hash}
        manifest.write_text(json.dumps(changed))
        gallery = Gallery.open(path)
        if atlas:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(atlas_building, "DEFAULT_PATCHES", 6)
                atlas_building.build_atlas(gallery, seer, images=None)
        return gallery

    return make


def test_choose_a_head_and_open_an_image_that_excites_it(
    explorer: Any, make_atlas: Any, page: Any
) -> None:
    address, root = explorer
    gallery = make_atlas(root, "headed")
    atlas = Atlas.read(gallery)
    page.goto(f"{address}?page=heads&gallery=headed")
    cells = page.locator(".matrix .cell")
    cells.last.wait_for()
    layers, many = atlas.mean["excitement"].shape
    assert cells.count() == layers * many
    best = int(atlas.mean["excitement"].argmax())
    assert cells.nth(best).get_attribute("aria-selected") == "true", "the most excitable one"

    cells.nth(many + 1).click()
    page.wait_for_selector(".st-key-panel h2:has-text('Layer 2, head 2')")
    page.wait_for_url("**layer=2&head=2**")
    cells.nth(many + 1).press("ArrowDown")
    page.wait_for_selector(".st-key-panel h2:has-text('Layer 3, head 2')")
    page.wait_for_function(PAINTED)
    assert page.evaluate(PAINTED) == 16
    cards = page.locator(".st-key-heads_excited .card")
    assert cards.first.get_attribute("title") == atlas.ids[atlas.top[2, 1, 0]]
    scores = [float(text.split()[0]) for text in page.locator(".excited .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)

    page.get_by_role("combobox", name="Colored by").click()
    page.get_by_role("option", name="Foreground").click()
    page.wait_for_selector(".st-key-heads_card h2:has-text('Foreground')")
    shown = f"{100 * atlas.mean['foreground'][2, 1]:.0f}"
    cells.nth(2 * many + 1).filter(has_text=re.compile(f"^{shown}$")).wait_for()
    page.wait_for_url("**by=foreground**")

    cards.first.click()  # the lens, at the head that one came from
    page.wait_for_selector(".lens-tile[data-head='1'][aria-checked=true]")
    assert "Layer 3 · Head 2" in page.locator(".lens-caption strong").inner_text()
    assert {"layer=3", "head=2"} <= set(page.url.partition("?")[2].split("&"))
    page.locator(".lens-tile[data-head='0']").click()
    page.wait_for_url("**head=1**")
    page.go_back()
    page.wait_for_selector(".lens-tile[data-head='1'][aria-checked=true]")
    page.go_back()
    page.wait_for_selector(".st-key-panel h2:has-text('Layer 3, head 2')")


# -- without a browser --------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The page as a server shows it that has no model."""
    monkeypatch.setattr(loading, "begin", lambda: None)

    def run(host: str = "127.0.0.1", **values: str) -> AppTest:
        monkeypatch.setattr(permission, "host", lambda: host)
        monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path)])
        options.options.cache_clear()
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        for name, value in ({"page": "heads"} | values).items():
            page.query_params[name] = value
        return page.run()

    yield run
    options.options.cache_clear()


def said(page: AppTest) -> str:
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [element.value for element in (*page.error, *page.caption)]
    return re.sub(r"<[^>]+>", "", re.sub(r"\\([^\w\s]|_)", r"\1", " ".join(texts)))


def test_without_an_atlas_the_page_offers_one(run, tmp_path, make_gallery, monkeypatch):
    make_gallery(tmp_path / "galleries" / "a", "scenes:12")
    monkeypatch.setattr(models, "wanted", lambda here: None)
    assert "Nobody has looked through the heads" in said(run())
    text = said(run(host="0.0.0.0"))
    assert "Looking through the heads is off" in text


def test_computing_asks_for_the_gallery_s_model(run, tmp_path, make_gallery, monkeypatch, seer):
    """The gallery by hand was made with weights that are no one's."""
    make_gallery(tmp_path / "galleries" / "a", "scenes:12")
    monkeypatch.setattr(models, "wanted", lambda here: seer)
    assert "has other weights" in said(settled(run()))


def test_a_link_starts_nothing(run, tmp_path, make_atlas, monkeypatch, seer):
    make_atlas(tmp_path, "a")
    monkeypatch.setattr(models, "wanted", lambda here: seer)
    build = Mock()
    monkeypatch.setattr(atlas_building, "build_atlas", build)
    assert f"{COUNT} of {COUNT} images at random" in said(settled(run(atlas="12")))
    build.assert_not_called()


def test_an_atlas_of_another_model_is_not_shown(run, tmp_path, make_atlas):
    """The gallery is built again with another model while the server goes on."""
    gallery = make_atlas(tmp_path, "a")
    assert "Excitement of every head" in said(run())
    manifest = gallery.path / "gallery.json"
    changed = json.loads(manifest.read_text()) | {"model_hash": "1" * 64}
    manifest.write_text(json.dumps(changed))
    text = said(run())
    assert "compute the atlas again" in text and "Excitement of every head" not in text


def test_an_atlas_is_computed_and_then_shown(run, tmp_path, make_atlas, monkeypatch, seer):
    gallery = make_atlas(tmp_path, "a", atlas=False)
    monkeypatch.setattr(models, "wanted", lambda here: seer)
    monkeypatch.setattr(atlas_building, "DEFAULT_PATCHES", 6)
    page = settled(run(), "Look through the heads")
    page = settled(begin(page))
    assert "Excitement of every head" in said(page)
    assert f"{COUNT} of {COUNT} images at random" in said(page)
    assert "atlas" not in page.query_params
    assert Atlas.read(gallery).info.asked == COUNT
    monkeypatch.setattr(models, "wanted", lambda here: pytest.fail("what is stored needs none"))
    assert "Layer 3, head 1" in said(run(layer="3", head="1"))


def test_a_damaged_atlas_is_told_and_may_be_computed_again(run, tmp_path, make_atlas, monkeypatch):
    gallery = make_atlas(tmp_path, "a")
    arrays = next((gallery.path / "heads").glob("*.npz"))
    arrays.write_bytes(arrays.read_bytes()[:1000])
    monkeypatch.setattr(models, "wanted", lambda here: None)
    text = said(run())
    assert "cannot be read" in text and "Nobody has looked" in text


def begin(page: AppTest) -> AppTest:
    [button] = [one for one in page.button if one.label == "Look through the heads"]
    button.click()
    return page


def settled(page: AppTest, button: str | None = None) -> AppTest:
    """The page when its work is done."""
    page.run()
    while any(one.label == "Cancel" for one in page.button):
        page.run()
    assert button is None or any(one.label == button for one in page.button), said(page)
    return page
