"""A view survives JSON and URL unchanged, and gives the same picture again."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.lenses import look, mass_mask, render
from dino_core.models import Model, ModelInfo, create_backbone
from dino_core.views import View
from dino_core.views import render as render_view

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)

finite = st.floats(allow_nan=False, allow_infinity=False)
views = st.builds(
    View,
    image=st.text(max_size=40),
    model=st.text(min_size=1, max_size=40),
    model_hash=st.text("0123456789abcdef", max_size=64),
    layer=st.integers(-40, 40),
    head=st.none() | st.integers(0, 40),
    size=st.none() | st.integers(1, 4000),
    keep=st.none() | st.floats(0, 1),
    opacity=st.floats(0, 1),
    colormap=st.sampled_from(["viridis", "inferno", "magma"]),
    selection=st.lists(st.tuples(finite, finite), max_size=6).map(tuple),
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


def test_fields_of_a_later_version_are_passed_over():
    text = json.dumps({"image": "a", "model": "m", "zoom": 3})
    assert View.from_json(text) == View("a", "m")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("model=m", "image missing"),
        ("", "image and model missing"),
        ("image=a&model=m&head=two", "head cannot be read"),
        ("image=a&model=m&keep=2", "keep is 2"),
        ("image=a&model=m&opacity=nan", "opacity is nan"),
        ("image=a&model=m&selection=1,2;3", "selection cannot be read"),
        ("image=a&model=m&selection=1,inf", "not a finite number"),
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
        '{"image": "a", "model": "m", "selection": [1]}',
        '{"image": "a", "model": "m", "selection": 3}',
    ],
)
def test_broken_json_is_a_sentence(text):
    with pytest.raises(UserError, match="view"):
        View.from_json(text)


def test_the_same_view_is_the_same_picture(model):
    view = View("ab12", "tiny", model.hash, layer=0, head=1, size=64, keep=0.3, opacity=0.4)
    first = render_view(view, IMAGE, model)
    for replayed in (View.from_json(view.to_json()), View.from_query(view.to_query())):
        assert render_view(replayed, IMAGE, model).tobytes() == first.tobytes()
    seen = look(model, IMAGE, size=64).maps[0, 1]
    expected = render.overlay(render.displayed(IMAGE), seen, 0.4, "inferno")
    expected = render.outline(expected, mass_mask(seen, 0.3))
    np.testing.assert_array_equal(np.asarray(first), expected)


@pytest.mark.parametrize(
    "change", [{"layer": 0}, {"head": 2}, {"keep": None}, {"opacity": 0.1}, {"colormap": "magma"}]
)
def test_every_field_shows(model, change):
    base = {"image": "a", "model": "tiny", "head": 1, "size": 64}
    one = render_view(View(**base), IMAGE, model)
    other = render_view(View(**{**base, **change}), IMAGE, model)
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_hash": "0" * 64}, "other weights"),
        ({"layer": 2}, "has 2 layers"),
        ({"layer": -3}, "has 2 layers"),
        ({"head": 3}, "has 3 heads"),
        ({"colormap": "jet"}, "unknown"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(model, change, says):
    with pytest.raises(UserError, match=says):
        render_view(View(**{"image": "a", "model": "tiny", **change}), IMAGE, model)
