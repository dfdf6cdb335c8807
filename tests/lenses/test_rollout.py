"""Rollout: beside the plain product of full matrices, and where the answer is known by hand."""

import numpy as np
import pytest
import torch

from dino_core.errors import UserError
from dino_core.lenses import plan
from dino_core.lenses import rollout as module
from dino_core.lenses.attention import resized
from dino_core.lenses.rollout import rollout, walked_back
from dino_core.models import Model, ModelInfo, create_backbone

ROPE = ModelInfo(
    "vit_small_patch16_dinov3",
    16,
    64,
    pos_embed="timm",
    options={"depth": 3, "embed_dim": 48, "num_heads": 3},
)
XCIT = ModelInfo("xcit_tiny_12_p16_224", 16, 32, options={"depth": 1, "embed_dim": 64})


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def rotary_model() -> Model:
    torch.manual_seed(5)
    backbone = create_backbone(ROPE)
    with torch.no_grad():
        for block in backbone.vit.blocks:
            block.attn.qkv.weight.mul_(8)
    return Model(backbone, "rotary", torch.device("cpu"))


def plain_rollout(model: Model, image: np.ndarray, size: int, token: int) -> np.ndarray:
    """As the paper says it, on full matrices that timm made unfused: float64 [N]."""
    fed = plan(model, *image.shape[:2], size=size)
    pixels = model.normalize(resized(image, fed.height, fed.width))[None]
    maps: list[torch.Tensor] = []
    hooks = []
    for block in model.backbone.vit.blocks:
        block.attn.fused_attn = False
        keep = block.attn.attn_drop.register_forward_hook(lambda m, args, out: maps.append(out[0]))
        hooks.append(keep)
    with torch.no_grad():
        model.backbone(pixels)
    for block, hook in zip(model.backbone.vit.blocks, hooks, strict=True):
        block.attn.fused_attn = True
        hook.remove()
    product = np.eye(maps[0].shape[-1])
    for heads in maps:
        mixed = 0.5 * heads.double().mean(dim=0).numpy() + 0.5 * np.eye(len(product))
        product = (mixed / mixed.sum(axis=-1, keepdims=True)) @ product
    return product[token]


@pytest.mark.parametrize("query", [None, (0, 0), (3, 5)])
@pytest.mark.parametrize("kind", ["plain", "registers", "rope"])
def test_the_product_of_full_matrices(make_model, kind, query):
    made = {"plain": make_model, "registers": lambda: make_model(registers=4), "rope": rotary_model}
    model = made[kind]()
    patch, prefix = model.backbone.patch_size, model.backbone.num_prefix_tokens
    assert prefix == {"plain": 1, "registers": 5, "rope": 5}[kind]
    image, size = photo(8 * patch, 11 * patch), 8 * patch
    token = 0 if query is None else prefix + query[0] * 11 + query[1]
    expected = plain_rollout(model, image, size, token)[prefix:]
    assert expected.max() > 1.5 * np.median(expected)  # a flat map would hide much
    for rows in (512, 7):  # one block, and blocks that do not divide the tokens
        seen = rollout(model, image, size=size, query=query, rows=rows)
        assert seen.shape == (8, 11) and seen.dtype == np.float32
        np.testing.assert_allclose(seen.ravel(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("query", [None, (1, 2)])
def test_attention_that_looks_everywhere_alike(make_model, query):
    """Each layer keeps half and spreads half evenly: after L, 1 - 2 ** -L is spread evenly."""
    model = make_model(registers=2)
    with torch.no_grad():
        for block in model.backbone.vit.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
    seen = rollout(model, photo(24, 40), size=24, query=query)
    spread = (1 - 2**-2) / (3 + 15)
    expected = np.full((3, 5), spread)
    if query is not None:
        expected[query] += 2**-2
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_layers_are_walked_from_the_last():
    """Three tokens pass on what they get: the last layer looks 0 -> 1, the first one 1 -> 2."""
    one_hot = 200 * torch.eye(3)
    first = (one_hot[[0, 2, 2]], torch.eye(3))
    last = (one_hot[[1, 1, 2]], torch.eye(3))
    layers = [(q[None, None], k[None, None]) for q, k in (first, last)]
    share = walked_back(layers, token=0, rows=2)
    np.testing.assert_allclose(share, [1 / 2, 1 / 4, 1 / 4], atol=1e-7)
    assert not layers, "what was walked is let go"


def test_an_xcit_is_refused():
    xcit = Model(create_backbone(XCIT), "x", torch.device("cpu"))
    with pytest.raises(UserError, match="Xcit: CLS alone attends to patches here"):
        rollout(xcit, photo(32, 48), size=32)


def test_a_query_outside_of_the_grid_is_refused(model):
    with pytest.raises(UserError, match="row 3, column 0: no such patch, the image makes 3 x 5;"):
        rollout(model, photo(24, 40), size=24, query=(3, 0))


def test_too_much_to_keep_is_refused_with_a_size_that_works(model, monkeypatch):
    image = photo(100, 170)
    kept = 2 * 4 * 2 * 48  # bytes a token: queries and keys, float32, two layers of width 48
    monkeypatch.setattr(module, "MOST_KEPT", kept * (1 + 6 * 10))
    with pytest.raises(UserError, match=r"queries and keys of all 2 layers.*or smaller") as refusal:
        rollout(model, image, size=96)
    fitting = int(str(refusal.value).rsplit("size ", 1)[1].split()[0])
    assert fitting == 48  # 6 x 10 patches; 7 x 12 are too many
    assert rollout(model, image, size=fitting).shape == (6, 10)


def test_rolling_out_changes_nothing(model):
    image = photo(40, 64)
    state = torch.get_rng_state()
    first = rollout(model, image)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first, rollout(model, image))
    hooked = [m for m in model.backbone.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked
