"""Plain Python gets what the lenses and the gallery say, from any kind of image."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dino_core import api
from dino_core.data import decode_image, open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, build
from dino_core.lenses import look
from dino_core.lenses.pca import PcaBasis
from dino_core.models import Model, ModelInfo, create_backbone

INFO = ModelInfo(
    "vit_tiny_patch16_224", 8, 32, options={"depth": 2, "embed_dim": 24, "num_heads": 3}
)
PHOTO = open_source("scenes:8").image(7)[:96, :120]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    backbone = create_backbone(INFO)
    with torch.no_grad():
        for block in backbone.vit.blocks:
            block.attn.qkv.weight.mul_(8)  # fresh weights attend to everything alike
    return Model(backbone, "tiny", torch.device("cpu"))


@pytest.fixture(scope="module")
def gallery(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Twelve scenes as files, with two columns of the user's own."""
    folder = tmp_path_factory.mktemp("photos")
    source = open_source("scenes:12")
    for i in range(12):
        Image.fromarray(source.image(i)).save(folder / f"{i}.png")
    table = {"path": [f"{i}.png" for i in range(12)], "day": ["mon", "tue", "wed"] * 4}
    pd.DataFrame({**table, "shelf": list(range(6)) * 2}).to_csv(folder / "all.csv", index=False)
    out = tmp_path_factory.mktemp("galleries") / "few"
    return build(model, open_source(str(folder / "all.csv")), out, workers=0, maps=())


# -- images -------------------------------------------------------------------------------------


def pictures() -> dict[str, Image.Image]:
    """One of each mode that matters, none of which is plain RGB."""
    rgb = Image.fromarray(PHOTO)
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    deep = Image.fromarray((np.arange(20 * 30).reshape(20, 30) * 109).astype(np.uint16))
    palette = rgb.quantize(16)
    palette.info["transparency"] = 3
    return {
        "rgb": rgb,
        "gray": rgb.convert("L"),
        "two": rgb.convert("1"),
        "clear": clear,
        "deep": deep,
        "palette": palette,
    }


@pytest.mark.parametrize("name", pictures())
def test_a_pil_image_is_read_as_its_file_would_be(name, tmp_path):
    picture = pictures()[name]
    picture.save(tmp_path / "a.png")
    expected = decode_image(tmp_path / "a.png")
    np.testing.assert_array_equal(api.pixels(picture), expected)
    np.testing.assert_array_equal(api.pixels(Image.open(tmp_path / "a.png")), expected)
    np.testing.assert_array_equal(api.pixels(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(api.pixels(str(tmp_path / "a.png")), expected)


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned = api.pixels(Image.open(tmp_path / "a.jpg"))
    assert turned.shape == (120, 96, 3)
    np.testing.assert_array_equal(turned, api.pixels(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4, 3)), r"float64 \[4, 4, 3\]; give uint8 \[height, width, 3\]"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Path("nowhere.png"), r"nowhere\.png: cannot be read"),
        (__file__, "test_api.py: not an image"),
    ],
)
def test_what_is_no_image_is_a_sentence(model, image, says):
    with pytest.raises(UserError, match=says):
        api.embed(model, image)


# -- answers ------------------------------------------------------------------------------------


def test_an_embedding_is_the_gallery_s_feature(model, gallery):
    found = api.embed(model, gallery.image(3))
    np.testing.assert_allclose(found.vector, gallery.features[3], atol=1e-5)
    assert found.feature_hash == gallery.info.feature_hash
    told = json.loads(found.to_json())
    np.testing.assert_array_equal(np.float32(told["vector"]), found.vector)
    assert told["kind"] == "cls"


def test_attention_is_one_layer_of_a_look(model):
    for query in (None, (2, 5)):
        seen = look(model, PHOTO, size=64, query=query)
        found = api.attention(model, PHOTO, layer=0, size=64, query=query)
        np.testing.assert_array_equal(found.maps, seen.maps[0])
        told = json.loads(found.to_json())
        np.testing.assert_array_equal(np.float32(told["maps"]), found.maps)
        assert told["query"] == (None if query is None else [2, 5])
    assert api.attention(model, PHOTO, size=32).layer == 1


def test_the_most_similar_image_is_the_image_itself(model, gallery):
    found = api.similar(model, gallery, gallery.image(4), k=3)
    assert found.ids[0] == "4.png" and found.scores[0] == pytest.approx(1, abs=1e-5)
    assert (np.diff(found.scores) <= 0).all() and len(found.ids) == 3
    assert json.loads(found.to_json())["rows"] == found.rows.tolist()
    assert api.similar(model, str(gallery.path), gallery.image(4), k=1).ids == ["4.png"]


