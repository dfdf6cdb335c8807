"""The cache of decoded images: made once, whole or not at all, and never of other images."""

import multiprocessing
import shutil
from collections import namedtuple
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.data import open_source
from dino_core.data import pixel_cache as cache_module
from dino_core.data.pixel_cache import cached_store
from dino_core.data.store import fill
from dino_core.errors import UserError

COUNT = 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of different sizes, one of them broken; the cache beside them."""
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    scenes, folder = open_source(f"scenes:{COUNT}"), tmp_path / "pictures"
    folder.mkdir()
    for i in range(COUNT):
        Image.fromarray(scenes.image(i)).resize((60 + 9 * i, 50)).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return folder


def made(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "pixels").iterdir() if path.is_dir()]


def test_a_cache_is_the_store_and_is_made_once(folder: Path, tmp_path: Path) -> None:
    source, told = open_source(folder), []
    first = cached_store(source, 40, threads=2, tell=lambda *done: told.append(done))
    again = cached_store(open_source(folder), 40, tell=lambda *done: told.append(done))
    expected = fill(source, np.arange(COUNT), 40)
    for store in (first, again):
        assert all(np.array_equal(store.image(i), expected.image(i)) for i in range(COUNT))
        assert store.quarantined == expected.quarantined != []
    assert told == [(i + 1, COUNT) for i in range(COUNT)]
    assert len(made(tmp_path)) == 1


def test_changed_images_and_other_sizes_are_made_anew(folder: Path, tmp_path: Path) -> None:
    cached_store(open_source(folder), 40)
    cached_store(open_source(folder), 30)
    Image.new("RGB", (60, 50), "red").save(folder / "0.png")
    store = cached_store(open_source(folder), 40)
    assert len(made(tmp_path)) == 3 and (store.image(0)[..., 0] == 255).all()


def _make_at_once(folder: str, ready: Barrier, told: SimpleQueue[tuple[int, int]]) -> None:
    torch.set_num_threads(1)  # a child must not use the threads that its parent has begun
    source, said = open_source(folder), list[str]()
    ready.wait(60)
    store = cached_store(source, 40, say=said.append)
    told.put((len(said), len(store.pixels)))


def test_processes_at_once_make_one(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, told = fork.Barrier(2), fork.SimpleQueue()
    both = [fork.Process(target=_make_at_once, args=(str(folder), ready, told)) for _ in range(2)]
    for child in both:
        child.start()
    for child in both:
        child.join(120)
        assert child.exitcode == 0
    (first, size), (second, same_size) = told.get(), told.get()
    assert {first, second} == {0, 1}
    assert size == same_size > 0


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: usage(1000))
        with pytest.raises(UserError, match="MB are free: make room, set DINO_CACHE"):
            cached_store(open_source(folder), 40)

    def full(self: object, pixels: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.FilePixels, "append", full)
        with pytest.raises(UserError, match="No space left on device"):
            cached_store(open_source(folder), 40)
    assert made(tmp_path) == []
    assert len(cached_store(open_source(folder), 40).images) == COUNT


def test_a_damaged_cache_is_named(folder: Path, tmp_path: Path) -> None:
    cached_store(open_source(folder), 40)
    (place,) = made(tmp_path)
    with open(place / "pixels.u8", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="its parts do not belong together"):
        cached_store(open_source(folder), 40)
