"""The lens's tabs Pairs (two pictures, one model) and Compare (one picture, two models)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_core import catalog
from dino_core.lenses.tokens import Tokens, read_tokens
from dino_core.models import load_model, save_weights
from dino_core.runs import CHECKPOINT_FILES

LOOK_BOUND = 300_000  # ms; no test fails by the clock of a busy machine
ORDER = (2, 0, 1)  # head h of the second model is head ORDER[h] of the first
LEFT, RIGHT = ".pairs-board figure:first-child", ".pairs-board figure:nth-child(2)"


@pytest.fixture(scope="module")
def shuffled(root: Path) -> str:
    """A run with the page's own model, its heads in another order in every layer."""
    model = load_model(str(root / "small.safetensors"), device="cpu")
    state = dict(model.backbone.vit.state_dict())
    channels = torch.cat([torch.arange(8) + 8 * head for head in ORDER])
    for layer in range(3):
        attention = f"blocks.{layer}.attn"
        for name in (f"{attention}.qkv.weight", f"{attention}.qkv.bias"):
            state[name] = torch.cat([part[channels] for part in state[name].split(24)])
        state[f"{attention}.proj.weight"] = state[f"{attention}.proj.weight"][:, channels]
    folder = root / "runs" / "shuffled" / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (root / "runs" / "shuffled" / "recipe.json").write_text("{}")
    for name in CHECKPOINT_FILES:
        if name.endswith(".safetensors"):
            save_weights(folder / name, model.info, state)
        else:
            (folder / name).write_text("{}")
    return "runs/shuffled"


def open_tab(page: Any, address: str, tab: str) -> None:
    """Go to the page, the first example on it, and bring a tab to the front."""
    page.set_default_timeout(LOOK_BOUND)
    page.goto(address)
    page.wait_for_selector(".hit")
    page.click(f"#tab-{tab}")


@pytest.fixture
def zoomed(browser: Any) -> Iterator[Any]:
    """A page in a window zoomed to 150 %."""
    context = browser.new_context(device_scale_factor=1.5)
    yield context.new_page()
    context.close()


