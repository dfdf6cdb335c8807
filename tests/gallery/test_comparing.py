"""Two galleries of the same images: who is matched with whom, and figures against plain loops."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dino_core.errors import UserError
from dino_core.gallery import Gallery, comparing
from dino_core.gallery.comparing import (
    FOLDER,
    Figures,
    Match,
    aligned_pair,
    candidates,
    common_labels,
    compare,
    match_images,
    match_sentences,
    match_tables,
)
from dino_core.gallery.images import COLUMNS, write_table
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.measures.cka import linear_cka


def features(count: int, dim: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    some = random.standard_normal((6, dim))[np.arange(count) % 6]
    some = some + 0.8 * random.standard_normal((count, dim))
    return (some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32)


def table(ids, contents=None, gone=()) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    ids = [str(id) for id in ids]
    return pd.DataFrame(
        {
            "id": ids,
            "content_hash": [f"content {id}" for id in ids] if contents is None else contents,
            "gone": [id in {str(one) for one in gone} for id in ids],
        }
    )


def make(out: Path, of: pd.DataFrame, features_ND: np.ndarray, k: int = 30, **info) -> Gallery:  # type: ignore[no-untyped-def]
    """A gallery on disk, by hand; image i has the label i % 3."""
    count, dim = features_ND.shape
    rows, scores = neighbor_graph(features_ND, k)
    whole = pd.DataFrame(dict.fromkeys(COLUMNS), index=range(count)).assign(
        label=[f"label {row % 3}" for row in range(count)], width=8, height=8
    )
    out.mkdir(parents=True)
    write_table(out, whole.assign(**of))
    np.save(out / "features.npy", features_ND)
    np.savez(out / "neighbors.npz", rows=rows, scores=scores)
    facts = {"model": "m", "model_hash": "0", "kind": "cls", "preprocessing": {}} | info
    facts |= {"feature_hash": str(dim), "data": "d", "source_hash": "0"}
    GalleryInfo(**facts, count=count, dim=dim, neighbors=rows.shape[1], created=out.name).write(out)
    return Gallery.open(out)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Gallery, Gallery]:
    """90 images of two models; the second gallery holds them the other way round."""
    first = make(tmp_path / "galleries" / "first", table(range(90)), features(90, 12, 0))
    ids = list(reversed(range(90)))
    second = make(tmp_path / "galleries" / "second", table(ids), features(90, 20, 1)[ids])
    return first, second


# -- matching -----------------------------------------------------------------------------------


def matched(match: Match) -> list[tuple[int, int]]:
    return list(zip(match.first_C.tolist(), match.second_C.tolist(), strict=True))


def test_by_id_in_whatever_order():
    match = match_tables(table("abcd"), table("xdba"))
    assert matched(match) == [(0, 3), (1, 2), (3, 1)]
    assert (match.only_first, match.only_second, match.by_content) == (1, 1, 0)


def test_by_content_where_ids_differ():
    match = match_tables(table(["a", "b", "c"], [1, 2, 3]), table(["b", "p", "q"], [2, 3, 9]))
    assert matched(match) == [(1, 0), (2, 1)]
    assert (match.only_first, match.only_second, match.by_content) == (1, 1, 1)


def test_one_id_of_two_pictures_is_two_images():
    match = match_tables(table(["1.jpg", "2.jpg"], [1, 2]), table(["1.jpg", "2.jpg"], [8, 2]))
    assert matched(match) == [(1, 1)]
    assert (match.changed, match.only_first, match.only_second) == (1, 1, 1)


def test_files_that_swapped_their_names_are_followed():
    match = match_tables(table(["a", "b"], [1, 2]), table(["a", "b"], [2, 1]))
    assert matched(match) == [(0, 1), (1, 0)]
    assert (match.changed, match.by_content) == (2, 2)


def test_unknown_contents_match_by_id_alone():
    match = match_tables(table("ab", [None, None]), table("bc", [5, None]))
    assert matched(match) == [(1, 0)]


def test_copies_match_by_their_own_ids_and_else_only_once():
    """a and b are one picture. With the same ids both are common; with others, one pair is."""
    match = match_tables(table("abz", [1, 1, 3]), table("abz", [1, 1, 3]))
    assert matched(match) == [(0, 0), (1, 1), (2, 2)] and match.copies == 0
    match = match_tables(table("abz", [1, 1, 3]), table("pqr", [1, 1, 3]))
    assert matched(match) == [(0, 0), (2, 2)]
    assert (match.copies, match.only_first, match.only_second) == (2, 1, 1)


def test_gone_images_are_not_common():
    match = match_tables(table("abc", gone="a"), table("abc", gone="b"))
    assert matched(match) == [(2, 2)]
    assert (match.only_first, match.only_second) == (1, 1)
    assert matched(match_tables(table(""), table("abc"))) == []


def test_matching_agrees_with_a_plain_loop():
    random = np.random.default_rng(0)
    for _ in range(50):
        sides = [
            table(random.permutation(20)[:12], [int(one) for one in random.integers(0, 15, 12)])
            for _ in range(2)
        ]
        match = match_tables(*sides)
        ids, contents = ([side[name].tolist() for side in sides] for name in ("id", "content_hash"))
        pairs = {
            (i, ids[1].index(id))
            for i, id in enumerate(ids[0])
            if id in ids[1] and contents[1][ids[1].index(id)] == contents[0][i]
        }
        for i, content in enumerate(contents[0]):
            free = [
                j
                for j, other in enumerate(contents[1])
                if other == content and j not in {b for _, b in pairs}
            ]
            if i not in {a for a, _ in pairs} and free:
                taken = {contents[0][a] for a, b in pairs if ids[0][a] != ids[1][b]}
                if content not in taken:
                    pairs.add((i, free[0]))
        assert matched(match) == sorted(pairs)
        assert len(set(match.second_C.tolist())) == len(match)


def test_what_is_left_out_is_said(pair):
    assert match_sentences(*pair, match_images(*pair)) == []
    match = Match(np.arange(3), np.arange(3), 1, 1200, by_content=2, changed=1, copies=2)
    assert match_sentences(*pair, match) == [
        "1 image of first left out: not in both.",
        "1,200 images of second left out: not in both.",
        "2 images matched by content: the ids differ.",
        "1 id means another picture in each gallery.",
        "2 of those left out: further copies of a common image.",
    ]


# -- comparing ----------------------------------------------------------------------------------


def overlap_by_loops(first: np.ndarray, second: np.ndarray, k: int) -> list[float]:
    """Row i of both is the same image."""
    lists = []
    for array in (first, second):
        similarity = array.astype(np.float64) @ array.T.astype(np.float64)
        np.fill_diagonal(similarity, -9)
        lists.append(np.argsort(-similarity, axis=1)[:, :k])
    return [len({*a} & {*b}) / k for a, b in zip(*lists, strict=True)]


@pytest.mark.parametrize("k", [1, 7, 30])
def test_overlap_of_whole_galleries_comes_from_their_graphs(pair, k, monkeypatch):
    monkeypatch.setattr(comparing, "neighbor_graph", None)
    told = compare(*pair, match_images(*pair))
    expected = overlap_by_loops(pair[0].features, pair[1].features[::-1], k)
    assert told.overlap(k) == pytest.approx(expected)
    assert told.most == 30 and told.notes == ()
    assert told.histogram(k).tolist() == [
        sum(round(one * k) == shared for one in expected) for shared in range(k + 1)
    ]


def test_overlap_of_parts_is_among_the_common_images(tmp_path):
    """The galleries share images 20 to 59; the others must not take places in the lists."""
    all_first, all_second = features(80, 12, 0), features(80, 20, 1)
    first = make(tmp_path / "a", table(range(60)), all_first[:60])
    second = make(tmp_path / "b", table(range(20, 80)), all_second[20:])
    told = compare(first, second, match_images(first, second))
    assert told.overlap(5) == pytest.approx(
        overlap_by_loops(all_first[20:60], all_second[20:60], 5)
    )
    assert told.cka == pytest.approx(linear_cka(all_first[20:60], all_second[20:60]))


def test_cka_is_of_the_matched_rows(pair):
    told = compare(*pair, match_images(*pair))
    first, second = pair[0].features, pair[1].features[::-1]
    assert told.cka == pytest.approx(linear_cka(first, second))
    assert told.cka_unbiased == pytest.approx(linear_cka(first, second, unbiased=True))
    assert told.cka > linear_cka(first, second[np.random.default_rng(0).permutation(90)])


def test_a_gallery_and_its_copy_agree_in_everything(pair, tmp_path):
    copy = Gallery.open(shutil.copytree(pair[0].path, tmp_path / "copy"))
    told = compare(pair[0], copy, match_images(pair[0], copy))
    assert (told.overlap(10) == 1).all() and told.cka == pytest.approx(1)
    assert told.histogram(10).tolist() == [0] * 10 + [90]


def test_unrelated_features_agree_as_chance_does(tmp_path):
    random = np.random.default_rng(0).standard_normal((2, 600, 16)).astype(np.float32)
    random /= np.linalg.norm(random, axis=2, keepdims=True)
    first = make(tmp_path / "first", table(range(600)), random[0])
    second = make(tmp_path / "second", table(range(600)), random[1])
    told = compare(first, second, match_images(first, second))
    assert told.chance(10) == 10 / 599
    assert told.overlap(10).mean() == pytest.approx(told.chance(10), abs=0.004)
    assert abs(told.cka_unbiased) < 0.02 < told.cka


def test_what_moved_most_stands_first(pair):
    told = compare(*pair, match_images(*pair))
    order = told.moved_most(10)
    assert sorted(order.tolist()) == list(range(90))
    keys = list(zip(told.overlap(10)[order], told.overlap(30)[order], strict=True))
    assert keys == sorted(keys)


def test_labels_are_those_of_the_first(pair):
    told = compare(*pair, match_images(*pair))
    table = told.by_label(pair[0].images["label"], 10)
    expected = {f"label {i}": told.overlap(10)[i::3].mean() for i in range(3)}
    assert dict(zip(table["label"], table["overlap"], strict=True)) == pytest.approx(expected)
    assert table["images"].tolist() == [30, 30, 30] and table["overlap"].is_monotonic_increasing
    assert len(told.by_label(pd.Series([None] * 90), 10)) == 0


def test_labels_are_lent_by_the_second_where_the_first_has_none(pair):
    match = match_images(*pair)
    assert common_labels(*pair, match).equals(pair[0].images["label"])
    pair[0].images["label"] = None
    lent = common_labels(*pair, match)
    assert lent.tolist() == pair[1].images["label"].tolist()[::-1]


def test_figures_are_those_of_the_comparison_and_k_is_cut_to_what_there_is(pair):
    told = compare(*pair, match_images(*pair))
    figures = Figures.of(told, 99, pair[0].images["label"])
    assert figures.k == 30 and figures.mean == pytest.approx(told.overlap(30).mean())
    assert figures.histogram.sum() == len(figures.order) == figures.by_label["images"].sum() == 90


def test_many_common_images_are_sampled_where_neighbors_must_be_found_anew(pair, monkeypatch):
    monkeypatch.setattr(comparing, "MOST_SEARCHED", 40)
    assert len(compare(*pair, match_images(*pair)).judged_S) == 90  # the graphs hold all
    pair[0].info.__dict__["neighbors"] = 10  # too few for the thirty that are asked for
    told = compare(*pair, match_images(*pair))
    assert len(told.judged_S) == 40 and "among 40 of the common images" in told.notes[0]
    first, second = pair[0].features[told.judged_S], pair[1].features[::-1][told.judged_S]
    assert told.overlap(5) == pytest.approx(overlap_by_loops(first, second, 5))
    assert told.chance(5) == 5 / 39  # of those among which neighbors were found


def test_a_damaged_graph_is_found_anew(pair):
    expected = compare(*pair, match_images(*pair)).overlap(10)
    (pair[0].path / "neighbors.npz").write_bytes(b"PK nothing")
    again = Gallery.open(pair[0].path), pair[1]
    assert compare(*again, match_images(*again)).overlap(10) == pytest.approx(expected)


def test_an_approximate_graph_is_told(pair):
    pair[1].info.graph.update(recall=0.987, judged=1000)
    told = compare(*pair, match_images(*pair))
    assert told.notes == (
        "The neighbors of second were found approximately: 98.7 % of the true ones.",
    )


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ("xyz", "no image in common"),
        (["0", "x"], "only one image in common"),
        (["0", "1"], "only 2 images in common"),
    ],
)
def test_too_little_in_common_is_a_sentence(pair, tmp_path, ids, sentence):
    other = make(tmp_path / "other", table(ids), features(len(ids), 8, 2))
    for function in (compare, aligned_pair):
        with pytest.raises(UserError, match=f"first and other have {sentence}"):
            function(pair[0], other, match_images(pair[0], other))


def test_three_images_are_enough(tmp_path):
    first, second = (
        make(tmp_path / n, table("abc"), features(3, 8, i)) for i, n in enumerate("pq")
    )
    told = compare(first, second, match_images(first, second))
    assert told.most == 2 and (told.overlap(2) == 1).all()  # of three, both others
    assert np.isnan(told.cka_unbiased) and 0 <= told.cka <= 1


# -- candidates ---------------------------------------------------------------------------------


def test_galleries_with_most_common_images_stand_first(pair, tmp_path):
    folder = tmp_path / "galleries"
    make(folder / "few", table([3, 4, "x"]), features(3, 8, 2))
    make(folder / "foreign", table("xyz"), features(3, 8, 2))
    (folder / "half").mkdir()
    (folder / "half" / "building.json").write_text("{}")
    make(folder / "torn", table("xyz"), features(3, 8, 2))
    (folder / "torn" / "images.parquet").write_bytes(b"PAR1")
    found = candidates(tmp_path, pair[0])
    assert [(one.name, one.common) for one in found.shared] == [("second", 90), ("few", 2)]
    assert found.others == ("foreign",)
    half, torn = found.problems
    assert "half is half made" in half and "torn: its images.parquet cannot be read" in torn


# -- aligned maps -------------------------------------------------------------------------------


def test_aligned_maps_are_kept_until_a_gallery_changes(pair, monkeypatch):
    match = match_images(*pair)
    made = aligned_pair(*pair, match)
    assert np.array_equal(made.rows_S, np.arange(90))
    assert made.first_S2.shape == made.second_S2.shape == (90, 2)
    (kept,) = (pair[0].path / FOLDER).iterdir()
    monkeypatch.setattr(comparing, "aligned_maps", None)
    again = aligned_pair(*pair, match)
    assert np.array_equal(made.first_S2, again.first_S2)
    assert np.array_equal(made.second_S2, again.second_S2)
    monkeypatch.undo()
    info = GalleryInfo.read(pair[1].path)
    info.__dict__["created"] = "later"
    info.write(pair[1].path)
    aligned_pair(*pair, match)
    (newer,) = (pair[0].path / FOLDER).iterdir()
    assert newer != kept


def test_rows_go_with_their_own_features(pair):
    """The second gallery has the first's features in another order: nothing may move."""
    same = make(pair[0].path.parent / "same", table(reversed(range(90))), pair[0].features[::-1])
    made = aligned_pair(pair[0], same, match_images(pair[0], same))
    np.testing.assert_allclose(made.first_S2, made.second_S2, atol=0.05)
    whole = made.spread(92, second=False)
    assert np.array_equal(whole[:, :90], made.first_S2.T) and np.isnan(whole[:, 90:]).all()


