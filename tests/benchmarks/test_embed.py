"""The benchmark of feature extraction: it measures what it says."""

import pytest
import torch

from dino_core.benchmarks.data import write_jpegs
from dino_core.benchmarks.embed import measure
from dino_core.errors import UserError

TINY = {"architecture": "vit_tiny_patch16_224", "image_size": 32, "device": "cpu"}


def test_all_sides_are_measured() -> None:
    threads = torch.get_num_threads()
    (one,) = measure(**TINY, images=5, batch_size=2, workers=0, rounds=1, threads=1)
    assert one.images_per_second and one.ratio_to_plain and one.share_of_limit
    assert set(one.phases) == {"read", "decode", "fingerprint", "preprocess", "forward", "write"}
    assert "batches of 2, 0 decoding processes, fp32" in one.notes[0]
    assert torch.get_num_threads() == threads


def test_images_that_come_again_are_said(tmp_path) -> None:
    write_jpegs(tmp_path, 2, size=(32, 32))
    options = TINY | {"batch_size": 2, "workers": 0, "rounds": 1, "threads": 1}
    (one,) = measure(str(tmp_path), **options, images=3)
    assert one.notes[-1] == "2 images can be read and come again and again"
    (enough,) = measure(str(tmp_path), **options, images=2)
    assert not any("again" in note for note in enough.notes)


def test_broken_images_are_refused(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UserError, match="none of the images looked at can be read"):
        measure(str(tmp_path), **TINY, images=2, rounds=1)
