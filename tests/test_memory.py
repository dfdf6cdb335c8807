"""Freed memory that stays: pages are asked of the system once, not at every step."""

import ctypes
import resource

import pytest

from dino_core.memory import keep_freed_memory

BLOCK = 64 * 2**20  # larger than any block that glibc keeps by itself
PAGES = BLOCK // resource.getpagesize()


@pytest.fixture
def libc():
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        pytest.skip("mallopt is glibc's")
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    yield library
    keep_freed_memory(False)


def faults(libc, rounds: int) -> int:
    """Page faults of taking, filling and freeing a block again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        block = libc.malloc(BLOCK)
        ctypes.memset(block, 1, BLOCK)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_blocks_are_used_again_without_a_page_fault(libc):
    assert faults(libc, 5) >= 5 * PAGES
    assert keep_freed_memory()
    faults(libc, 10)  # finds its place in the heap
    assert faults(libc, 5) < PAGES / 10


def test_a_library_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_freed_memory() is False
