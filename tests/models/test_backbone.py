"""The adapter: published numbers at every size, timm's own tokens, sizes, freezing, refusals."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_core.errors import UserError
from dino_core.models import Backbone, ModelInfo, create_backbone, load_strictly

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "backbone.npz")
SIZES = [tuple(size) for size in GOLDEN["sizes"].tolist()]


def wave(shape: tuple[int, ...], k: float = 0.0) -> torch.Tensor:
    i = np.arange(np.prod(shape), dtype=np.float64)
    values = np.sin(0.37 * i + k) * np.cos(0.011 * i + 2 * k)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


@pytest.fixture(scope="module")
def golden() -> Backbone:
    options = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    backbone = create_backbone(ModelInfo("vit_tiny_patch16_224", 16, 224, options=options))
    names = [name for name in GOLDEN if name.startswith("state.")]
    state = {name.removeprefix("state."): torch.from_numpy(GOLDEN[name]) for name in names}
    load_strictly(backbone.vit, state, "golden")
    return backbone.freeze()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_published_numbers(golden, height, width):
    name = f"{height}x{width}"
    grid = golden.grid(height, width)
    np.testing.assert_allclose(
        golden.pos_embed(grid), GOLDEN[f"posembed_{name}"], rtol=0, atol=1e-6
    )
    cls = golden(wave((1, 3, height, width)))
    np.testing.assert_allclose(cls, GOLDEN[f"cls_{name}"], rtol=0, atol=1e-5)


def test_published_last_two_blocks(golden):
    layers = torch.stack(golden.intermediate(wave((1, 3, 224, 224)), 2))
    np.testing.assert_allclose(layers, GOLDEN["layers_224x224"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "patch", "prefix"),
    [
        ("vit_tiny_patch16_224", 16, 1),
        ("vit_small_patch14_dinov2", 14, 1),
        ("vit_small_patch14_reg4_dinov2", 14, 5),
        ("vit_small_patch16_dinov3", 16, 5),
    ],
)
def test_timms_own_tokens(architecture, patch, prefix):
    """With timm's resampling, timm's forward pass; so the adapter leaves out no step of it."""
    info = ModelInfo(architecture, patch, 4 * patch, pos_embed="timm", options={"depth": 2})
    backbone = create_backbone(info).freeze()
    x = wave((2, 3, 5 * patch, 3 * patch))
    assert backbone.num_prefix_tokens == prefix
    assert backbone.tokens(x).shape == (2, prefix + 15, backbone.embed_dim)
    torch.testing.assert_close(
        backbone.tokens(x), backbone.vit.forward_features(x), atol=2e-6, rtol=0
    )
    assert torch.equal(backbone(x), backbone.tokens(x)[:, 0])
    assert torch.equal(backbone.intermediate(x, 2)[-1], backbone.tokens(x))


def test_the_final_norm_comes_before_the_class_token_of_dinov3():
    """timm averages DINOv3 by default; the adapter must not, nor move the norm behind a pool."""
    backbone = create_backbone(ModelInfo("vit_small_patch16_dinov3", 16, 32, options={"depth": 1}))
    norms = backbone(wave((3, 3, 32, 48)))
    torch.testing.assert_close(norms.mean(dim=-1), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch", [4, 5, 8, 14, 16])
def test_any_patch_and_native_size(patch):
    options = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    backbone = create_backbone(
        ModelInfo("vit_small_patch16_224", patch, 3 * patch, options=options)
    )
    assert backbone.tokens(wave((1, 3, 2 * patch, 5 * patch))).shape == (1, 11, 48)


def test_other_channels():
    options = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    info = ModelInfo(
        "vit_tiny_patch16_224", 8, 16, channels=2, mean=(0.5,) * 2, std=(1.0,) * 2, options=options
    )
    assert create_backbone(info)(wave((1, 2, 16, 16))).shape == (1, 48)


def test_published_initialization(plain):
    vit = plain.vit
    for tensor in (vit.cls_token, vit.pos_embed, vit.blocks[0].attn.qkv.weight):
        assert 0.015 < tensor.std() < 0.025
    assert not vit.blocks[0].attn.qkv.bias.any()


def test_same_seed_same_weights(plain, same_state):
    torch.manual_seed(1)
    assert same_state(create_backbone(plain.info).vit.state_dict(), plain.vit.state_dict())


def test_state_dict_is_that_of_timm(plain):
    names = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight"}
    assert names <= plain.vit.state_dict().keys()
    assert {f"vit.{name}" for name in plain.vit.state_dict()} == plain.state_dict().keys()


def test_drop_path_is_the_trained_networks_only(tiny):
    torch.manual_seed(0)
    x = wave((16, 3, 32, 32))
    student = create_backbone(tiny.info, drop_path_rate=0.5).train()
    student.vit.load_state_dict(tiny.vit.state_dict())
    tiny.train()
    assert torch.equal(tiny(x), tiny(x))
    assert not torch.equal(student(x), student(x))


def test_training_several_sizes_reaches_every_parameter(tiny):
    loss = sum(tiny(wave((2, 3, size, size))).square().sum() for size in (32, 16))
    loss.backward()
    assert all(p.grad is not None for p in tiny.parameters())
    assert tiny.vit.pos_embed.grad.abs().sum(dim=-1).min() > 0


def test_a_trained_backbone_does_not_keep_position_embeddings(tiny):
    """The teacher changes without gradients, so no gradient is no reason to remember."""
    tiny.requires_grad_(False).eval()
    before = tiny.pos_embed((2, 2)).clone()
    with torch.no_grad():
        tiny.vit.pos_embed.data += 1
    torch.testing.assert_close(tiny.pos_embed((2, 2)), before + 1)


def test_a_frozen_backbone_keeps_them(tiny):
    frozen = copy.deepcopy(tiny).freeze()
    x = wave((1, 3, 16, 24))
    assert frozen.pos_embed((2, 3)) is frozen.pos_embed((2, 3))
    assert torch.equal(frozen(x), tiny.eval()(x))
    with torch.inference_mode():
        frozen(wave((1, 3, 24, 16)))
    image = wave((1, 3, 24, 16)).requires_grad_()  # saliency: what inference kept must serve here
    frozen(image).sum().backward()
    assert image.grad.any()


def test_autocast(tiny):
    x = wave((2, 3, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        features = tiny(x)
    torch.testing.assert_close(features.float(), tiny(x), atol=0.1, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(33, 32), (32, 31), (0, 32)])
def test_part_of_a_patch_is_refused(tiny, height, width):
    with pytest.raises(
        UserError, match=rf"{height} x {width} px is not made of whole patches of 8"
    ):
        tiny.grid(height, width)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("swin_tiny_patch4_window7_224", "made for images of one size, and DINO's crops come in"),
        ("efficientnet_b0", "not of a family that is known here; choose a ViT, XCiT, ResNet or"),
    ],
)
def test_other_families_are_refused(name, said):
    with pytest.raises(UserError, match=f"{name}: {said}"):
        create_backbone(ModelInfo(name, 16, 224))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "deit_tiny_distilled_patch16_224"])
def test_vits_with_another_first_token_are_refused(name):
    with pytest.raises(UserError, match=name):
        create_backbone(ModelInfo(name, 16, 32, options={"depth": 1}))


def test_a_misspelled_name_gets_a_hint():
    with pytest.raises(UserError, match="near: vit_small_patch16_224"):
        create_backbone(ModelInfo("vit_smal_patch16_224", 16, 224))


def test_an_impossible_option_is_a_sentence():
    with pytest.raises(UserError, match="timm cannot build it so"):
        create_backbone(ModelInfo("vit_tiny_patch16_224", 16, 32, options={"num_heads": 5}))


@pytest.mark.parametrize("option", ["num_haeds", "checkpoint_path", "pretrained", "pretrained_cfg"])
def test_a_description_may_not_make_timm_load_files(option):
    with pytest.raises(UserError, match=f"unknown option {option}; there are: depth"):
        create_backbone(ModelInfo("vit_tiny_patch16_224", 16, 32, options={option: "x.pth"}))