def test_a_damaged_or_foreign_file_is_made_again(pair):
    match = match_images(*pair)
    made = aligned_pair(*pair, match)
    (kept,) = (pair[0].path / FOLDER).iterdir()
    whole = dict(np.load(kept))
    kept.write_bytes(kept.read_bytes()[:300])
    assert np.array_equal(aligned_pair(*pair, match).first_S2, made.first_S2)
    np.savez(kept, **(whole | {"rows": whole["rows"] + 1}))
    assert np.array_equal(aligned_pair(*pair, match).rows_S, made.rows_S)


def test_galleries_of_alike_names_keep_their_files_apart(pair):
    shutil.copytree(pair[1].path, pair[1].path.parent / "second-2")
    longer = Gallery.open(pair[1].path.parent / "second-2")
    for other in (longer, pair[1]):
        aligned_pair(pair[0], other, match_images(pair[0], other))
    assert len(list((pair[0].path / FOLDER).iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(pair):
    (pair[0].path / FOLDER).write_text("a file where the folder should be")
    assert len(aligned_pair(*pair, match_images(*pair)).rows_S) == 90


def test_a_gallery_that_was_deleted_meanwhile_is_a_sentence(pair):
    match = match_images(*pair)
    shutil.rmtree(pair[1].path)
    with pytest.raises(UserError, match="second: is not there any more"):
        aligned_pair(*pair, match)
