"""A view survives JSON, URL and PNG unchanged, and gives the same picture again."""

import base64
import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.catalog.answers.heads import coded
from dino_core.errors import UserError
from dino_core.lenses import LensPayload, look, mass_mask, paint
from dino_core.lenses.colormap import ANCHORS
from dino_core.lenses.paint import Style
from dino_core.lenses.similarity import similarity
from dino_core.lenses.tokens import read_tokens
from dino_core.models import Model, ModelInfo, create_backbone
from dino_core.views import ABOUT, COLORMAPS, MODES, View, export, exported, read_view, zipped
from dino_core.views import render as render_view

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 80, 3), np.uint8)

finite = st.floats(allow_nan=False, allow_infinity=False)
views = st.builds(
    lambda *, similar, query, **fields: View(
        query=query, similar=similar and query is not None, **fields
    ),
    image=st.text(max_size=40),
    model=st.text(min_size=1, max_size=40),
    model_hash=st.text("0123456789abcdef", max_size=32),
    layer=st.integers(-40, 40),
    head=st.none() | st.integers(0, 40),
    size=st.none() | st.integers(1, 4000),
    query=st.none() | st.tuples(st.integers(0, 300), st.integers(0, 300)),
    rollout=st.booleans(),
    similar=st.booleans(),
    mode=st.sampled_from(MODES),
    keep=st.none() | st.floats(0, 1),
    opacity=st.floats(0, 1),
    colormap=st.sampled_from(COLORMAPS),
    smooth=st.booleans(),
    outline=st.booleans(),
    selection=st.lists(st.tuples(finite, finite), max_size=6).map(tuple),
)
FIELDS = [field.name for field in dataclasses.fields(View)]
WORDS = [
    "none",
    "true",
    "heat",
    "1",
    "-1",
    "0.5",
    "nan",
    "inf",
    "1,2",
    "1,2;3,4",
    "9" * 5000,
    "\ud800",
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    info = ModelInfo("vit_tiny_patch16_224", 8, 64, options=options)
    return Model(create_backbone(info), "tiny", torch.device("cpu"))


@given(view=views)
def test_round_trips(view):
    assert View.from_json(view.to_json()) == view
    assert View.from_query(view.to_query()) == view
    assert View.from_query("?theme=dark&" + view.to_query() + "&token=x") == view


def test_a_query_holds_only_what_differs():
    assert View("ab12", "starter").to_query() == "image=ab12&model=starter"
    view = View("ab12", "runs/a@10", head=2, keep=None, selection=((0.5, -1.0), (2.0, 3.0)))
    assert view.to_query() == (
        "image=ab12&model=runs%2Fa%4010&head=2&keep=none&selection=0.5%2C-1.0%3B2.0%2C3.0"
    )


def test_a_query_of_this_version_holds_the_new_fields():
    view = View("ab12", "starter", query=(3, 7), rollout=True, mode="masked", smooth=False)
    expected = "image=ab12&model=starter&query=3%2C7&rollout=true&mode=masked&smooth=false"
    assert view.to_query() == expected


def test_what_an_earlier_version_wrote_is_read():
    old = {
        "image": "ab12", "model": "starter", "model_hash": "", "layer": 3, "head": 2, "size": None,
        "keep": 0.3, "opacity": 0.5, "colormap": "magma", "selection": [[0.5, -1.0], [2, 3]],
    }  # fmt: skip
    expected = View(
        *("ab12", "starter"), layer=3, head=2, keep=0.3, opacity=0.5, colormap="magma",
        selection=((0.5, -1.0), (2.0, 3.0)),
    )  # fmt: skip
    assert View.from_json(json.dumps(old)) == expected
    query = "image=ab12&model=starter&layer=3&head=2&keep=0.3&opacity=0.5&colormap=magma"
    assert View.from_query(query + "&selection=0.5,-1.0;2,3") == expected


def test_fields_of_a_later_version_are_passed_over():
    text = json.dumps({"image": "a", "model": "m", "zoom": 3})
    assert View.from_json(text) == View("a", "m")


def test_color_maps_are_those_of_the_lens():
    assert tuple(ANCHORS) == COLORMAPS


def check_read(read, text) -> None:
    """`text` is a view that survives, or refused in one sentence of bounded length."""
    try:
        view = read(text)
    except UserError as error:
        sentence = str(error)
    else:
        assert View.from_json(view.to_json()) == View.from_query(view.to_query()) == view
        return
    assert sentence.startswith("view: ") and len(sentence) < 300


@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(WORDS) | st.text()), st.text())
def test_any_query_gives_a_view_or_a_sentence(values, rest):
    query = "&".join(f"{name}={value}" for name, value in values.items())
    for text in (query, rest, f"image=a&model=b&{query}", f"{query}&{rest}"):
        check_read(View.from_query, text)


