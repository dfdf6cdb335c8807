"""A gallery of a million images: opened, colored, selected from and searched; and its page.

    measure(images=1_000_000)  ->  the library in a fresh process, then the explorer in a browser
    write_gallery(folder, 1_000_000, 384)

The gallery is generated: features in groups, a map of the groups, columns, a neighbor graph of
images that lie beside one another in a group; no image files. The marks: first draw and a lasso of
a tenth under 3 s, neighbors of an image under 0.2 s, a server's resident memory under 3 GB.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import psutil
import torch

from dino_core.benchmarks import drawing
from dino_core.benchmarks.features import GROUPS, WITHIN
from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured
from dino_core.errors import UserError, at_least
from dino_core.gallery.images import IMAGES, write_table
from dino_core.gallery.manifest import GalleryInfo
from dino_core.launcher import Launcher, Server
from dino_core.rng import generator
from dino_core.serving import choose_port

APPS = Path(__file__).resolve().parents[2] / "apps"
CHUNK = 16_384
NEIGHBORS = 30
LASSOED = 0.1  # share of the images
QUERIES = 10
CORNERS = 120
PATIENCE = 300.0  # seconds
WORDS = ("cat", "dog", "bird", "tree", "road", "house", "red", "blue", "old", "new", "small", "far")
LOOK = """performance.getEntriesByType("mark").filter(({ name }) => name.startsWith("map: "))
  .map(({ name, startTime }) => [Number(name.slice(5)), startTime])"""  # of scatter.js


def measure(
    images: int = 1_000_000, dim: int = 384, *, browser: bool = True, keep: Path | None = None
) -> list[Measured]:
    """Some two minutes and 2 GB of disk at a million images; `keep`: where the gallery stays, and
    is found again.

    Raises `UserError` for a gallery of another size in `keep`, and with `browser` where there is no
    Playwright, Chromium, or explorer.
    """
    at_least(1_000, images=images)
    at_least(2, dim=dim)
    if browser:
        drawing.require(APPS / "assets")
    with _folder(keep) as folder:
        gallery = folder / "galleries" / "million"
        if not (gallery / "gallery.json").is_file():
            write_gallery(gallery, images, dim)
        _check(gallery, images, dim)
        what = f"{images:,} x {dim}"
        results = _library(gallery, what)
        return results + _page(folder, gallery, what) if browser else results


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _check(gallery: Path, images: int, dim: int) -> None:
    """Raise `UserError` where another gallery was kept."""
    info = GalleryInfo.read(gallery)
    if (info.count, info.dim) != (images, dim):
        raise UserError(
            f"{gallery}: holds {info.count:,} x {info.dim}, not {images:,} x {dim}; delete it, or "
            "keep this one in another folder"
        )


# -- the gallery ------------------------------------------------------------------------------


def write_gallery(out: Path, images: int, dim: int) -> Path:
    """Write a whole gallery of `images` rows in blocks, their groups one after the other.

    Rows of one group lie as `write_features` draws them, sorted by the first of their dimensions,
    which is also where they lie on the map; returns `out`.
    """
    (out / "maps").mkdir(parents=True, exist_ok=True)
    group_N = np.sort(generator(0, "million", "groups").integers(0, GROUPS, images))
    within_NW = _within(group_N)
    features_ND = _write_features(out / "features.npy", group_N, within_NW, dim)
    rows_NK, scores_NK = _graph(features_ND)
    np.savez(out / "neighbors.npz", rows=rows_NK, scores=scores_NK)
    random = generator(0, "million", "maps")
    for name, spread in (("umap", 0.25), ("pca", 0.8)):
        centers_G2 = random.uniform(-10, 10, (GROUPS, 2))
        xy_N2 = centers_G2[group_N] + spread * within_NW[:, :2]
        frame = pd.DataFrame(xy_N2.astype(np.float32), columns=["x", "y"])
        frame.to_parquet(out / "maps" / f"{name}.parquet", index=False)
    write_table(out, _table(group_N))
    _info(images, dim).write(out)
    return out


def _within(group_N: np.ndarray) -> np.ndarray:
    """Where in its group each image lies, float32 [N, WITHIN], the first number ascending."""
    shape = len(group_N), WITHIN
    within_NW = generator(0, "million", "within").standard_normal(shape, dtype=np.float32)
    within_NW[:, 0] = within_NW[np.lexsort((within_NW[:, 0], group_N)), 0]
    return within_NW


def _write_features(path: Path, group_N: np.ndarray, within_NW: np.ndarray, dim: int) -> np.ndarray:
    random = generator(0, "million", "features")
    centers_GD = random.standard_normal((GROUPS, dim), dtype=np.float32)
    pieces_GWD = random.standard_normal((GROUPS, WITHIN, dim), dtype=np.float32)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (len(group_N), dim))
    for start in range(0, len(group_N), CHUNK):
        part = slice(start, start + CHUNK)
        features_BD = 0.3 * random.standard_normal((len(group_N[part]), dim), dtype=np.float32)
        for group in np.unique(group_N[part]):
            of_it = group_N[part] == group
            features_BD[of_it] += (
                centers_GD[group] + 0.3 * within_NW[part][of_it] @ pieces_GWD[group]
            )
        file[part] = features_BD / np.linalg.norm(features_BD, axis=1, keepdims=True)
    file.flush()
    return file


def _graph(features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows beside each row, best first, with their true cosines; not the nearest of all."""
    count, k = len(features_ND), min(NEIGHBORS, len(features_ND) - 1)
    steps_K = np.array([step for one in range(1, k) for step in (one, -one)][:k])
    rows_NK, scores_NK = np.empty((count, k), np.int32), np.empty((count, k), np.float32)
    for start in range(0, count, CHUNK):
        at_B = np.arange(start, min(start + CHUNK, count))
        beside_BK = (at_B[:, None] + steps_K) % count
        ahead = np.arange(start + steps_K.min(), at_B[-1] + steps_K.max() + 1) % count
        near_CD, own_BD = features_ND[ahead], features_ND[at_B]
        scores_BK = np.stack(
            [
                np.einsum("bd,bd->b", own_BD, near_CD[step - steps_K.min() :][: len(at_B)])
                for step in steps_K
            ],
            axis=1,
        )
        order_BK = np.argsort(-scores_BK, axis=1)
        rows_NK[at_B] = np.take_along_axis(beside_BK, order_BK, axis=1)
        scores_NK[at_B] = np.take_along_axis(scores_BK, order_BK, axis=1)
    return rows_NK, scores_NK


