"""Rows of attention are exact: beside softmax(q k^T), made here from the weights in float64.

Each kind's formula is written out once more: the projection, DINOv3's rotation as a multiplication
of complex numbers, XCiT's class attention. Of the model only the input of each layer is taken.

Shape legend: N tokens (P of them prefix, h x w patches), C width, A heads, D head width, L layers.
"""

import math

import pytest
import torch
from torch import Tensor

from dino_core.models import ModelInfo, create_backbone
from dino_core.models.attention import cls_rows, token_rows

NARROW = {"depth": 2, "embed_dim": 96, "num_heads": 3}
KINDS = {
    "dino": ModelInfo("vit_small_patch16_224", 16, 224, options=NARROW),
    "registers": ModelInfo(
        "vit_small_patch14_reg4_dinov2", 14, 518, pos_embed="timm", options=NARROW
    ),
    "rope": ModelInfo("vit_small_patch16_dinov3", 16, 256, pos_embed="timm", options=NARROW),
    "xcit": ModelInfo("xcit_tiny_12_p16_224", 16, 224, options={"depth": 1, "embed_dim": 96}),
}
PREFIX = {"dino": 1, "registers": 5, "rope": 5, "xcit": 1}


def shaken(info: ModelInfo):
    """A backbone with no parameter at a value that hides a mistake, such as a bias of zero."""
    torch.manual_seed(3)
    backbone = create_backbone(info).freeze()
    for parameter in backbone.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def attention_of(backbone, images: Tensor, prefix: int) -> Tensor:
    """Every layer's full attention of one image, float64 [L, A, N, N]; XCiT: [L, A, 1, N]."""
    vit, patch = backbone.vit, backbone.patch_size
    blocks = getattr(vit, "cls_attn_blocks", vit.blocks)
    inputs: list[Tensor] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0]))
        for block in blocks
    ]
    with torch.no_grad():
        backbone(images)
    for hook in hooks:
        hook.remove()
    grid = [side // patch for side in images.shape[-2:]]
    rotation = "dinov3" in backbone.info.architecture
    layers = [
        softmax_qk(block.attn, x_NC.double(), grid, prefix, rotation=rotation)
        for block, x_NC in zip(blocks, inputs, strict=True)
    ]
    return torch.stack(layers)


def softmax_qk(attn, x_NC: Tensor, grid: list[int], prefix: int, *, rotation: bool) -> Tensor:
    """[A, N, N] of a self-attention, [A, 1, N] of a class attention, from its weights alone."""
    if hasattr(attn, "qkv"):
        query, key, _ = weights_and_bias(attn.qkv, 3)
        asking_MC = x_NC
    else:
        (query,), (key,) = weights_and_bias(attn.q, 1), weights_and_bias(attn.k, 1)
        asking_MC = x_NC[:1]
    heads = attn.num_heads
    q_AMD, k_AND = (
        (x @ weight.T + bias).unflatten(-1, (heads, -1)).transpose(0, 1)
        for x, (weight, bias) in ((asking_MC, query), (x_NC, key))
    )
    scale = q_AMD.shape[-1] ** -0.5
    if not rotation:
        return (q_AMD @ k_AND.mT * scale).softmax(dim=-1)
    turn = dinov3_turn(grid, prefix, q_AMD.shape[-1])
    q, k = (torch.complex(*x.chunk(2, dim=-1)) * turn for x in (q_AMD, k_AND))
    return ((q @ k.mH).real * scale).softmax(dim=-1)


def weights_and_bias(linear, parts: int) -> list[tuple[Tensor, Tensor]]:
    bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
    both = (linear.weight.double().chunk(parts), bias.double().chunk(parts))
    return list(zip(*both, strict=True))


def dinov3_turn(grid: list[int], prefix: int, width: int) -> Tensor:
    """exp(i angle), complex [N, D / 2]: 2 pi coordinate / period, in rows and then in columns.

    Coordinates are the patches' centers with the image as -1..1, periods 100 ** (4 j / D)
    (DINOv3, arXiv:2508.10104, and its published code); prefix tokens are not turned.
    """
    rows, columns = ((torch.arange(n).double() + 0.5) / n * 2 - 1 for n in grid)
    frequency = 2 * math.pi / 100 ** (4 * torch.arange(width // 4).double() / width)
    by_row = rows[:, None, None] * frequency.expand(1, grid[1], -1)
    by_column = columns[None, :, None] * frequency.expand(grid[0], 1, -1)
    patches = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    angles = torch.cat([torch.zeros(prefix, width // 2).double(), patches])
    return torch.polar(torch.ones_like(angles), angles)


@pytest.mark.parametrize("shape", [(224, 224), (480, 352)], ids=["224x224", "480x352"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_softmax_of_queries_and_keys(kind, shape):
    backbone, prefix = shaken(KINDS[kind]), PREFIX[kind]
    patch = backbone.patch_size
    h, w = (side // patch for side in shape)  # 476 x 350 for patches of 14 px
    images = torch.randn(1, 3, h * patch, w * patch)
    expected = attention_of(backbone, images, prefix)
    count = prefix + h * w
    assert expected.shape[-1] == count
    assert expected.max() > 4 / count  # not flat: a wrong key would show

    def assert_exact(rows: Tensor, token: int) -> None:
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows[:, 0].double(), expected[:, :, token], rtol=0, atol=1e-6)

    assert_exact(cls_rows(backbone, images), 0)
    if kind == "xcit":
        return
    for row, column in ((0, 0), (0, w - 1), (h // 2, w // 3), (h - 1, w - 1)):
        token = prefix + row * w + column
        neighbor = expected[:, :, token - 1]
        assert (expected[:, :, token] - neighbor).abs().max() > 1e-3  # a wrong query would show
        assert_exact(token_rows(backbone, images, token), token)
