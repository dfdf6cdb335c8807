"""Tars: the same collection as the folder they were made of, read at random from anywhere."""

import io
import multiprocessing
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dino_core.data import BadImage, open_source
from dino_core.errors import UserError

NAMES = ("cat/1.png", "cat/2.png", "dog/3.png", "dog/" + "long" * 40 + ".png", "dog/ä.png")


@pytest.fixture
def tar(tree, packed):
    folder = tree(*NAMES, **{"readme.txt": b"text", "cat/.hidden.png": b"x"})
    return packed(folder)


def test_tar_equals_folder(tree, packed):
    folder = tree(*NAMES, **{"readme.txt": b"text", "cat/.hidden.png": b"x", "bad.jpg": b""})
    ours, theirs = open_source(packed(folder)), open_source(folder)
    assert list(ours.ids) == list(theirs.ids)
    assert ours.classes == theirs.classes
    assert np.array_equal(ours.labels, theirs.labels)
    for i in range(len(ours)):
        assert ours.read(i) == theirs.read(i)
        assert ours.fingerprint(i) == theirs.fingerprint(i)
    assert ours.path(0) is None


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_layouts(tree, tmp_path, layout):
    folder = tree("a/1.png", "b/" + "n" * 90 + ".png")
    with tarfile.open(tmp_path / "x.tar", "w", format=layout) as archive:
        archive.add(folder, arcname="set")
    source = open_source(tmp_path / "x.tar")
    assert [source.image(i).max() for i in range(2)] == [0, 1]
    assert source.ids[0] == "set/a/1.png"


def test_the_last_of_two_members_of_one_name_counts(tree, tmp_path):
    folder = tree("a.png", "b.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder / "a.png", "same.png")
        archive.add(folder / "b.png", "same.png")
    source = open_source(tmp_path / "x.tar")
    assert len(source) == 1
    assert source.image(0).max() == 1


def test_hard_links_and_other_members(tree, tmp_path):
    folder = tree("a.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder / "a.png", "a.png")
        for name, kind in (("hard.png", tarfile.LNKTYPE), ("pipe.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            archive.addfile(member)
    source = open_source(tmp_path / "x.tar")
    assert list(source.ids) == ["a.png", "hard.png"]
    assert source.read(0) == source.read(1)


def test_threads_share_one_tar(tar):
    source = open_source(tar)
    expected = [source.read(i) for i in range(len(source))]
    order = np.random.default_rng(0).integers(len(source), size=400)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order.tolist()))
    assert read == [expected[i] for i in order]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tar, method):
    source = open_source(tar)
    expected = [source.fingerprint(i) for i in range(len(source))]  # opens the file here
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(source.fingerprint, range(len(source)), chunksize=1) == expected


def test_pickling_leaves_the_open_file_behind(tar):
    source = open_source(tar)
    expected = source.read(0)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    del source
    assert copy.read(0) == expected


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar"])
def test_compressed_tars_get_a_sentence(tree, packed, mode, name):
    with pytest.raises(UserError, match=r"is compressed \(.*unpack it"):
        open_source(packed(tree("a.png"), name, mode))


def test_a_tar_cut_off_keeps_what_comes_before(tar):
    whole = open_source(tar)
    last = max(range(len(whole)), key=lambda i: whole._offsets[i])
    tar.write_bytes(tar.read_bytes()[: int(whole._offsets[last]) + 20])
    source = open_source(tar)
    assert "cut off" in source.notes[0]
    cut = source.ids.index(whole.ids[last])
    with pytest.raises(BadImage, match="tar file ends"):
        source.image(cut)
    others = [source.image(i).shape for i in range(len(source)) if i != cut]
    assert others == [(8, 8, 3)] * (len(whole) - 1)


def test_sentences(tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UserError, match="not a tar file"):
        open_source(tmp_path / "broken.tar")
    with tarfile.open(tmp_path / "empty.tar", "w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"hi"))
    with pytest.raises(UserError, match="no images in this tar"):
        open_source(tmp_path / "empty.tar")
