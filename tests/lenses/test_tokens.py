"""Tokens of one image: the backbone's own, in the right places; keys as the weights make them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dino_core.errors import UserError
from dino_core.lenses import plan
from dino_core.lenses.attention import resized
from dino_core.lenses.tokens import read_tokens
from dino_core.models import Model, ModelInfo, create_backbone

SHAPES = [(40, 64), (64, 40), (30, 100)]
KINDS = [(8, 64, 0), (16, 64, 0), (8, 32, 4)]  # patch, native size, registers


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def fed(model: Model, image: np.ndarray, size: int) -> torch.Tensor:
    planned = plan(model, image.shape[0], image.shape[1], size=size)
    return model.normalize(resized(image, planned.height, planned.width))[None]


def other_kind(architecture: str, options: dict) -> Model:
    """Weights shaken, so that norms and biases count."""
    torch.manual_seed(3)
    backbone = create_backbone(ModelInfo(architecture, 16, 32, options=options))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(backbone, architecture, torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_the_backbone_s_own(make_model, kind, shape):
    model, image = make_model(*kind), photo(*shape)
    tokens = read_tokens(model, image, size=48)
    patch, _, registers = kind
    height, width = fed(model, image, 48).shape[-2:]
    assert tokens.grid == (height // patch, width // patch)
    assert min(tokens.grid) == 48 // patch
    raw_ND = model.backbone.tokens(fed(model, image, 48))[0, 1 + registers :].numpy()
    again = (tokens.patches * tokens.norms[..., None]).reshape(raw_ND.shape)
    np.testing.assert_allclose(again, raw_ND, rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(tokens.patches, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(
        tokens.norms, np.linalg.norm(raw_ND, axis=-1).reshape(tokens.grid), rtol=1e-5
    )
    assert tokens.patches.dtype == tokens.norms.dtype == tokens.keys.dtype == np.float32


def test_the_class_token_is_the_feature_at_length_one(model):
    image = photo(40, 64)
    feature_D = model.backbone(fed(model, image, 40))[0].numpy()
    cls_D = read_tokens(model, image, size=40).cls
    np.testing.assert_allclose(cls_D, feature_D / np.linalg.norm(feature_D), atol=1e-6)


def test_what_they_say_of_themselves(model):
    tokens = read_tokens(model, photo(50, 70), size=40)
    assert (tokens.image_size, tokens.source_size, tokens.patch_size) == ((40, 56), (50, 70), 8)
    assert (tokens.model, tokens.model_hash) == (model.spec, model.hash)


@pytest.mark.parametrize("registers", [0, 4])
def test_every_patch_is_at_its_place(make_model, registers):
    """Without attention and positions a patch's token knows its own pixels alone."""
    model = make_model(8, 64, registers)
    vit = model.backbone.vit
    with torch.no_grad():
        vit.pos_embed.zero_()
        for block in vit.blocks:
            block.attn.proj.weight.zero_()
    image = np.full((32, 56, 3), 90, np.uint8)
    image[8:16, 40:48, 0] = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    tokens = read_tokens(model, image, size=32)
    odd = np.abs(tokens.patches - tokens.patches[0, 0]).max(axis=-1) > 1e-3
    assert np.argwhere(odd).tolist() == [[1, 5]]


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_what_the_qkv_weights_make(make_model, kind):
    model, image = make_model(*kind), photo(40, 64)
    first, last = model.backbone.vit.blocks
    with torch.no_grad():
        x_BND, _ = model.backbone.embed(fed(model, image, 48))
        weight, bias = (last.attn.qkv.weight[48:96], last.attn.qkv.bias[48:96])
        keys_ND = F.linear(last.norm1(first(x_BND)), weight, bias)[0, 1 + kind[2] :].numpy()
    tokens = read_tokens(model, image, size=48)
    np.testing.assert_allclose(
        tokens.keys.reshape(keys_ND.shape), keys_ND, rtol=0, atol=1e-5 * np.abs(keys_ND).max()
    )


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_small_patch16_dinov3", {"depth": 2}),  # rotary embeddings turn the keys
        ("vit_tiny_patch16_224", {"depth": 2, "qk_norm": True}),
    ],
)
def test_keys_are_those_of_the_model_s_own_softmax(architecture, options):
    """Logits of the unfused attention are the CLS query times these keys, up to one constant."""
    model = other_kind(architecture, options)
    image = photo(64, 96)
    attn = model.backbone.vit.blocks[-1].attn
    seen: dict[str, torch.Tensor] = {}
    handles = [
        attn.qkv.register_forward_hook(lambda m, args, out: seen.update(qkv=out)),
        attn.attn_drop.register_forward_hook(lambda m, args, out: seen.update(attention=out)),
    ]
    attn.fused_attn = False
    with torch.no_grad():
        model.backbone.tokens(fed(model, image, 64))
    for handle in handles:
        handle.remove()
    prefix, heads = model.backbone.num_prefix_tokens, attn.num_heads
    logs_AN = seen["attention"][0, :, 0, prefix:].log()
    query_AD = attn.q_norm(seen["qkv"][0, 0].chunk(3)[0].unflatten(0, (heads, -1)))
    keys_NAD = torch.from_numpy(read_tokens(model, image, size=64).keys)
    keys_NAD = keys_NAD.flatten(0, 1).unflatten(-1, (heads, -1))
    logits_AN = torch.einsum("ad,nad->an", query_AD, keys_NAD) * attn.scale
    difference_AN = logits_AN - logs_AN
    torch.testing.assert_close(
        difference_AN, difference_AN[:, :1].expand_as(difference_AN), rtol=0, atol=1e-4
    )
    assert logs_AN.std(dim=1).min() > 0.05  # not flat: a wrong rotation would show


def test_xcit_has_keys_of_its_class_attention():
    model = other_kind("xcit_tiny_12_p16_224", {"depth": 1, "embed_dim": 64})
    block = model.backbone.vit.cls_attn_blocks[-1]
    seen = []
    handle = block.norm1.register_forward_hook(lambda m, args, out: seen.append(out))
    raw_ND = model.backbone.tokens(fed(model, photo(32, 48), 32))[0, 1:].numpy()
    handle.remove()
    keys_ND = F.linear(seen[0], block.attn.k.weight, block.attn.k.bias)[0, 1:].numpy()
    tokens = read_tokens(model, photo(32, 48), size=32)
    assert tokens.grid == (2, 3)
    np.testing.assert_allclose(tokens.keys.reshape(keys_ND.shape), keys_ND, atol=1e-4)
    np.testing.assert_allclose(
        (tokens.patches * tokens.norms[..., None]).reshape(raw_ND.shape), raw_ND, atol=1e-4
    )


def test_reading_leaves_the_model_as_it_was(make_model):
    model, image = make_model(8, 64, 4), photo(40, 40)
    first = read_tokens(model, image, size=40)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.backbone.modules())
    again = read_tokens(model, image, size=40)
    np.testing.assert_array_equal(first.patches, again.patches)
    np.testing.assert_array_equal(first.keys, again.keys)


def test_models_and_sizes_without_patches_are_refused(model):
    options = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
    resnet = Model(
        create_backbone(ModelInfo("resnet18", 1, 32, options=options)), "r", torch.device("cpu")
    )
    with pytest.raises(UserError, match="has no class token and no attention"):
        read_tokens(resnet, photo(40, 40))
    with pytest.raises(UserError, match="16,384 patches"):
        read_tokens(model, photo(40, 40), size=2000)
