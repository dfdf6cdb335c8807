"""The attention lens: sizes, the whole image, what it refuses, and that maps are the model's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.errors import UserError
from dino_core.lenses import look, plan
from dino_core.lenses.attention import DEFAULT_TOKENS, MAX_TOKENS
from dino_core.models import Model, ModelInfo, create_backbone
from dino_core.models.attention import cls_rows, token_rows


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("patch", "native", "shape", "size", "fed"),
    [
        (8, 64, (480, 640), None, (224, 296)),  # 28 patches on the short side
        (16, 224, (480, 640), None, (448, 592)),
        (14, 518, (480, 640), None, (518, 686)),  # at least the native size
        (8, 64, (640, 480), None, (296, 224)),
        (8, 64, (32, 32), None, (224, 224)),  # small images are enlarged
        (8, 64, (100, 1000), None, (160, 1600)),  # long ones kept below 4,096 patches
        (8, 64, (480, 640), 101, (104, 136)),  # nearest multiples of the patch
        (16, 224, (333, 500), 480, (480, 720)),
        (8, 64, (10, 100_000), None, (8, 32_768)),  # no shape breaks it
    ],
)
def test_the_size_that_is_fed(make_model, patch, native, shape, size, fed):
    planned = plan(make_model(patch, native), *shape, size=size)
    assert (planned.height, planned.width) == fed
    assert planned.grid == (fed[0] // patch, fed[1] // patch)
    assert planned.memory > 0


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_the_default_size_always_fits(model, height, width):
    planned = plan(model, height, width)
    assert 1 <= planned.tokens <= DEFAULT_TOKENS
    assert planned.height % 8 == planned.width % 8 == 0


def test_too_many_patches_are_refused_with_a_size_that_works(model):
    with pytest.raises(UserError, match=r"GB of memory.*use size \d+ or smaller") as refusal:
        plan(model, 3000, 4000, size=3000)
    fitting = int(str(refusal.value).rsplit("size ", 1)[1].split()[0])
    assert plan(model, 3000, 4000, size=fitting).tokens <= MAX_TOKENS
    with pytest.raises(UserError, match="smaller than one patch"):
        plan(model, 100, 100, size=4)


@pytest.mark.parametrize("registers", [0, 4])
def test_maps_are_the_patch_part_of_the_rows(make_model, registers):
    model = make_model(registers=registers)
    image = photo(50, 90)
    seen = look(model, image, size=64)
    assert seen.image_size == (64, 112)  # 115.2 px is nearer to 14 than to 15 patches
    assert seen.source_size == (50, 90)
    assert seen.maps.shape == (2, 3, 8, 14) and seen.maps.dtype == np.float32
    fed = np.asarray(Image.fromarray(image).resize((112, 64), Image.Resampling.BICUBIC))
    rows = cls_rows(model.backbone, model.normalize(fed)[None])[:, 0]
    np.testing.assert_array_equal(seen.maps.reshape(2, 3, -1), rows[:, :, 1 + registers :])
    share = seen.maps.sum(axis=(-2, -1)) + rows[:, :, : 1 + registers].sum(-1).numpy()
    np.testing.assert_allclose(share, 1, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_the_map_of_a_patch_is_that_of_its_token(make_model, registers):
    model = make_model(registers=registers)
    image = photo(64, 112)
    for row, column in ((0, 13), (5, 2)):  # 8 x 14 patches: rows are not columns
        seen = look(model, image, size=64, query=(row, column))
        assert seen.query == (row, column) and seen.select([0]).query == (row, column)
        token = 1 + registers + 14 * row + column
        rows = token_rows(model.backbone, model.normalize(image)[None], token)[:, 0]
        np.testing.assert_array_equal(seen.maps.reshape(2, 3, -1), rows[:, :, 1 + registers :])
        others = look(model, image, size=64, query=(row, column - 1)).maps
        assert np.abs(seen.maps - others).max() > 1e-3
    assert look(model, image, size=64).query is None


@pytest.mark.parametrize("query", [(-1, 0), (0, -1), (8, 0), (0, 14)])
def test_a_patch_outside_of_the_grid_is_refused(model, query):
    says = rf"row {query[0]}, column {query[1]}: no such patch, .* 8 x 14; use a row from 0 to 7 "
    with pytest.raises(UserError, match=says):
        look(model, photo(64, 112), size=64, query=query)


def test_a_patch_of_an_xcit_looks_nowhere():
    info = ModelInfo("xcit_tiny_12_p16_224", 16, 32, options={"depth": 1, "embed_dim": 64})
    xcit = Model(create_backbone(info), "x", torch.device("cpu"))
    assert look(xcit, photo(32, 48), size=32).maps.shape == (2, 4, 2, 3)
    with pytest.raises(UserError, match="Xcit: CLS alone attends to patches here"):
        look(xcit, photo(32, 48), size=32, query=(0, 1))


def test_the_whole_image_is_seen(model):
    """A change in any corner changes the maps: nothing is cropped."""
    image = photo(60, 100)
    before = look(model, image).maps
    for row, column in ((0, 0), (0, -8), (-8, 0), (-8, -8)):
        changed = image.copy()
        changed[row:, column:][:8, :8] = 255 - changed[row:, column:][:8, :8]
        assert np.abs(look(model, changed).maps - before).max() > 1e-6


def test_head_mean_select_and_entropy(model):
    seen = look(model, photo(64, 64), size=64)
    np.testing.assert_allclose(seen.head_mean(0), seen.maps[0].mean(0))
    assert seen.select([1]).maps.shape[0] == 1
    entropy = seen.entropy()
    assert entropy.shape == (2, 3) and (entropy > 0).all() and (entropy < 1).all()
    flat = type(seen)(np.full((1, 1, 4, 4), 1 / 20, np.float32), (32, 32), (32, 32), 8, "m", "h")
    np.testing.assert_allclose(flat.entropy(), 1)
    assert seen.mass_mask(0.6).shape == seen.maps.shape


def test_looking_changes_nothing(model):
    image = photo(40, 64)
    state = torch.get_rng_state()
    first = look(model, image)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.maps, look(model, image).maps)
