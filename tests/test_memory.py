"""Freed memory that stays: pages are asked of the system once, not at every step."""

import ctypes
import subprocess
import sys

import pytest

from dino_core.memory import keep_freed_memory, share_heaps

# In a process of its own: what a heap holds on to depends on all that was done before.
PROGRAM = """
import ctypes, resource
from dino_core.memory import keep_freed_memory

BLOCK = 64 * 2**20  # larger than any block that glibc keeps by itself
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        block = libc.malloc(BLOCK)
        ctypes.memset(block, 1, BLOCK)
        libc.free(block)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

before = faults(5)
assert keep_freed_memory()
faults(10)  # it finds its place in the heap
print(before * resource.getpagesize() / BLOCK, faults(5) * resource.getpagesize() / BLOCK)
"""


def test_freed_blocks_are_used_again_without_a_page_fault():
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("mallopt is glibc's")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    before, after = map(float, run.stdout.split())
    assert before >= 1  # as glibc does by itself: every page anew, every time
    assert after < 0.1


def test_a_library_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_freed_memory() is False and share_heaps() is False


# Twelve threads that hold memory at once, and how many heaps glibc then reports.
THREADS = """
import ctypes, re, sys, threading
from dino_core.memory import share_heaps

if sys.argv[1] == "share":
    assert share_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(13)

def hold():
    together.wait()
    libc.malloc(ctypes.c_size_t(5000))
    together.wait()

threads = [threading.Thread(target=hold) for _ in range(12)]
for thread in threads:
    thread.start()
together.wait()
together.wait()
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(len(re.findall("<heap nr=", open(sys.argv[2]).read())))
"""


def test_threads_share_two_heaps(tmp_path):
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("mallopt is glibc's")

    def heaps(how):
        words = [sys.executable, "-c", THREADS, how, str(tmp_path / "heaps.xml")]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert heaps("alone") > 2  # as glibc does by itself
    assert heaps("share") == 2
