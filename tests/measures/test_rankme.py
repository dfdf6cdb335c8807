"""RankMe against matrices whose rank is known."""

import numpy as np
import pytest

from dino_core.measures.rankme import rankme
from dino_core.rng import generator


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_equal_singular_values_give_their_number(rank: int) -> None:
    basis, _ = np.linalg.qr(generator(0, "rankme").standard_normal((40, 16)))
    features = basis[:, :rank] @ np.eye(16)[:rank] * 7.5
    assert rankme(features) == pytest.approx(rank, rel=1e-4)


def test_formula_on_two_singular_values() -> None:
    share = np.array([0.75, 0.25])
    expected = np.exp(-(share * np.log(share)).sum())
    assert rankme(np.diag([3.0, 1.0])) == pytest.approx(expected, rel=1e-5)


def test_collapse_lowers_it() -> None:
    features = generator(0, "collapse").standard_normal((200, 12))
    assert rankme(features) > 11
    features[:, 1:] *= 1e-3
    assert rankme(features) < 1.2


def test_zeros_and_nothing() -> None:
    assert rankme(np.zeros((5, 3))) == 1.0
    with pytest.raises(ValueError, match="no features"):
        rankme(np.empty((0, 3)))
