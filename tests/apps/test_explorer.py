"""The explorer in a real browser: the map, a box around points, thumbnails, neighbors."""

import io
import re
from typing import Any

import numpy as np
from PIL import Image

ANSWER_BOUND = 50.0  # seconds; ten times the mark
COUNT = 120


def test_select_points_see_their_images_and_their_neighbors(explorer: Any, page: Any) -> None:
    address, folder = explorer
    page.goto(address)
    page.wait_for_selector(".scatter[data-ready=true]")
    assert page.url == address, "a bare address stays bare, or Back could not leave it"

    notice = page.locator(".st-key-notice")
    assert f"These {COUNT} images are generated" in notice.inner_text()
    assert "python scripts/demo.py --data FOLDER" in notice.inner_text()
    assert notice.get_by_label("Your folder").is_visible()

    drawn, place = colored(page)
    assert len(drawn) >= 8, "a dozen classes, a dozen hues"

    # a box around everything but the left part
    box = page.locator("canvas.points").bounding_box()
    page.locator("[data-tool=box]").click()
    page.mouse.move(box["x"] + box["width"] * 0.35, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] - 4)
    page.mouse.up()
    page.wait_for_function(
        "document.querySelector('.st-key-panel h2')?.textContent.includes('selected')"
    )
    told = int(re.findall(r"\d+", page.locator(".st-key-panel h2").inner_text())[0])
    scatter = page.locator(".scatter")
    assert 0 < told < COUNT
    assert told == int(scatter.get_attribute("data-selected")), "browser and Python agree"
    images_shown(page, "grid", min(told, 24))

    page.locator(".st-key-grid .card").first.click()
    page.wait_for_selector(".st-key-neighbors .score")
    page.wait_for_url("**gallery=scenes**image=scenes**")
    scores = [float(text) for text in page.locator(".st-key-neighbors .score").all_inner_texts()]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    images_shown(page, "neighbors", 10)

    page.locator(".st-key-panel button", has_text="Back to the selection").click()
    page.wait_for_selector(".st-key-grid .card")
    page.locator("canvas.points").press("Escape")
    page.wait_for_selector(f".st-key-panel h2:has-text('All {COUNT} images')")

    page.wait_for_function("!location.search")

    # a click on a point, then a filter in the legend
    page.locator("[data-tool=pan]").click()
    page.mouse.click(*place)
    page.wait_for_selector(".st-key-neighbors .score")
    page.locator(".legend .entry").first.click()
    page.wait_for_selector(f".st-key-panel h2:has-text('{COUNT // 12} selected')")

    page.locator(".scatter .clear").click()
    page.get_by_role("combobox", name="Color").click()
    page.get_by_role("option", name="Similarity to nearest").click()
    page.wait_for_selector(".legend .ramp")

    log = (folder / "launcher" / "explorer.log").read_text()
    assert "http://127.0.0.1:" in log, "the settings beside the script hold from any folder"
    assert "Traceback" not in log


def colored(page: Any) -> tuple[set[int], tuple[float, float]]:
    """Which hues the map shows (twelfths of the circle), and where in the page a point is."""
    canvas = page.locator("canvas.points")
    box = canvas.bounding_box()
    png = page.screenshot(clip=box)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("HSV")).astype(int)
    left = 90  # the tools stand there
    vivid = (pixels[:, left:, 1] > 90) & (pixels[:, left:, 2] > 90)
    vivid[-60:] = False  # and the count at the foot
    hues, counts = np.unique(pixels[:, left:, 0][vivid] * 12 // 256, return_counts=True)
    solid = np.lib.stride_tricks.sliding_window_view(vivid, (5, 5)).all((2, 3))
    y, x = np.argwhere(solid)[0] + 2
    return set(hues[counts > 20].tolist()), (box["x"] + left + float(x), box["y"] + float(y))


def images_shown(page: Any, key: str, count: int) -> None:
    """Wait until that many thumbnails of a grid are there, and those in sight are drawn."""
    page.wait_for_function(
        """([key, count]) => {
          const all = [...document.querySelectorAll(`.st-key-${key} *`)];
          const roots = all.map((e) => e.shadowRoot).filter(Boolean);
          const images = roots.flatMap((root) => [...root.querySelectorAll(".card img")]);
          const seen = images.slice(0, 4);
          return images.length === count && seen.every((image) => image.naturalWidth > 0);
        }""",
        arg=[key, count],
    )