@given(st.dictionaries(st.sampled_from(FIELDS), anything), anything)
def test_any_json_gives_a_view_or_a_sentence(values, other):
    for value in (values, {"image": "a", "model": "b", **values}, other):
        check_read(View.from_json, json.dumps(value))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"image":' * 100_000, "9" * 5000])
def test_json_made_to_break_a_reader_is_a_sentence(text):
    with pytest.raises(UserError, match="view: "):
        View.from_json(text)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("model=m", "image missing"),
        ("", "image and model missing"),
        ("image=a&model=m&head=two", "head is 'two'; it must be a whole number from 0"),
        ("image=a&model=m&head=-1", "head is -1"),
        ("image=a&model=m&size=0", "size is 0"),
        ("image=a&model=m&keep=2", "keep is 2"),
        ("image=a&model=m&opacity=nan", "opacity is nan"),
        ("image=a&model=m&mode=glow", "mode is 'glow'; it must be one of heat, masked"),
        ("image=a&model=m&smooth=maybe", "smooth is 'maybe'; it must be true or false"),
        ("image=a&model=m&query=1", r"query is \(1,\)"),
        ("image=a&model=m&query=1,-2", r"query is \(1, -2\)"),
        ("image=a&model=m&selection=1,2;3", "selection is '1,2;3'"),
        ("image=a&model=m&selection=1,inf", "finite numbers"),
        ("image=a&model=m&similar=true", "similar is true, but query names no patch"),
    ],
)
def test_a_broken_query_is_a_sentence(query, says):
    with pytest.raises(UserError, match=says):
        View.from_query(query)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"a"',
        "null",
        '{"image": "a"}',
        '{"image": "a", "model": "m", "head": "x"}',
        '{"image": "a", "model": "m", "head": 1.5}',
        '{"image": "a", "model": "m", "keep": "x"}',
        '{"image": "a", "model": "m", "keep": true}',
        '{"image": "a", "model": "m", "layer": true}',
        '{"image": "a", "model": "m", "smooth": 1}',
        '{"image": "a", "model": "m", "query": [1, 2.5]}',
        '{"image": "a", "model": "m", "colormap": ["inferno"]}',
        '{"image": "\\ud800", "model": "m"}',
        '{"image": 3, "model": "m"}',
        '{"image": "a", "model": "m", "selection": [1]}',
        '{"image": "a", "model": "m", "selection": 3}',
    ],
)
def test_broken_json_is_a_sentence(text):
    with pytest.raises(UserError, match="view"):
        View.from_json(text)


# -- replayed -----------------------------------------------------------------------------------


def test_the_same_view_is_the_same_picture(model):
    view = View("ab12", "tiny", model.hash, layer=0, head=1, size=32, keep=0.32, opacity=0.4)
    first = render_view(view, IMAGE, model)
    for replayed in (View.from_json(view.to_json()), View.from_query(view.to_query())):
        assert render_view(replayed, IMAGE, model).tobytes() == first.tobytes()
    payload = LensPayload.from_attention(look(model, IMAGE, size=32))  # what a browser would get
    count = int(payload.mass_mask(0.32)[0, 1].sum())
    style = Style(opacity=0.4, keep=0.32)
    expected = paint.painted(paint.staged(IMAGE), payload.maps()[0, 1], style, count)
    np.testing.assert_array_equal(np.asarray(first), expected)


