"""What a selection is, against the same said in one line of numpy."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dino_core.gallery import summary as summary_module
from dino_core.gallery.summary import summarize


def gallery_of(features, labels):
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return SimpleNamespace(
        features=(features / length).astype(np.float32),
        images=pd.DataFrame({"label": pd.Series(labels, dtype=object)}),
    )


@pytest.fixture(scope="module")
def gallery():
    random = np.random.default_rng(1)
    features = random.standard_normal((500, 12)) + 0.5
    return gallery_of(features, random.choice(["a", "b", "c"], 500, p=[0.6, 0.3, 0.1]))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(summary_module, "BLOCK", 64)


def test_medoids_are_nearest_to_the_normalized_mean(gallery):
    rows = np.arange(3, 500, 3)
    chosen = gallery.features[rows].astype(np.float64)
    mean = chosen.mean(0)
    cosines = chosen @ (mean / np.linalg.norm(mean))
    found = summarize(gallery, rows, medoids=7)
    assert found.medoids.tolist() == rows[np.argsort(-cosines)[:7]].tolist()
    np.testing.assert_allclose(found.cosines, np.sort(cosines)[::-1][:7], atol=1e-6)
    assert found.alike == pytest.approx(cosines.mean(), abs=1e-6)
    assert (found.count, found.looked_at) == (len(rows), len(rows))


def test_purity_is_the_share_of_the_most_frequent_label_among_the_labeled():
    gallery = gallery_of(np.eye(8), ["a", "a", "b", None, "c", "a", np.nan, "b"])
    found = summarize(gallery, np.arange(7))
    assert (found.labeled, found.purity) == (5, 3 / 5)
    assert found.shares[0] == ("a", 3, 3 / 7)
    assert sum(count for _, count, _ in found.shares) == 7
    none = summarize(gallery, np.array([3, 6]))
    assert (none.labeled, none.purity) == (0, None)


def test_most_without_a_label_do_not_make_it_pure():
    gallery = gallery_of(np.eye(4), [None, None, None, "a"])
    assert summarize(gallery, np.arange(4)).purity == 1.0


def test_copies_are_wholly_alike_and_opposites_have_no_middle():
    one = np.ones((5, 3))
    assert summarize(gallery_of(one, ["a"] * 5), np.arange(5)).alike == pytest.approx(1)
    opposed = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    found = summarize(gallery_of(opposed, ["a"] * 4), np.arange(4), medoids=2)
    assert (found.alike, found.medoids.tolist(), found.cosines.tolist()) == (0, [0, 1], [0, 0])


def test_of_many_a_fixed_sample_is_looked_at(gallery):
    rows = np.arange(500)
    first, again = (summarize(gallery, rows, sample=100) for _ in range(2))
    assert (first.count, first.looked_at) == (500, 100)
    assert first.medoids.tolist() == again.medoids.tolist()
    assert set(first.medoids) <= set(rows)
    whole = summarize(gallery, rows)
    assert first.shares == whole.shares, "labels are counted of all"
    assert first.alike == pytest.approx(whole.alike, abs=0.1)


def test_nothing_selected_is_nothing(gallery):
    found = summarize(gallery, np.empty(0, np.int64))
    assert (found.count, found.purity, found.alike, found.shares) == (0, None, 0.0, [])
    assert len(found.medoids) == 0


def test_progress_runs_to_its_end(gallery):
    told = []
    summarize(gallery, np.arange(500), progress=lambda *what: told.append(what))
    shares = [done / total for done, total, message in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.8 < shares[-1] < 1
