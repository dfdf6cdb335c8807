"""The published ground truth as data: what pickle writes is read, what it would run is not."""

import json
import pickle
import pickletools
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.evaluation.ground_truth import (
    by_tail,
    find_ground_truth,
    places_of,
    read_ground_truth,
    read_pickled_data,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

DATA = {
    "imlist": ["a", "b", "c\u00e9"],
    "qimlist": ["q1", "q2"],
    "gnd": [
        {"bbx": [1.5, 2.0, 30.25, 40.0], "easy": [0], "hard": [2], "junk": []},
        {"bbx": [0, 0, 8, 8], "easy": [], "hard": [1, 2], "junk": [0]},
    ],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_of_the_published_form(tmp_path, protocol):
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(DATA, protocol))
    truth = read_ground_truth(path)
    assert (truth.name, truth.images) == ("roxford5k", ["a", "b", "c\u00e9"])
    first, second = truth.queries
    assert (first.name, first.box) == ("q1", (1.5, 2.0, 30.25, 40.0))
    assert [x.tolist() for x in (first.easy, first.hard, first.junk)] == [[0], [2], []]
    assert [x.tolist() for x in (second.easy, second.hard, second.junk)] == [[], [1, 2], [0]]
    assert first.junk.dtype == np.int64


def test_the_same_as_json(tmp_path):
    (tmp_path / "gnd_mine.json").write_text(json.dumps(DATA))
    (tmp_path / "gnd_mine.pkl").write_bytes(pickle.dumps(DATA))
    one, two = (read_ground_truth(tmp_path / f"gnd_mine.{end}") for end in ("json", "pkl"))
    assert (one.name, one.images) == (two.name, two.images)
    assert str(one.queries) == str(two.queries)
    assert one.digest != two.digest


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)  # fmt: skip


@given(values, st.sampled_from(PROTOCOLS))
def test_whatever_is_plain_data_comes_back(value, protocol):
    assert read_pickled_data(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.array([], np.int64),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.array(["ab", "c\u00e9"]),
        np.arange(3, dtype=np.uint8),
    ],
    ids=str,
)
def test_numpy_arrays_are_data_too(array, protocol):
    found = read_pickled_data(pickle.dumps({"x": [array, array]}, protocol))["x"]
    for one in found:
        np.testing.assert_array_equal(one, array)
        assert one.dtype == array.dtype


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_are_data_too(protocol):
    scalars = [np.int64(-7), np.float32(0.5), np.bool_(True), np.uint16(65535)]
    found = read_pickled_data(pickle.dumps(scalars, protocol))
    assert found == [-7, 0.5, True, 65535]


def test_what_python_2_wrote():
    """Texts and arrays as its pickle made them: protocol 0 and 2 with STRING and BINSTRING."""
    assert read_pickled_data(b"(dp0\nS'imlist'\np1\n(lp2\nS'all_souls'\np3\nas.") == {
        "imlist": ["all_souls"]
    }
    assert read_pickled_data(b"\x80\x02]q\x00(U\x03abcq\x01K\x05M\x00\x01e.") == ["abc", 5, 256]
    raw = np.array([1, 513], "<i8").tobytes()
    old = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x10" + raw + b"tb."
    )
    pickletools.dis(old, out=open("/dev/null", "w"))  # noqa: SIM115 (a well-formed pickle it is)
    assert read_pickled_data(old).tolist() == [1, 513]


class Bomb:
    """What an attacker sends: on unpickling it would write to the console."""

    def __reduce__(self):
        return print, ("exploded",)


class Plain:
    pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Bomb(), r"gnd_x.pkl: would import .*print, which is more than plain data"),
        ({"gnd": [Bomb()]}, "would import"),
        (Plain(), "would import"),
        (Path, "would import pathlib"),
        (np.array([Plain()], object), r"would import|type O8"),
        ({1, 2}, r"would import|instruction EMPTY_SET"),
        (np.ndarray, "names instead of data"),
    ],
    ids=["bomb", "inside", "object", "class", "array of objects", "set", "name"],
)
def test_nothing_is_imported_or_called(tmp_path, capsys, protocol, value, says):
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(UserError, match=says):
        read_ground_truth(path)
    assert "exploded" not in capsys.readouterr().out


