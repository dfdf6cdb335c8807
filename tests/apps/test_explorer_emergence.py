"""The page of a run's history: in a browser once, and what it says where there is little to see."""

import io
import json
import re
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explore import emerging, loading, options
from PIL import Image
from streamlit.testing.v1 import AppTest

from dino_core.data import open_source
from dino_core.emergence import History
from dino_core.files import write_json
from dino_core.lenses import Attention, LensPayload
from dino_core.rng import generator
from dino_core.runs import Run

ROOT = Path(__file__).resolve().parents[2]
STEPS = (0, 100, 200, 300)
COUNT, K = 40, 12
GRID, LAYERS, HEADS = (6, 6), 2, 3


def make_run(path: Path, steps: tuple[int, ...] = STEPS, *, patches: bool = True) -> Run:
    """A run of `scenes` whose classes part as it goes on, its probes made by hand."""
    run, source = Run(path), open_source(f"scenes:{COUNT}")
    assert source.labels is not None
    recipe = {"data": f"scenes:{COUNT}", "images": 800, "steps": 400}
    write_json(path / "recipe.json", recipe | {"quality": {"checks": 4, "hold_out": 0.05}})
    probes = path / "probes"
    held_out = {"ids": list(source.ids), "labels": source.labels.tolist()}
    write_json(probes / "held_out.json", held_out | {"classes": source.classes})
    (probes / "images").mkdir()
    for i in (0, 1):
        Image.fromarray(source.image(i)).save(probes / "images" / f"{i}.png")
    centers = generator(0, "centers").standard_normal((len(source.classes), 16))
    for step in steps:
        random = generator(step, "run by hand")
        features = random.standard_normal((COUNT, 16)) + step / 100 * centers[source.labels]
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        folder = probes / f"step-{step:08d}"
        folder.mkdir()
        np.save(folder / "features.npy", features.astype(np.float16))
        write_json(folder / "quality.json", {"steps_done": step, "knn": step / 10, "rankme": 9.0})
        for i in (0, 1):
            maps = random.random((LAYERS, HEADS, *GRID)).astype(np.float32) / 40
            attention = Attention(maps, (48, 48), (192, 192), 8, "by hand", "0" * 64)
            (folder / f"attention-{i}.bin").write_bytes(
                LensPayload.from_attention(attention).to_bytes()
            )
            if patches:
                scores = random.standard_normal((*GRID, 8)).astype(np.float16)
                np.save(folder / f"patches-{i}.npy", scores)
    return run


def test_a_run_unfolds_behind_one_slider(explorer: Any, page: Any) -> None:
    address, root = explorer
    kept = History.read(make_run(root / "runs" / "grown"))
    near = kept.neighbors()
    sharing = near.sharing(kept.labels)
    page.goto(f"{address}?page=emergence&run=grown")
    page.wait_for_selector(".emergence[data-ready=true] .near .tile")
    assert page.locator(".step").inner_text() == "Step 300"
    assert page.locator(".values dd").all_inner_texts() == ["30.0 %", "9.0"]
    told = page.locator(".sharing")
    assert told.inner_text().startswith(f"{sharing[3, 0]} of {K} nearest")
    assert page.locator(".sight .tile").count() == 1 + HEADS
    for tile in page.locator(".near .tile img").all():
        decoded = "async image => { await image.decode(); return image.naturalWidth; }"
        assert tile.evaluate(decoded) == 160

    # one check back, by keyboard: everything changes, without a request for a frame
    seen = {name: drawn(page, name) for name in (".sight .figures canvas", ".sea canvas")}
    page.wait_for_selector(".names button")  # both maps are there
    page.locator(".timeline input").press("ArrowLeft")
    page.wait_for_selector(".emergence[data-at='2.00']")
    assert page.locator(".step").inner_text() == "Step 200"
    assert told.inner_text().startswith(f"{sharing[2, 0]} of {K} nearest")
    for name, before in seen.items():
        assert drawn(page, name) != before
    page.wait_for_url("**step=200**")

    # a neighbor becomes the query; Back returns to the first one, Forward to it
    first, second = (kept.ids[row].split("/")[-1] for row in (0, near.rows[2, 0, 0]))
    page.locator(".near .tile:not(.leaving)").first.click()
    page.wait_for_url("**query=**")
    page.wait_for_selector(f".query:has-text('{second}')")
    page.go_back()
    page.wait_for_selector(f".query:has-text('{first}')")
    page.go_forward()
    page.wait_for_selector(f".query:has-text('{second}')")

    # play from where it stands to the last check
    page.locator(".play").click()
    page.wait_for_selector(".emergence[data-at='3.00'] .play[aria-label=Play]")
    page.wait_for_function("!location.search.includes('step=')")

    # another head of another picture, then the film of just that
    page.locator(".pictures button").nth(1).click()
    page.locator(".sight .tile").nth(2).click()
    page.wait_for_url("**head=2**")
    page.get_by_role("button", name="Make a GIF").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the GIF").click()
    assert saved.value.suggested_filename == "grown-emergence.gif"
    film = Image.open(saved.value.path())
    assert (film.format, film.size) == ("GIF", (720, 405)) and film.n_frames > 2 * len(STEPS)
    assert "Traceback" not in (root / "launcher" / "explorer.log").read_text()