def resize(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    settle(page)


def settle(page: Any) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")


def said(page: Any, figure: str, *words: str) -> None:
    page.wait_for_function(
        """([figure, words]) => {
            const text = document.querySelector(`${figure} figcaption`).innerText;
            return words.every(word => text.includes(word));
        }""",
        arg=[figure, list(words)],
    )


# -- pairs --------------------------------------------------------------------------------------


@pytest.mark.soak
def test_pairs_of_patches(zoomed: Any, address: str, root: Path) -> None:
    page = zoomed
    open_tab(page, address, "pairs")
    first, second = tokens_of_both(root)
    cosines = flat(first) @ flat(second).T
    page.wait_for_selector(".pairs-links line")
    pressed = page.locator("[aria-label='Nearest neighbors'] .second-tile[aria-pressed=true]")
    assert pressed.count() == 1, "begins with the nearest neighbor"
    page.set_input_files(".second input[type=file]", root / "photo.jpg")
    said(page, RIGHT, "photo.jpg")
    check_a_patch(page, first, second, cosines)
    check_keys(page, cosines, first, second)
    check_mutual(page, first, second, cosines)
    check_a_bad_second_picture(page, root)
    check_another_first_picture(page)


def tokens_of_both(root: Path) -> list[Tokens]:
    model = load_model(str(root / "small.safetensors"), device="cpu")
    pictures = (
        catalog.from_example(catalog.examples()[0]),
        catalog.uploaded(root / "photo.jpg", "photo.jpg"),
    )
    return [read_tokens(model, catalog.load(picture)) for picture in pictures]


def flat(tokens: Tokens) -> np.ndarray:
    return tokens.patches.reshape(-1, tokens.patches.shape[-1]).astype(np.float64)


def click_patch(page: Any, figure: str, tokens: Tokens, row: int, column: int) -> None:
    """Click a patch near its lower right corner, where a pixel too far is another patch."""
    box = page.locator(f"{figure} canvas").bounding_box()
    height, width = tokens.grid
    x, y = (column + 0.85) * box["width"] / width, (row + 0.85) * box["height"] / height
    page.click(f"{figure} canvas", position={"x": x, "y": y})


def check_a_patch(page: Any, first: Tokens, second: Tokens, cosines: np.ndarray) -> None:
    """A click on either side finds the best match on the other, at any width."""
    for width, side in ((1000, 1), (390, 1), (1280, 0)):
        resize(page, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        own, other = (first, second) if side == 0 else (second, first)
        figures = (LEFT, RIGHT) if side == 0 else (RIGHT, LEFT)
        click_patch(page, figures[0], own, 4, 6 + side)
        row = 4 * own.grid[1] + 6 + side
        best = (cosines if side == 0 else cosines.T)[row]
        down, across = divmod(int(best.argmax()), other.grid[1])
        said(page, figures[0], f"patch {7 + side}, 5")
        said(page, figures[1], f"patch {across + 1}, {down + 1}", f"cosine {best.max():.3f}")
        settle(page)
        check_line(page, figures, (own, other), ((4, 6 + side), (down, across)))


def check_line(page: Any, figures: Any, both: Any, ends: Any) -> None:
    """The line runs from the one patch's center to the other's, in the page's own pixels."""
    line = page.evaluate(
        """() => {
            const line = document.querySelector('.pairs-links .over');
            const place = line.getScreenCTM();
            return [1, 2].map(end => {
                const [x, y] = ['x', 'y'].map(name => line[name + end].baseVal.value);
                const point = new DOMPoint(x, y).matrixTransform(place);
                return [point.x, point.y];
            });
        }"""
    )
    for figure, tokens, (row, column), end in zip(figures, both, ends, line, strict=True):
        box = page.evaluate(
            "s => { const b = document.querySelector(s).getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; }",
            f"{figure} canvas",
        )
        expected = (
            box[0] + (column + 0.5) * box[2] / tokens.grid[1],
            box[1] + (row + 0.5) * box[3] / tokens.grid[0],
        )
        assert end == pytest.approx(expected, abs=1), figure


def check_keys(page: Any, cosines: np.ndarray, first: Tokens, second: Tokens) -> None:
    """From patch 7, 5 of the left: a step right, then one down."""
    for key, row, column in (("ArrowRight", 4, 7), ("ArrowDown", 5, 7)):
        page.press(f"{LEFT} .lens-stage", key)
        best = int(cosines[row * first.grid[1] + column].argmax())
        down, across = divmod(best, second.grid[1])
        said(page, LEFT, f"patch {column + 1}, {row + 1}")
        said(page, RIGHT, f"patch {across + 1}, {down + 1}")


def check_mutual(page: Any, first: Tokens, second: Tokens, cosines: np.ndarray) -> None:
    """Dots in pairs of one color, best first; the slider asks nobody."""
    page.check("text=Mutual nearest neighbors")
    settle(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    forward, backward = cosines.argmax(axis=1), cosines.argmax(axis=0)
    mutual = [(i, int(j)) for i, j in enumerate(forward) if backward[j] == i]
    shown = min(len(mutual), 200)
    for count in (shown, 1, 2):
        page.fill("[data-lens=pairs]", str(count))
        settle(page)
        fills = page.eval_on_selector_all(
            ".pairs-links circle", "dots => dots.map(dot => dot.getAttribute('fill'))"
        )
        assert len(fills) == 2 * count and fills[0::2] == fills[1::2]
        said(page, LEFT, f"{count} of {len(mutual):,} mutual pairs")
    best = max(cosines[i, j] for i, j in mutual)
    page.fill("[data-lens=pairs]", "1")
    said(page, RIGHT, f"cosine {best:.3f} or more")
    assert page.locator(".pairs-links line").count() == 1
    page.uncheck("label:has-text('Lines') input")
    settle(page)
    assert page.locator(".pairs-links line").count() == 0
    assert not [url for url in asked if not url.startswith(("data:", "blob:"))]
    page.check(".pairs input[value=patch]")


def check_a_bad_second_picture(page: Any, root: Path) -> None:
    """A sentence, and the pictures that were there stay and can be asked about."""
    page.set_input_files(".second input[type=file]", root / "text.jpg")
    page.wait_for_selector(".status[data-state=problem]:has-text('text.jpg')")
    said(page, RIGHT, "photo.jpg")
    assert page.get_attribute(".second-tile[aria-pressed=true]", "title") == "photo.jpg"
    page.press(f"{LEFT} .lens-stage", "ArrowLeft")
    said(page, LEFT, "patch 7, 6")


def check_another_first_picture(page: Any) -> None:
    page.click("#lens-picker .example:nth-child(2)")
    said(page, LEFT, "Dahlia")
    said(page, RIGHT, "photo.jpg")


# -- compare ------------------------------------------------------------------------------------


@pytest.mark.soak
def test_two_models_side_by_side(page: Any, address: str, shuffled: str) -> None:
    open_tab(page, address, "compare")
    page.select_option(".compare-bar select", shuffled)
    page.wait_for_function("document.querySelectorAll('.compare-second .lens-tile').length === 4")
    page.wait_for_selector(".compare-lone, .compare-pair")
    check_partners(page)
    check_controls(page)
    check_a_refused_model(page)
    for width in (390, 1280):
        resize(page, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def chosen(page: Any, side: str) -> str:
    settle(page)
    return page.get_attribute(f".compare-{side} .lens-tile[aria-checked=true]", "data-head")


def check_partners(page: Any) -> None:
    """Choosing a head on one side chooses its partner on the other, and says how alike they are."""
    for layer in (3, 1):
        page.fill(".compare-first [data-lens=layer]", str(layer))
        for head in (0, 1, 2):
            partner = ORDER.index(head)
            page.click(f".compare-first .lens-tile[data-head='{head}']")
            assert chosen(page, "second") == str(partner), (layer, head)
            text = page.inner_text(".compare-said")
            assert f"Layer {layer}: head {head + 1} of" in text
            assert f"head {partner + 1} of runs/shuffled (correlation 1.00" in text
            caption = page.inner_text(".compare-second strong")
            assert caption == f"Layer {layer} · Head {partner + 1}"
    page.click(".compare-second .lens-tile[data-head='0']")
    assert chosen(page, "first") == str(ORDER[0])
    page.click(".compare-second .lens-tile[data-head='-1']")
    assert chosen(page, "first") == "-1"
    page.click(".compare-pair >> nth=1")
    assert chosen(page, "first") != "-1"


def drawing(page: Any, side: str) -> str:
    settle(page)
    canvas = f".compare-{side} .lens-stage canvas"
    return page.evaluate("s => document.querySelector(s).toDataURL()", canvas)


def check_controls(page: Any) -> None:
    """The left controls hold for both sides, and ask nobody."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    before = drawing(page, "second")
    moves = (
        lambda: page.press(".compare-first [data-lens=opacity]", "PageUp"),
        lambda: page.press(".compare-first [data-lens='attention kept']", "End"),
        lambda: page.fill(".compare-first [data-lens='attention kept']", "90"),
        lambda: page.check(".compare-first input[value=masked]"),
        lambda: page.select_option(".compare-first .lens-row select", "viridis"),
        lambda: page.uncheck(".compare-first .lens-check:has-text('Smooth') input"),
        lambda: page.uncheck(".compare-first .lens-check:has-text('Outline') input"),
    )
    for at, move in enumerate(moves):
        move()
        after = drawing(page, "second")
        assert after != before, f"move {at} left the right side as it was"
        before = after
    assert not [url for url in asked if not url.startswith(("data:", "blob:"))]


def check_a_refused_model(page: Any) -> None:
    """A typed path is refused as in the model box; both sides stay."""
    before = drawing(page, "second")
    page.select_option(".compare-bar select", "typed")
    page.fill(".compare-typed input", "/etc/passwd")
    page.press(".compare-typed input", "Enter")
    page.wait_for_selector(".status[data-state=problem]:has-text('not in the list')")
    assert drawing(page, "second") == before
