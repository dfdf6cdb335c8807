"""Arrays of an .npz file, mapped: the same as numpy reads, and damage is told as zipfile does."""

import zipfile

import numpy as np
import pytest

from dino_core.gallery.mapped import let_go, map_arrays
from dino_core.rng import generator


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mapped_arrays_are_those_that_numpy_reads(tmp_path, save):
    random = generator(0, "mapped")
    arrays = {
        "rows": random.integers(0, 9, (300, 7)).astype(np.int32),
        "scores": np.asfortranarray(random.random((5, 3)).astype(np.float32)),
        "none": np.empty((0, 4), np.float32),
    }
    save(tmp_path / "file.npz", **arrays)
    mapped = map_arrays(tmp_path / "file.npz", ("scores", "rows", "none"))
    for name, found in zip(("scores", "rows", "none"), mapped, strict=True):
        assert found.dtype == arrays[name].dtype
        let_go(found)
        np.testing.assert_array_equal(found, arrays[name])


def test_writing_to_one_leaves_the_file_as_it_is(tmp_path):
    np.savez(tmp_path / "file.npz", rows=np.arange(6))
    (rows,) = map_arrays(tmp_path / "file.npz", ("rows",))
    assert isinstance(rows, np.memmap), "not read into memory"
    rows[2] = 99
    assert rows[2] == 99 and np.load(tmp_path / "file.npz")["rows"][2] == 2


def test_damage_is_told(tmp_path):
    path = tmp_path / "file.npz"
    np.savez(path, rows=np.arange(6000))
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + bytes([whole[20_000] ^ 1]) + whole[20_001:])
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        map_arrays(path, ("rows",))
    path.write_bytes(whole[:20_000])
    with pytest.raises(zipfile.BadZipFile):
        map_arrays(path, ("rows",))
    path.write_bytes(whole)
    with pytest.raises(KeyError):
        map_arrays(path, ("scores",))


def test_objects_are_refused(tmp_path):
    np.savez(tmp_path / "file.npz", rows=np.array([{}, []], object))
    with pytest.raises(ValueError, match="objects"):
        map_arrays(tmp_path / "file.npz", ("rows",))
