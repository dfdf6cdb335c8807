"""Models for other programs: opened there, they give the same features; keys are the published."""

import functools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from dino_core.errors import UserError
from dino_core.models import (
    ModelInfo,
    ProjectionHead,
    create_backbone,
    load_model,
    save_weights,
    write_tensors,
)
from dino_core.models.attention import cls_rows
from dino_core.models.export import export_dino, export_onnx, export_timm, to_onnx
from dino_core.models.export.to_onnx import Traced
from dino_core.models.model import Model
from dino_core.models.pos_embed import resize_matrix
from dino_core.rng import torch_seed

ROOT = Path(__file__).resolve().parents[1]
SHORT = ModelInfo("vit_tiny_patch16_224", 8, 32, options={"depth": 2}, license="mit")
CONV = ModelInfo("resnet18", 1, 64, options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
XCIT = ModelInfo("xcit_tiny_12_p16_224", 16, 64, options={"depth": 1, "embed_dim": 64})
DINOV3 = ModelInfo(
    *("vit_small_patch16_dinov3", 16, 64),
    pos_embed="timm",
    options={"depth": 1, "init_values": 1.0},
)
REGISTERS = ModelInfo(
    *("vit_small_patch14_reg4_dinov2", 14, 56), pos_embed="timm", options={"depth": 1}
)

# What `torch.load("dino_deitsmall16_pretrain.pth")` lists, and MultiCropWrapper's head; written
# down here by name so that no code of ours decides what is published.
OF_A_BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"),
    *("attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias"),
    *("mlp.fc2.weight", "mlp.fc2.bias"),
)
BACKBONE_KEYS = [
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
    *(f"blocks.{index}.{name}" for index in range(12) for name in OF_A_BLOCK),
    *("norm.weight", "norm.bias"),
]
HEAD_KEYS = [
    *("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight", "mlp.4.bias"),
    *("last_layer.weight_g", "last_layer.weight_v"),
]
NETWORK_KEYS = {*(f"backbone.{k}" for k in BACKBONE_KEYS), *(f"head.{k}" for k in HEAD_KEYS)}


def model_of(info: ModelInfo) -> Model:
    torch.manual_seed(torch_seed(0, info.architecture))
    return Model(create_backbone(info), info.architecture, torch.device("cpu"))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run(tmp_path):
    """`runs/a` with one checkpoint of a ViT-T of the published depth, after 30 of 10-step epochs.

    Returns the states by (part, room).
    """
    folder = tmp_path / "runs" / "a" / "checkpoints" / "step-00000030"
    info = ModelInfo("vit_tiny_patch16_224", 16, 32)
    states = {}
    for part in ("student", "teacher"):
        torch.manual_seed(len(states))
        head = ProjectionHead(192, out_dim=40, hidden_dim=32, bottleneck_dim=16).state_dict()
        backbone = create_backbone(info).vit.state_dict()
        save_weights(folder / f"{part}.safetensors", info, backbone, head)
        states[part] = {f"backbone.{k}": t for k, t in backbone.items()}
        states[part] |= {f"head.{k}": t for k, t in head.items()}
    states["center"] = torch.rand(1, 40)
    write_tensors(folder / "optimizer.safetensors", {"center": states["center"]})
    (folder / "state.json").write_text('{"step": 30}')
    recipe = {"images": 105, "batch_size": 10}
    (tmp_path / "runs" / "a" / "recipe.json").write_text(json.dumps(recipe))
    return states


# -- timm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "info", [SHORT, CONV, XCIT, DINOV3, REGISTERS], ids=lambda i: i.architecture
)
def test_timm_opens_the_folder_to_the_same_features(tmp_path, info):
    model = model_of(info)
    export_timm(model, tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = noise(2, 3, info.image_size, info.image_size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), model.backbone(x), atol=1e-6, rtol=0)


def test_timm_from_the_weights_alone(tmp_path):
    model = model_of(SHORT)
    export_timm(model, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    arguments = json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]
    theirs = timm.create_model(
        "vit_tiny_patch16_224", checkpoint_path=str(path), num_classes=0, **arguments
    ).eval()
    with torch.no_grad():
        assert torch.equal(theirs(noise(1, 3, 32, 32)), model.backbone(noise(1, 3, 32, 32)))


