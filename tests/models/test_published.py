"""What the shapes of published weights tell, and DINOv2's names brought to timm's."""

import pytest
import torch

from dino_core.errors import UserError
from dino_core.models import ModelInfo, create_backbone
from dino_core.models.published import infer_info, to_timm_layout


def state_of(info: ModelInfo):
    torch.manual_seed(0)
    return create_backbone(info).vit.state_dict()


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_published_depths_need_no_option(size):
    with torch.device("meta"):
        state = state_of(ModelInfo(f"vit_{size}_patch16_224", 16, 224))
    assert infer_info(state, "a") == ModelInfo(f"vit_{size}_patch16_224", 16, 224)


@pytest.mark.parametrize(
    "info",
    [
        ModelInfo("vit_tiny_patch16_224", 4, 32),
        ModelInfo("vit_small_patch16_224", 8, 224, options={"depth": 1}),
        ModelInfo("vit_base_patch16_224", 16, 224, options={"depth": 1}),
        ModelInfo("vit_large_patch16_224", 16, 224, options={"depth": 1}),
        ModelInfo("vit_tiny_patch16_224", 8, 32, options={"depth": 3}),
        ModelInfo(
            "vit_tiny_patch16_224", 8, 32, options={"embed_dim": 128, "num_heads": 2, "depth": 2}
        ),
        ModelInfo("vit_small_patch14_dinov2", 14, 56, options={"depth": 1}),
        ModelInfo("vit_small_patch14_reg4_dinov2", 14, 56, pos_embed="timm", options={"depth": 1}),
    ],
    ids=lambda info: f"{info.architecture}-p{info.patch_size}",
)
def test_shapes_tell_the_architecture(info):
    state = state_of(info)
    assert infer_info(state, "a") == info


def test_other_channels_are_seen():
    options = {"depth": 1}
    info = ModelInfo("vit_tiny_patch16_224", 8, 16, 1, (0.5,), (0.5,), options=options)
    assert infer_info(state_of(info), "a") == info


def published_dinov2(state, registers: bool):
    """timm's tensors under DINOv2's own names; the class token's position is split off again."""
    state = dict(state) | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    if registers:
        position = torch.full_like(state["cls_token"], 0.25)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2(registers):
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    wanted = state_of(ModelInfo(name, 14, 56, options={"depth": 1}))
    ours = to_timm_layout(published_dinov2(wanted, registers), "a")
    assert infer_info(ours, "a").architecture == name
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-6, rtol=0)


def test_the_gated_mlp_of_dinov2_giant():
    ours = to_timm_layout(
        {"blocks.0.mlp.w12.weight": torch.ones(1), "blocks.0.mlp.w3.bias": torch.ones(1)}, "a"
    )
    assert ours.keys() == {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.bias"}


def test_unknowable_heads_are_refused(tiny):
    with pytest.raises(
        UserError, match=r"a\.pth: a width of 48 .* the number of heads cannot be told"
    ):
        infer_info(tiny.vit.state_dict(), "a.pth")


def test_layer_scale_of_another_family_is_refused(plain):
    state = dict(plain.vit.state_dict()) | {"blocks.0.ls1.gamma": torch.ones(192)}
    with pytest.raises(UserError, match="not a published DINOv2"):
        infer_info(state, "a.pth")


def test_a_native_image_that_is_not_square_is_refused(plain):
    state = dict(plain.vit.state_dict()) | {"pos_embed": torch.zeros(1, 1 + 15, 192)}
    with pytest.raises(UserError, match="15 patches is not of a square image"):
        infer_info(state, "a.pth")