def _table(group_N: np.ndarray) -> pd.DataFrame:
    """The columns of any gallery, then a number, a text and a few categories of the user's."""
    count = len(group_N)
    random = generator(0, "million", "columns")
    hashes = random.bytes(16 * count).hex()
    spoken = random.integers(0, len(WORDS), (count, 4)).tolist()
    nothing = pd.Series([None] * count, dtype=object)
    return pd.DataFrame(
        {
            "id": [f"group {group:02d}/{row:07d}.jpg" for row, group in enumerate(group_N)],
            "path": nothing,
            "label": [f"group {group:02d}" for group in group_N],
            "split": np.where(random.random(count) < 0.9, "train", "test"),
            "mask": nothing,
            "content_hash": [hashes[32 * row : 32 * row + 32] for row in range(count)],
            "size": pd.array([None] * count, dtype="Int64"),
            "mtime": pd.array([None] * count, dtype="Float64"),
            "width": np.full(count, 640, np.int32),
            "height": np.full(count, 480, np.int32),
            "gone": np.zeros(count, bool),
            "number": random.standard_normal(count),
            "text": [" ".join(WORDS[word] for word in words) for words in spoken],
            "camera": np.array(["phone", "reflex", "scanner"])[random.integers(0, 3, count)],
        }
    )


