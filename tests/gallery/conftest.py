"""What the gallery tests share: a tiny model, and one gallery of generated scenes."""

from pathlib import Path

import pytest
import torch

from dino_core.data import open_source
from dino_core.gallery import Gallery, build
from dino_core.models import Model, ModelInfo, create_backbone

TINY = ModelInfo(
    architecture="vit_tiny_patch16_224",
    patch_size=16,
    image_size=32,
    options={"depth": 2, "embed_dim": 48, "num_heads": 3},
)


def tiny_model(seed: int = 0, spec: str = "tiny") -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(create_backbone(TINY), spec, torch.device("cpu"))


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="session")
def other_model() -> Model:
    return tiny_model(1, "other")


@pytest.fixture(scope="session")
def scenes_gallery(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """60 scenes with a UMAP. For reading only."""
    out: Path = tmp_path_factory.mktemp("galleries") / "scenes"
    return build(model, open_source("scenes:60"), out)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six PNGs in two class folders, and one file that is none."""
    source = open_source("scenes:6")
    from PIL import Image

    for index in range(6):
        folder = tmp_path / "photos" / ("cats" if index % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(index)).save(folder / f"{index}.png")
    (tmp_path / "photos" / "cats" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    return tmp_path / "photos"
