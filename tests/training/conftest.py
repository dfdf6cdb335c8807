"""What tests of training share: small pictures on disk, and a recipe that takes seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dino_core.augment import MultiCrop
from dino_core.data import open_source
from dino_core.runs import Run
from dino_core.training import BackboneConfig, HeadConfig, OptimConfig, QualityConfig, Recipe

PICTURES = 64


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """64 generated pictures of 48 x 48 px in two folders, which are their classes."""
    scenes = open_source(f"scenes:{PICTURES}")
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        place = folder / ("even" if scenes.labels[i] % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        Image.fromarray(scenes.image(i)).resize((48, 48)).save(place / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def unlabeled(pictures, tmp_path_factory) -> Path:
    """The same pictures in one flat folder."""
    folder = tmp_path_factory.mktemp("unlabeled")
    for path in pictures.rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """Twelve steps of eight pictures; with batch norm in the head, the hardest to keep exact."""
    return Recipe(
        backbone=BackboneConfig("test_vit", 8, 32, drop_path=0.1),
        crops=MultiCrop(global_size=32, local_size=16, local_count=2),
        head=HeadConfig(out_dim=64, hidden_dim=64, bottleneck_dim=32, batch_norm=True),
        optim=OptimConfig(lr=0.01, warmup_epochs=0.5, freeze_last_layer=0.5),
        quality=QualityConfig(checks=0),
        steps=12,
        batch_size=8,
        precision="fp32",
        device="cpu",
        threads=1,
        workers=0,
        save_every=4,
        log_every=1,
    )


Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def weights_of() -> Callable[[Run], Tensors]:
    """All tensors of a run's newest checkpoint: both networks, moments, center."""

    def weights(run: Run) -> Tensors:
        folder = run.checkpoint().path
        files = ("student", "teacher", "optimizer")
        loaded = {name: load_file(folder / f"{name}.safetensors") for name in files}
        return {f"{n}.{key}": t for n, tensors in loaded.items() for key, t in tensors.items()}

    return weights


@pytest.fixture(scope="session")
def assert_same(weights_of) -> Callable[[Run, Run], None]:
    """Fails unless two runs ended with the same bytes."""

    def check(ours: Run, theirs: Run) -> None:
        first, second = weights_of(ours), weights_of(theirs)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []

    return check
