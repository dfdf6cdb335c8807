"""Clusterings: what they find, that they last, and what editing and making again do to numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from dino_core.errors import UserError
from dino_core.gallery import Gallery, clusters
from dino_core.gallery.clusters import (
    Clustering,
    clusterings,
    describe,
    hdbscan,
    kmeans,
    matched_numbers,
    merge,
    remove,
    spherical_kmeans,
    split,
    typicality,
    undo,
    voted,
)
from dino_core.gallery.images import COLUMNS
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.gallery.notes import Notes

SIZES = (40, 25, 15)


def rays(sizes: tuple[int, ...], spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Directions around one axis for each size: float32 [N, 8], L2-normalized."""
    random = np.random.default_rng(seed)
    features = np.repeat(np.eye(8)[: len(sizes)], sizes, axis=0)
    features += spread * random.standard_normal(features.shape)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def gallery_of(
    path: Path, features: np.ndarray, xy: np.ndarray, labels: list, ids: list[str] | None = None
) -> Gallery:
    """A whole gallery of given features, one map, labels; without images."""
    count = len(features)
    table = pd.DataFrame({name: pd.Series([None] * count, dtype=object) for name in COLUMNS})
    ids = ids or [f"{row}.jpg" for row in range(count)]
    table = table.assign(id=ids, label=pd.Series(labels, dtype=object), gone=False)
    (path / "maps").mkdir(parents=True, exist_ok=True)
    table.to_parquet(path / "images.parquet", index=False)
    np.save(path / "features.npy", features)
    rows, scores = neighbor_graph(features, 10)
    np.savez(path / "neighbors.npz", rows=rows, scores=scores)
    pd.DataFrame(xy, columns=["x", "y"]).to_parquet(path / "maps" / "flat.parquet")
    GalleryInfo(
        model="m", model_hash="", kind="cls", preprocessing={}, feature_hash="f", data="d",
        source_hash=" ".join(ids), count=count, dim=features.shape[1],
        neighbors=rows.shape[1], maps={"flat": {"method": "pca"}},
    ).write(path)  # fmt: skip
    return Gallery.open(path)


def named(sizes: tuple[int, ...]) -> list[str]:
    """Ids like a0.jpg, a1.jpg, b0.jpg: the letter tells the direction."""
    return [
        f"{group}{i}.jpg" for group, size in zip("abc", sizes, strict=True) for i in range(size)
    ]


TRUE = np.repeat(np.arange(3), SIZES)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """80 images around three directions, which their labels are of; 5 have no label."""
    labels = [None if row in (0, 1, 41, 66, 79) else "abc"[TRUE[row]] for row in range(80)]
    random = np.random.default_rng(1)
    xy = 10 * np.eye(3)[TRUE][:, :2] + random.standard_normal((80, 2)) * 0.3
    return gallery_of(tmp_path / "three", rays(SIZES), xy, labels)


# -- making -------------------------------------------------------------------------------------


def test_kmeans_finds_what_is_apart_and_is_kept(gallery: Gallery) -> None:
    told: list[tuple[int, int, str]] = []
    made = kmeans(gallery, 3, progress=lambda *step: told.append(step))
    assert made.name == "kmeans-3"
    np.testing.assert_array_equal(made.labels, TRUE)  # numbered by size
    assert {message for _, _, message in told} == {"Learning centers", "Assigning images"}
    read = Clustering.read(gallery, "kmeans-3")
    np.testing.assert_array_equal(read.labels, made.labels)
    assert (read.made, read.created) == (made.made, made.created)
    assert read.sizes == {0: 40, 1: 25, 2: 15}
    facts = json.loads((gallery.path / "clusters" / "kmeans-3.json").read_text())
    assert facts["sizes"] == [[0, 40], [1, 25], [2, 15]]
    assert clusterings(gallery) == ["kmeans-3"]


def test_kmeans_is_the_same_each_time_and_as_good_as_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    features = rays((60, 50, 40, 30, 20, 10), spread=0.35)
    rows = np.arange(len(features))
    labels, sampled = spherical_kmeans(features, rows, 6, 0)
    again, _ = spherical_kmeans(features, rows, 6, 0)
    np.testing.assert_array_equal(labels, again)
    assert sampled == len(features)

    def within(groups: np.ndarray) -> float:
        """What spherical k-means maximizes: the lengths of the clusters' sums."""
        return sum(np.linalg.norm(features[groups == one].sum(axis=0)) for one in range(6))

    theirs = KMeans(6, n_init=10, random_state=0).fit_predict(features)
    assert within(labels) > 0.99 * within(theirs)


