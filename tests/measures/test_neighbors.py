"""Neighbor consistency: its ends, chance, and what it refuses."""

import pytest
import torch
from torch.nn.functional import normalize

from dino_core.measures import neighbor_consistency


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_same_features_agree_whatever_their_rotation():
    x = features(1500, 8)  # more than one chunk
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    assert neighbor_consistency(x, x) == 1
    assert neighbor_consistency(x, x @ turn) > 0.99


def test_unrelated_features_agree_by_chance():
    share = neighbor_consistency(features(400, 16), features(400, 16, seed=1), k=20)
    assert share == pytest.approx(20 / 399, abs=0.01)


def test_counted_by_hand():
    line = torch.tensor([[0.0], [1.0], [2.5], [10.0]])
    first = normalize(torch.cat([torch.cos(line / 10), torch.sin(line / 10)], dim=1), dim=1)
    second = first[[1, 0, 2, 3]]  # images 0 and 1 change places
    # nearest in first: 1, 0, 1, 2; in second: 1, 0, 0, 2: image 2 has lost its neighbor
    assert first.shape == (4, 2)
    assert neighbor_consistency(first, second, k=1) == pytest.approx(3 / 4)


@pytest.mark.parametrize("k", [0, 4, 9])
def test_more_neighbors_than_images_are_refused(k):
    with pytest.raises(ValueError, match="neighbors among 4"):
        neighbor_consistency(features(4, 2), features(4, 2), k=k)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        neighbor_consistency(features(4, 2), features(5, 2))
