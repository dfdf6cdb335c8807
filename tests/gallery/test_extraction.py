"""Decoding and computing at once: in order, whole, in half precision only where it is as good."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import extraction
from dino_core.gallery.extraction import Embedder, batches, default_workers
from dino_core.gallery.features import cls_tokens, prepared
from dino_core.models import Model

DIM = 48


def pixels_of(model: Model, count: int) -> torch.Tensor:
    source = open_source(f"scenes:{count}")
    return torch.stack([prepared(source.image(i), model.info) for i in range(count)])


def test_features_are_those_of_the_bare_forward(model: Model) -> None:
    source = open_source("scenes:3")
    x = torch.stack([model.preprocess(source.image(i)) for i in range(3)])
    plain = torch.nn.functional.normalize(model.backbone(x), dim=1)
    found = Embedder(model, cls_tokens)(pixels_of(model, 3))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, plain, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_fetched_late_comes_in_order(model: Model, photos, workers: int) -> None:
    """Features that are still on their way, as on a GPU, and a batch with nothing good in it."""
    source = open_source(photos)  # the first is broken
    run = Embedder(model, cls_tokens)

    def late(pixels: torch.Tensor):
        features = run(pixels)
        return lambda: features

    make = partial(prepared, info=model.info)
    options = {"dim": DIM, "batch_size": 1, "workers": workers}
    at_once = list(batches(source, range(len(source)), make, run, **options))
    later = list(batches(source, range(len(source)), make, late, **options))
    assert [one["index"] for batch in later for one in batch.facts] == list(range(len(source)))
    assert [batch.features_BD.shape[0] for batch in later].count(0) == 1
    for one, other in zip(at_once, later, strict=True):
        assert one.facts == other.facts
        np.testing.assert_array_equal(one.features_BD, other.features_BD)


def test_half_precision_is_taken_only_where_features_agree(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = pixels_of(model, 4)
    for alike, taken in ((0.9999, True), (1.1, False)):
        monkeypatch.setattr(extraction, "ALIKE", alike)
        run = Embedder(model, cls_tokens)
        assert run.half is False  # a CPU is not even tried
        run.half = None
        run(pixels)
        assert run.half is taken


def test_what_is_too_large_for_half_precision_is_computed_again(model: Model) -> None:
    """The largest number of fp16 is 65,504."""
    loud = copy.deepcopy(model)
    loud.backbone.vit.blocks[0].mlp.fc2.weight.mul_(1e6)
    pixels = pixels_of(loud, 2)
    exact, half = Embedder(loud, cls_tokens), Embedder(loud, cls_tokens, half=True)
    np.testing.assert_array_equal(half(pixels), exact(pixels))
    assert half.half is False


def test_broken_weights_are_a_sentence_in_half_precision_too(model: Model) -> None:
    broken = copy.deepcopy(model)
    next(broken.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Embedder(broken, cls_tokens, half=True)(pixels_of(broken, 1))


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction.distributed, "cores", lambda: 16)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (default_workers(cpu), default_workers(gpu)) == (4, 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (default_workers(cpu), default_workers(gpu)) == (2, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert (default_workers(cpu), default_workers(gpu)) == (0, 1)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(model: Model) -> None:
    there = Model(copy.deepcopy(model.backbone), "there", torch.device("cuda"))
    pixels = pixels_of(model, 8)
    expected = Embedder(model, cls_tokens)(pixels)
    found = Embedder(there, cls_tokens)(pixels.pin_memory())
    assert callable(found) and isinstance(expected, np.ndarray)
    assert ((found() * expected).sum(1) > 0.9999).all()