def test_kmeans_learns_from_a_sample_and_assigns_all(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clusters, "A_CLUSTER", 8)
    sizes = (400, 300, 200)
    gallery = gallery_of(tmp_path / "many", rays(sizes), np.zeros((900, 2)), [None] * 900)
    made = kmeans(gallery, 3)
    assert made.made["sampled"] == 24
    np.testing.assert_array_equal(made.labels, np.repeat(np.arange(3), sizes))


def test_no_cluster_of_kmeans_is_empty_among_copies() -> None:
    """Four different images, each ten times: more clusters than that cannot be told apart."""
    features = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    labels, _ = spherical_kmeans(features, np.arange(40), 4, 0)
    assert len(set(labels.tolist())) == 4
    assert all(len(set(labels[start : start + 10].tolist())) == 1 for start in range(0, 40, 10))
    labels, _ = spherical_kmeans(features, np.arange(40), 6, 0)
    assert set(labels.tolist()) <= set(range(6))


def test_hdbscan_finds_dense_regions_and_leaves_out_what_is_between(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    groups = [random.normal(center, 0.2, (50, 2)) for center in ((0, 0), (9, 0), (0, 9))]
    lonely = np.array([[30.0, 30.0], [-30.0, 10.0], [10.0, -40.0]])
    nowhere = np.full((1, 2), np.nan)
    xy = np.concatenate([*groups, lonely, nowhere])
    gallery = gallery_of(tmp_path / "dense", rays((77, 77)), xy, [None] * 154)
    made = hdbscan(gallery, "flat", 10)
    assert made.name == "hdbscan-flat-10"
    assert adjusted_rand_score(made.labels[:150], np.repeat([0, 1, 2], 50)) > 0.95
    assert set(made.labels[:150].tolist()) - {-1} == {0, 1, 2}
    np.testing.assert_array_equal(made.labels[150:], -1)


def test_beyond_a_size_a_sample_is_clustered_and_the_rest_voted(monkeypatch, gallery) -> None:
    monkeypatch.setattr(clusters, "CLUSTERED_WHOLE", 40)
    made = hdbscan(gallery, "flat", 8)
    assert made.made["sampled"] == 40
    assert made.unclustered < 8
    inside = made.labels >= 0
    assert adjusted_rand_score(made.labels[inside], TRUE[inside]) == 1.0


def test_a_vote_counts_the_clustered_and_prefers_the_nearest() -> None:
    labels = np.array([5, 5, 7, -1, -1, -1, 2], np.int32)
    neighbors = np.array([[2, 0, 1], [2, 0, 6], [3, 4, 5], [3, 4, 2]])
    rows = np.arange(4)
    assert voted(labels, neighbors, rows).tolist() == [5, 7, -1, 7]
    assert voted(labels, np.empty((7, 0), int), rows).tolist() == [-1] * 4


def test_images_that_are_gone_are_in_no_cluster(gallery: Gallery) -> None:
    gallery.images.loc[[3, 50], "gone"] = True
    made = kmeans(gallery, 3)
    assert np.flatnonzero(made.labels < 0).tolist() == [3, 50]


@pytest.mark.parametrize("k", [0, 1, 81])
def test_a_number_of_clusters_that_makes_no_sense(gallery: Gallery, k: int) -> None:
    with pytest.raises(UserError, match=f"{k} clusters of 80 images: choose a number from 2 to 80"):
        kmeans(gallery, k)


def test_a_size_that_makes_no_sense(gallery: Gallery) -> None:
    with pytest.raises(UserError, match="choose 2 or more"):
        hdbscan(gallery, "flat", 1)
    with pytest.raises(UserError, match="has 80 points; choose a smaller size"):
        hdbscan(gallery, "flat", 81)
    with pytest.raises(UserError, match="has no map 'umap'"):
        hdbscan(gallery, "umap", 5)


# -- numbers and names --------------------------------------------------------------------------


def test_merging_leaves_the_other_numbers_and_can_be_undone(gallery: Gallery) -> None:
    kmeans(gallery, 3)
    Notes(gallery.path).name_cluster("kmeans-3", 2, "rare")
    made = merge(gallery, "kmeans-3", [2, 0])
    assert made.sizes == {1: 25, 2: 55}
    assert [step["what"] for step in made.history] == ["merge"]
    back = undo(gallery, "kmeans-3")
    np.testing.assert_array_equal(back.labels, TRUE)
    np.testing.assert_array_equal(Clustering.read(gallery, "kmeans-3").labels, TRUE)
    assert [step["what"] for step in back.history] == ["merge", "undo"]
    with pytest.raises(UserError, match="has no edit"):
        undo(gallery, "kmeans-3")


def test_splitting_keeps_the_number_on_the_largest_part(gallery: Gallery) -> None:
    kmeans(gallery, 2)  # two of the three directions are together
    made = Clustering.read(gallery, "kmeans-2")
    joined = next(one for one in made.sizes if len(set(TRUE[made.labels == one].tolist())) == 2)
    made = split(gallery, "kmeans-2", joined, 2)
    assert adjusted_rand_score(made.labels, TRUE) == 1.0
    assert made.sizes[joined] >= made.sizes[2]
    assert set(made.sizes) == {0, 1, 2}


def test_a_split_never_takes_a_number_that_has_a_name(gallery: Gallery) -> None:
    kmeans(gallery, 3)
    Notes(gallery.path).name_cluster("kmeans-3", 1, "mine")
    merge(gallery, "kmeans-3", [0, 1])
    made = split(gallery, "kmeans-3", 0, 2)
    assert set(made.sizes) == {0, 2, 3}  # 1 is still the name of what was merged


def test_edits_that_cannot_be(gallery: Gallery) -> None:
    kmeans(gallery, 3)
    with pytest.raises(UserError, match="has no cluster 9"):
        merge(gallery, "kmeans-3", [0, 9])
    with pytest.raises(UserError, match="two clusters or more"):
        merge(gallery, "kmeans-3", [1, 1])
    with pytest.raises(UserError, match="cluster 2 has 15 images and cannot be split into 16"):
        split(gallery, "kmeans-3", 2, 16)
    with pytest.raises(UserError, match="has no cluster -1"):
        split(gallery, "kmeans-3", -1, 2)


def test_made_again_the_same_clusters_keep_their_numbers(tmp_path: Path) -> None:
    """The second time the largest cluster is another one, and images have come and gone."""
    ids = named(SIZES)
    path = tmp_path / "g"
    first = gallery_of(path, rays(SIZES), np.zeros((80, 2)), [None] * 80, ids)
    assert kmeans(first, 3).sizes == {0: 40, 1: 25, 2: 15}
    Notes(path).name_cluster("kmeans-3", 2, "small ones")

    sizes = (10, 25, 22)  # most of a are gone, c has grown
    ids = named(sizes)
    changed = gallery_of(path, rays(sizes, seed=3), np.zeros((57, 2)), [None] * 57, ids)
    stale = Clustering.read(changed, "kmeans-3")  # matched by id
    assert stale.sizes == {0: 10, 1: 25, 2: 15}
    assert (stale.added, stale.unclustered) == (7, 7)
    again = kmeans(changed, 3)
    np.testing.assert_array_equal(again.labels, np.repeat([0, 1, 2], sizes))
    assert again.history[-1]["what"] == "made again"
    assert undo(changed, "kmeans-3").sizes == stale.sizes


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=1, max_size=40))
def test_matched_numbers_rename_clusters_and_nothing_else(pairs: list[tuple[int, int]]) -> None:
    old, new = np.array(pairs, np.int32).T
    found = matched_numbers(old, new, reserved=[1])
    np.testing.assert_array_equal(found == -1, new == -1)
    kept = new >= 0
    if kept.any():
        assert adjusted_rand_score(found[kept], new[kept]) == 1.0
    for number in set(found[kept].tolist()):
        ours, theirs = found == number, old == number
        if number == 1:  # reserved: only for the cluster that is the same
            assert 2 * (ours & theirs).sum() > (ours | theirs).sum()
    for number in set(old[old >= 0].tolist()):
        theirs = old == number
        for other in set(new[kept].tolist()):
            if 2 * (theirs & (new == other)).sum() > (theirs | (new == other)).sum():
                assert set(found[new == other].tolist()) == {number}


