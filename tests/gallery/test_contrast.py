"""Slices, and what tells them apart: against other formulas, planted differences, and chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery.averages import look_size
from dino_core.gallery.clusters import kmeans
from dino_core.gallery.contrast import (
    STATISTICS,
    apart,
    auc,
    chance,
    cohens_d,
    compare,
    contrast_dimensions,
    contrast_heads,
    direction,
    head_statistics,
    rows_of,
    sampled,
    slices,
)
from dino_core.gallery.notes import Notes
from dino_core.lenses.attention import Attention, look
from dino_core.models import Model

values = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


# -- values -------------------------------------------------------------------------------------


def test_cohens_d_by_hand():
    """Means 6 and 3; squares 8 and 2 over 3 + 3 - 2: a pooled variance of 2.5."""
    a, b = np.array([[4.0], [6.0], [8.0]]), np.array([[2.0], [3.0], [4.0]])
    np.testing.assert_allclose(cohens_d(a, b), [3 / np.sqrt(2.5)])
    np.testing.assert_allclose(cohens_d(b, a), [-3 / np.sqrt(2.5)])
    np.testing.assert_allclose(cohens_d(10 * a + 7, 10 * b + 7), cohens_d(a, b))
    assert cohens_d(np.ones((3, 1)), np.ones((4, 1))).tolist() == [0.0]


@given(values, values)
def test_auc_as_scikit_learn(a, b):
    truth = [1] * len(a) + [0] * len(b)
    found = auc(np.array(a)[:, None], np.array(b)[:, None])
    assert found[0] == pytest.approx(roc_auc_score(truth, a + b))


def test_a_planted_difference_is_the_strongest_and_exceeds_chance():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((80, 300)), random.standard_normal((120, 300))
    a[:, 123] += 1.5
    found = compare(a, b)
    assert found.strongest(1) == [(123,)]
    assert found.d[123] > 2 * found.chance
    others = np.delete(np.abs(found.d), 123)
    assert others.max() < 1.5 * found.chance
    assert found.auc[123] > 0.8


def test_chance_is_the_largest_d_of_random_deals():
    """Dealt again by hand: of 40 pure-noise sets most stay below, and the scale is right."""
    random = np.random.default_rng(1)
    below = 0
    for _ in range(40):
        noise = random.standard_normal((60, 50))
        below += np.abs(cohens_d(noise[:20], noise[20:])).max() <= chance(noise, 20)
    assert below >= 34  # 20 of 21 are expected
    lone = random.standard_normal((4000, 1))
    assert chance(lone, 1000) < 4 * np.sqrt(1 / 1000 + 1 / 3000)


def test_too_few_images_to_compare():
    with pytest.raises(ValueError, match="1 and 5 images"):
        compare(np.zeros((1, 3)), np.zeros((5, 3)))


# -- the direction ------------------------------------------------------------------------------


def test_noise_has_no_direction_though_it_seems_to_have():
    """30 images a slice in 400 dimensions: fitted on themselves they part; held out they do not."""
    random = np.random.default_rng(2)
    a, b = random.standard_normal((30, 400)), random.standard_normal((30, 400))
    line = a.mean(0) - b.mean(0)
    assert auc(a @ line, b @ line) > 0.99
    assert abs(direction(a, b).auc - 0.5) < 0.2
    assert abs(direction(a, b).right - 0.5) < 0.2


def test_a_direction_that_no_dimension_shows_alone():
    random = np.random.default_rng(3)
    a, b = random.standard_normal((200, 100)), random.standard_normal((200, 100))
    a += 0.4 * np.sign(random.standard_normal(100))  # a little in each of 100 dimensions
    found = direction(a, b)
    assert found.auc > 0.97
    assert found.right > 0.9
    assert compare(a, b).auc.max() < 0.75
    assert (found.scores_a > 0).mean() > 0.9
    assert (found.scores_b < 0).mean() > 0.9


def test_images_that_show_a_difference(scenes_gallery: Gallery) -> None:
    features = np.zeros((10, 2), np.float32)
    features[:, 0] = [5, 4, 6, 5, 9, 0, 1, -3, 1, 2]
    features[:, 1] = np.arange(10) % 2
    found = contrast_dimensions(features, np.arange(5), np.arange(5, 10))
    rows_a, rows_b, values_a, values_b = found.showing(features, 0, 2)
    assert (rows_a.tolist(), rows_b.tolist()) == ([4, 2], [7, 5])
    assert (values_a.tolist(), values_b.tolist()) == ([9, 6], [-3, 0])
    rows_a, rows_b, _, _ = found.showing(features, None, 1)
    assert (rows_a.tolist(), rows_b.tolist()) == ([4], [7])
    turned = contrast_dimensions(-features, np.arange(5), np.arange(5, 10))
    assert turned.showing(-features, 0, 1)[0].tolist() == [4]


def test_large_slices_are_sampled_always_alike():
    rows = np.arange(0, 60_000, 2)
    few = sampled(rows, 100)
    assert len(set(few.tolist())) == 100
    assert (np.diff(few) > 0).all()
    assert set(few.tolist()) <= set(rows.tolist())
    np.testing.assert_array_equal(few, sampled(rows, 100))


# -- slices -------------------------------------------------------------------------------------


def test_slices_by_name(scenes_gallery: Gallery) -> None:
    gallery = Gallery.open(scenes_gallery.path)
    ids = list(gallery.images["id"])
    made = kmeans(gallery, 2)
    Notes(gallery.path).tag([ids[3], ids[1], "not here"], "some")
    label = str(gallery.images["label"].iloc[0])
    names = slices(gallery)
    assert {"all", "tag: some", f"label: {label}", "cluster: kmeans-2/0"} <= set(names)
    assert sorted(rows_of(gallery, "tag: some").tolist()) == [1, 3]
    np.testing.assert_array_equal(rows_of(gallery, "cluster: kmeans-2/1"), made.rows(1))
    assert (gallery.images["label"].iloc[rows_of(gallery, f"label: {label}")] == label).all()
    assert rows_of(gallery, "selection", selection=np.array([5, 2])).tolist() == [2, 5]
    rest = rows_of(gallery, "rest", other=np.arange(2, 60))
    assert rest.tolist() == [0, 1]
    gallery.images.loc[1, "gone"] = True
    assert rows_of(gallery, "tag: some").tolist() == [3]
    assert len(rows_of(gallery, "all")) == 59
    for name in ("tag: none", "label: none", "cluster: kmeans-2/7", "cluster: no/0", "nonsense"):
        with pytest.raises(UserError):
            rows_of(gallery, name)


def test_images_in_both_slices_count_in_neither():
    a, b, both = apart(np.array([1, 2, 3]), np.array([3, 4]))
    assert (a.tolist(), b.tolist(), both) == ([1, 2], [4], 1)
    with pytest.raises(UserError, match="slice B has 1 images"):
        contrast_dimensions(np.eye(5, dtype=np.float32), a, b)


# -- heads --------------------------------------------------------------------------------------


def attention(maps: np.ndarray) -> Attention:
    return Attention(maps[None].astype(np.float32), (0, 0), (0, 0), 8, "m", "h")


def test_statistics_of_maps_by_hand():
    point, even = np.zeros((4, 5)), np.full((4, 5), 0.03)
    point[1, 2] = 0.5
    corners = np.zeros((4, 5))
    corners[[0, 0, 3, 3], [0, 4, 0, 4]] = 0.25
    found = head_statistics(attention(np.stack([point, even, corners, np.zeros((4, 5))])))[:, 0]
    entropy, distance, top = found
    np.testing.assert_allclose(entropy, [0, 1, np.log(4) / np.log(20), 0], atol=1e-6)
    furthest = np.sqrt((1.5**2 + 2**2) / ((16 + 25 - 2) / 12))
    np.testing.assert_allclose(distance, [0, 1, furthest, 0], atol=1e-6)
    np.testing.assert_allclose(top, [1, 0.1, 0.5, 0], atol=1e-6)  # two patches of twenty


def test_heads_are_compared_by_what_they_do_with_each_image(
    model: Model, scenes_gallery: Gallery
) -> None:
    a, b = np.arange(0, 3), np.arange(20, 24)
    found = contrast_heads(model, scenes_gallery, a, b)
    assert sorted(found.rows_a) == a.tolist()
    assert sorted(found.rows_b) == b.tolist()
    seen = [
        look(model, scenes_gallery.image(row), size=look_size(model)).entropy() for row in (*a, *b)
    ]
    expected = cohens_d(np.stack(seen[:3]), np.stack(seen[3:]))
    np.testing.assert_allclose(found.each["entropy"].d, expected)
    assert set(found.each) == set(STATISTICS)
    (statistic, layer, head), *_ = found.strongest(6)
    largest = max(float(np.abs(one.d).max()) for one in found.each.values())
    assert abs(found.each[statistic].d[layer, head]) == largest
    assert len(set(found.strongest(6))) == 6  # two layers of three heads, each once
    rows_a, rows_b = found.showing(statistic, layer, head, 2)
    assert set(rows_a) <= set(a.tolist())
    assert set(rows_b) <= set(b.tolist())
    assert found.maps[rows_a[0]].max() == 1


def test_heads_need_images_that_can_be_read(
    model: Model, scenes_gallery: Gallery, monkeypatch
) -> None:
    def lost(self: Gallery, row: int) -> np.ndarray:
        raise UserError("gone")

    monkeypatch.setattr(Gallery, "image", lost)
    with pytest.raises(UserError, match="none of the images could be read"):
        contrast_heads(model, scenes_gallery, np.arange(5), np.arange(5, 9))
