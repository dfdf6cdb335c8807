"""Stores of pixels: the images of the source, bad ones replaced, reduced only when asked."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.data import open_source, safe_image
from dino_core.data import store as store_module
from dino_core.data.store import PixelStore, down_to, fill, judged_bytes, mapped, reduced

COUNT = 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of different sizes and shapes, one of them broken."""
    scenes = open_source(f"scenes:{COUNT}")
    for i in range(COUNT):
        picture = Image.fromarray(scenes.image(i)).resize((40 + 5 * i, 60 - 4 * i))
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return tmp_path


@pytest.mark.parametrize("threads", [1, 3])
def test_a_store_holds_the_images_of_the_source(folder: Path, threads: int) -> None:
    source, told = open_source(folder), []
    images = np.array([7, 1, 4])
    store = fill(source, images, threads=threads, tell=lambda *done: told.append(done))
    for i in images:
        assert np.array_equal(store.image(i), safe_image(source, int(i))[0])
    assert [bad.id for bad in store.quarantined] == ["4.png"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(KeyError, match="image 2 is not"):
        store.image(2)
    with pytest.raises(KeyError):
        store.image(8)


def test_larger_images_are_reduced_to_the_short_side(folder: Path) -> None:
    store = fill(open_source(folder), np.arange(COUNT), stored_size=32)
    assert np.minimum(store.heights, store.widths).max() == 32
    assert store.image(8).shape == (28, 80, 3), "smaller ones stay as they are"
    assert store.image(0).shape == (48, 32, 3)


def test_a_jpeg_is_decoded_smaller_only_where_a_short_side_is_wanted() -> None:
    assert [down_to(wanted, 800, 1200) for wanted in (0, 100, 101, 400, 500)] == [1, 8, 4, 2, 1]


def test_reducing_is_pillows() -> None:
    picture = open_source("scenes:1").image(0)
    expected = np.asarray(Image.fromarray(picture).resize((40, 40), Image.Resampling.BICUBIC))
    assert np.abs(reduced(picture, 40).astype(int) - expected).max() <= 2
    assert reduced(picture, 0) is picture and reduced(picture, 10_000) is picture


def test_memory_grows_where_the_judged_size_was_too_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, images = open_source(folder), np.arange(COUNT)
    whole = fill(source, images)
    monkeypatch.setattr(store_module, "SPARE", 0.01)
    monkeypatch.setattr(store_module, "BLOCK", 20_000)
    grown = fill(source, images)
    assert torch.equal(whole.pixels, grown.pixels)
    assert torch.equal(whole.to(torch.device("cpu")).pixels, whole.pixels)


def test_the_size_is_judged_from_a_few(folder: Path) -> None:
    source = open_source(folder)
    store = fill(source, np.arange(COUNT))
    assert judged_bytes(source, np.arange(COUNT), 0) == pytest.approx(len(store.pixels), abs=COUNT)
    assert judged_bytes(source, np.empty(0, np.int64), 0) == 0


def test_a_mapped_store_travels_without_its_pixels(folder: Path, tmp_path: Path) -> None:
    store = fill(open_source(folder), np.arange(COUNT))
    file = tmp_path / "pixels.u8"
    file.write_bytes(store.pixels.numpy().tobytes())
    opened = PixelStore(**store.__dict__ | {"pixels": mapped(file), "file": file})
    sent = pickle.dumps(opened)
    assert len(sent) < 5_000 < len(store.pixels)
    assert np.array_equal(pickle.loads(sent).image(3), store.image(3))  # noqa: S301


@pytest.mark.gpu
def test_a_store_on_a_gpu_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(folder)
    store = fill(source, np.arange(COUNT))
    monkeypatch.setattr(store_module, "BLOCK", 20_000)
    there = fill(source, np.arange(COUNT), device=torch.device("cuda"))
    assert torch.equal(there.pixels.cpu(), store.pixels)
    assert torch.equal(store.to(torch.device("cuda")).pixels.cpu(), store.pixels)