# -- looking ------------------------------------------------------------------------------------


def test_what_is_known_of_each_cluster(gallery: Gallery) -> None:
    described = describe(gallery, kmeans(gallery, 3))
    assert [(one.number, one.size, one.label) for one in described.clusters] == [
        (0, 40, "a"), (1, 25, "b"), (2, 15, "c"),
    ]  # fmt: skip
    assert (described.purity, described.nmi, described.ari) == (1.0, 1.0, 1.0)
    assert described.labeled == 75
    features = np.asarray(gallery.features, np.float64)
    for one in described.clusters:
        rows = np.flatnonzero(one.number == TRUE)
        mean = features[rows].mean(axis=0)
        cosines = features[rows] @ (mean / np.linalg.norm(mean))
        np.testing.assert_array_equal(one.rows, rows[np.argsort(-cosines)])
        np.testing.assert_array_equal(one.medoids, one.rows[:12])
        assert one.tightness == pytest.approx(cosines.mean(), abs=1e-6)
        assert one.purity == 1.0


def test_purity_counts_labeled_images_only(gallery: Gallery) -> None:
    kmeans(gallery, 3)
    described = describe(gallery, merge(gallery, "kmeans-3", [1, 2]))
    first, second = described.clusters
    assert (first.number, first.size) == (0, 40) or (first.number, first.size) == (1, 40)
    mixed = first if first.number == 1 else second
    assert (mixed.label, mixed.purity) == ("b", pytest.approx(24 / 37))  # 3 of 40 have no label
    assert described.purity == pytest.approx((38 + 24) / 75)


