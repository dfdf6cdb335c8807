"""The ways to look at a picture, in a real browser: patches, colors, objects, clips, links."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from dino_core import views
from dino_core.data import decode_image, open_source
from dino_core.gallery import Gallery, build_patches
from dino_core.lenses import look
from dino_core.lenses.pca import PcaBasis
from dino_core.models import load_model

LOOK_BOUND = 300_000  # ms; a guard, not a mark
GRID = (28, 37)  # of photo.jpg, 240 x 320 px, by a model of patch 8: 224 x 296 px


@pytest.fixture
def photo_at(page: Any, address: str, root: Path) -> Any:
    """The page with photo.jpg on it."""
    page.set_default_timeout(LOOK_BOUND)
    page.goto(address)
    shown(page, "Pagoda")
    page.set_input_files("#lens-picker input[type=file]", root / "photo.jpg")
    shown(page, "photo.jpg")
    return page


def shown(page: Any, title: str) -> None:
    from playwright.sync_api import TimeoutError

    try:
        page.wait_for_function(
            "title => document.querySelector('.lens-stage canvas')?.ariaLabel?.startsWith(title)",
            arg=title,
        )
    except TimeoutError:
        told = page.inner_text("#lens-status")
        raise AssertionError(f"{title} is not shown; the page says {told!r}") from None


def asked(page: Any, name: str) -> str | None:
    """What the address says of a field, when it has been written."""
    page.wait_for_timeout(600)
    return parse_qs(urlsplit(page.url).query).get(name, [None])[0]


def click_at(page: Any, x: float, y: float) -> None:
    """Click the drawing at shares of its width and height."""
    page.locator(".lens-stage canvas").first.scroll_into_view_if_needed()
    box = page.locator(".lens-stage canvas").first.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def patch_seen(page: Any) -> None:
    page.wait_for_selector(".lens-tile[data-head='-2']")


def saved(page: Any, press: Callable[[], None]) -> bytes:
    """The file that a press has the browser save."""
    with page.expect_download() as download:
        press()
    return Path(download.value.path()).read_bytes()


def differs(page: Any, selector: str, before: str = "") -> str:
    """The drawing of a canvas once it has more than one color and is not `before`."""
    page.wait_for_function(
        """([selector, before]) => {
            const canvas = document.querySelector(selector);
            if (!canvas || !canvas.width) return false;
            const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            const colors = new Set(new Uint32Array(data.buffer));
            return colors.size > 50 && canvas.toDataURL() !== before;
        }""",
        arg=[selector, before],
    )
    return page.evaluate("selector => document.querySelector(selector).toDataURL()", selector)


# -- patches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "zoom", [1, *(pytest.param(zoom, marks=pytest.mark.soak) for zoom in (0.67, 1.5))]
)
def test_the_patch_is_the_one_under_the_pointer(photo_at: Any, zoom: float) -> None:
    page = photo_at
    page.evaluate("zoom => { document.documentElement.style.zoom = zoom; }", zoom)
    height, width = GRID
    for x, y in ((0.31, 0.62), (0.005, 0.995), (0.5, 0.02)):
        click_at(page, x, y)
        patch_seen(page)
        assert asked(page, "query") == f"{int(y * height)},{int(x * width)}"


def test_attention_from_a_patch_is_what_python_computes(photo_at: Any, root: Path) -> None:
    page = photo_at
    click_at(page, 0.31, 0.62)
    patch_seen(page)
    page.click(".lens-tile[data-head='1']")
    exported = saved(page, lambda: page.click("text=Export"))
    with zipfile.ZipFile(io.BytesIO(exported)) as files:
        view = views.View.from_json(json.dumps(json.loads(files.read("view.json"))["view"]))
        maps = np.load(io.BytesIO(files.read("attention.npz")), allow_pickle=False)["maps"]
        picture = files.read("view.png")
    row, column = int(0.62 * GRID[0]), int(0.31 * GRID[1])
    assert view.query == (row, column) and view.head == 1
    image = decode_image(root / "photo.jpg")
    model = load_model(root / "small.safetensors", device="cpu")
    expected = look(model, image, query=(row, column)).maps[view.layer]
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    again = views.exported(view, image, model)["view.png"]
    ours, theirs = (np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in (again, picture))
    assert ours.shape == theirs.shape and abs(ours - theirs).max() <= 2  # threads may differ


@pytest.mark.soak
def test_by_keyboard(photo_at: Any) -> None:
    page = photo_at
    for key in ("Shift+ArrowLeft", "Shift+ArrowDown", "Enter"):
        page.press(".lens-stage", key)
    patch_seen(page)
    middle = GRID[0] // 2 + 1, GRID[1] // 2 - 1
    assert asked(page, "query") == f"{middle[0]},{middle[1]}"
    page.press(".lens-stage", "Escape")
    page.wait_for_selector(".lens-tile[data-head='-2']", state="detached")
    assert asked(page, "query") is None
    page.press(".lens-stage", "b")
    for _ in range(4):
        page.press(".lens-stage", "Shift+ArrowRight")
    page.press(".lens-stage", "Shift+ArrowUp")
    page.press(".lens-stage", "b")
    page.wait_for_selector(".near-tools input[value=box]:checked")
    page.focus("#tab-heads")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-colors", "aria-selected") == "true"


@pytest.mark.soak
def test_a_hundred_moves_ask_nobody(photo_at: Any) -> None:
    page = photo_at
    page.click("label:has-text('Rollout')")
    page.wait_for_selector(".lens-tile >> nth=1", state="detached")
    page.click("label:has-text('Class token')")
    page.wait_for_selector(".lens-tile[data-head='2']")
    page.wait_for_timeout(1000)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for move in range(25):
        page.fill("[data-lens=layer]", str(1 + move % 3))
        page.click(f".lens-tile[data-head='{move % 3}']")
        page.fill("[data-lens=opacity]", str(4 * move))
        page.fill("[data-lens='attention kept']", str(100 - 3 * move))
    assert not [url for url in requests if not url.startswith(("data:", "blob:"))]


# -- the address --------------------------------------------------------------------------------


def test_an_address_shows_the_same_picture_again(photo_at: Any) -> None:
    page = photo_at
    page.click(".lens-tile[data-head='2']")
    page.fill("[data-lens=layer]", "2")
    page.fill("[data-lens='attention kept']", "43")
    page.check("input[value=colored]")
    click_at(page, 0.6, 0.4)
    patch_seen(page)
    page.wait_for_timeout(800)
    link, before = page.url, differs(page, ".lens-stage canvas")
    page.reload()
    shown(page, "photo.jpg")  # this browser's own upload
    patch_seen(page)
    page.wait_for_function(
        "before => document.querySelector('.lens-stage canvas').toDataURL() === before", arg=before
    )
    assert page.url == link


@pytest.mark.soak
def test_an_address_follows_what_is_in_front(photo_at: Any, root: Path) -> None:
    page = photo_at
    box = page.locator(".lens-stage canvas").first.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 90, steps=3)
    page.mouse.up()
    page.wait_for_selector(".near-tools input[value=box]:checked")
    assert len((asked(page, "box") or "").split(",")) == 4
    page.click("#tab-colors")
    differs(page, "#panel-colors canvas")
    assert asked(page, "tab") == "colors"
    first = asked(page, "image")
    page.reload()
    page.wait_for_selector("#tab-colors[aria-selected=true]")
    differs(page, "#panel-colors canvas")
    page.wait_for_selector(".near-tools input[value=box]:checked")
    assert (asked(page, "tab"), asked(page, "image")) == ("colors", first)
    page.locator(".example:has(img[alt^=Example])").nth(1).click()
    page.wait_for_function("first => !location.href.includes(first)", arg=first)
    page.go_back()
    page.wait_for_function("first => location.href.includes(first)", arg=first)
    shown(page, "photo.jpg")
    page.locator(".example:has(img[alt^=Example])").nth(1).click()
    page.wait_for_function("first => !location.href.includes(first)", arg=first)
    page.click(".example:has(img[alt='photo.jpg'])")  # the picture that was added has a tile
    page.wait_for_function("first => location.href.includes(first)", arg=first)


@pytest.mark.soak
def test_an_address_of_a_picture_that_is_not_here_says_so(page: Any, address: str) -> None:
    page.goto(f"{address}?image={'0' * 32}&model=small.safetensors&layer=1")
    page.wait_for_selector(".status[data-state=problem]:has-text('add it')")
    shown(page, "Pagoda")  # and still there is something to see


@pytest.mark.parametrize("query", ["?image=1&model=x&layer=many", "?image=%00&model=&query=9"])
def test_an_address_that_is_none_says_so(page: Any, address: str, query: str) -> None:
    page.goto(address + query)
    page.wait_for_selector(".status[data-state=problem]")
    shown(page, "Pagoda")
    assert "Traceback" not in page.content()


@pytest.mark.soak
def test_an_address_of_a_model_that_is_gone_shows_the_usual_one(photo_at: Any) -> None:
    photo_at.wait_for_timeout(600)
    photo_at.goto(photo_at.url.replace("small.safetensors", "runs%2Fgone"))
    photo_at.wait_for_selector(".status[data-state=problem]:has-text('not in the list')")
    shown(photo_at, "Pagoda")


# -- colors, objects, health --------------------------------------------------------------------


@pytest.mark.soak
def test_colors_are_kept_saved_and_opened(photo_at: Any, root: Path) -> None:
    page, canvas = photo_at, "#panel-colors canvas"
    page.click("#tab-colors")
    own = differs(page, canvas)
    basis = saved(page, lambda: page.click("text=Save colors"))
    assert PcaBasis.from_bytes(basis, "saved").components.shape == (3, 24)
    page.click("#panel-colors label:has-text('With gallery')")
    differs(page, canvas, own)
    (root / "colors.npz").write_bytes(basis)
    page.set_input_files("#panel-colors input[type=file]", root / "colors.npz")
    page.wait_for_function(
        "([canvas, own]) => document.querySelector(canvas).toDataURL() === own", arg=[canvas, own]
    )
    page.set_input_files("#panel-colors input[type=file]", root / "text.jpg")
    page.wait_for_selector(".status[data-state=problem]:has-text('fit it again')")


@pytest.mark.soak
def test_an_object_is_taken_away(photo_at: Any) -> None:
    page = photo_at
    page.click("#tab-object")
    differs(page, "#panel-object canvas")
    page.click("#panel-object label:has-text('attention')")
    page.wait_for_selector("#panel-object figcaption:has-text('60% of the attention')")
    document = json.loads(saved(page, lambda: page.click("text=Save polygons")))
    assert document["image"] == [240, 320] and document["polygons"]
    png = saved(page, lambda: page.click("text=Save cutout"))
    with Image.open(io.BytesIO(png)) as cutout:
        assert cutout.mode == "RGBA" and cutout.size == (320, 240)
        assert set(np.unique(np.asarray(cutout)[..., 3])) == {0, 255}


def test_health_has_a_cell_for_every_head(photo_at: Any) -> None:
    photo_at.click("#tab-health")
    photo_at.wait_for_selector("table.health")
    assert photo_at.locator(".health tbody td").count() == 9  # three layers of three heads
    assert photo_at.locator(".health-said li").count() >= 3


# -- clips --------------------------------------------------------------------------------------


@pytest.fixture
def clip(root: Path) -> Path:
    """Eight small frames as an animated WebP."""
    source = open_source("scenes:40-48")
    frames = [Image.fromarray(source.image(at)).resize((96, 64)) for at in range(8)]
    frames[0].save(root / "clip.webp", save_all=True, append_images=frames[1:], duration=80)
    return root / "clip.webp"


def test_a_clip_comes_back_under_attention(photo_at: Any, clip: Path, root: Path) -> None:
    page, chooser = photo_at, "#panel-clips input[type=file]"
    page.click("#tab-clips")
    page.set_input_files(chooser, clip)
    page.wait_for_selector("#panel-clips figcaption:has-text('one color scale')")
    made = saved(page, lambda: page.click("text=Save clip"))
    assert made[4:8] == b"ftyp" or made[:4] == b"RIFF"
    page.set_input_files(chooser, root / "text.jpg")
    page.wait_for_selector(".status[data-state=problem]:has-text('text.jpg')")
    with Image.open(root / "photo.jpg") as photo:
        photo.rotate(180).save(root / "turned.jpg")
    page.set_input_files(chooser, [root / "photo.jpg", root / "turned.jpg"])
    page.wait_for_selector("#panel-clips figcaption:has-text('2 frames')")


# -- neighbors ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_patches(root: Path) -> Gallery:
    """The page's gallery, which now holds patches."""
    gallery = Gallery.open(root / "galleries" / "few")
    build_patches(gallery, load_model(root / "small.safetensors", device="cpu"), per_image=16)
    return gallery


