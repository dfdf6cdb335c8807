"""The lens in a real browser, started as its users start it, and what its server refuses."""

import base64
import http.client
import importlib.util
import io
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dino_core.catalog import entries
from dino_core.gallery.thumbnails import PLACEHOLDER
from dino_core.lenses import Attention, LensPayload, mass_mask

ROOT = Path(__file__).resolve().parents[2]
LOOK_BOUND = 300_000  # ms; no test fails by the clock of a busy machine


def shades(page: Any, selector: str) -> int:
    """How many different colors a canvas holds."""
    return page.evaluate(
        """selector => {
            const canvas = document.querySelector(selector);
            const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }""",
        selector,
    )


def drawing(page: Any) -> str:
    """The drawing, once the browser has painted what was asked for."""
    return page.evaluate(
        """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() =>
            done(document.querySelector('.lens-stage canvas').toDataURL()))))"""
    )


def wait_until(page: Any, title: str) -> None:
    page.wait_for_function(
        "title => document.querySelector('.lens-stage canvas')?.ariaLabel?.startsWith(title)",
        arg=title,
    )


@pytest.fixture
def lens_at(page: Any, address: str) -> Any:
    """The page, open, with the first example on it."""
    page.set_default_timeout(LOOK_BOUND)
    page.goto(address)
    wait_until(page, "Pagoda")
    return page


# -- the page -----------------------------------------------------------------------------------


def test_upload_look_and_move_without_a_request(lens_at: Any, root: Path) -> None:
    page = lens_at
    page.set_input_files("#lens-picker input[type=file]", root / "photo.jpg")
    wait_until(page, "photo.jpg")
    assert page.locator(".lens-tile").count() == 4, "the mean and three heads"
    assert shades(page, ".lens-stage canvas") > 1000
    assert shades(page, ".lens-tile:nth-child(2) canvas") > 10
    check_neighbors(page)
    check_moves(page)
    check_bad_pictures(page, root)
    check_a_neighbor_can_be_looked_at(page)


def check_neighbors(page: Any) -> None:
    page.wait_for_selector(".hit")
    assert page.locator(".hit").count() == 20
    assert "24 generated images" in page.inner_text(".near header")
    page.wait_for_function("document.querySelector('.hit img').naturalWidth > 0")
    assert page.inner_text(".hit-label")
    scores = [float(text) for text in page.locator(".hit-score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and scores[0] <= 1
    assert page.locator(".vote li").count() > 0


def check_moves(page: Any) -> None:
    """Thirty moves of every control: each one draws something else, none asks the server."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    before = drawing(page)

    def moved(what: str) -> None:
        nonlocal before
        after = drawing(page)
        assert after != before, f"{what} changed nothing"
        before = after

    for name, key, times in (("opacity", "ArrowLeft", 6), ("attention kept", "ArrowRight", 6)):
        for _ in range(times):
            page.press(f"[data-lens='{name}']", key)
            page.press(f"[data-lens='{name}']", key)
            moved(name)
    for head in (2, 3, 4, 1, 2):
        page.click(f".lens-tile:nth-child({head})")
        moved(f"head {head}")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.press(".lens-stage", key)
        moved(key)
    for layer in (1, 2):
        page.fill("[data-lens='layer']", str(layer))
        moved(f"layer {layer}")
    for mode in ("masked", "spotlight", "heat"):
        page.check(f"input[value={mode}]")
        moved(mode)
    page.select_option(".lens-row select", "viridis")
    moved("color map")
    page.uncheck(".lens-check:has-text('Smooth') input")
    moved("smooth")
    page.uncheck(".lens-check:has-text('Outline') input")
    moved("outline")
    assert not [url for url in asked if not url.startswith(("data:", "blob:"))]


def check_bad_pictures(page: Any, root: Path) -> None:
    """A sentence each time, and the picture that was there stays."""
    before = drawing(page)
    for name, reason in (("text.jpg", "text.jpg"), ("empty.jpg", "0 bytes")):
        page.set_input_files("#lens-picker input[type=file]", root / name)
        page.wait_for_selector(f".status[data-state=problem]:has-text('{reason}')")
        assert "Traceback" not in page.content()
    assert drawing(page) == before


def check_a_neighbor_can_be_looked_at(page: Any) -> None:
    name = page.locator(".hit img").first.get_attribute("alt")
    page.locator(".hit").first.click()
    wait_until(page, name)
    page.wait_for_selector(".status[data-state=ready]")


def test_a_photo_can_be_pasted(lens_at: Any, root: Path) -> None:
    lens_at.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], 'from the clipboard.jpg', {type: 'image/jpeg'}));
            const event = new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true});
            document.body.dispatchEvent(event);
        }""",
        base64.b64encode((root / "photo.jpg").read_bytes()).decode(),
    )
    wait_until(lens_at, "from the clipboard.jpg")


@pytest.mark.soak
@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_size(page: Any, address: str, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.set_default_timeout(LOOK_BOUND)
    page.goto(address)
    page.wait_for_selector(".hit")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator("button:visible").all():
        assert (
            button.get_attribute("aria-label") or button.inner_text() or button.locator("img[alt]")
        )


# -- the server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["thumbs/none/0", "thumbs/none/-1", "thumbs/..%2F..%2Fetc/0"])
def test_only_listed_galleries_give_thumbnails(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(address + path, timeout=60)
    assert refusal.value.code in (404, 422)


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "pyproject.toml")])
def test_no_file_of_the_machine_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=60)
    assert refusal.value.code == 403


