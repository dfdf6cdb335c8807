"""Idle heads, twins and artifacts: hand-made cases, and the laws of the rules that find them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dino_core.errors import UserError
from dino_core.lenses.attention import Attention, look
from dino_core.lenses.health import artifacts, health, residual_norms, spread
from dino_core.lenses.tokens import Tokens, read_tokens

H, W = 4, 6
RNG = np.random.default_rng(3)


def attention(maps: np.ndarray, model_hash: str = "x") -> Attention:
    size = (maps.shape[2] * 8, maps.shape[3] * 8)
    return Attention(maps.astype(np.float32), size, size, 8, "m", model_hash)


def tokens(norms: np.ndarray) -> Tokens:
    some = np.zeros((*norms.shape, 2), np.float32)
    size = (norms.shape[0] * 8, norms.shape[1] * 8)
    return Tokens(some, norms, some, np.zeros(2, np.float32), size, size, 8, "m", "x")


def peaked(seed: int, share: float = 0.9) -> np.ndarray:
    """A map [H, W] of a seeded pattern with total mass `share`."""
    raw = np.random.default_rng(seed).random((H, W)) ** 4
    return share * raw / raw.sum()


ORDINARY = 10 + RNG.random((H, W))  # norms


def of_heads(*heads: np.ndarray):
    """The health of one layer of these maps."""
    return health(attention(np.stack(heads)[None]), tokens(ORDINARY))


def test_each_state_of_a_head_by_hand():
    flat = np.full((H, W), 0.9 / (H * W))
    resting = peaked(1, share=0.005)
    found = of_heads(peaked(0), flat, resting, np.full((H, W), np.nan))
    states = [head.state for head in found.heads]
    assert states == ["fine", "flat", "resting", "not a number"]
    assert [head.head for head in found.idle] == [1, 2, 3]
    assert found.heads[1].entropy == pytest.approx(1) and found.heads[1].peak == pytest.approx(1)
    assert found.heads[1].patch_share == pytest.approx(0.9)
    assert found.heads[2].patch_share == pytest.approx(0.005)
    broken, flat, resting = found.sentences()[:3]
    assert broken.startswith("1 head of 4 is broken") and broken.endswith("(layer.head 1.4).")
    assert flat.startswith("1 head of 4 is flat") and flat.endswith("(layer.head 1.2).")
    assert resting.startswith("1 head of 4 is resting") and resting.endswith("(layer.head 1.3).")


def test_a_resting_head_is_resting_even_where_the_rest_is_flat():
    assert of_heads(np.full((H, W), 1e-5)).heads[0].state == "resting"


def test_peak_is_the_largest_over_the_mean():
    only = np.zeros((H, W))
    only[1, 2] = 0.4
    head = of_heads(only).heads[0]
    assert head.peak == pytest.approx(H * W) and head.spread == 0 and head.entropy == 0


def test_a_healthy_model_is_told_so():
    found = of_heads(peaked(0), peaked(1))
    assert not found.idle and not found.twins and not found.artifacts.any()
    assert found.sentences()[:2] == [
        "All 2 heads have a map of their own preference.",
        "No two heads of a layer show the same map.",
    ]
    assert found.sentences()[2].startswith("No patch token is an artifact")


def test_spread_by_hand():
    two = np.zeros((5, 5))
    two[0, 0] = two[3, 4] = 1  # five apart: each 2.5 from the middle
    assert spread(two) == pytest.approx(2.5)
    uneven = np.zeros((1, 4))
    uneven[0, 0], uneven[0, 3] = 1, 3  # middle 2.25, variance (2.25^2 + 3 x 0.75^2) / 4
    assert spread(uneven) == pytest.approx(np.sqrt((2.25**2 + 3 * 0.75**2) / 4))
    assert np.isnan(spread(np.zeros((2, 2))))


@given(h=st.integers(1, 9), w=st.integers(1, 9))
def test_spread_of_a_flat_map(h, w):
    assert spread(np.ones((h, w))) == pytest.approx(np.sqrt((h * h + w * w - 2) / 12))


@given(maps=arrays(np.float64, (2, 3, 5), elements=st.floats(0.01, 1)), scale=st.floats(1e-6, 1e6))
def test_spread_does_not_change_with_scale_or_flips(maps, scale):
    np.testing.assert_allclose(spread(maps * scale), spread(maps), rtol=1e-9)
    np.testing.assert_allclose(spread(maps[..., ::-1, ::-1]), spread(maps), rtol=1e-9)


def test_twins_are_found_whatever_their_scale_and_only_within_a_layer():
    a, b = peaked(0), peaked(1)
    layers = np.stack(
        [np.stack([a, b, a * 0.3, b + 0.001]), np.stack([a, b, peaked(2), peaked(3)])]
    )
    found = health(attention(layers), tokens(ORDINARY))
    assert [(t.layer, t.heads) for t in found.twins] == [(0, (0, 2)), (0, (1, 3))]
    assert all(t.correlation == pytest.approx(1) for t in found.twins)
    assert "Layer 1: heads 1 and 3 show the same map" in " ".join(found.sentences())
    assert [row["twins"] for row in found.rows()] == [[2], [3], [0], [1], [], [], [], []]


def test_a_chain_of_likeness_is_one_group():
    """0 ~ 1 ~ 2 while 0 and 2 alone fall below the bound: the group names its weakest link."""
    u, v = np.zeros((2, H * W))
    u[0], u[1], v[2], v[3] = 1, -1, 1, -1  # orthogonal, without mean
    angles = np.deg2rad([0, 7, 14])  # cos 7 = 0.9925, cos 14 = 0.9703
    heads = [0.03 + 0.02 * (np.cos(t) * u + np.sin(t) * v).reshape(H, W) for t in angles]
    (group,) = of_heads(*heads).twins
    assert group.heads == (0, 1, 2)
    assert group.correlation == pytest.approx(np.cos(np.deg2rad(7)), abs=1e-6)
    assert not of_heads(heads[0], heads[2]).twins


def test_maps_without_any_pattern_are_no_twins():
    even = np.full((H, W), 0.9 / (H * W))
    noise = even * (1 + 1e-7 * RNG.standard_normal((H, W)))
    assert not of_heads(even, even, noise, np.full((H, W), np.nan)).twins


@pytest.mark.parametrize(
    ("long", "found"),
    [
        (100, True),  # ten medians, as published
        (26, True),
        (24, False),  # 80 sigmas, but not 2.5 medians
        (10.5, False),
    ],
)
def test_an_artifact_among_tokens_of_nearly_one_length(long, found):
    norms = 10 + np.linspace(-0.2, 0.2, 100).reshape(10, 10)
    norms[3, 4] = long
    assert artifacts(norms).sum() == int(found)
    assert artifacts(norms)[3, 4] == found


def test_a_wide_distribution_is_no_artifact():
    """The longest is 3.9 medians long, but only 4 robust sigmas away."""
    norms = np.concatenate([np.linspace(1, 19, 99), [39]])
    assert 2.5 * np.median(norms) < 39
    assert not artifacts(norms).any()


def test_many_artifacts_do_not_hide_each_other():
    """40 % of the tokens ten times as long: mean and standard deviation would find none."""
    norms = np.where(np.arange(100) < 40, 100.0, 10.0)
    assert not (norms > norms.mean() + 3 * norms.std()).any()
    np.testing.assert_array_equal(artifacts(norms), norms == 100)


@given(
    norms=arrays(np.float64, 30, elements=st.floats(1, 1000)),
    power=st.integers(-20, 20),
    seed=st.integers(0, 99),
)
def test_artifacts_do_not_change_with_scale_or_order(norms, power, seed):
    found = artifacts(norms)
    np.testing.assert_array_equal(artifacts(norms * 2.0**power), found)
    order = np.random.default_rng(seed).permutation(30)
    np.testing.assert_array_equal(artifacts(norms[order]), found[order])
    assert found.sum() < 15  # never half of the tokens


def test_what_is_said_of_artifacts():
    norms = ORDINARY.copy()
    norms[2, 5] = 10 * np.median(norms)
    found = health(attention(peaked(0)[None, None]), tokens(ORDINARY), norms)
    said = found.sentences()[-1]
    assert said.startswith(f"1 patch token of {H * W} (4.2%) is an artifact, up to 10.0 times")
    assert found.to_json()["artifacts"]["patches"] == [[2, 5]]
    assert found.before_norm


@pytest.mark.parametrize("registers", [0, 4])
def test_artifacts_that_the_layer_norm_hides_are_seen_before_it(make_model, registers):
    """A token that leaves the last block 50 times as long has its old length after the norm."""
    model = make_model(registers=registers)
    image = RNG.integers(0, 256, (64, 96, 3), np.uint8)
    patch = model.backbone.num_prefix_tokens + 2 * 12 + 5  # row 2, column 5 of 8 x 12

    def lengthen(block, inputs, output):
        scale = torch.ones(output.shape[1], 1)
        scale[patch] = 50
        return output * scale

    plain = residual_norms(model, image, size=64)
    assert not artifacts(plain).any()
    model.backbone.vit.blocks[-1].register_forward_hook(lengthen)
    seen, attended = read_tokens(model, image, size=64), look(model, image, size=64)
    assert not health(attended, seen).artifacts.any()
    found = health(attended, seen, residual_norms(model, image, size=64))
    np.testing.assert_array_equal(np.argwhere(found.artifacts), [[2, 5]])
    assert found.norms[2, 5] == pytest.approx(50 * plain[2, 5], rel=1e-5)


def test_residual_norms_are_those_of_the_last_blocks_output(model):
    image = RNG.integers(0, 256, (64, 80, 3), np.uint8)
    with torch.no_grad():
        x, _ = model.backbone.embed(model.normalize(image)[None])
        for block in model.backbone.vit.blocks:
            x = block(x)
    expected = np.sqrt((x[0, 1:].double().numpy() ** 2).sum(-1)).reshape(8, 10)
    np.testing.assert_allclose(residual_norms(model, image, size=64), expected, rtol=1e-5)


def test_rows_and_json_are_plain(model):
    image = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    found = health(look(model, image, size=64), read_tokens(model, image, size=64))
    assert len(found.rows()) == 6 and found.rows()[4]["layer"] == 1
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()
    broken = health(attention(np.full((1, 1, H, W), np.nan)), tokens(np.full((H, W), np.nan)))
    json.dumps(broken.to_json(), allow_nan=False)
    assert broken.sentences()[-1] == "The patch tokens are not numbers: the weights are damaged."


def test_two_models_are_not_mixed():
    with pytest.raises(UserError, match="read both from one"):
        health(attention(peaked(0)[None, None], model_hash="other"), tokens(ORDINARY))
