"""XCiT, ResNet and ConvNeXt behind the adapter: timm's own features, grids, attention, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from dino_core.errors import UserError
from dino_core.lenses.attention import look, plan
from dino_core.models import ModelInfo, create_backbone, has_patches, load_model, save_weights
from dino_core.models.attention import cls_rows
from dino_core.models.model import Model, untrained

XCIT = ModelInfo("xcit_tiny_12_p16_224", 16, 32, options={"depth": 1, "embed_dim": 64})
RESNET = ModelInfo("resnet18", 1, 32, options={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]})
DEEP = ModelInfo("resnet50d", 1, 32, options={"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]})
CONVNEXT = ModelInfo(
    "convnext_tiny", 1, 32, options={"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
)
FIRST_NORM = ModelInfo("convnext_tiny_hnf", 1, 32, options=CONVNEXT.options)
ALL = [XCIT, RESNET, DEEP, CONVNEXT, FIRST_NORM]
CONVOLUTIONAL = ALL[1:]


def architecture(info):
    return info.architecture


@pytest.mark.parametrize("info", ALL, ids=architecture)
def test_timm_s_own_feature(info):
    torch.manual_seed(0)
    backbone = create_backbone(info).freeze()
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(backbone(x), backbone.vit(x), atol=1e-6, rtol=0)
    rows, columns = backbone.grid(64, 96)
    assert backbone.tokens(x).shape == (2, 1 + rows * columns, backbone.embed_dim)
    assert torch.equal(backbone.intermediate(x, 1)[0], backbone.tokens(x))


@pytest.mark.parametrize("info", CONVOLUTIONAL, ids=architecture)
@pytest.mark.parametrize(("height", "width"), [(33, 64), (95, 63), (32, 129)])
def test_any_size_fits_a_convolutional_network(info, height, width):
    backbone = create_backbone(info).freeze()
    rows, columns = backbone.grid(height, width)
    assert backbone.tokens(torch.randn(1, 3, height, width)).shape[1] == 1 + rows * columns


def test_the_mean_of_a_resnet_s_cells_is_its_feature():
    backbone = create_backbone(RESNET).freeze()
    tokens = backbone.tokens(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(tokens[:, 1:].mean(dim=1), tokens[:, 0])


def test_too_small_for_convnext():
    with pytest.raises(UserError, match="31 x 64 px is too small for convnext_tiny; enlarge"):
        create_backbone(CONVNEXT).grid(31, 64)


def test_patches():
    assert has_patches("vit_small_patch16_224") and has_patches("xcit_small_12_p8_224")
    assert not has_patches("resnet50") and not has_patches("convnext_tiny")
    with pytest.raises(UserError, match="resnet18: a convolutional network has no patches; set"):
        create_backbone(ModelInfo("resnet18", 16, 32))
    with pytest.raises(UserError, match="XCiT has patches of 8 or 16 px, not of 4"):
        create_backbone(ModelInfo("xcit_tiny_12_p16_224", 4, 32))
    with pytest.raises(UserError, match="40 x 48 px is not made of whole patches of 16 px"):
        create_backbone(XCIT)(torch.zeros(1, 3, 40, 48))


def test_class_attention_of_xcit_is_the_full_softmax():
    torch.manual_seed(0)
    backbone = create_backbone(XCIT).freeze()
    x = torch.randn(2, 3, 32, 48)
    rows = cls_rows(backbone, x)
    assert rows.shape == (2, 2, 4, 1 + 6)
    assert (backbone.depth, backbone.num_heads) == (2, 4)
    seen = []
    for block in backbone.vit.cls_attn_blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda m, args, output: seen.append(output))
    backbone(x)
    torch.testing.assert_close(rows, torch.stack(seen)[:, :, :, 0], atol=1e-6, rtol=0)


def test_more_layers_than_know_the_class_token():
    with pytest.raises(UserError, match="its class token exists in the last 2 layers only, so 4"):
        create_backbone(XCIT).intermediate(torch.zeros(1, 3, 32, 32), 4)
    with pytest.raises(UserError, match="a convolutional network has one feature"):
        create_backbone(RESNET).intermediate(torch.zeros(1, 3, 32, 32), 2)


def test_the_lens():
    image = np.zeros((50, 70, 3), np.uint8)
    xcit = Model(create_backbone(XCIT), "x", torch.device("cpu"))
    assert look(xcit, image, size=48).maps.shape == (2, 4, 3, 4)
    for info in (RESNET, CONVNEXT):
        conv = Model(create_backbone(info), "c", torch.device("cpu"))
        with pytest.raises(UserError, match="has no class token and no attention to show"):
            plan(conv, 50, 70)


@pytest.mark.parametrize("info", [XCIT, RESNET], ids=architecture)
def test_batch_norm_is_frozen_with_the_rest_and_saved(info, tmp_path, same_state):
    torch.manual_seed(0)
    trained = create_backbone(info).train()
    trained(torch.randn(4, 3, 32, 32) + 1)
    norms = [m for m in trained.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    save_weights(tmp_path / "a.safetensors", info, trained.vit.state_dict())
    model = load_model(tmp_path / "a.safetensors", device="cpu")
    assert same_state(model.backbone.vit.state_dict(), trained.vit.state_dict())
    model.backbone(torch.randn(4, 3, 32, 32))
    assert same_state(model.backbone.vit.state_dict(), trained.vit.state_dict())


def test_published_initialization():
    resnet = create_backbone(RESNET).vit
    assert all((m.weight == 1).all() for m in resnet.modules() if isinstance(m, nn.BatchNorm2d))
    xcit = create_backbone(XCIT).vit
    assert 0.015 < xcit.blocks[0].attn.qkv.weight.std() < 0.025
    assert 0.015 < xcit.cls_token.std() < 0.025


def test_drop_path_reaches_every_family():
    x = torch.randn(16, 3, 32, 32)
    for info in (XCIT, RESNET, CONVNEXT):
        backbone = create_backbone(info, drop_path_rate=0.5).train()
        assert not torch.equal(backbone(x), backbone(x)), info.architecture


def test_options_of_another_family_are_refused():
    with pytest.raises(UserError, match="resnet18: unknown option depth; there are: base_width"):
        create_backbone(ModelInfo("resnet18", 1, 32, options={"depth": 2}))


# -- channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channels_end_to_end(tmp_path, channels):
    """Uint8 [H, W, C] in, saved and loaded, looked at; each channel is prepared by itself."""
    mean, std = tuple(np.linspace(0.2, 0.6, channels)), tuple(np.linspace(0.1, 0.3, channels))
    options = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    info = ModelInfo("vit_tiny_patch16_224", 8, 16, channels, mean, std, options=options)
    backbone = create_backbone(info)
    save_weights(tmp_path / "a.safetensors", info, backbone.vit.state_dict())
    model = load_model(tmp_path / "a.safetensors", device="cpu")
    assert model.info == info
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8)
    x = model.preprocess(image)
    assert x.shape == (channels, 16, 16)
    assert model.backbone(x[None]).shape == (1, 48)
    assert look(model, image, size=24).maps.shape == (1, 3, 3, 4)
    assert untrained(model).info == info

    gray = ModelInfo("vit_tiny_patch16_224", 8, 16, 1, mean[-1:], std[-1:], options=options)
    alone = Model(create_backbone(gray), "gray", torch.device("cpu"))
    assert torch.equal(alone.preprocess(image[..., -1:])[0], x[-1])


def test_three_channels_are_what_they_are_by_themselves():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    color = Model(create_backbone(XCIT), "x", torch.device("cpu")).preprocess(image)
    gray = ModelInfo("resnet18", 1, 32, 1, XCIT.mean[:1], XCIT.std[:1], options=RESNET.options)
    alone = Model(create_backbone(gray), "gray", torch.device("cpu"))
    assert torch.equal(alone.preprocess(image[..., :1])[0], color[0])


def test_an_image_of_other_channels_is_refused():
    model = Model(create_backbone(RESNET), "r", torch.device("cpu"))
    with pytest.raises(UserError, match="an image of 8 x 8 x 4 for a model of 3 channels"):
        model.preprocess(np.zeros((8, 8, 4), np.uint8))
