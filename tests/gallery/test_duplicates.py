"""Duplicates: groups against a search by hand, counts against groups, leaks, what is kept."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dino_core.gallery.duplicates import (
    Alike,
    Groups,
    best_copies,
    codes_of,
    equal_files,
    guard,
    leaked,
    spans,
    to_remove,
)
from dino_core.gallery.neighbors import plain_graph


def table(count: int, **columns: Any) -> pd.DataFrame:
    usual = {
        "id": [f"{row}.jpg" for row in range(count)],
        "content_hash": [f"hash {row}" for row in range(count)],
        "label": None,
        "split": None,
        "size": pd.array([100] * count, dtype="Int64"),
        "width": 10,
        "height": 10,
        "gone": False,
    }
    return pd.DataFrame(usual | columns, index=range(count))


def gallery(features: np.ndarray, k: int, **columns: Any) -> Any:
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    graph = plain_graph(features, k)
    return SimpleNamespace(images=table(len(features), **columns), neighbors=lambda: graph)


def by_hand(graph: tuple[np.ndarray, np.ndarray], threshold: float) -> set[frozenset[int]]:
    """Groups by walking from image to image, edges in both directions."""
    reached: dict[int, set[int]] = {row: set() for row in range(len(graph[0]))}
    for row, (others, scores) in enumerate(zip(*graph, strict=True)):
        for other, score in zip(others.tolist(), scores.tolist(), strict=True):
            if score >= threshold:
                reached[row].add(other)
                reached[other].add(row)
    groups, seen = set(), set()
    for row in reached:
        group, todo = set(), [row]
        while todo:
            one = todo.pop()
            if one not in group:
                group.add(one)
                todo += reached[one]
        if len(group) > 1 and row not in seen:
            groups.add(frozenset(group))
        seen |= group
    return groups


def as_sets(groups: Groups) -> list[frozenset[int]]:
    return [frozenset(groups.rows_of(group).tolist()) for group in range(len(groups))]


@pytest.mark.parametrize("k", [3, 12])
def test_groups_are_what_a_walk_reaches_and_counts_count_them(k: int) -> None:
    random = np.random.default_rng(k)
    features = random.standard_normal((40, 6))[random.integers(0, 40, 150)]
    mine = gallery(features + 0.2 * random.standard_normal((150, 6)), k)
    alike = Alike.of(mine)
    thresholds = np.float32(np.linspace(alike.lowest, 0.999, 23))
    counts = alike.counts(thresholds)
    sizes = set()
    for place, threshold in enumerate(thresholds):
        groups, expected = alike.groups(threshold), by_hand(mine.neighbors(), threshold)
        assert set(as_sets(groups)) == expected and len(groups) == len(expected)
        assert (np.diff(groups.weakest) <= 0).all()
        assert counts[0][place] == len(expected)
        assert counts[1][place] == sum(map(len, expected))
        sizes |= set(map(len, expected))
    assert len(sizes) > 3


def test_a_group_falls_apart_at_its_weakest_link() -> None:
    angles = np.arccos([1.0, 0.99, 0.96])  # from the first, over the second, to the third
    turned = np.cumsum(angles)
    apart = np.array([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, -1, 1]])
    plane = np.stack([np.cos(turned), np.sin(turned), 0 * turned, 0 * turned], axis=1)
    alike = Alike.of(gallery(np.concatenate([plane, apart]), 3))
    (together,) = as_sets(alike.groups(0.955))
    assert together == {0, 1, 2}
    assert alike.groups(0.955).weakest == pytest.approx([0.96], abs=1e-6)
    assert as_sets(alike.groups(0.97)) == [{0, 1}]
    above, below = alike.around(0.97, each=1)
    assert alike.pairs_P2[above].tolist() == [[0, 1]]
    assert alike.pairs_P2[below].tolist() == [[1, 2]]


def test_examples_lie_on_both_sides_of_the_threshold_nearest_first() -> None:
    mine = gallery(np.random.default_rng(5).standard_normal((80, 5)), 10)
    alike = Alike.of(mine)
    threshold = float(np.median(alike.cosines_P))
    above, below = alike.around(threshold, each=3)
    everything = np.unique(np.round(mine.neighbors()[1], 5))
    over, under = everything[everything >= threshold][:3], everything[everything < threshold][-3:]
    np.testing.assert_allclose(alike.cosines_P[above], over, atol=2e-5)
    np.testing.assert_allclose(alike.cosines_P[below], under[::-1], atol=2e-5)
    assert [len(part) for part in alike.around(2.0)] == [0, 4]


def test_equal_files_are_one_group_however_many() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((60, 8))
    features[20:50] = features[20]
    hashes = [f"hash {row}" for row in range(20)] + ["same"] * 30 + ["other"] * 2 + list("abcdefgh")
    mine = gallery(features, 4, content_hash=hashes)
    exact = equal_files(mine.images)
    assert as_sets(exact) == [set(range(20, 50)), {50, 51}]
    assert exact.equal.all() and exact.sizes.tolist() == [30, 2]
    alike = Alike.of(mine)
    groups = alike.groups(1.0)  # the features of 50 and 51 differ, their files do not
    assert as_sets(groups) == as_sets(exact) and groups.equal.all()
    assert alike.count(1.0) == (2, 32)


def test_the_same_picture_in_another_file_is_no_equal_file() -> None:
    features = np.random.default_rng(0).standard_normal((20, 8))
    features[1] = features[0]
    groups = Alike.of(gallery(features, 4)).groups(1.0)
    assert as_sets(groups) == [{0, 1}] and not groups.equal.any()


def test_images_that_are_gone_have_no_duplicates() -> None:
    features = np.random.default_rng(0).standard_normal((20, 8))
    features[1] = features[2] = features[0]
    gone = [row == 1 for row in range(20)]
    same = ["same"] * 3 + [f"hash {row}" for row in range(17)]
    assert as_sets(Alike.of(gallery(features, 4, gone=gone)).groups(0.999)) == [{0, 2}]
    mine = gallery(features, 4, gone=gone, content_hash=same)
    assert as_sets(equal_files(mine.images)) == [{0, 2}]


@pytest.mark.parametrize("squeezed", [1.0, 0.02])
def test_the_usual_threshold_finds_planted_duplicates_whatever_the_cosines(squeezed: float) -> None:
    """Features of one model spread widely, those of another point nearly one way."""
    random = np.random.default_rng(1)
    features = random.standard_normal((400, 32))
    planted = features[:25] + 0.01 * random.standard_normal((25, 32))
    features = squeezed * np.concatenate([features, planted])
    features[:, 0] += 1 - squeezed
    alike = Alike.of(gallery(features, 10))
    found = set(as_sets(alike.groups(alike.usual)))
    planted_pairs = {frozenset([row, row + 400]) for row in range(25)}
    assert planted_pairs <= found and len(found - planted_pairs) <= 4, "1 % of the images"
    alone = Alike.of(gallery(features[:400], 10))
    assert alone.count(alone.usual)[0] <= 8


def test_few_images_have_none() -> None:
    for count in (0, 1, 2):
        features = np.eye(3)[:count]
        alike = Alike.of(gallery(features, min(2, max(count - 1, 0))))
        assert alike.count(0.9) == (0, 0) and len(alike.groups(0.9)) == 0
        assert len(equal_files(table(count))) == 0


# -- what the groups hold ---------------------------------------------------------------------


def groups_of(*groups: Sequence[int]) -> Groups:
    starts = np.cumsum([0, *map(len, groups)])
    rows = np.array([row for group in groups for row in group], np.int64)
    count = len(groups)
    return Groups(rows, starts, np.ones(count, np.float32), np.zeros(count, bool))


def test_some_groups_in_another_order() -> None:
    groups = groups_of([0, 5], [1, 2, 7], [3, 4])
    assert as_sets(groups.where(np.array([2, 1]))) == [{3, 4}, {1, 2, 7}]
    assert as_sets(groups.where(np.array([True, False, True]))) == [{0, 5}, {3, 4}]
    assert len(groups.where(np.zeros(3, bool))) == 0
    assert groups.of_rows.tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_a_leak_is_a_group_of_several_splits() -> None:
    splits = pd.Series(["train", "val", "train", "train", None, "train", "val", "test"])
    groups = groups_of([0, 1], [2, 3], [4, 5], [4, 6, 7])
    assert spans(groups, codes_of(splits)).tolist() == [2, 1, 1, 2]
    assert spans(groups_of(), codes_of(splits)).tolist() == []


def test_of_a_leak_the_guarded_split_stays() -> None:
    splits = ["train", "val", "train", "test", None, "val", "test"]
    images = table(7, split=pd.Series(splits, dtype=object))
    groups = groups_of([0, 1], [2, 3], [4, 5, 6])
    assert groups.rows[leaked(groups, images)].tolist() == [0, 2, 5]
    assert leaked(groups_of(), images).tolist() == []


def test_splits_are_guarded_by_name_then_by_size() -> None:
    splits = pd.Series(["b", "a", "a", "Training", "dev", "c", "c", "c", None])
    assert guard(splits).tolist() == [4, 3, 3, 0, 1, 2, 2, 2, -1]


def test_the_best_copy_has_pixels_then_bytes_then_a_label() -> None:
    images = table(
        9,
        width=[10, 20, 20, 10, 10, 10, 10, 10, 10],
        size=pd.array([9, 1, 2, 5, None, 5, 5, 5, 5], dtype="Int64"),
        label=[None, None, None, None, "x", "x", None, "y", "y"],
    )
    groups = groups_of([0, 1, 2], [3, 4], [5, 6], [7, 8])
    assert best_copies(groups, images).tolist() == [2, 3, 5, 7]
    assert groups.rows[to_remove(groups, images)].tolist() == [0, 1, 4, 6, 8]


def test_the_copy_that_is_kept_is_none_that_leaks() -> None:
    images = table(4, width=[90, 10, 10, 20], split=["train", "val", "train", "train"])
    groups = groups_of([0, 1], [2, 3])
    assert best_copies(groups, images).tolist() == [1, 3]
    assert not (leaked(groups, images) & ~to_remove(groups, images)).any()
