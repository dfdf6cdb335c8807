"""The benchmark of the feeds: it measures what it says, and both sides make the same views."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_core.augment import MultiCrop
from dino_core.benchmarks.data import INFO, measure, plain_views, write_jpegs
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.training.feed import FromSource, ViewDataset

SMALL = MultiCrop(global_size=32, local_size=16, local_count=2)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jpegs")
    write_jpegs(folder, 4, size=(100, 80))
    return folder


def test_every_way_is_measured(jpegs: Path) -> None:
    threads = torch.get_num_threads()
    results = measure(str(jpegs), images=3, crops=SMALL, device="cpu", rounds=1)
    assert [result.name.split(":")[0] for result in results] == ["feed"] * 3
    worker, files, memory = results
    for result in results:
        assert result.images_per_second and result.ratio_to_plain
    assert files.share_of_limit is not None and 0 < files.share_of_limit <= 1.5
    assert worker.limit == files.limit != "" and not worker.phases
    assert set(files.phases) == {"read", "decode", "plan", "crop", "copy", "photometric"}
    assert memory.limit == "" and "2 x 32 px and 2 x 16 px" in files.notes[0]
    assert asdict(files) == files.as_dict() and torch.get_num_threads() == threads


def test_fewer_images_than_asked_for_are_said(jpegs: Path) -> None:
    (few, *_), (all_, *_) = (
        measure(str(jpegs), images=images, crops=SMALL, device="cpu", rounds=1)
        for images in (10_000_000, 4)
    )
    sentence = "10,000,000 images were asked for, and 4 are all that can be read"
    assert few.notes[0] == all_.notes[0] and few.notes[0].startswith("4 images of ")
    assert sentence in few.notes and not any("asked for" in note for note in all_.notes)


def test_images_stored_smaller_than_crops_are_refused(jpegs: Path) -> None:
    with pytest.raises(UserError, match="--stored-size 32 is smaller than the global crops of 224"):
        measure(str(jpegs), stored_size=32)


def test_both_sides_make_the_same_views(jpegs: Path) -> None:
    """Up to what Pillow rounds between its operations."""
    source, chosen = open_source(jpegs), [0, 2]
    plain = plain_views(source, chosen, SMALL)
    batch = ViewDataset(FromSource(source), SMALL, seed=0).__getitems__([(0, i) for i in chosen])
    assert not isinstance(batch, UserError)
    globals_, locals_ = batch.views(INFO, torch.device("cpu"))
    for place in range(2):
        ours = [*globals_[place::2], *locals_[place::2]]
        for view, twin in zip(ours, plain[4 * place : 4 * place + 4], strict=True):
            difference = (view - twin).abs() * np.mean(INFO.std) * 255
            assert view.shape == twin.shape and difference.mean() < 4 and difference.max() < 30


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UserError, match="none of the images looked at can be read"):
        measure(str(tmp_path), images=2)
