"""Keyed random numbers: the key alone decides, in any process and in any order."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core import rng
from dino_core.rng import digests, generator, uniforms

parts = st.one_of(st.integers(-(2**63), 2**64), st.text(max_size=8))
keys = st.lists(parts, min_size=1, max_size=4).map(tuple)


@given(keys)
def test_the_same_key_gives_the_same_numbers(key):
    assert np.array_equal(rng.generator(*key).random(3), rng.generator(*key).random(3))


@given(keys, keys)
def test_different_keys_have_different_digests(one, other):
    assert (rng.digest(*one) == rng.digest(*other)) is (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 2), (12,)), ((1, 2), (2, 1)), ((1,), ("1",)), (("a", "b"), ("ab",)), ((), ("",))],
)
def test_keys_that_look_alike_differ(one, other):
    assert rng.digest(*one) != rng.digest(*other)


def test_numpy_integers_and_bools_count_as_the_integers_they_equal():
    assert rng.digest(np.int64(7), np.bool_(True), True) == rng.digest(7, 1, 1)


def test_the_numbers_are_pinned_and_the_same_in_another_process():
    """Once published, a key's numbers stay: `scenes` and finished runs depend on them."""
    pinned = 263304070040135382469912236551245257051
    code = "from dino_core import rng; print(rng.digest(0, 'augment', 3, 41, 2))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) == rng.digest(0, "augment", 3, 41, 2) == pinned


def test_global_generators_are_left_alone():
    np.random.seed(0)  # noqa: NPY002 - the very thing that must not matter, nor change
    expected = np.random.random(2)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    first = np.random.random()  # noqa: NPY002
    drawn = rng.generator(5).random()
    assert [first, np.random.random()] == list(expected)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert rng.generator(5).random() == drawn


@given(st.integers(0, 200), keys)
def test_a_permutation_holds_everything_once(n, key):
    order = rng.permutation(n, *key)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


@given(keys)
def test_torch_seeds_fit_torch(key):
    assert 0 <= rng.torch_seed(*key) < 2**63


def test_draws_are_uniform_over_neighboring_keys():
    """First draws of keys that differ by one are independent: mean and spread of U(0, 1)."""
    draws = np.array([rng.generator(0, "image", i).random() for i in range(4000)])
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * 4000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(4000)


def test_numbers_of_many_keys_are_those_of_their_generators():
    ends = [(i, v) for i in (0, 7, 2**40) for v in (0, 9)]
    drawn = uniforms(digests((3, "augment", 7), ends), range(14))
    for row, end in zip(drawn, ends, strict=True):
        assert np.array_equal(row, generator(3, "augment", 7, *end).random(56))
    some = uniforms(digests((3, "augment", 7), ends), [10, 0])
    assert np.array_equal(some, np.hstack([drawn[:, 40:44], drawn[:, :4]]))


def test_many_keys_are_computed_in_parts(monkeypatch):
    keys = digests(("parts",), [(i,) for i in range(10)])
    whole = uniforms(keys, range(3))
    monkeypatch.setattr(rng, "_AT_ONCE", 7)
    assert np.array_equal(uniforms(keys, range(3)), whole)
    assert uniforms(keys[:0], range(3)).shape == (0, 12)