def test_the_attention_of_a_patch_is_drawn_with_the_patch(model):
    view = View("a", "tiny", head=0, size=32, query=(2, 3), mode="spotlight")
    payload = LensPayload.from_attention(look(model, IMAGE, size=32, query=(2, 3)))
    maps = payload.maps()[-1, 0]
    count = int(payload.mass_mask(0.6)[-1, 0].sum())
    expected = paint.painted(paint.staged(IMAGE), maps, Style("spotlight"), count)
    expected = paint.with_patch(expected, (2, 3), maps.shape)
    np.testing.assert_array_equal(np.asarray(render_view(view, IMAGE, model)), expected)


def test_a_rollout_is_of_all_layers_and_heads(model):
    base = View("a", "tiny", size=32, rollout=True)
    first = render_view(base, IMAGE, model).tobytes()
    for change in ({"layer": 0}, {"head": 1}):
        assert render_view(dataclasses.replace(base, **change), IMAGE, model).tobytes() == first
    other = dataclasses.replace(base, rollout=False)
    assert render_view(other, IMAGE, model).tobytes() != first


@pytest.mark.parametrize("keep", [0.25, 0.6, 1.0])
def test_what_is_like_a_patch_is_drawn_and_exported(model, keep):
    view = View("a", "tiny", size=32, query=(2, 3), similar=True, keep=keep, mode="masked")
    patches = read_tokens(model, IMAGE, size=32).patches.astype(np.float64)
    lengths = np.linalg.norm(patches, axis=-1)
    cosines = patches @ patches[2, 3] / lengths / lengths[2, 3]
    span = cosines.max() - cosines.min()
    codes = np.rint(255 * (cosines - cosines.min()) / span)
    files = exported(view, IMAGE, model)
    with np.load(io.BytesIO(files["attention.npz"]), allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["shown"][0], cosines, atol=0.51 * span / 255)
        assert arrays["shown"][0, 2, 3] == pytest.approx(1) == arrays["shown"].max()
        np.testing.assert_array_equal(arrays["mask"][0], codes / 255 >= 1 - keep)
        assert arrays["maps"].shape == (3, *cosines.shape), "the heads' attention from the patch"
    style = Style("masked")
    expected = paint.painted(
        paint.staged(IMAGE), codes, style, int((codes / 255 >= 1 - keep).sum())
    )
    expected = paint.with_patch(expected, (2, 3), cosines.shape)
    theirs = np.asarray(Image.open(io.BytesIO(files["view.png"]))).astype(int)
    assert (np.abs(theirs - expected).max(axis=-1) <= 1).mean() > 0.999


def test_a_page_and_a_view_code_cosines_alike(model):
    cosines = similarity(read_tokens(model, IMAGE, size=32), 1, 4)
    told = coded(cosines)
    codes = np.frombuffer(base64.b64decode(told["codes"]), np.uint8).reshape(told["grid"])
    shown, mask = paint.liking(cosines, 0.3)
    decoded = told["low"] + (told["high"] - told["low"]) * (codes / 255)
    np.testing.assert_allclose(shown, decoded, atol=1e-7)
    np.testing.assert_array_equal(mask, codes / 255 >= 1 - 0.3)


def test_similar_patches_have_no_heads_and_no_rollout(model):
    base = View("a", "tiny", size=32, query=(2, 3), similar=True)
    first = render_view(base, IMAGE, model).tobytes()
    for change in ({"head": 1}, {"rollout": True}, {"mode": "colored"}, {"layer": 0}):
        assert render_view(dataclasses.replace(base, **change), IMAGE, model).tobytes() == first


PLAIN = View("a", "tiny", head=1, size=32)


