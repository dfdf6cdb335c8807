"""CLS rows are the softmax's own: against timm unfused, and against the published program."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from dino_core.errors import UserError
from dino_core.models import create_backbone
from dino_core.models.attention import attention_modules, cls_rows, recorded_rows
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
    """A two-layer backbone whose every parameter is shaken, biases and norms too."""
    torch.manual_seed(seed)
    info = ModelInfo(name, patch, native, pos_embed="timm", options={"depth": 2, **options})
    backbone = create_backbone(info).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


def full_softmax_rows(backbone, images: torch.Tensor) -> torch.Tensor:
    """What the model itself multiplies its values with when attention is not fused."""
    seen = []
    handles = []
    for block in backbone.vit.blocks:
        block.attn.fused_attn = False
        keep = block.attn.attn_drop.register_forward_hook(
            lambda m, a, out: seen.append(out[:, :, 0])
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
    patch = kind[1]
    for height, width in ((224, 224), (480 // patch * patch, 352 // patch * patch)):
        images = torch.randn(1, 3, height // patch * patch, width // patch * patch)
        assert all(block.attn.fused_attn for block in backbone.vit.blocks)
        rows = cls_rows(backbone, images)
        tokens = backbone.num_prefix_tokens + (height // patch) * (width // patch)
        assert rows.shape == (2, 1, backbone.num_heads, tokens)
        expected = full_softmax_rows(backbone, images)
        assert expected.max() > 4 / tokens  # not flat: a wrong rotation or norm would show
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)


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
