"""Laws of order: every image once an epoch, and one global batch whatever the world size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.data import batch_indices, epoch_order

SEEDS = st.integers(0, 2**31)


@given(st.integers(1, 500), SEEDS, st.integers(0, 1000))
def test_an_epoch_has_every_image_once(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))


def test_epochs_and_seeds_differ():
    orders = [epoch_order(100, seed, epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 6), SEEDS)
def test_ranks_together_are_the_batch_of_one_process(n, share, world, seed):
    batch_size = share * world
    order = epoch_order(n, seed, 0)
    for step in range(max(1, n // batch_size)):
        whole = batch_indices(order, step, batch_size)
        parts = [batch_indices(order, step, batch_size, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)


@given(st.integers(1, 300), st.integers(1, 64))
def test_no_image_twice_in_an_epoch_of_whole_batches(n, batch_size):
    order = epoch_order(n, 0, 0)
    steps = max(1, n // batch_size)
    seen = np.concatenate([batch_indices(order, step, batch_size) for step in range(steps)])
    assert len(seen) == steps * batch_size
    if n >= batch_size:
        assert len(set(seen.tolist())) == len(seen)
        assert n - len(seen) < batch_size
    else:  # a small collection is gone through again
        assert np.array_equal(seen, np.resize(order, batch_size))


def test_a_batch_that_cannot_be_shared_is_an_error():
    with pytest.raises(ValueError, match="10 cannot be shared by 4"):
        batch_indices(np.arange(100), 0, 10, 0, 4)
