"""The benchmark of the lens: both sides see the same, and nothing stays behind."""

import torch

from dino_core.benchmarks.lens import full_rows, measure
from dino_core.models import ModelInfo, create_backbone
from dino_core.models.attention import cls_rows


def test_both_sides_give_the_same_rows() -> None:
    torch.manual_seed(0)
    info = ModelInfo("vit_tiny_patch16_224", 8, 32, options={"depth": 3})
    backbone = create_backbone(info).freeze()
    x = torch.randn(2, 3, 40, 32)
    before = backbone(x)
    rows = full_rows(backbone, x)
    torch.testing.assert_close(cls_rows(backbone, x), rows, rtol=0, atol=1e-6)
    assert torch.equal(before, backbone(x))
    assert all(block.attn.fused_attn for block in backbone.vit.blocks)


def test_every_size_is_measured() -> None:
    results = measure(
        architecture="vit_tiny_patch16_224", patch_sizes=(16,), image_sizes=(32, 64), rounds=1,
        device="cpu", moves=0,
    )  # fmt: skip
    assert [result.name[-5:] for result in results] == ["32 px", "64 px"]
    for result in results:
        assert result.milliseconds and result.ratio_to_plain and result.share_of_limit