def test_a_name_is_not_even_imported(tmp_path):
    (tmp_path / "gnd_x.pkl").write_bytes(b"cantigravity\nfly\n.")
    with pytest.raises(UserError, match=r"would import antigravity\.fly"):
        read_ground_truth(tmp_path / "gnd_x.pkl")
    assert "antigravity" not in sys.modules


def test_small_files_make_no_large_values():
    """A list of ten times the same list of ten times the same ..., forty deep; a list of itself."""
    nested: list = [0]
    for _ in range(40):
        nested = [nested] * 10
    assert read_pickled_data(pickle.dumps(nested))[9][9][9]
    endless: list = []
    endless.append(endless)
    with pytest.raises(UserError, match="holds itself"):
        read_pickled_data(pickle.dumps(endless))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    with suppress(UserError):  # and no other error
        read_pickled_data(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gnd": DATA["gnd"][:1]}, "one entry for each of the 2 queries"),
        ({"imlist": []}, "imlist is no list of names"),
        ({"imlist": ["a", 7, "c"]}, "imlist holds something that is no name"),
        ({"qimlist": None}, "qimlist is no list"),
        ({"gnd": [{"easy": [3], "hard": [], "junk": []}, DATA["gnd"][1]]}, "between 0 and 2"),
        ({"gnd": [{"easy": [0.5], "hard": [], "junk": []}, DATA["gnd"][1]]}, "no numbers"),
        ({"gnd": [{"easy": [0], "hard": []}, DATA["gnd"][1]]}, "'junk' is missing"),
        ({"gnd": [DATA["gnd"][0] | {"bbx": [1, 2, 3]}, DATA["gnd"][1]]}, "bbx of q1 is not left"),
        ({"gnd": [DATA["gnd"][0] | {"bbx": [5, 2, 3, 9]}, DATA["gnd"][1]]}, "bbx of q1 is empty"),
    ],
)
def test_what_is_no_ground_truth_is_said(tmp_path, change, says):
    path = tmp_path / "gnd_x.json"
    path.write_text(json.dumps(DATA | change))
    with pytest.raises(UserError, match=says):
        read_ground_truth(path)


def test_files_that_are_none(tmp_path):
    for name, content, says in (
        ("a.pkl", b"", "is damaged, or no pickle"),
        ("b.pkl", pickle.dumps(DATA)[:-20], "is damaged, or no pickle"),
        ("c.json", b"{", "cannot be read as JSON"),
        ("d.pkl", pickle.dumps([1]), "it is no dict"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            read_ground_truth(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.pkl: cannot be read"):
        read_ground_truth(tmp_path / "none.pkl")


def test_the_file_is_found_beside_the_images_or_above(tmp_path):
    images = tmp_path / "roxford5k" / "jpg"
    images.mkdir(parents=True)
    with pytest.raises(UserError, match="no ground truth there"):
        find_ground_truth(images)
    with pytest.raises(UserError, match="no ground truth there"):
        find_ground_truth(None)
    truth = tmp_path / "roxford5k" / "gnd_roxford5k.pkl"
    truth.touch()
    assert find_ground_truth(images) == find_ground_truth(truth.parent) == truth
    (truth.parent / "gnd_roxford5k.json").touch()
    with pytest.raises(UserError, match="name the one meant"):
        find_ground_truth(images)


def test_names_find_their_images():
    ids = ["jpg/x/a_1.jpg", "jpg/y/b_1.png", "jpg/x/c.v2.jpg", "jpg/y/c.jpg"]
    assert places_of(["a_1", "x/a_1", "b_1.png", "c.v2", "y/c", "d"], ids, "in") == [
        0, 0, 1, 2, 3, None,
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"in: e may be p/e\.jpg or q/e\.jpg"):
        places_of(["e"], ["p/e.jpg", "q/e.jpg"], "in")
    assert by_tail(["a/b.c"]) == {"a/b.c": [0], "b.c": [0], "a/b": [0], "b": [0]}
