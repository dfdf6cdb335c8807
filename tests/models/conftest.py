"""Small backbones for the tests of this folder."""

import numpy as np
import pytest
import torch

from dino_core.models import ModelInfo, ProjectionHead, create_backbone

TINY = ModelInfo(
    "vit_tiny_patch16_224", 8, 32, options={"embed_dim": 48, "depth": 2, "num_heads": 3}
)
"""Not of 64 channels a head, so only its description tells how many heads it has."""

PLAIN = ModelInfo("vit_tiny_patch16_224", 8, 32, options={"depth": 2})
"""A ViT-T/8 cut short: what the shapes of its weights tell is all there is to know."""


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return create_backbone(TINY)


@pytest.fixture
def plain():
    torch.manual_seed(1)
    return create_backbone(PLAIN)


@pytest.fixture
def head():
    torch.manual_seed(2)
    return ProjectionHead(192, out_dim=40, hidden_dim=32, bottleneck_dim=16)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def same_state(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(name="same_state")
def same_state_fixture():
    return same_state
