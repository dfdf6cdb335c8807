"""Searching, measured: what is compared finds the same, and the figures are of what they say."""

import numpy as np
import pytest

from dino_core.benchmarks.features import write_features
from dino_core.benchmarks.search import measure, plain_search
from dino_core.gallery.neighbors import nearest


def test_both_find_the_same(tmp_path) -> None:
    features = np.load(write_features(tmp_path / "f.npy", 300, 8))
    for allowed in (None, np.arange(300) % 7 == 0):
        found, _ = nearest(features, features[:1], 5, allowed)
        np.testing.assert_array_equal(plain_search(features, features[0], 5, allowed), found[0])


def test_all_and_a_tenth_are_measured() -> None:
    everything, filtered = measure(images=400, dim=8, queries=2, rounds=1)
    assert everything.name == "search all of 400 x 8" and filtered.name.startswith("search a tenth")
    for one in (everything, filtered):
        assert one.milliseconds and one.ratio_to_plain
    assert everything.share_of_limit and filtered.share_of_limit is None


@pytest.mark.parametrize("kind", ["clustered", "random"])
def test_features_are_unit_vectors_that_repeat_themselves(tmp_path, kind: str) -> None:
    features = np.load(write_features(tmp_path / "a.npy", 500, 384, kind))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        features, np.load(write_features(tmp_path / "b.npy", 500, 384, kind))
    )
    closest = np.sort(features @ features.T - 2 * np.eye(500), axis=1)[:, -1].mean()
    assert (closest > 0.5) == (kind == "clustered")


def test_an_unknown_kind(tmp_path) -> None:
    with pytest.raises(ValueError, match="clustered or random"):
        write_features(tmp_path / "f.npy", 10, 4, "uniform")
