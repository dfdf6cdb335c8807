"""Arrays of an .npz file mapped where they lie, instead of copied into memory.

    rows, scores = map_arrays(path, ("rows", "scores"))

A million images' neighbors are 240 MB, of which a page looks at a few rows.
"""

import mmap
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CHECKED_AT_ONCE = 1 << 22  # bytes
_LOCAL_HEADER = struct.Struct("<26xHH")  # in a zip: how long a name is, and what follows it
_LOCAL_HEADER_BYTES = 30


def map_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays of these names in an .npz file, their content checked against its sums.

    Writing to one changes a copy in memory, never the file. What `np.savez_compressed` wrote is
    read, for it cannot be mapped. Raises what `zipfile` and numpy do for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        return [_array(path, archive, f"{name}.npy") for name in names]


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    there = archive.getinfo(name)
    if there.compress_type != zipfile.ZIP_STORED:
        with archive.open(there) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    with archive.open(there) as file:
        while file.read(CHECKED_AT_ONCE):
            pass  # at the end zipfile compares the sum
    with archive.open(there) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name}: .npy of version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name}: holds objects")
    if 0 in shape:  # nothing to map
        return np.empty(shape, dtype)
    with open(path, "rb") as file:
        file.seek(there.header_offset)
        lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER_BYTES))
    start = there.header_offset + _LOCAL_HEADER_BYTES + sum(lengths) + header
    return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")


def let_go(array: np.ndarray) -> None:
    """Take what was read of a mapped array out of this process's memory, until it is asked for.

    To be called before anything was written to it. Does nothing where it is not mapped, or where
    the system cannot.
    """
    base: mmap.mmap | None = getattr(array, "_mmap", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
