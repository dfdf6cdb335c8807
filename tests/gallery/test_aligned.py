"""Aligned maps: what stays stays in place, what moved is seen to move; Procrustes by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from dino_core.errors import UserError
from dino_core.gallery.aligned import (
    FEW,
    MOST_IMAGES,
    aligned_maps,
    common_sample,
    procrustes,
    procrustes_chain,
    shared_share,
)


def groups(count: int = 240, dim: int = 24, of: int = 6, seed: int = 0) -> np.ndarray:
    """Features in `of` tight groups, image n in group n % of; float32 [count, dim], normalized."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((of, dim))
    features = centers[np.arange(count) % of] + 0.3 * random.standard_normal((count, dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.linalg.norm(first - second, axis=1)


def test_the_same_features_give_the_same_map_three_times():
    first, second, third = aligned_maps([groups()] * 3)
    assert first.shape == (240, 2) and first.dtype == np.float32
    assert np.array_equal(first, second) and np.array_equal(first, third)


def test_images_that_changed_their_group_move_and_the_others_stay():
    """In the second set ten images of group 0 have become like group 1."""
    features, moved = groups(), np.arange(0, 60, 6)
    later = features.copy()
    later[moved] = groups(seed=0)[moved + 1] + 1e-3
    first, second = aligned_maps([features, later])
    went = distance(first, second)
    stayed = np.setdiff1d(np.arange(240), moved)
    assert went[moved].min() > 3 * np.percentile(went[stayed], 90)
    home = [second[np.arange(240) % 6 == group][10:].mean(axis=0) for group in range(6)]
    nearest = np.linalg.norm(second[moved][:, None] - np.array(home), axis=2).argmin(axis=1)
    assert (nearest == 1).all()


def test_each_map_shows_the_groups_of_its_own_features():
    """By the second set images are grouped otherwise, in another number of dimensions."""
    other = groups(dim=40, seed=1)[np.random.default_rng(2).permutation(240)]
    for features, xy in zip((groups(), other), aligned_maps([groups(), other]), strict=True):
        own = np.argsort(-(features @ features.T), axis=1)[:, 1:11]
        on_map = np.argsort(np.linalg.norm(xy[:, None] - xy, axis=2), axis=1)[:, 1:40]
        kept = np.mean([len({*a} & {*b}) / 10 for a, b in zip(own, on_map, strict=True)])
        assert kept > 0.9  # chance: 39 / 239


def test_maps_are_nearer_together_than_maps_drawn_apart():
    features, later = groups(), groups(seed=0) + 0.05 * groups(seed=3)
    first, second = aligned_maps([features, later])
    (alone,) = aligned_maps([later])
    assert distance(first, second).mean() < distance(first, procrustes(alone, first)).mean()


def test_the_result_is_the_same_each_time_and_lengths_of_features_do_not_matter():
    once = aligned_maps([groups(), groups(seed=4)])
    again = aligned_maps([groups() * 4, groups(seed=4)])  # by a power of two: no rounding
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_few_images_get_principal_components_and_it_is_said():
    said: list[str] = []
    features = groups(12)
    turned = features @ np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    first, second = aligned_maps([features, turned], lambda *what: said.append(what[2]))
    assert said == [FEW]
    assert np.allclose(first, second, atol=1e-5)  # turned features have the same components
    centered = features - features.mean(axis=0)
    spread = np.linalg.svd(centered, compute_uv=False)[:2]
    assert np.allclose(np.linalg.norm(first, axis=0), spread, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 14, 15, 16])
def test_any_number_of_images_has_a_map(count):
    maps = aligned_maps([groups(count), groups(count, seed=1)])
    assert [one.shape for one in maps] == [(count, 2)] * 2
    assert all(np.isfinite(one).all() for one in maps)


def test_features_that_are_all_equal_have_a_map():
    for xy in aligned_maps([np.ones((40, 8)), groups(40)]):
        assert np.isfinite(xy).all()


def test_progress_can_end_the_work():
    class Enough(Exception):
        pass

    def stop(done: int, total: int, message: str) -> None:
        if done == 3:
            raise Enough

    with pytest.raises(Enough):
        aligned_maps([groups(60)] * 2, stop)


def test_what_cannot_be_aligned_is_refused():
    assert aligned_maps([]) == []
    with pytest.raises(UserError, match="at most 5,000; take a sample"):
        aligned_maps([np.zeros((MOST_IMAGES + 1, 2))])
    with pytest.raises(UserError, match="not numbers"):
        aligned_maps([np.full((20, 4), np.nan)])
    with pytest.raises(ValueError, match="not of the same images"):
        aligned_maps([groups(20), groups(21)])


def test_a_sample_is_fixed_ascending_and_no_bigger_than_asked_for():
    assert common_sample(30).tolist() == list(range(30))
    rows = common_sample(20_000)
    assert len(rows) == 5_000 and (np.diff(rows) > 0).all() and rows[-1] < 20_000
    assert np.array_equal(rows, common_sample(20_000))
    assert 9_000 < rows.mean() < 11_000  # the mean of 5,000 of 0 .. 19,999: 9,999.5 +- 71


@given(
    angle=st.floats(0, 6.28),
    scale=st.floats(0.1, 10),
    shift=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    mirror=st.booleans(),
)
def test_procrustes_undoes_turning_scaling_shifting_and_mirroring(angle, scale, shift, mirror):
    xy = np.random.default_rng(0).standard_normal((20, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = scale * (xy * ([-1, 1] if mirror else [1, 1])) @ turn + shift
    assert np.allclose(procrustes(moved, xy), xy, atol=1e-4)


def test_procrustes_is_scipys():
    first, second = np.random.default_rng(1).standard_normal((2, 30, 2))
    centered = first - first.mean(axis=0)
    rotation, total = orthogonal_procrustes(centered, second - second.mean(axis=0))
    expected = centered @ rotation * total / (centered**2).sum() + second.mean(axis=0)
    assert np.allclose(procrustes(first, second), expected, atol=1e-5)


def test_a_chain_of_unlike_maps_keeps_its_size():
    maps = [np.random.default_rng(seed).standard_normal((50, 2)) for seed in range(12)]
    sizes = [one.var(axis=0).sum() for one in procrustes_chain(maps)]
    assert np.allclose(sizes, maps[0].var(axis=0).sum(), rtol=1e-4)


def test_the_share_of_neighbors_that_two_graphs_have_in_common():
    first = np.array([[1, 2, 3], [4, 5, 6], [0, 1, 2]])
    second = np.array([[3, 2, 1], [6, 7, 8], [5, 6, 7]])
    assert shared_share(first, second).tolist() == pytest.approx([1, 1 / 5, 0])


@pytest.mark.soak
def test_neighbors_are_kept_as_well_as_by_aligned_umap_and_images_wander_less():
    """umap-learn's `AlignedUMAP` on the same features, the second set a noisy copy of the first."""
    from umap import AlignedUMAP

    count, noise = 800, np.random.default_rng(5).standard_normal((800, 24))
    features = [groups(count, of=20), groups(count, of=20) + 0.06 * noise.astype(np.float32)]
    distances = [np.sqrt(((one[:, None] - one) ** 2).sum(axis=2)) for one in features]
    theirs = AlignedUMAP(metric="precomputed", random_state=42)
    theirs.fit(distances, relations=[{row: row for row in range(count)}])

    def kept(maps: list[np.ndarray]) -> float:
        shares = []
        for array, xy in zip(features, maps, strict=True):
            unit = array / np.linalg.norm(array, axis=1, keepdims=True)
            near = np.argsort(-(unit @ unit.T), axis=1)[:, 1:16]
            on_map = np.argsort(np.linalg.norm(xy[:, None] - xy, axis=2), axis=1)[:, 1:16]
            shares += [len({*a} & {*b}) / 15 for a, b in zip(near, on_map, strict=True)]
        return float(np.mean(shares))

    def wandered(maps: list[np.ndarray]) -> float:
        return float(np.median(distance(*maps)) / np.sqrt(maps[0].var(axis=0).sum()))

    ours, others = aligned_maps(features), [np.array(one) for one in theirs.embeddings_]
    print(f"kept {kept(ours):.3f} {kept(others):.3f}, wandered {wandered(ours):.3f} ", end="")
    print(f"{wandered(others):.3f}")
    assert kept(ours) > kept(others) - 0.02
    assert wandered(ours) < wandered(others)