def _info(images: int, dim: int) -> GalleryInfo:
    return GalleryInfo(
        model="starter",
        model_hash="0" * 64,
        kind="cls",
        preprocessing={},
        feature_hash="0" * 64,
        data="generated numbers",
        source_hash="0" * 64,
        classes=[f"group {group:02d}" for group in range(GROUPS)],
        generated=False,  # of images, which there are none
        count=images,
        dim=dim,
        neighbors=min(NEIGHBORS, images - 1),
        maps={"umap": {"method": "generated"}, "pca": {"method": "generated"}},
        created="2026-01-01T00:00:00+00:00",
    )


# -- the library ------------------------------------------------------------------------------


def _library(gallery: Path, what: str) -> list[Measured]:
    code = f"from dino_core.benchmarks.million import library_turn; library_turn({str(gallery)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    names = {
        "open": "open a gallery of",
        "map": "read a map of",
        "colors": "color by the labels of",
        "text colors": "color by a text of each of",
        "lasso": f"lasso {told['lassoed']:.1%} of",
        "neighbors": "exact neighbors of one image among",
    }
    results = [_measured(f"{said} {what}", told[name]) for name, said in names.items()]
    results[-2] = replace(results[-2], notes=("the mark is 3,000 ms",))
    slowest = f"slowest of {QUERIES}: {told['slowest']:,.0f} ms; the mark is 200 ms"
    notes = (slowest, _memory(told["resident"], told["of_files"]))
    results[-1] = replace(results[-1], notes=notes)
    return results


def _measured(name: str, milliseconds: float, *notes: str) -> Measured:
    return Measured(
        name=name,
        hardware=hardware(torch.device("cpu")),
        milliseconds=milliseconds,
        notes=notes,
    )


def _memory(resident: int, of_files: int) -> str:
    return (
        f"then resident: {resident / 1e9:.2f} GB, of it {of_files / 1e9:.2f} GB of files, which "
        "the system takes back when it needs room; the mark is 3 GB"
    )


def library_turn(path: str) -> None:
    """In a fresh process: what a page does, one after the other; prints milliseconds as JSON."""
    from dino_core.gallery import Gallery
    from dino_core.gallery.selection import Selection, color_by, select

    told: dict[str, float] = {}
    with _timed(told, "open"):
        gallery = Gallery.open(path)
        images = gallery.images
    with _timed(told, "map"):
        xy = gallery.map("umap")
        x, y = (xy[axis].to_numpy(np.float32) for axis in "xy")
    with _timed(told, "colors"):
        coloring = color_by(images["label"])
    with _timed(told, "text colors"):
        color_by(images["text"])
    region = Selection((ring_around(x, y, LASSOED),))
    with _timed(told, "lasso"):
        rows = select(x, y, coloring.codes, region)
    told["lassoed"] = len(rows) / len(x)
    each = []
    for row in generator(0, "million", "queries").integers(0, len(images), QUERIES):
        start = time.perf_counter()
        gallery.search(str(images["id"].iat[int(row)]), 20)
        each.append(1000 * (time.perf_counter() - start))
    told |= {"neighbors": median(each), "slowest": max(each)}
    gallery.neighbors()
    print(json.dumps(told | _resident(psutil.Process())))


