"""Tokens' rows are the softmax's own: against timm unfused, and against the published program."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import AttentionRope

from dino_core.errors import UserError
from dino_core.models import create_backbone
from dino_core.models.attention import (
    attention_modules,
    cls_rows,
    queries_and_keys,
    recorded_rows,
    self_attention_modules,
    token_rows,
)
from dino_core.models.info import ModelInfo

GOLDEN = Path(__file__).parents[1] / "golden" / "backbone.npz"

# name, patch size, native size, options: one for each way that timm makes queries and keys
KINDS = [
    ("vit_small_patch16_224", 16, 224, {}),
    ("vit_tiny_patch16_224", 8, 64, {"qk_norm": True}),
    ("vit_tiny_patch16_224", 4, 32, {"reg_tokens": 2}),
    ("vit_small_patch14_reg4_dinov2", 14, 518, {}),
    ("vit_small_patch16_dinov3", 16, 256, {}),
    ("vit_small_patch16_dinov3_qkvb", 16, 256, {}),  # biases: the qkv module is never called
    ("vit_small_patch16_rope_mixed_224", 16, 224, {}),  # one rotation per layer
    ("eva02_small_patch14_224", 14, 224, {}),  # separate q and k projections
]
IDS = [f"{name}-p{patch}" for name, patch, _, _ in KINDS]


def backbone_of(name: str, patch: int, native: int, options: dict, seed: int = 0):
    """A narrow two-layer backbone whose every parameter is shaken, biases and norms too."""
    torch.manual_seed(seed)
    options = {"depth": 2, "embed_dim": 96, "num_heads": 3, **options}
    info = ModelInfo(name, patch, native, pos_embed="timm", options=options)
    backbone = create_backbone(info).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def full_softmax_rows(backbone, images: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The rows that the model itself multiplies its values with when attention is not fused."""
    seen = []
    handles = []
    for block in backbone.vit.blocks:
        block.attn.fused_attn = False
        keep = block.attn.attn_drop.register_forward_hook(
            lambda m, a, out: seen.append(out[:, :, tokens])
        )
        handles.append(keep)
    with torch.no_grad():
        backbone(images)
    for handle, block in zip(handles, backbone.vit.blocks, strict=True):
        handle.remove()
        block.attn.fused_attn = True
    return torch.stack(seen)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_rows_are_those_of_the_full_softmax(kind):
    backbone = backbone_of(*kind)
    patch, prefix = kind[1], backbone.num_prefix_tokens
    for tall, wide in ((14, 14), (12, 7)):
        images = torch.randn(1, 3, tall * patch, wide * patch)
        count = prefix + tall * wide
        # CLS, the last of the prefix, and the patches around where a wrong count would show
        tokens = [0, prefix - 1, prefix, prefix + wide - 1, prefix + wide, count - 1]
        assert all(block.attn.fused_attn for block in backbone.vit.blocks)
        rows = torch.stack([token_rows(backbone, images, token) for token in tokens], dim=3)
        assert rows.shape == (2, 1, backbone.num_heads, len(tokens), count)
        expected = full_softmax_rows(backbone, images, tokens)
        assert expected.max() > 4 / count  # not flat: a wrong rotation or norm would show
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
        assert torch.equal(cls_rows(backbone, images), rows[:, :, :, 0])


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_queries_and_keys_make_every_row_and_keep_nothing_else(kind):
    backbone = backbone_of(*kind)
    images = torch.randn(2, 3, 3 * kind[1], 5 * kind[1])
    tokens = list(range(backbone.num_prefix_tokens + 15))
    with torch.no_grad(), queries_and_keys(backbone.vit) as layers:
        backbone(images)
    rows = torch.stack([(q @ k.mT).softmax(dim=-1) for q, k in layers])
    expected = full_softmax_rows(backbone, images, tokens)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
    for part in (part for layer in layers for part in layer):
        assert part.untyped_storage().nbytes() == 4 * part.numel()


