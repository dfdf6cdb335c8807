"""The packed pass against its plain twin, the backbone size by size."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dino_core.models import ModelInfo, create_backbone
from dino_core.models.packed import can_pack, class_tokens, packed_block

SIZES = ((2, 32), (5, 16))  # images and pixels: two global views, five local ones
REGISTERS = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}


@pytest.fixture
def views():
    random = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, size, size, generator=random) for n, size in SIZES]


def backbone_of(drop_path: float = 0.0, **options):
    torch.manual_seed(3)
    info = ModelInfo("vit_tiny_patch16_224", 8, 32, options={"depth": 3, **options})
    return create_backbone(info, drop_path_rate=drop_path)


def plainly(backbone, views):
    return torch.cat([backbone(images) for images in views])


def gradients(backbone, loss):
    loss.backward()
    found = {name: p.grad.clone() for name, p in backbone.named_parameters()}
    backbone.zero_grad()
    return found


@pytest.mark.parametrize("options", [{}, REGISTERS, {"qkv_bias": False}])
def test_features_and_gradients_are_those_of_the_backbone(views, options):
    backbone = backbone_of(**options)
    assert can_pack(backbone)
    packed, plain = class_tokens(backbone, views), plainly(backbone, views)
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=2e-6)
    weights = torch.randn_like(plain)
    ours = gradients(backbone, (packed * weights).sum())
    theirs = gradients(backbone, (plain * weights).sum())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_all_blocks_but_the_last_give_the_same_bits(views):
    backbone = backbone_of()
    embedded = [backbone.embed(images)[0] for images in views]
    sizes = tuple((x.shape[0], x.shape[1]) for x in embedded)
    packed, plain = torch.cat([x.flatten(0, 1) for x in embedded]), embedded
    for block in backbone.vit.blocks:
        packed = packed_block(block, packed, sizes, None, torch.float32)
        plain = [block(x) for x in plain]
    assert torch.equal(packed, torch.cat([x.flatten(0, 1) for x in plain]))


def test_drop_path_leaves_out_the_same_branches(views):
    backbone = backbone_of(drop_path=0.5)
    torch.manual_seed(7)
    plain = plainly(backbone, views)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    packed = class_tokens(backbone, views)
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=2e-6)
    assert torch.equal(after, torch.get_rng_state())  # as many numbers drawn
    torch.manual_seed(8)
    assert not torch.allclose(class_tokens(backbone, views), plain, atol=1e-3)
    backbone.eval()
    torch.testing.assert_close(
        class_tokens(backbone, views), plainly(backbone, views), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize(("residual", "within"), [(torch.float32, 0.02), (torch.bfloat16, 0.05)])
def test_half_precision_stays_near_full(views, residual, within):
    backbone = backbone_of()
    full = plainly(backbone, views)
    with torch.autocast("cpu", torch.bfloat16):
        half = class_tokens(backbone, views, residual)
    assert half.dtype == torch.float32
    relative = (half - full).norm() / full.norm()
    assert 1e-5 < relative < within
    ours = gradients(backbone, half.square().sum())
    theirs = gradients(backbone, full.square().sum())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 0.15 * gradient.norm() + 1e-3, name


def test_one_graph_serves_every_block(views):
    """However many blocks, each with another drop path rate: timm's own forward makes one each."""
    backbone = backbone_of(drop_path=0.3, depth=12)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(packed_block, backend=counter, dynamic=False)
    plain = copy.deepcopy(backbone)
    for _ in range(2):
        torch.manual_seed(5)
        packed = class_tokens(backbone, views, block_function=compiled)
    torch.manual_seed(5)
    torch.testing.assert_close(packed, plainly(plain, views), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2  # the first block has no drop path, the others share a graph


@pytest.mark.parametrize(
    "info",
    [
        ModelInfo("xcit_nano_12_p8_224", 8, 32),
        ModelInfo("resnet10t", 1, 32),
        ModelInfo("vit_small_patch16_dinov3", 16, 32, options={"depth": 2}),
        ModelInfo("vit_tiny_patch16_224", 8, 32, options={"depth": 2, "qk_norm": True}),
    ],
)
def test_other_backbones_are_not_packed(info):
    assert not can_pack(create_backbone(info))