def test_neighbors_of_a_box_and_of_a_patch_filtered(photo_at: Any, with_patches: Gallery) -> None:
    page = photo_at
    page.wait_for_selector(".near-filter select")
    whole = page.locator(".hit-score").all_inner_texts()
    box = page.locator(".lens-stage canvas").first.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 90, steps=3)
    page.mouse.up()
    page.wait_for_selector(".near-tools input[value=box]:checked")
    page.wait_for_function(
        """whole => [...document.querySelectorAll('.hit-score')].map(e => e.innerText).join()
            !== whole""",
        arg=",".join(whole),
    )
    label = str(with_patches.images["label"].iloc[0])
    page.select_option(".near-filter select[aria-label=Value]", label)
    page.wait_for_function(
        "label => [...document.querySelectorAll('.hit-label')].every(e => e.innerText === label)",
        arg=label,
    )
    page.select_option(".near-filter select[aria-label=Value]", "")
    click_at(page, 0.5, 0.5)
    patch_seen(page)
    page.click(".near-tools label:has-text('Patch')")
    page.wait_for_selector(".hit-picture canvas")
    assert page.locator(".hit-picture canvas").count() == page.locator(".hit").count()


# -- the camera ---------------------------------------------------------------------------------


CAMERA = """() => { // a canvas that changes stands in for what a camera sees
    const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 48});
    const context = canvas.getContext('2d');
    setInterval(() => context.fillRect(0, 0, 30 * Math.random(), 20), 30);
    const stream = canvas.captureStream();
    globalThis.cameraTrack = stream.getTracks()[0];
    navigator.mediaDevices.getUserMedia = async () => stream;
}"""


@pytest.mark.soak
def test_a_picture_from_the_camera(photo_at: Any) -> None:
    page = photo_at
    page.evaluate(CAMERA)
    page.click(".camera-open")
    page.click(".camera-close")
    page.wait_for_selector("dialog.camera", state="detached")
    assert page.evaluate("cameraTrack.readyState") == "ended"
    page.evaluate(
        """() => { navigator.mediaDevices.getUserMedia = async () => {
            throw new DOMException('no', 'NotAllowedError'); }; }"""
    )
    page.click(".camera-open")
    page.wait_for_selector(".status[data-state=problem]:has-text('allow it')")


@pytest.mark.soak
def test_a_picture_taken_is_looked_at(photo_at: Any) -> None:
    page = photo_at
    page.evaluate(CAMERA)
    page.click(".camera-open")
    page.click(".camera-take")
    shown(page, "camera.jpg")