@contextmanager
def _timed(told: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    told[name] = 1000 * (time.perf_counter() - start)


def _resident(process: psutil.Process) -> dict[str, int]:
    """Bytes in memory, and how many of them are of files (only Linux tells)."""
    memory = process.memory_info()
    return {"resident": memory.rss, "of_files": getattr(memory, "shared", 0)}


def ring_around(x: np.ndarray, y: np.ndarray, share: float) -> tuple[tuple[float, float], ...]:
    """A polygon around the middle of the points that holds nearly this share of them."""
    middle = float(np.median(x)), float(np.median(y))
    radius = float(np.quantile(np.hypot(x - middle[0], y - middle[1]), share))
    turns = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    return tuple(
        (middle[0] + radius * math.cos(turn), middle[1] + radius * math.sin(turn)) for turn in turns
    )


# -- the page ---------------------------------------------------------------------------------


def _page(root: Path, gallery: Path, what: str) -> list[Measured]:
    """The explorer on the gallery, driven by a headless browser."""
    port = choose_port(8501).number
    address = f"http://127.0.0.1:{port}/"
    command = (sys.executable, "-m", "streamlit", "run", str(APPS / "explorer.py"))
    where = ("--server.headless", "true", "--server.port", str(port))
    words = (*command, *where, "--", "--root", str(root), "--gallery", str(gallery))
    with tempfile.TemporaryDirectory() as folder, Launcher(Path(folder, "up")) as launcher:
        launcher.start(Server("explorer", words, address))
        launcher.wait_until_answering(PATIENCE)
        server = next(
            process
            for process in psutil.Process().children(recursive=True)
            if str(port) in process.cmdline()
        )
        with _chromium() as browser:
            told = _visit(browser, address, gallery)
        memory = _memory(**_resident(server))
    with_gpu = "without a GPU" if told["software"] else "with a GPU"
    lasso = f"lasso {told['lassoed']:.1%} of {what} on the page"
    return [
        _measured(
            f"first draw of {what} in the explorer",
            told["first draw"],
            f"a fresh server's first page, drawn {with_gpu}; the mark is 3,000 ms",
            f"all points after {told['all points']:,.0f} ms; another visitor's page: "
            f"{told['again']:,.0f} ms",
        ),
        _measured(lasso, told["lasso"], "until its images are listed; the mark is 3,000 ms"),
        _measured(
            f"page of neighbors among {what}",
            told["neighbors"],
            f"from its address; of an image beside the map: {told['one image']:,.0f} ms",
            memory,
        ),
    ]


@contextmanager
def _chromium() -> Iterator[Any]:
    found = drawing.require(APPS / "assets")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


def _visit(browser: Any, address: str, gallery: Path) -> dict[str, float]:
    """Milliseconds from asking for the page to its first points and to all; of a lasso; and of
    pages with an image's neighbors, those of the gallery's graph and those of a search.
    """
    told: dict[str, float] = {}
    for name in ("first draw", "again"):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.wait_for_function(f"({LOOK}).length > 0")
        told[name] = page.evaluate(LOOK)[0][1]
    page.wait_for_selector(".st-key-panel h2")
    count = int("".join(filter(str.isdigit, page.locator(".st-key-panel h2").inner_text())))
    page.wait_for_function(f"({LOOK}).some(([points]) => points === {count})")
    told["all points"] = next(at for points, at in page.evaluate(LOOK) if points == count)
    told["lasso"] = _lasso(page)
    told["lassoed"] = int(page.locator(".scatter").get_attribute("data-selected")) / count
    told["software"] = "SwiftShader" in page.evaluate(
        """() => {
          const gl = document.createElement("canvas").getContext("webgl2");
          const info = gl.getExtension("WEBGL_debug_renderer_info");
          return info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
        }"""
    )
    id = str(pd.read_parquet(gallery / IMAGES, columns=["id"])["id"].iat[count // 2])
    for name, where in (("one image", ""), ("neighbors", "page=neighbors&")):
        start = time.perf_counter()
        page.goto(f"{address}?{where}image={quote(id, safe='')}")
        page.wait_for_selector(".score")
        told[name] = 1000 * (time.perf_counter() - start)
    return told


def _lasso(page: Any) -> float:
    """Draw around the middle of the map; milliseconds until its images are listed."""
    box = page.locator("canvas.points").bounding_box()
    middle = box["x"] + box["width"] / 2 + 24, box["y"] + box["height"] / 2  # beside the tools
    radius = 0.16 * min(box["width"], box["height"])
    page.keyboard.down("Shift")
    for corner in range(49):
        turn = 2 * math.pi * corner / 48
        at = middle[0] + radius * math.cos(turn), middle[1] + radius * math.sin(turn)
        page.mouse.move(*at)
        if corner == 0:
            page.mouse.down()
    start = time.perf_counter()
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_function(
        "document.querySelector('.st-key-panel h2')?.textContent.includes('selected')", polling=20
    )
    return 1000 * (time.perf_counter() - start)
