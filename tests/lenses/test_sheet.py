"""The HTML sheet: self-contained, escaped, and in a browser the same pixels as in Python."""

import re

import numpy as np
import pytest
from PIL import Image

from dino_core.lenses import LensPayload, look
from dino_core.lenses.colormap import codes, table
from dino_core.lenses.render import relative
from dino_core.lenses.sheet import Entry, Opening, write_sheet

OPENING = Opening("Attention heads", "runs/<b>", "photos & more", (0, 1), 0.6, 0.5, "viridis")

READ_CANVAS = """(index) => {
    const canvas = document.querySelectorAll(".card canvas")[index];
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return { height: canvas.height, width: canvas.width, data: Array.from(data) };
}"""


@pytest.fixture
def payload(model):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    return LensPayload.from_attention(look(model, image, size=64))


@pytest.fixture
def sheet(payload, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    name = '<script>alert("1")</script>.jpg'
    entry = Entry(name, "images/a b%", tmp_path / "photo.jpg", payload.to_bytes())
    write_sheet(tmp_path / "index.html", OPENING, [entry], 1)
    return tmp_path / "index.html"


def test_nothing_is_fetched_and_everything_is_escaped(sheet):
    text = sheet.read_text()
    assert not re.search(r"https?:|//cdn|<link|@import|src=\"(?!data:)", text)
    assert "<script>alert" not in text and "&lt;script&gt;alert(&quot;1&quot;)" in text
    assert "runs/&lt;b&gt;" in text and "photos &amp; more" in text
    assert 'href="images/a%20b%25/"' in text
    assert "{{" not in text and "1 image of" in text


def test_many_images_are_embedded_smaller(sheet, payload, tmp_path):
    Image.effect_noise((2000, 1000), 50).save(tmp_path / "large.png")
    entry = Entry("large.png", "images/large", tmp_path / "large.png", payload.to_bytes())
    sizes = {}
    for count in (1, 1000):
        write_sheet(tmp_path / "index.html", OPENING, [entry], count)
        sizes[count] = re.search(r'width="(\d+)" height', sheet.read_text())[1]
    assert sizes == {1: "640", 1000: "320"}


def read_canvas(page, index: int) -> np.ndarray:
    read = page.evaluate(READ_CANVAS, index)
    return np.array(read["data"], np.uint8).reshape(read["height"], read["width"], 4)


def test_the_page_draws_what_python_draws(sheet, payload, page):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(sheet.as_uri())
    page.wait_for_selector(".card canvas")
    maps = payload.maps()[-1]  # opens on the last layer
    for index, each in enumerate([maps.mean(0), *maps]):
        expected = table("viridis")[codes(relative(each))]
        drawn = read_canvas(page, index)
        assert (drawn[..., 3] == 255).all()
        assert np.abs(drawn[..., :3].astype(int) - expected).max() <= 4  # a code may round over

    page.select_option("#layer", "0")
    page.fill("#keep", "35")  # moves on to the masks
    page.wait_for_function("document.body.className === 'mask'")
    page.wait_for_timeout(100)  # one frame
    masks = payload.mass_mask(0.35)[0]
    for head in range(3):
        np.testing.assert_array_equal(read_canvas(page, head + 1)[..., 3] == 0, masks[head])

    page.click(".card figure:nth-child(3) button")
    assert "head 0" in page.inner_text("dialog p")
    page.keyboard.press("ArrowRight")
    assert "head 1" in page.inner_text("dialog p")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    assert errors == []
