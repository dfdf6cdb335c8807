"""`timm:NAME` without a network: from a cache in the hub's own layout, or one quick sentence."""

import socket
import time

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from dino_core.errors import UserError
from dino_core.models import ModelInfo, create_backbone, load_model, pretrained
from dino_core.models.pretrained import pretrained_info


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and any connection elsewhere is an error."""

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tmp_path


def put(cache, name, state):
    """The hub's layout: a snapshot folder, and a reference that points to it."""
    folder = cache / f"models--timm--{name}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors", {"format": "pt"})


def random_state(info):
    """Weights of the right shapes; drawing a real initialization takes ten times as long."""
    with torch.device("meta"):
        shapes = create_backbone(info).vit.state_dict()
    return {name: torch.rand(tensor.shape) for name, tensor in shapes.items()}


@pytest.mark.parametrize(
    ("name", "info"),
    [
        (
            "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
            ModelInfo(
                "vit_tiny_patch16_dinov3_qkvb",
                16,
                256,
                pos_embed="timm",
                license="fair-noncommercial-research-license",
            ),
        ),
        (
            "vit_small_patch16_224.dino",
            ModelInfo("vit_small_patch16_224", 16, 224, pos_embed="dino", license="apache-2.0"),
        ),
    ],
)
def test_from_the_cache(cache, name, info, same_state):
    state = random_state(info)
    put(cache, name, state)
    model = load_model(f"timm:{name}", device="cpu")
    assert model.info == info
    assert same_state(model.backbone.vit.state_dict(), state)
    assert model.describe()["license"] == info.license


def test_the_classifier_is_left_out(cache):
    info = ModelInfo("vit_tiny_patch16_224", 16, 224)
    state = random_state(info)
    classifier = {"head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}
    put(cache, "vit_tiny_patch16_224.augreg_in21k", state | classifier)
    model = load_model("timm:vit_tiny_patch16_224.augreg_in21k", device="cpu")
    assert model.info.mean == (0.5, 0.5, 0.5)
    assert model.info.pos_embed == "timm"


def test_what_does_not_fit_is_listed(cache):
    put(
        cache,
        "vit_small_patch16_224.dino",
        {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)},
    )
    with pytest.raises(UserError, match=r"timm:vit_small_patch16_224\.dino: .* missing: cls_token"):
        load_model("timm:vit_small_patch16_224.dino", device="cpu")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("vit_base_patch8_224.dino", "dino"),
        ("vit_small_patch14_dinov2.lvd142m", "dino"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "timm"),
        ("vit_small_patch16_224.augreg_in21k", "timm"),
    ],
)
def test_position_embedding_mode_is_the_weights_own(name, mode):
    architecture = name.partition(".")[0]
    assert (
        pretrained_info(
            architecture, get_pretrained_cfg(name), 14 if "dinov2" in name else 8
        ).pos_embed
        == mode
    )


@pytest.mark.parametrize("told", [False, True])
def test_offline_is_one_quick_sentence(cache, monkeypatch, told):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", told)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"timm:vit_small_patch8_224\.dino: not in the cache, and "
    ) as raised:
        load_model("timm:vit_small_patch8_224.dino", device="cpu")
    assert time.monotonic() - began < 10 * pretrained.PATIENCE
    assert "\n" not in str(raised.value)


def test_a_silent_server_is_given_up(cache, monkeypatch):
    """One that takes the connection and never answers, as behind some firewalls."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(UserError, match=f"{address} is out of reach"):
            load_model("timm:vit_small_patch8_224.dino", device="cpu")


def test_a_failed_download_is_a_sentence(cache, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("401 Unauthorized\nlong story")

    monkeypatch.setattr(pretrained, "_answers", lambda address: True)
    monkeypatch.setattr(pretrained, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"the download failed \(401 Unauthorized\)"):
        load_model("timm:vit_small_patch8_224.dino", device="cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_small_patch16_224.dinosaur", r"there are: .*vit_small_patch16_224\.dino"),
        ("vit_nowhere_patch16", "timm has no model of this name"),
        ("swin_tiny_patch4_window7_224", "made for images of one size"),
        ("vit_small_patch32_224.dino", "no pretrained weights of this name"),
    ],
)
def test_names(cache, name, said):
    with pytest.raises(UserError, match=said):
        load_model(f"timm:{name}", device="cpu")
