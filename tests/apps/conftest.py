"""What tests of the apps share: their parts on the path, a gallery made by hand, a running lens.

`make_gallery` needs no model: features are drawn around one center per class.

What a page needs of a gallery (images, labels, neighbors, a PCA map) is there in a second, without
torch; a query image needs a model and is tested elsewhere.
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.gallery.images import images_table, write_table
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.maps import pca_map
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.launcher import Launcher, Server
from dino_core.rng import generator
from dino_core.serving import choose_port

DIM = 16
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 3}
# No test fails by the clock of a busy machine: importing torch alone may take a minute there.
START_BOUND = 200.0  # seconds

sys.path.insert(0, str(ROOT / "apps"))  # as Streamlit does


@pytest.fixture(scope="session")
def make_gallery() -> Callable[..., Path]:
    """`make_gallery(out, spec)`: a whole gallery of `spec` in `out`; returns `out`."""
    return _make_gallery


def _make_gallery(out: Path, spec: str, *, spread: float = 0.35) -> Path:
    """A whole gallery of `spec` in `out`; returns `out`."""
    source = open_source(spec)
    count = len(source)
    random = generator(0, "gallery by hand", spec)
    centers = random.standard_normal((max(len(source.classes), 1), DIM))
    labels = np.zeros(count, np.int64) if source.labels is None else source.labels
    features = centers[labels] + spread * random.standard_normal((count, DIM))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    facts = [
        {"index": i, "width": 192, "height": 192, "fingerprint": source.fingerprint(i)}
        for i in range(count)
    ]
    (out / "maps").mkdir(parents=True)
    np.save(out / "features.npy", features)
    write_table(out, images_table(source, facts))
    rows, scores = neighbor_graph(features, 10)
    np.savez(out / "neighbors.npz", rows=rows, scores=scores)
    pd.DataFrame(pca_map(features), columns=["x", "y"]).to_parquet(out / "maps" / "pca.parquet")
    GalleryInfo(
        model="starter",
        model_hash="0" * 64,
        kind="cls",
        preprocessing={},
        feature_hash="0" * 64,
        data=spec,
        source_hash="0" * 64,
        root=None if source.root is None else str(source.root),
        classes=list(source.classes),
        generated=source.generated,
        count=count,
        dim=DIM,
        neighbors=rows.shape[1],
        maps={"pca": {"method": "pca"}},
    ).write(out)
    return out


@pytest.fixture(autouse=True)
def own_main():
    """Streamlit's tests leave the app as `__main__`, which every spawned process runs first."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model, a gallery of scenes, and files to upload."""
    from dino_core.gallery import build
    from dino_core.models import ModelInfo, create_backbone, load_model, save_weights

    folder = tmp_path_factory.mktemp("lens")
    info = ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=32, options=SMALL)
    weights = folder / "small.safetensors"
    state = create_backbone(info).vit.state_dict()
    for name in state:
        if name.endswith("qkv.weight"):
            state[name] *= 8  # fresh weights attend to everything alike; these have preferences
    save_weights(weights, info, state)
    source = open_source("scenes:24")
    model = load_model(str(weights), device="cpu")
    build(model, source, folder / "galleries" / "few", batch_size=12, workers=0, maps=())
    scene = Image.fromarray(open_source("scenes:30-31").image(0))
    scene.resize((320, 240)).save(folder / "photo.jpg")
    (folder / "text.jpg").write_text("no picture at all")
    (folder / "empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def address(root: Path) -> Iterator[str]:
    """A running lens; ended by its id."""
    port = choose_port(17860).number
    words = ["--model", str(root / "small.safetensors"), "--root", str(root), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "apps" / "lens.py"), *words, "--port", str(port)],
        cwd="/",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/", process)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_BOUND
    while time.monotonic() < until:
        assert process.poll() is None, "the lens ended by itself"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the lens did not answer")


@pytest.fixture(scope="session")
def explorer(
    tmp_path_factory: pytest.TempPathFactory, make_gallery: Callable[..., Path]
) -> Iterator[tuple[str, Path]]:
    """The address of a running explorer, started from `/`, and its root, for all pages' tests.

    `galleries/scenes` holds 120 labeled images, `galleries/again` the same ones otherwise seen.
    """
    folder = tmp_path_factory.mktemp("explorer")
    make_gallery(folder / "galleries" / "scenes", "scenes:120")
    make_gallery(folder / "galleries" / "again", "scenes:120", spread=0.6)
    port = choose_port(18500).number
    words = ["-m", "streamlit", "run", str(ROOT / "apps" / "explorer.py")]
    words += ["--server.port", str(port), "--", "--root", str(folder), "--gallery", "scenes"]
    address = f"http://127.0.0.1:{port}/"
    here = os.getcwd()
    os.chdir("/")
    try:
        with Launcher(folder / "launcher") as launcher:
            launcher.start(Server("explorer", (sys.executable, *words), address))
            launcher.wait_until_answering(START_BOUND)
            yield address, folder
    finally:
        os.chdir(here)
