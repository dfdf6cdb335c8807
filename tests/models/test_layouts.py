"""Files in the layouts that other families were published in, made from timm's tensors.

Where timm can read a layout itself, what we make of it must be what timm makes of it.
"""

import re

import pytest
import torch
from timm.models import convnext as timm_convnext
from timm.models import eva as timm_eva
from timm.models import xcit as timm_xcit

from dino_core.errors import UserError
from dino_core.models import ModelInfo, create_backbone, load_model, read_weights
from dino_core.models.layouts import xcit
from dino_core.models.published import infer_info

XCIT = ModelInfo("xcit_tiny_12_p8_224", 8, 224, options={"depth": 2})
RESNET = ModelInfo("resnet50", 1, 224, options={"layers": [1, 1, 1, 1]})
CONVNEXT = ModelInfo(
    "convnext_tiny", 1, 224, options={"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64]}
)
DINOV3 = ModelInfo("vit_small_patch16_dinov3", 16, 256, pos_embed="timm", options={"depth": 2})
BIASED = ModelInfo("vit_small_patch16_dinov3_qkvb", 16, 256, pos_embed="timm", options={"depth": 2})
GATED = ModelInfo("vit_small_plus_patch16_dinov3", 16, 256, pos_embed="timm", options={"depth": 1})
KNOWN = [XCIT, RESNET, CONVNEXT, DINOV3, BIASED, GATED]


def net_of(info):
    """timm's module with every tensor random: fresh ones hold many zeros, equal to one another."""
    torch.manual_seed(0)
    net = create_backbone(info).vit
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.1)
    return net


def published_xcit(state):
    result = {}
    for key, tensor in state.items():
        if re.match(r"cls_attn_blocks\.\d+\.attn\.[qkv]\.", key):
            if ".q." in key:
                parts = [state[key.replace(".q.", f".{c}.")] for c in "qkv"]
                result[key.replace(".q.", ".qkv.")] = torch.cat(parts)
        else:
            result[key.replace("pos_embed.", "pos_embeder.")] = tensor
    return result


def published_convnext(state):
    result = {}
    for key, tensor in state.items():
        key = key.replace("stem.", "downsample_layers.0.")
        key = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        result[key.replace("head.norm.", "norm.")] = tensor
    return result | {f"norms.3.{k}": result[f"norm.{k}"] for k in ("weight", "bias")}