def drawn(page: Any, canvas: str) -> str:
    return page.locator(canvas).first.evaluate("canvas => canvas.toDataURL()")  # type: ignore


# -- without a browser --------------------------------------------------------------------------


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What the page says, tags taken out."""
    monkeypatch.setattr(loading, "begin", lambda: None)
    monkeypatch.setattr(History, "maps", lambda self, progress: self.components())  # at once
    monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path)])
    options.options.cache_clear()

    def look(**values: str) -> str:
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        for name, value in ({"page": "emergence"} | values).items():
            page.query_params[name] = value
        page.run()
        assert not page.exception
        texts = [element.proto.body for element in page.get("html")]
        texts += [element.value for element in (*page.error, *page.caption)]
        return re.sub(r"<[^>]+>", "", " ".join(texts))

    yield look
    options.options.cache_clear()


def test_without_runs_the_page_says_how_to_train_one(look):
    assert "No run yet" in (said := look())
    assert "python scripts/train.py --data FOLDER --out" in said


def test_a_run_before_its_first_check(look, tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "young", ())
    monkeypatch.setattr(Run, "status", lambda self: {"state": "running"})
    assert "too early; the first check is made before the first step" in look()


def test_one_check_only_and_when_the_next_comes(look, tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "young", (0,))
    monkeypatch.setattr(Run, "status", lambda self: {"state": "running"})
    said = look()
    assert "one check only, at step 0; the next comes at step 100" in said
    assert "40 images held out" in said and "Make a GIF" not in said


def test_what_is_damaged_and_what_is_gone_is_named(look, tmp_path):
    run = make_run(tmp_path / "runs" / "old")
    (run.path / "probes" / "step-00000100" / "features.npy").write_bytes(b"no array")
    write_json(run.path / "recipe.json", run.recipe() | {"data": str(tmp_path / "gone")})
    said = look(run="old", step="99999999999999999999", layer="77", head="-3", picture="x")
    assert "The check at step 100 is left out: features.npy is missing or cut short." in said
    assert "its images are shown as tiles" in said and "gone: no such file or folder" in said
    assert "3 checks" in said


def ask(path: str, *numbers: int) -> Callable[[emerging.Watched], bytes]:
    """The body that a route answers with."""

    def answer(watched: emerging.Watched) -> bytes:
        return bytes(getattr(emerging, path)(watched, *numbers).body)

    return answer


def parts_of(bundle: bytes) -> list[bytes | None]:
    count = int(np.frombuffer(bundle, "<u4", 1)[0])
    lengths = np.frombuffer(bundle, "<u4", count, 4).tolist()
    ends = np.cumsum([4 + 4 * count, *lengths]).tolist()
    found = [bundle[a:b] for a, b in pairwise(ends)]
    assert ends[-1] == len(bundle)
    return [part or None for part in found]


def test_the_routes_give_all_checks_at_once(tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / "probes" / "step-00000100" / "attention-1.bin").unlink()
    watched = emerging.watch(run)
    assert parts_of(ask("heads", 1, 0)(watched)) == watched.history.heads(1, 0)
    for part, color in zip(
        parts_of(ask("colors", 0)(watched)), watched.history.colors(0), strict=True
    ):
        assert part is not None and color is not None
        assert np.frombuffer(part, "<u2", 2).tolist() == list(GRID)
        assert part[4:] == color.tobytes()
    picture = Image.open(io.BytesIO(ask("picture", 1)(watched)))
    assert picture.format == "JPEG" and picture.size == (192, 192)
    assert emerging.watch(run) is watched, "read once"
    (run.path / "probes" / "step-00000300" / "quality.json").unlink()
    write_json(run.path / "recipe.json", json.loads((run.path / "recipe.json").read_text()))
    assert emerging.watch(run).history.steps == [0, 100, 200]


def test_older_runs_have_no_colors(tmp_path):
    watched = emerging.watch(make_run(tmp_path / "run", patches=False))
    assert parts_of(ask("colors", 0)(watched)) == [None] * len(STEPS)


def test_a_history_that_is_read_holds_up_no_other(tmp_path, monkeypatch):
    first, second = (make_run(tmp_path / name, (0,)) for name in ("first", "second"))
    read, reading, go_on = History.read, threading.Event(), threading.Event()

    def slowly(run: Run) -> History:
        if run is first:
            reading.set()
            assert go_on.wait(60)
        return read(run)

    monkeypatch.setattr(emerging.History, "read", slowly)
    other = threading.Thread(target=emerging.watch, args=(first,))
    other.start()
    assert reading.wait(60)
    done: list[Any] = []
    mine = threading.Thread(target=lambda: done.append(emerging.watch(second)))
    mine.start()
    mine.join(30)
    assert done
    go_on.set()
    other.join()
