"""What tests of the apps share: their parts on the path, and a small gallery made by hand.

`make_gallery` needs no model: features are drawn around one center per class.

What a page needs of a gallery (images, labels, neighbors, a PCA map) is there in a second, without
torch; a query image needs a model and is tested elsewhere.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dino_core.data import open_source
from dino_core.gallery.images import images_table, write_table
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.maps import pca_map
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.rng import generator

DIM = 16

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "apps"))  # as Streamlit does


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