def test_timm_is_told_how_images_are_prepared(tmp_path):
    channels = {"channels": 5, "mean": (0.1,) * 5, "std": (0.2,) * 5}
    info = ModelInfo(
        "vit_tiny_patch16_224", 8, 224, **channels, options={"depth": 1}, license="mit"
    )
    model = model_of(info)
    export_timm(model, tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    prepared = timm.data.resolve_model_data_config(theirs)
    assert prepared["input_size"] == (5, 224, 224)
    assert tuple(prepared["mean"]) == info.mean and tuple(prepared["std"]) == info.std
    assert prepared["interpolation"] == "bicubic" and prepared["crop_pct"] == 224 / 256
    assert theirs.pretrained_cfg["license"] == "mit"
    with torch.no_grad():
        x = noise(1, 5, 224, 224)
        torch.testing.assert_close(theirs(x), model.backbone(x), atol=1e-6, rtol=0)


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: is already there; choose a new folder"):
        export_timm(model_of(SHORT), tmp_path / "out")


# -- the published layout -------------------------------------------------------------------------


def read(path: Path):
    return torch.load(path, weights_only=True)


def test_a_run_is_the_published_full_checkpoint(tmp_path, run):
    path = tmp_path / "full.pth"
    export_dino("runs/a", path, tmp_path)
    content = read(path)
    assert list(content) == ["student", "teacher", "epoch", "args", "dino_loss"]
    assert content["student"].keys() == {f"module.{key}" for key in NETWORK_KEYS}
    assert content["teacher"].keys() == NETWORK_KEYS
    assert content["epoch"] == 3
    assert content["args"]["arch"] == "vit_tiny" and content["args"]["out_dim"] == 40
    assert content["dino_loss"].keys() == {"center"}
    assert torch.equal(content["dino_loss"]["center"], run["center"])
    for key in NETWORK_KEYS:
        assert torch.equal(content["student"][f"module.{key}"], run["student"][key])
        assert torch.equal(content["teacher"][key], run["teacher"][key])


def test_the_full_checkpoint_is_read_again(tmp_path, run):
    export_dino("runs/a@30", tmp_path / "full.pth", tmp_path)
    for part in ("student", "teacher"):
        ours = load_model(f"runs/a:{part}", device="cpu", root=tmp_path)
        again = load_model(f"full.pth:{part}", device="cpu", root=tmp_path)
        assert again.hash == ours.hash
        assert again.info == ours.info


def test_another_model_is_the_published_backbone(tmp_path, run):
    export_dino("runs/a:teacher", tmp_path / "backbone.pth", tmp_path)
    content = read(tmp_path / "backbone.pth")
    assert content.keys() == set(BACKBONE_KEYS)
    for key in BACKBONE_KEYS:
        assert torch.equal(content[key], run["teacher"][f"backbone.{key}"])


def test_resnet_keys_are_torchvision_s(tmp_path):
    from torchvision.models import resnet18

    info = ModelInfo("resnet18", 1, 64)
    save_weights(tmp_path / "a.safetensors", info, create_backbone(info).vit.state_dict())
    export_dino("a.safetensors", tmp_path / "a.pth", tmp_path)
    theirs = resnet18()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(read(tmp_path / "a.pth"))
    x = noise(2, 3, 70, 90)
    ours = load_model("a.pth", device="cpu", root=tmp_path).backbone
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours(x), atol=1e-5, rtol=1e-5)


def test_xcit_goes_out_and_comes_back(tmp_path):
    info = ModelInfo("xcit_tiny_12_p16_224", 16, 224, options={"depth": 1})
    save_weights(tmp_path / "a.safetensors", info, create_backbone(info).vit.state_dict())
    export_dino("a.safetensors", tmp_path / "a.pth", tmp_path)
    assert {"pos_embeder.token_projection.weight", "cls_attn_blocks.1.attn.qkv.weight"} <= read(
        tmp_path / "a.pth"
    ).keys()
    hashes = {load_model(f"a.{end}", device="cpu", root=tmp_path).hash
              for end in ("pth", "safetensors")}  # fmt: skip
    assert len(hashes) == 1


@pytest.mark.parametrize("info", [DINOV3, REGISTERS], ids=lambda i: i.architecture)
def test_what_dino_never_published_is_refused(tmp_path, info):
    save_weights(tmp_path / "a.safetensors", info, create_backbone(info).vit.state_dict())
    with pytest.raises(UserError, match=r"a\.safetensors: DINO was published with plain ViTs"):
        export_dino("a.safetensors", tmp_path / "a.pth", tmp_path)
    assert not (tmp_path / "a.pth").exists()


