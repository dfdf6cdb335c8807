"""A model small enough to look through in milliseconds, with heads that are not flat."""

import pytest
import torch

from dino_core.models import Model, ModelInfo, create_backbone

OPTIONS = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def small_model(patch: int = 8, native: int = 64, registers: int = 0) -> Model:
    """Random weights, queries and keys enlarged so that heads differ."""
    torch.manual_seed(7)
    options = {**OPTIONS, "reg_tokens": registers}
    backbone = create_backbone(ModelInfo("vit_tiny_patch16_224", patch, native, options=options))
    with torch.no_grad():
        for block in backbone.vit.blocks:
            block.attn.qkv.weight.mul_(8)
    return Model(backbone, f"small-{patch}-{registers}", torch.device("cpu"))


@pytest.fixture(scope="session")
def model() -> Model:
    """Patch 8, native 64 px, two layers of three heads."""
    return small_model()


@pytest.fixture(scope="session")
def make_model():
    """`small_model`, for other patch sizes and registers."""
    return small_model
