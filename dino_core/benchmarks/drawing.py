"""The lens in a browser: from moving a control to the end of drawing, without asking anyone.

    measure(assets)  ->  ViT-S/16 over a photo of 224 and of 1024 px, headless Chromium

`assets` is the folder of overlay.js, which a wheel does not have. Drawing waits for the browser's
next frame, up to 17 ms at 60 frames a second; that wait is part of what is measured.
"""

import base64
import importlib.util
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured
from dino_core.errors import UserError, at_least
from dino_core.lenses import Attention, LensPayload

ASSETS = Path(__file__).resolve().parents[2] / "apps" / "assets"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MARKS = {224: 16.0, 1024: 50.0}  # ms, on two cores
LAYERS, HEADS, PATCH = 12, 6, 16  # of a ViT-S/16

# Moves one control after the other, each time another value, and waits for the drawing's end.
MOVES = """
async (moves) => {
  const home = document.querySelector('#lens');
  const sliders = ['layer', 'opacity', 'attention kept'].map((name) =>
    home.querySelector(`[data-lens='${name}']`));
  const drawn = () =>
    new Promise((done) => home.addEventListener('lens-drawn', done, {once: true}));
  // A hand moves at any moment of the screen's 17 ms, not right after a drawing.
  const rest = (move) => new Promise((done) => setTimeout(done, 20 + ((move * 11) % 17)));
  const times = {layer: [], opacity: [], 'attention kept': [], head: []};
  for (let move = 0; move < moves; move++) {
    for (const slider of sliders) {
      const [low, high] = [Number(slider.min), Number(slider.max)];
      slider.value = low + ((move * 7 + 3) % (high - low + 1));
      await rest(move + Number(slider.max));
      const began = performance.now(), end = drawn();
      slider.dispatchEvent(new Event('input', {bubbles: true}));
      await end;
      times[slider.dataset.lens].push(performance.now() - began);
    }
    const tiles = home.querySelectorAll('.lens-tile');
    await rest(move);
    const began = performance.now(), end = drawn();
    tiles[(move * 5 + 1) % tiles.length].click();
    await end;
    times.head.push(performance.now() - began);
  }
  return times;
}
"""


def measure(
    sides: Sequence[int] = tuple(MARKS), *, moves: int = 40, assets: Path = ASSETS
) -> list[Measured]:
    """Move layer, opacity, threshold and head `moves` times each over pictures of `sides` pixels.

    Raises `UserError` without Playwright, a Chromium, or the page's files.
    """
    at_least(1, moves=moves)
    with _page(assets) as page:
        return [_measured(page, side, moves) for side in sides]


def _measured(page: Any, side: int, moves: int) -> Measured:
    payload = base64.b64encode(_payload(side).to_bytes()).decode()
    page.evaluate(
        """async ([payload, image]) => {
          const home = document.querySelector('#lens');
          home.replaceChildren();
          await mountLens(home, {payload: bytesFromBase64(payload), image, title: 'noise'}).ready;
        }""",
        [payload, _photo(side)],
    )
    page.evaluate(MOVES, 5)  # the browser compiles what runs often
    times = {name: np.array(each) for name, each in page.evaluate(MOVES, moves).items()}
    every = np.concatenate(list(times.values()))
    mark = f"; the mark is {MARKS[side]:g} ms" if side in MARKS else ""
    return Measured(
        name=f"from a control to the end of drawing, {side} px",
        hardware=hardware(torch.device("cpu")),
        milliseconds=float(np.median(every)),
        phases={name: float(np.median(each)) for name, each in times.items()},
        notes=(
            f"95 of 100 moves end within {np.percentile(every, 95):.0f} ms{mark}",
            "waiting for the browser's next frame is part of it",
        ),
    )


def require(assets: Path = ASSETS) -> str:
    """The browser's program. Raises `UserError` without one, Playwright or the page's files."""
    without = "or leave drawing out with --moves 0"
    if not (assets / "overlay.js").is_file():
        raise UserError(f"{assets}: has no overlay.js; give the folder apps/assets of a checkout")
    if importlib.util.find_spec("playwright") is None:
        raise UserError(f"Playwright is not installed; pip install -e '.[bench]', {without}")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(f"no browser found; install one of {', '.join(BROWSERS)}, {without}")
    return found


@contextmanager
def _page(assets: Path) -> Iterator[Any]:
    """A headless browser's page with overlay.js on it."""
    found = require(assets)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_content("<div id='lens'></div>")
        for name in ("theme.css", "overlay.css"):
            page.add_style_tag(path=str(assets / name))
        page.add_script_tag(path=str(assets / "overlay.js"))
        yield page
        browser.close()


def _payload(side: int) -> LensPayload:
    """Maps with the long tail of attention, the same each time."""
    grid = side // PATCH
    logits = np.random.default_rng(0).normal(0, 1.5, (LAYERS, HEADS, grid, grid))
    maps = np.exp(logits)
    maps /= maps.sum(axis=(-2, -1), keepdims=True)
    return LensPayload.from_attention(
        Attention(maps.astype(np.float32), (side, side), (side, side), PATCH, "noise", "0")
    )


def _photo(side: int) -> str:
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
