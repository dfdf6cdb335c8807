"""The generated gallery of many images: whole, plausible, always the same; and its figures."""

import json

import numpy as np
import pytest

from dino_core.benchmarks import million
from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery.selection import Selection, color_by, select

IMAGES, DIM = 3000, 16


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return million.write_gallery(tmp_path_factory.mktemp("million") / "a", IMAGES, DIM)


def test_it_is_a_whole_gallery(written):
    gallery = Gallery.open(written)
    assert len(gallery) == len(gallery.images) == IMAGES and gallery.images["id"].is_unique
    lengths = np.linalg.norm(gallery.features, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    for name in ("umap", "pca"):
        assert np.isfinite(gallery.map(name)[["x", "y"]].to_numpy()).all()
    kinds = {name: color_by(gallery.images[name]).kind for name in ("label", "number", "text")}
    assert kinds == {"label": "categories", "number": "numbers", "text": "categories"}


def test_neighbors_are_others_of_the_same_group_with_their_true_cosines(written):
    gallery = Gallery.open(written)
    rows, scores = gallery.neighbors()
    assert rows.shape == (IMAGES, million.NEIGHBORS)
    assert (rows != np.arange(IMAGES)[:, None]).all()
    assert all(len(set(each)) == len(each) for each in rows.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    cosines = np.einsum("nd,nkd->nk", gallery.features, gallery.features[rows])
    np.testing.assert_allclose(scores, cosines, atol=1e-5)
    labels = gallery.images["label"].to_numpy()
    assert (labels[rows[:, 0]] == labels).mean() > 0.8


def test_it_is_the_same_every_time(written, tmp_path):
    again = million.write_gallery(tmp_path / "b", IMAGES, DIM)
    for name in ("features.npy", "neighbors.npz", "images.parquet", "maps/umap.parquet"):
        if name.endswith("npz"):  # a zip holds the time
            continue
        assert (again / name).read_bytes() == (written / name).read_bytes(), name


def test_the_lasso_holds_its_share():
    x, y = np.random.default_rng(0).standard_normal((2, 20_000)).astype(np.float32)
    ring = million.ring_around(x, y, 0.1)
    assert len(ring) == million.CORNERS
    rows = select(x, y, np.zeros(20_000, np.uint8), Selection((ring,)))
    assert 0.098 < len(rows) / 20_000 <= 0.1


def test_the_library_s_figures_are_told(written, capsys):
    million.library_turn(str(written))
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {
        "open", "map", "colors", "text colors", "lasso", "lassoed", "neighbors", "slowest",
        "resident", "of_files",
    }  # fmt: skip
    assert told["resident"] > told["of_files"] >= 0 and 0.09 < told["lassoed"] <= 0.1


def test_a_kept_gallery_of_another_size_is_not_measured(tmp_path):
    million.write_gallery(tmp_path / "galleries" / "million", 1000, 4)
    with pytest.raises(UserError, match=r"holds 1,000 x 4, not 2,000 x 4; .* another folder"):
        million.measure(2000, 4, browser=False, keep=tmp_path)
