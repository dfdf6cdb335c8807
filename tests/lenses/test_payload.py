"""The lens payload: exact counts, the layout byte by byte, and masks that agree with the exact."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.datasets import load_sample_images

from dino_core.errors import UserError
from dino_core.lenses import Attention, LensPayload, look, mass_mask
from dino_core.models import load_model


def attention_like(seed: int, layers=3, heads=4, height=28, width=37) -> np.ndarray:
    """Long-tailed maps whose patches get about 90 % of the attention, as trained heads have."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.uniform(0.5, 3, (layers, heads, 1, 1)), (layers, heads, 1, 1))
    logits = logits + rng.normal(0, 1.5, (layers, heads, height, width))
    maps = np.exp(logits)
    return (0.9 * maps / maps.sum(axis=(-2, -1), keepdims=True)).astype(np.float32)


@pytest.fixture
def photos_of_a_package() -> list[np.ndarray]:
    """Two real photos that scikit-learn comes with, uint8 [427, 640, 3]."""
    return [np.asarray(photo) for photo in load_sample_images().images]


def attention_of(maps: np.ndarray) -> Attention:
    height, width = maps.shape[2] * 8, maps.shape[3] * 8
    return Attention(maps, (height, width), (480, 640), 8, "runs/ä@10", "abc")


def test_masks_agree_with_the_exact_ones():
    maps = attention_like(0)
    payload = LensPayload.from_attention(attention_of(maps))
    for keep in (0.2, 0.4, 0.6, 0.8, 0.95):
        exact, coded = mass_mask(maps, keep), payload.mass_mask(keep)
        axes = (-2, -1)
        overlap = (exact & coded).sum(axis=axes) / (exact | coded).sum(axis=axes)
        assert overlap.mean() >= 0.95, keep


def test_counts_are_exact_at_every_step():
    maps = attention_like(1)
    payload = LensPayload.from_attention(attention_of(maps))
    for step in range(21):
        exact = mass_mask(maps, step / 20).sum(axis=(-2, -1))
        np.testing.assert_array_equal(payload.kept[..., step], exact)
        np.testing.assert_array_equal(payload.mass_mask(step / 20).sum(axis=(-2, -1)), exact)


def test_layout_of_the_bytes():
    maps = attention_like(2, layers=2, heads=3, height=4, width=5)
    blob = LensPayload.from_attention(attention_of(maps)).to_bytes()
    (length,) = struct.unpack("<I", blob[:4])
    header = json.loads(blob[4 : 4 + length].decode())
    assert header["version"] == 1
    assert (header["layers"], header["heads"], header["grid"]) == (2, 3, [4, 5])
    assert header["image"] == [32, 40] and header["patch"] == 8
    assert (header["model"], header["model_hash"]) == ("runs/ä@10", "abc")
    assert np.shape(header["kept"]) == (2, 3, 21)
    codes = np.frombuffer(blob[4 + length :], np.uint8).reshape(2, 3, 4, 5)
    peak = maps.max(axis=(-2, -1), keepdims=True)
    np.testing.assert_array_equal(codes, np.rint(255 * np.sqrt(maps / peak)))
    np.testing.assert_allclose(header["max"], peak[..., 0, 0])


def test_round_trip():
    payload = LensPayload.from_attention(attention_of(attention_like(3)))
    again = LensPayload.from_bytes(payload.to_bytes())
    assert again.to_bytes() == payload.to_bytes()
    np.testing.assert_array_equal(again.kept, payload.kept)
    assert again.image_size == payload.image_size


def test_a_vit_s8_at_480_px_stays_below_400_kilobytes():
    maps = attention_like(4, layers=12, heads=6, height=60, width=60)
    assert len(LensPayload.from_attention(attention_of(maps)).to_bytes()) < 400_000


def test_masks_of_real_photos_agree_with_the_exact_ones(photos_of_a_package):
    model = load_model("starter", device="cpu")
    for photo in photos_of_a_package:
        attention = look(model, photo)
        payload = LensPayload.from_bytes(LensPayload.from_attention(attention).to_bytes())
        for keep in (0.3, 0.6, 0.63, 0.9):
            exact, coded = attention.mass_mask(keep), payload.mass_mask(keep)
            axes = (-2, -1)
            overlap = (exact & coded).sum(axis=axes) / (exact | coded).sum(axis=axes)
            assert overlap.mean() >= 0.95, keep


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda blob: b"", "cut off"),
        (lambda blob: blob[:40], "cut off"),
        (lambda blob: blob[:-1], "cut off"),
        (lambda blob: blob.replace(b'"version":1', b'"version":7'), "version 7"),
        (lambda blob: blob.replace(b'"patch"', b'"petch"'), "lacks patch"),
    ],
)
def test_a_damaged_payload_is_refused_in_a_sentence(damage, says):
    blob = LensPayload.from_attention(attention_of(attention_like(5))).to_bytes()
    with pytest.raises(UserError, match=says):
        LensPayload.from_bytes(damage(blob))


maps_of_any_shape = arrays.arrays(
    np.float32,
    st.tuples(st.just(1), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    elements=st.floats(0, 1, width=32, allow_subnormal=False),
)


@settings(max_examples=60, deadline=None)
@given(maps=maps_of_any_shape)
def test_any_map_survives_coding(maps):
    payload = LensPayload.from_bytes(LensPayload.from_attention(attention_of(maps)).to_bytes())
    peak = maps.max(axis=(-2, -1), keepdims=True)
    relative = np.sqrt(payload.maps() / np.where(peak > 0, peak, 1))
    truth = np.sqrt(maps / np.where(peak > 0, peak, 1))
    assert np.abs(relative - truth).max() <= 0.5 / 255 + 1e-4
    counts = payload.kept
    assert (np.diff(counts, axis=-1) >= 0).all()
