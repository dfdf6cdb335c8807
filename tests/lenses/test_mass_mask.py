"""Mass masks: the golden one, and laws that hold for any map."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dino_core.lenses.attention import kept_counts, mass_mask

GOLDEN = Path(__file__).parents[1] / "golden" / "mass_mask.npz"

maps = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.floats(0, 1, width=32, allow_subnormal=False),
)
shares = st.floats(0, 1)


def test_golden():
    golden = np.load(GOLDEN)
    mask = mass_mask(golden["attention"], float(golden["threshold"]))
    np.testing.assert_array_equal(mask, golden["mask"])


def test_a_map_without_mass_keeps_nothing():
    assert not mass_mask(np.zeros((2, 3)), 1.0).any()


@given(attention=maps, keep=shares)
def test_mass_is_partitioned(attention, keep):
    """What is kept holds at least `keep` of the mass; without its weakest patch, less."""
    mask = mass_mask(attention, keep)
    mass = attention.astype(np.float64)
    total, inside = mass.sum(), mass[mask].sum()
    np.testing.assert_allclose(inside + mass[~mask].sum(), total)
    assert inside >= keep * total - 1e-9 * total
    if mask.any():
        assert inside - mass[mask].min() <= keep * total + 1e-9 * total
        assert mass[mask].min() >= mass[~mask].max(initial=0)


@given(attention=maps, one=shares, other=shares)
def test_keeping_more_keeps_the_same_patches_and_more(attention, one, other):
    small, large = sorted((one, other))
    assert not (mass_mask(attention, small) & ~mass_mask(attention, large)).any()


@given(attention=maps, factor=st.sampled_from([0.125, 4.0, 64.0]), keep=shares)
def test_only_shares_matter(attention, factor, keep):
    np.testing.assert_array_equal(mass_mask(attention * factor, keep), mass_mask(attention, keep))


@given(attention=maps, keep=shares)
def test_counts_are_those_of_the_mask(attention, keep):
    assert kept_counts(attention, np.array([keep]))[0] == mass_mask(attention, keep).sum()


@given(attention=maps)
def test_the_ends(attention):
    assert mass_mask(attention, 0.0).sum() == 0
    np.testing.assert_array_equal(mass_mask(attention, 1.0), attention > 0)