def test_without_labels_there_is_no_agreement(tmp_path: Path) -> None:
    gallery = gallery_of(tmp_path / "bare", rays(SIZES), np.zeros((80, 2)), [None] * 80)
    described = describe(gallery, kmeans(gallery, 3))
    assert (described.purity, described.nmi, described.ari) == (None, None, None)
    assert [one.label for one in described.clusters] == [None] * 3


def test_typicality_does_not_depend_on_chunks(monkeypatch) -> None:
    features, places = rays((50, 30)), np.repeat([1, -1], (50, 30))
    whole = typicality(features, places, 2)
    monkeypatch.setattr(clusters, "CHUNK", 7)
    np.testing.assert_allclose(typicality(features, places, 2), whole, atol=1e-6)
    assert np.isnan(whole[50:]).all()
    assert not np.isnan(whole[:50]).any()


# -- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x" * 200])
def test_what_cannot_be_a_name(gallery: Gallery, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name"):
        Clustering.read(gallery, name)


def test_a_clustering_that_is_not_there(gallery: Gallery) -> None:
    with pytest.raises(UserError, match="has no clustering 'kmeans-9'; there is none yet"):
        Clustering.read(gallery, "kmeans-9")
    kmeans(gallery, 3)
    with pytest.raises(UserError, match="there are kmeans-3"):
        Clustering.read(gallery, "kmeans-9")
    remove(gallery, "kmeans-3")
    assert clusterings(gallery) == []


@pytest.mark.parametrize("damage", ["cut", "no arrays", "no json", "other arrays", "newer"])
def test_damaged_files_are_a_sentence_and_can_be_made_again(gallery: Gallery, damage: str) -> None:
    kmeans(gallery, 3)
    facts, arrays = (gallery.path / "clusters" / f"kmeans-3.{kind}" for kind in ("json", "npz"))
    if damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:300])
    elif damage == "no arrays":
        arrays.unlink()
    elif damage == "no json":
        facts.write_text('{"version": 1, "made"')
    elif damage == "other arrays":
        np.savez(arrays, labels=np.zeros(80, np.int32), ids=np.zeros(79, np.uint64))
    else:
        facts.write_text(facts.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="kmeans-3"):
        Clustering.read(gallery, "kmeans-3")
    np.testing.assert_array_equal(kmeans(gallery, 3).labels, TRUE)
    np.testing.assert_array_equal(Clustering.read(gallery, "kmeans-3").labels, TRUE)


def test_one_edit_at_a_time(gallery: Gallery) -> None:
    kmeans(gallery, 3)
    with clusters._edited(gallery, "kmeans-3"), pytest.raises(UserError, match="is being edited"):
        merge(gallery, "kmeans-3", [0, 1])