@pytest.fixture(scope="module")
def plain(model) -> bytes:
    return render_view(PLAIN, IMAGE, model).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"layer": 0}, {"head": 2}, {"keep": None}, {"opacity": 0.1}, {"colormap": "magma"},
        {"mode": "masked"}, {"mode": "spotlight"}, {"mode": "colored"}, {"smooth": False},
        {"outline": False}, {"query": (1, 1)}, {"size": 16},
        {"query": (1, 1), "head": None, "similar": True},
    ],
)  # fmt: skip
def test_every_field_shows(model, plain, change):
    other = dataclasses.replace(PLAIN, **change)
    assert render_view(other, IMAGE, model).tobytes() != plain


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_hash": "0" * 64}, "other weights"),
        ({"layer": 2}, "has 2 layers"),
        ({"layer": -3}, "has 2 layers"),
        ({"head": 3}, "has 3 heads"),
        ({"colormap": "jet"}, "must be one of inferno"),
        ({"query": (40, 0)}, "40"),
        ({"query": (40, 0), "rollout": True}, "40"),
        ({"query": (40, 0), "similar": True}, "40"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(model, change, says):
    with pytest.raises(UserError, match=says):
        render_view(View(**{"image": "a", "model": "tiny", **change}), IMAGE, model)


# -- exported -----------------------------------------------------------------------------------

LOOK = View("ab12", "tiny", layer=0, head=1, size=32, keep=0.5)


def test_an_export_holds_picture_arrays_and_what_made_them(model, tmp_path):
    export(LOOK, IMAGE, model, tmp_path / "look")
    picture = Image.open(tmp_path / "look" / "view.png")
    assert picture.tobytes() == render_view(LOOK, IMAGE, model).tobytes()
    seen = look(model, IMAGE, size=32)
    with np.load(tmp_path / "look" / "attention.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["maps"], seen.maps[0])
        assert arrays["mask"].shape == (1, *seen.grid)
        assert abs(int(arrays["mask"].sum()) - int(mass_mask(seen.maps[0, 1], 0.5).sum())) <= 1
        assert (arrays["shown"][arrays["mask"]].min() >= arrays["shown"][~arrays["mask"]]).all()
        assert View.from_json(str(arrays["view"])) == LOOK
    about = json.loads((tmp_path / "look" / "view.json").read_text())
    assert about["model"]["hash"] == model.hash
    assert about["image"]["hash"] == "ab12" and about["image"]["size"] == [20, 80]
    assert about["view"]["keep"] == 0.5 and about["versions"]["torch"] == torch.__version__


def test_the_same_view_exports_the_same_bytes(model, tmp_path):
    files = exported(LOOK, IMAGE, model)
    assert exported(LOOK, IMAGE, model) == files
    export(LOOK, IMAGE, model, tmp_path / "look.zip")
    assert (tmp_path / "look.zip").read_bytes() == zipped(files)
    with zipfile.ZipFile(tmp_path / "look.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_a_folder_that_is_there_is_not_written_over(model, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: is there already"):
        export(LOOK, IMAGE, model, tmp_path / "mine")


def test_a_view_is_read_from_its_json_an_export_and_its_picture(model, tmp_path):
    view = dataclasses.replace(LOOK, image="Übung ☃", selection=((1.0, 2.0),))
    (tmp_path / "a.json").write_text(view.to_json(), encoding="utf-8")
    export(view, IMAGE, model, tmp_path / "look")
    for name in ("a.json", "look/view.json", "look/view.png"):
        assert read_view(tmp_path / name) == view


def test_a_file_without_a_view_is_a_sentence(tmp_path):
    plain = io.BytesIO()
    Image.fromarray(IMAGE).save(plain, "PNG")
    broken = {
        "plain.png": plain.getvalue(),
        "half.png": plain.getvalue()[:20],
        "photo.jpg": b"\xff\xd8\xff\xe0",
        "other.json": b"[1, 2]",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}|not a JSON object of a view"):
            read_view(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
        read_view(tmp_path / "none.json")


def test_a_view_is_read_from_a_zipped_export_and_a_folder(tmp_path):
    view = View(image="0" * 32, model="starter", layer=3, keep=0.4)
    about = json.dumps({"view": json.loads(view.to_json())}).encode()
    (tmp_path / "look.zip").write_bytes(zipped({ABOUT: about}))
    (tmp_path / ABOUT).write_bytes(about)
    assert read_view(tmp_path / "look.zip") == read_view(tmp_path) == view
    for damaged in (zipped({"other": b""}), zipped({ABOUT: about})[:50]):
        (tmp_path / "bad.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=r"no view\.json"):
            read_view(tmp_path / "bad.zip")
