"""Tables of paths: the column found, labels and splits, metadata, and sentences for the rest."""

import pickle

import pandas as pd
import pytest

from dino_core.data import BadImage, open_source
from dino_core.errors import UserError


@pytest.fixture
def table(tree):
    """table(columns) writes a CSV (or .parquet, .tsv) of three images beside them."""
    folder = tree("img/a.png", "img/b.png", "img/c.png")

    def write(name="list.csv", separator=",", **columns):
        frame = pd.DataFrame(columns)
        if name.endswith("parquet"):
            frame.to_parquet(folder / name)
        else:
            frame.to_csv(folder / name, index=False, sep=separator)
        return folder / name

    return write


FILES = ["img/c.png", "img/a.png", "img/b.png"]


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_everything_known(table, name):
    path = table(
        name, path=FILES, label=["dog", None, "cat"], split=["train", "val", None], age=[1, 2, 3]
    )
    source = open_source(path)
    assert list(source.ids) == FILES  # the table's order, not the alphabet's
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, -1, 0]
    assert source.splits.tolist() == ["train", "val", ""]
    assert source.metadata["age"].tolist() == [1, 2, 3]
    assert list(source.metadata.columns) == ["age"]
    assert source.image(0).max() == 2
    assert source.root == path.parent


@pytest.mark.parametrize("column", ["path", "image", "filename", "file", "File_Name", " Path "])
def test_path_column_by_name(table, column):
    source = open_source(table(**{"id": ["x", "y", "z"], column: FILES}))
    assert list(source.ids) == FILES
    assert list(source.metadata.columns) == ["id"]


def test_path_column_by_content(table):
    source = open_source(table(title=["x", "y", "z"], where=FILES))
    assert list(source.ids) == FILES


def test_without_label_column_there_are_no_labels(table):
    source = open_source(table(path=FILES))
    assert source.labels is None
    assert source.classes == []
    assert source.splits is None


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_separators(table, separator):
    assert list(open_source(table(separator=separator, path=FILES, x=[1, 2, 3])).ids) == FILES


def test_numeric_labels_keep_their_order_and_gaps(table):
    source = open_source(table(path=FILES, label=[10, 9, None]))
    assert source.classes == ["9", "10"]
    assert source.labels.tolist() == [1, 0, -1]


def test_a_class_may_be_called_na(table):
    assert open_source(table(path=FILES, label=["NA", "None", "x"])).classes == ["NA", "None", "x"]


def test_one_image_in_two_rows_has_two_ids(table):
    source = open_source(table(path=[FILES[0], FILES[0], "./" + FILES[1]]))
    assert list(source.ids) == ["img/c.png", "img/c.png#2", "img/a.png"]


def test_missing_files_and_empty_paths_are_bad_images(table):
    source = open_source(table(path=[FILES[0], "img/gone.png", None]))
    with pytest.raises(BadImage, match="No such file"):
        source.image(1)
    with pytest.raises(BadImage, match="no path"):
        source.image(2)
    assert source.ids[2] == "row-2"
    assert source.path(2) is None


def test_absolute_paths(table, tree):
    other = tree("z.png", root="other")
    source = open_source(table(path=[str(other / "z.png"), *FILES[1:]]))
    assert source.image(0).max() == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as a table"),
        ("path\n", "no rows"),
        ("a,b\n1,2\n", r"no column of image paths.*it has: a, b"),
        ("path\nnowhere/1.png\n", r"none of the files in column path is there, e\.g\. .*1\.png"),
    ],
)
def test_sentences(tree, text, words):
    folder = tree(**{"list.csv": text.encode()})
    with pytest.raises(UserError, match=words):
        open_source(folder / "list.csv")


def test_sentences_for_unreadable_tables(tree):
    folder = tree(**{"a.parquet": b"no parquet", "b.csv": b"path\ncaf\xe9.png\n"})
    with pytest.raises(UserError, match="cannot be read as a table"):
        open_source(folder / "a.parquet")
    with pytest.raises(UserError, match="UTF-8"):
        open_source(folder / "b.csv")


def test_pickled_table_is_the_same(table):
    source = open_source(table(path=FILES, label=["a", "b", "a"], age=[1, 2, 3]))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    assert list(copy.ids) == FILES
    assert copy.metadata.equals(source.metadata)
    assert (copy.image(0) == source.image(0)).all()