# -- ONNX -----------------------------------------------------------------------------------------


@pytest.fixture
def runtime():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.fixture
def traced(runtime, monkeypatch):
    """The ViT is traced once (seconds) for all tests here."""
    monkeypatch.setattr(to_onnx, "_traced", traced_once)


@functools.cache
def traced_vit():
    model = model_of(SHORT)
    images = noise(2, 3, 16, 40)
    model.backbone(images)
    return trace(Traced(model.backbone, fixed=False), images, to_onnx.OUTPUTS, fixed=False)


trace = to_onnx._traced


def traced_once(*args, **kwargs):
    return traced_vit()


@pytest.mark.soak
def test_onnx_at_sizes_it_was_not_checked_with(tmp_path, runtime, traced):
    """The published resampling included: at 24 x 56 px timm's would be 20 % off."""
    model = model_of(SHORT)
    path = tmp_path / "a.onnx"
    result = export_onnx(model, path)
    assert result.outputs == ("cls", "patch_tokens", "last_attention")
    assert result.sizes == ((32, 32), (16, 40)) and result.difference < 1e-5
    session = runtime.InferenceSession(path)
    for batch, height, width in ((3, 32, 32), (1, 24, 56), (2, 48, 8)):
        x = noise(batch, 3, height, width)
        cls, patches, attention = session.run(None, {"images": x.numpy()})
        tokens = model.backbone.tokens(x)
        np.testing.assert_allclose(cls, tokens[:, 0], atol=1e-5)
        np.testing.assert_allclose(patches, tokens[:, 1:], atol=1e-5)
        np.testing.assert_allclose(attention, cls_rows(model.backbone, x)[-1], atol=1e-6)
    described = session.get_modelmeta().custom_metadata_map
    assert ModelInfo.from_metadata(described) == SHORT


@pytest.mark.soak
@pytest.mark.parametrize("info", [DINOV3, REGISTERS, CONV], ids=lambda i: i.architecture)
def test_onnx_of_other_families(tmp_path, runtime, info):
    result = export_onnx(model_of(info), tmp_path / "a.onnx")
    assert result.difference < 1e-4
    assert len(result.outputs) == (2 if info is CONV else 3)


def test_onnx_at_one_size(tmp_path, runtime):
    model = model_of(XCIT)
    with pytest.raises(UserError, match="cannot be written for every size; give the one"):
        export_onnx(model, tmp_path / "a.onnx")
    assert export_onnx(model, tmp_path / "a.onnx", size=32).sizes == ((32, 32),)
    (given,) = runtime.InferenceSession(tmp_path / "a.onnx").get_inputs()
    assert given.shape[1:] == [3, 32, 32]


@pytest.mark.soak
def test_onnx_that_differs_is_not_kept(tmp_path, traced):
    """Here of other weights in one place: what was traced has an attention of its own."""
    model = model_of(SHORT)
    with torch.no_grad():
        model.backbone.vit.blocks[-1].attn.qkv.weight.mul_(1.05)
    with pytest.raises(UserError, match=r"at 32 x 32 px the ONNX model's \w+ is off by \d"):
        export_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnx_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"ONNX needs onnxruntime: install with pip install"):
        export_onnx(model_of(SHORT), tmp_path / "a.onnx")


@pytest.mark.parametrize("mode", ["dino", "timm"])
def test_the_arithmetic_of_resizing_is_torch_s(mode):
    for native in (1, 2, 4, 14, 37):
        for wanted in (1, 2, 3, 6, 14, 30, 61):
            ours, same = to_onnx.resize_matrix(native, torch.arange(wanted), mode)
            theirs = resize_matrix(native, wanted, mode, torch.device("cpu"))
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
            assert bool(same) is (native == wanted)


# -- the script -----------------------------------------------------------------------------------


def test_the_script(tmp_path, run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["export.py", "--model", "runs/a", "--to", "dino", "--out", "out.pth"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
    assert "student, teacher, epoch, args, dino_loss" in capsys.readouterr().out
    assert (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda path: export_dino("starter", path / "a"), "let its name end in .pth"),
        (lambda path: export_onnx(model_of(SHORT), path / "a"), "let its name end in .onnx"),
    ],
)
def test_a_file_is_named_as_one(tmp_path, call, said):
    with pytest.raises(UserError, match=said):
        call(tmp_path)