def test_only_images_with_the_wanted_values_are_found(model, gallery):
    asked = {"day": ["mon", "wed"], "shelf": 2}
    found = api.similar(model, gallery, PHOTO, k=12, where=asked)
    assert sorted(found.ids) == ["2.png", "8.png"]
    assert api.similar(model, gallery, PHOTO, where={"day": "never"}).ids == []
    with pytest.raises(UserError, match=r"no column 'color'; there are id, .*day, shelf"):
        api.similar(model, gallery, PHOTO, where={"color": "red"})


def test_a_box_searches_with_that_part_alone(model, gallery):
    canvas = np.zeros((400, 500, 3), np.uint8)
    canvas[100:292, 200:392] = gallery.image(5)
    found = api.similar(model, gallery, canvas, k=1, box=(200.4, 100.9, 391.2, 291.5))
    assert found.ids == ["5.png"] and found.scores[0] == pytest.approx(1, abs=1e-5)
    for box in ((0, 0, 501, 10), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 0, float("nan"), 4)):
        with pytest.raises(UserError, match="within 500 x 400 pixels"):
            api.similar(model, gallery, canvas, box=box)


def test_colors_of_a_basis_that_went_through_json_are_the_same(model):
    first = api.pca(model, PHOTO, size=64)
    assert first.colors.shape == (*first.foreground.shape, 3) == (8, 10, 3)
    told = json.loads(first.to_json())
    assert told["colors"] == first.colors.tolist()
    kept = PcaBasis.from_bytes(base64.b64decode(told["basis"]), "kept")
    again = api.pca(model, PHOTO, kept, size=64)
    np.testing.assert_array_equal(again.colors, first.colors)
    alone = api.pca(model, PHOTO, foreground=True, size=64)
    assert (alone.colors[~alone.foreground] == 0).all() and (~alone.foreground).any()


def inside(rings: list[dict], x: float, y: float) -> bool:
    """The even-odd rule, for any point."""
    crossings = 0
    for ring in rings:
        points = ring["points"]
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                crossings += 1
    return crossings % 2 == 1


def test_a_head_s_mask_holds_the_mass_it_says_as_patches_pixels_and_polygons(model):
    maps = api.attention(model, PHOTO, layer=1, size=48).maps
    for head, shown in ((2, maps[2]), (None, maps.mean(axis=0))):
        found = api.mask(model, PHOTO, kind="head", layer=1, head=head, keep=0.5, size=48)
        assert shown[found.patches].sum() >= 0.5 * shown.sum()
        least = shown[found.patches].min()
        assert shown[found.patches].sum() - least <= 0.5 * shown.sum() * (1 + 1e-6), "the fewest"
        np.testing.assert_array_equal(found.pixels[8::16, 7::15], found.patches)
        told = json.loads(found.to_json())
        assert told["image"] == [96, 120] and told["model"] == "tiny"
        for row, column in np.ndindex(6, 8):
            place = (15 * column + 7.5, 16 * row + 8.0)
            assert inside(told["polygons"], *place) == found.patches[row, column]


def test_an_object_on_a_plain_ground_is_found(model):
    plain = np.full((128, 128, 3), 60, np.uint8)
    plain[32:80, 48:112] = (230, 40, 30)
    for refine in (False, True):
        found = api.mask(model, plain, size=128, refine=refine)
        truth = np.zeros((128, 128), bool)
        truth[32:80, 48:112] = True
        overlap = (found.pixels & truth).sum() / (found.pixels | truth).sum()
        assert found.patches.shape == (16, 16) and overlap > 0.8


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda m: api.attention(m, PHOTO, layer=2), "layer 2: tiny has 2 layers, 0 to 1"),
        (lambda m: api.attention(m, PHOTO, query=(99, 0)), "row 99"),
        (lambda m: api.mask(m, PHOTO, kind="head", head=3), "head 3: tiny has 3 heads"),
        (lambda m: api.mask(m, PHOTO, kind="head", keep=2.0), "keep is 2.0"),
        (lambda m: api.mask(m, PHOTO, kind="hand"), "use object or head"),
        (lambda m: api.embed(m, PHOTO, kind="max"), "'max' is unknown"),
    ],
)
def test_what_a_model_lacks_is_a_sentence(model, ask, says):
    with pytest.raises(UserError, match=says):
        ask(model)