def published_dinov3(state, chunks=False):
    result = {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    periods = 100.0 ** (2 * torch.arange(16) / 32)
    result["rope_embed.periods"] = periods.bfloat16()
    for key, tensor in state.items():
        key = key.replace("reg_token", "storage_tokens")
        key = re.sub(r"gamma_(\d)", r"ls\1.gamma", key)
        key = key.replace("fc1_g", "w1").replace("fc1_x", "w2")
        key = key.replace("fc2", "w3") if "blocks.0.mlp.fc1_g.weight" in state else key
        key = re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", key) if chunks else key
        if key.endswith("v_bias"):
            continue
        if key.endswith("q_bias"):
            v = state[
                key.replace("q_bias", "v_bias").replace("blocks.0.", "blocks.")
                if chunks
                else key.replace("q_bias", "v_bias")
            ]
            key = key.replace("q_bias", "qkv.bias")
            tensor = torch.cat([tensor, torch.zeros_like(v), v])
            ones = torch.ones_like(v)
            result[f"{key}_mask"] = torch.cat([ones, ones * 0, ones])
        result[key] = tensor
    return result


PUBLISHED = {
    "XCiT": (XCIT, published_xcit, timm_xcit),
    "ResNet": (RESNET, dict, None),
    "ConvNeXt": (CONVNEXT, published_convnext, timm_convnext),
    "DINOv3": (DINOV3, published_dinov3, timm_eva),
    "DINOv3, biases": (BIASED, published_dinov3, timm_eva),
    "DINOv3, gated": (GATED, published_dinov3, timm_eva),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_file_is_read(tmp_path, family, same_state):
    info, published, timm_module = PUBLISHED[family]
    net = net_of(info)
    torch.save(published(net.state_dict()), tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth", device="cpu")
    assert model.info == info
    assert same_state(model.backbone.vit.state_dict(), net.state_dict())
    x = torch.rand(1, 3, 32, 48)
    assert model.backbone(x).shape == (1, model.backbone.embed_dim)
    if timm_module is not None:
        theirs = timm_module.checkpoint_filter_fn(published(net.state_dict()), net)
        assert same_state(read_weights(tmp_path / "a.pth").backbone, theirs)


@pytest.mark.parametrize("info", KNOWN, ids=lambda info: info.architecture)
def test_timm_s_own_layout_is_read(tmp_path, info, same_state):
    net = net_of(info)
    torch.save({"teacher": {f"module.backbone.{k}": t for k, t in net.state_dict().items()}},
               tmp_path / "a.pth")  # fmt: skip
    weights = read_weights(tmp_path / "a.pth")
    assert weights.info == info
    assert same_state(weights.backbone, net.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"),
        *("convnext_tiny", "convnext_small", "convnext_base"),
        *("xcit_nano_12_p16_224", "xcit_tiny_24_p16_224", "xcit_small_12_p8_224"),
        *("xcit_medium_24_p16_224", "vit_large_patch16_dinov3", "vit_huge_plus_patch16_dinov3"),
    ],
)
def test_published_sizes_need_no_option(name, tmp_path):
    patch = 1 if name.startswith(("convnext", "resnet", "wide")) else 8 if "_p8_" in name else 16
    size, mode = (256, "timm") if "dinov3" in name else (224, "dino")
    info = ModelInfo(name, patch, size, pos_embed=mode)
    with torch.device("meta"):
        state = create_backbone(info).vit.state_dict()
    assert infer_info(state, "a") == info


def test_classifiers_are_left_out(tmp_path, same_state):
    for info, extra in ((RESNET, "fc.weight"), (XCIT, "head.bias")):
        net = net_of(info)
        torch.save(net.state_dict() | {extra: torch.zeros(10)}, tmp_path / "a.pth")
        assert same_state(read_weights(tmp_path / "a.pth").backbone, net.state_dict())


def test_training_checkpoints_of_dinov2_and_v3(tmp_path, same_state):
    """In chunks of blocks, beside the heads of two losses."""
    net = net_of(BIASED)
    backbone = published_dinov3(net.state_dict(), chunks=True)
    teacher = {f"backbone.{key}": tensor for key, tensor in backbone.items()}
    teacher |= {
        "dino_head.last_layer.weight": torch.zeros(2),
        "ibot_head.mlp.0.bias": torch.ones(1),
    }
    torch.save({"teacher": teacher}, tmp_path / "a.pth")
    assert same_state(read_weights(tmp_path / "a.pth").backbone, net.state_dict())


def test_the_way_back_of_xcit(same_state):
    state = net_of(XCIT).state_dict()
    assert same_state(xcit.to_published(state), published_xcit(state))


@pytest.mark.parametrize(
    ("info", "published", "change", "said"),
    [
        (XCIT, published_xcit, {"stranger": torch.zeros(1)}, "unknown: stranger"),
        (RESNET, dict, {"layer1.0.se.fc1.weight": torch.zeros(1)}, "unknown: layer1.0.se.fc1"),
        (DINOV3, published_dinov3, {"stranger": torch.zeros(1)}, "unknown: stranger"),
        (DINOV3, published_dinov3, {"rope_embed.periods": torch.ones(16)}, "rotary periods"),
        (BIASED, published_dinov3, {"blocks.0.attn.qkv.bias": torch.ones(1152),
                                    "blocks.0.attn.qkv.bias_mask": torch.ones(1152)},
         "moves the attention keys"),
        (RESNET, dict, {"layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)}, "or with groups"),
    ],
)  # fmt: skip
def test_strict(tmp_path, info, published, change, said):
    torch.save(published(net_of(info).state_dict()) | change, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"a\.pth: .*{said}"):
        load_model(tmp_path / "a.pth", device="cpu")


def test_a_missing_key_is_named(tmp_path):
    state = published_xcit(net_of(XCIT).state_dict())
    del state["cls_attn_blocks.1.attn.proj.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"missing: cls_attn_blocks\.1\.attn\.proj\.bias"):
        load_model(tmp_path / "a.pth", device="cpu")
