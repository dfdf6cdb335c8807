"""Tiny models, and folders of labeled colors that protocols with classes tell apart.

def test_it(model, train, test, here):
    result = knn.evaluate(model, open_source(train), open_source(test), passing=here)
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.evaluation.passes import Passing
from dino_core.models import Model, ModelInfo, create_backbone

WIDTH = 24
COLORS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200), "d": (200, 200, 30)}
GRAY = (90, 90, 90)  # classes of other names


def tiny_model(depth: int = 2, patch: int = 16, channels: int = 3) -> Model:
    """A ViT of two heads and width 24, for 32 x 32 px, with random weights, the same each time."""
    options = {"depth": depth, "embed_dim": WIDTH, "num_heads": 2}
    per = {} if channels == 3 else {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    info = ModelInfo("vit_tiny_patch16_224", patch, 32, channels=channels, options=options, **per)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(create_backbone(info), "tiny", torch.device("cpu"))


def write_classes(
    folder: Path, classes: dict[str, int], *, tint: float = 0.0, noise: int = 60
) -> Path:
    """Class folders of so many noisy colors; with `tint` each image's is off by that deviation."""
    for name, each in classes.items():
        random = np.random.default_rng([len(folder.name), each, *name.encode()])
        (folder / name).mkdir(parents=True)
        for index in range(each):
            color = np.array(COLORS.get(name, GRAY)) + tint * random.normal(size=3)
            pixels = np.clip(color + random.integers(-noise, noise, (40, 50, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def model() -> Model:
    """Two blocks, patch 16."""
    return tiny_model()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    """`tiny_model`, for other depths, patches and channels."""
    return tiny_model


@pytest.fixture(scope="session")
def write_colors() -> Callable[..., Path]:
    """`write_classes`."""
    return write_classes


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Twelve images each of the classes a, b and c."""
    return write_classes(tmp_path / "train", dict.fromkeys("abc", 12))


@pytest.fixture(name="test")
def held_out(tmp_path: Path) -> Path:
    """Six images each of b and c, which have other numbers here than in train."""
    return write_classes(tmp_path / "test", dict.fromkeys("bc", 6))


@pytest.fixture(scope="session")
def here() -> Passing:
    """Passes in this process, of which nothing is kept."""
    return Passing(workers=0)