def test_grouped_keys_are_those_of_their_heads():
    backbone = backbone_of("vit_tiny_patch16_224", 8, 64, {"num_heads": 4})
    for block in backbone.vit.blocks:
        block.attn = AttentionRope(96, num_heads=4, num_kv_heads=2, qkv_fused=False).eval()
    images = torch.randn(2, 3, 24, 40)
    expected = full_softmax_rows(backbone, images, [0, 7])
    for index, token in enumerate((0, 7)):
        rows = token_rows(backbone, images, token)
        torch.testing.assert_close(rows, expected[:, :, :, index], rtol=0, atol=1e-6)


def test_a_token_that_the_image_does_not_make_is_refused():
    backbone = backbone_of(*KINDS[2])
    images = torch.randn(1, 3, 8, 12)
    assert token_rows(backbone, images, 8).shape[-1] == 1 + 2 + 6
    for token in (-1, 9):
        with pytest.raises(UserError, match=r"12 x 8 px makes 9 tokens; use 0 \(CLS\) to 8"):
            token_rows(backbone, images, token)


def test_only_cls_looks_in_an_xcit():
    info = ModelInfo("xcit_tiny_12_p16_224", 16, 32, options={"depth": 1, "embed_dim": 64})
    backbone = create_backbone(info).freeze()
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(token_rows(backbone, images, 0), cls_rows(backbone, images))
    with pytest.raises(UserError, match="CLS alone attends to patches here, in the last 2 layers"):
        token_rows(backbone, images, 1)
    with pytest.raises(UserError, match="look from CLS, or take a ViT"):
        self_attention_modules(backbone.vit)


def test_golden_rows_at_every_size():
    golden = np.load(GOLDEN)
    options = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    backbone = create_backbone(ModelInfo("vit_tiny_patch16_224", 16, 224, options=options)).eval()
    state = {k[6:]: torch.from_numpy(golden[k]) for k in golden.files if k.startswith("state.")}
    backbone.vit.load_state_dict(state)
    for height, width in golden["sizes"]:
        i = np.arange(3 * height * width, dtype=np.float64)
        wave = (np.sin(0.37 * i) * np.cos(0.011 * i)).astype(np.float32)
        images = torch.from_numpy(wave.reshape(1, 3, height, width))
        rows = cls_rows(backbone, images)[-1, 0, :, 1:]
        np.testing.assert_allclose(rows, golden[f"attn_cls_{height}x{width}"], rtol=0, atol=1e-6)


def test_rows_sum_to_one_for_every_image_of_a_batch():
    backbone = backbone_of(*KINDS[4])
    images = torch.randn(3, 3, 64, 96)
    rows = cls_rows(backbone, images)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, backbone.num_heads))
    torch.testing.assert_close(rows[:, 1:2], cls_rows(backbone, images[1:2]), rtol=0, atol=1e-6)


def test_recording_leaves_the_model_as_it_was():
    backbone = backbone_of(*KINDS[1])
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images)
    with recorded_rows(backbone.vit) as rows:
        during = backbone(images)
        backbone(images)  # a second forward replaces the first one's rows
        assert len(rows) == 2
    assert torch.equal(before, during)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    backbone(images)
    assert len(rows) == 2  # no longer recording


def test_many_threads_look_through_one_model():
    backbone = backbone_of(*KINDS[1]).freeze()
    batches = [torch.randn(1, 3, 64, 64 + 8 * (i % 4)) for i in range(24)]
    alone = [cls_rows(backbone, images) for images in batches]
    with ThreadPoolExecutor(6) as pool:
        features = pool.map(backbone, batches)  # others use the model meanwhile
        together = list(pool.map(lambda images: cls_rows(backbone, images), batches))
        list(features)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_rows_under_autocast_are_float32_and_close():
    backbone = backbone_of(*KINDS[1])
    images = torch.randn(1, 3, 64, 64)
    exact = cls_rows(backbone, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = cls_rows(backbone, images)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    torch.testing.assert_close(rows, exact, rtol=0.1, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "no CLS token"),
        ("vit_small_patch16_18x2_224", {}, "no `attn.qkv`"),  # parallel blocks
    ],
)
def test_models_without_cls_rows_are_refused_in_a_sentence(name, options, says):
    with torch.device("meta"):
        vit = timm.create_model(name, depth=1, **options)
    with pytest.raises(UserError, match=says):
        attention_modules(vit)