def test_a_huge_upload_is_refused(address: str) -> None:
    host = address.removeprefix("http://").rstrip("/")
    body = io.BytesIO()
    body.write(b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n')
    body.write(bytes(21 * 2**20) + b"\r\n--x--\r\n")
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", "/gradio_api/upload", body.getvalue(), headers)
    assert connection.getresponse().status == 413
    connection.close()


# -- the wiring ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lens() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lens", ROOT / "apps" / "lens.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["lens"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lens_page(lens: ModuleType, root: Path) -> Any:
    page = lens.LensPage(lens.Options(model=str(root / "small.safetensors"), root=root))
    page.bench.start()
    return page


def visitor(**query: str) -> Any:
    return SimpleNamespace(query_params=query)


def test_a_path_from_the_browser_is_not_opened(lens_page: Any, root: Path) -> None:
    """Whatever a page sends as its upload, only files that were uploaded are read."""
    event = SimpleNamespace(_data={"path": str(root / "photo.jpg"), "name": "photo.jpg"})
    [answer] = lens_page.upload("small.safetensors", None, event, visitor())
    assert answer[-1]["state"] == "problem" and "did not arrive" in answer[-1]["sentence"]


def test_a_typed_model_path_is_not_opened(lens_page: Any) -> None:
    [answer] = lens_page.again(None, "/etc/passwd", None, visitor())
    assert answer[-1]["state"] == "problem" and "not in the list" in answer[-1]["sentence"]


def test_on_a_network_typed_names_need_the_token(lens: ModuleType, root: Path) -> None:
    options = lens.Options(root=root, host="0.0.0.0", token="secret")
    page = lens.LensPage(options)
    page.bench.start()
    [answer] = page.again(None, "timm:no_such_model", None, visitor(token="guess"))
    assert "token" in answer[-1]["sentence"]
    [answer] = page.again(None, "timm:no_such_model", None, visitor(token="secret"))
    assert "token" not in answer[-1]["sentence"] and answer[-1]["state"] == "problem"


def test_without_a_model_the_page_says_so(
    lens: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(entries, "STARTER", tmp_path / "none")
    page = lens.LensPage(lens.Options(root=tmp_path))
    page.bench.start()
    [(*_, status, _, _)] = page.first(None, None, "{}", visitor())
    assert "scripts/train.py" in status["sentence"]


def test_without_a_gallery_the_page_gives_the_command(lens_page: Any) -> None:
    *_, (_, _, near, _, _, _) = lens_page.first("small.safetensors", None, "{}", visitor())
    assert near["command"].startswith("python scripts/embed.py")


def test_a_gray_tile_is_not_kept_by_the_browser(lens_page: Any, monkeypatch: Any) -> None:
    for name, keep in (("0f.jpg", "private, max-age=600"), (PLACEHOLDER, "no-store")):
        monkeypatch.setattr(lens_page.bench, "thumbnail", lambda key, row, name=name: Path(name))
        assert lens_page.thumbnail("few", 0).headers["cache-control"] == keep


@pytest.mark.soak
def test_its_folder_of_uploads_is_gone_at_the_end_and_another_s_stays(tmp_path: Path) -> None:
    code = "import os, runpy; runpy.run_path('apps/lens.py'); print(os.environ['GRADIO_TEMP_DIR'])"
    environment = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    environment["TMPDIR"] = str(tmp_path)
    for given in ({}, {"GRADIO_TEMP_DIR": str(tmp_path / "kept")}):
        (tmp_path / "kept").mkdir(exist_ok=True)
        told = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment | given,
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        assert Path(told).parent == tmp_path and Path(told).is_dir() == bool(given)
    assert [path.name for path in tmp_path.glob("dino-lens-*")] == []


# -- the drawing --------------------------------------------------------------------------------


def test_the_browser_decodes_and_masks_as_python_does(page: Any) -> None:
    maps = np.random.default_rng(0).gamma(0.3, size=(2, 3, 9, 13)).astype(np.float32)
    maps /= maps.sum(axis=(-2, -1), keepdims=True)
    attention = Attention(maps, (72, 104), (720, 1040), 8, "small", "0")
    payload = LensPayload.from_attention(attention)
    page.set_content("<p>overlay</p>")
    page.add_script_tag(path=str(ROOT / "apps" / "assets" / "overlay.js"))
    page.evaluate(
        "text => { globalThis.lens = readLens(bytesFromBase64(text)); }",
        base64.b64encode(payload.to_bytes()).decode(),
    )
    for layer, head in ((0, 0), (1, 2)):
        values = page.evaluate("([l, h]) => [...lens.map(l, h).values]", [layer, head])
        peak = page.evaluate("([l, h]) => lens.map(l, h).peak", [layer, head])
        decoded = np.array(values).reshape(9, 13) * peak
        np.testing.assert_allclose(decoded, payload.maps()[layer, head], rtol=1e-5, atol=1e-9)
        for keep in (0, 0.05, 0.43, 0.6, 1):
            kept = page.evaluate(
                "([l, h, k]) => [...lens.map(l, h).order.slice(0, lens.map(l, h).count(k))]",
                [layer, head, keep],
            )
            expected = np.flatnonzero(payload.mass_mask(keep)[layer, head])
            assert sorted(kept) == expected.tolist(), keep


def test_the_mean_of_the_heads_keeps_the_mass_it_says(page: Any) -> None:
    maps = np.random.default_rng(1).gamma(0.5, size=(1, 4, 8, 8)).astype(np.float32)
    payload = LensPayload.from_attention(Attention(maps, (64, 64), (64, 64), 8, "small", "0"))
    page.set_content("<p>overlay</p>")
    page.add_script_tag(path=str(ROOT / "apps" / "assets" / "overlay.js"))
    text = base64.b64encode(payload.to_bytes()).decode()
    for keep in (0.2, 0.6, 0.9):
        kept = page.evaluate(
            "([t, k]) => { const m = readLens(bytesFromBase64(t)).map(0, -1); return m.count(k); }",
            [text, keep],
        )
        expected = mass_mask(payload.maps()[0].mean(axis=0), keep).sum()
        assert abs(kept - expected) <= 1
