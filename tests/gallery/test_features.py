"""Features: of their own image, whatever the batch, the workers and the neighbors in the batch."""

import copy

import numpy as np
import pytest
import torch

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery.features import KINDS, embed, feature_dim, features_of, model_feature_hash
from dino_core.models import Model


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(model: Model, kind: str) -> None:
    source = open_source("scenes:3")
    found = features_of(model, source, kind=kind)
    assert found.array.shape == (3, feature_dim(model, kind)) and found.array.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.array, axis=1), 1, atol=1e-5)
    x = model.preprocess(source.image(1))[None]
    tokens = model.backbone.tokens(x)[0]
    cls, patches = tokens[0], tokens[1:]
    expected = {
        "cls": cls,
        "cls+gem": torch.cat([cls, (patches.clamp(min=1e-6) ** 4).mean(0) ** 0.25]),
        "mean patch": patches.mean(0),
    }[kind]
    np.testing.assert_allclose(found.array[1], expected / expected.norm(), atol=1e-5)


def test_an_unknown_kind_is_a_sentence(model: Model) -> None:
    with pytest.raises(UserError, match=r"feature kind 'CLS' is unknown; there are cls, "):
        embed(model, [np.zeros((9, 9, 3), np.uint8)], kind="CLS")


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (7, 2)])
def test_neither_batch_nor_workers_change_them(model: Model, batch_size: int, workers: int) -> None:
    source = open_source("scenes:7")
    found = features_of(model, source, batch_size=batch_size, workers=workers)
    one_by_one = np.concatenate([embed(model, [source.image(i)]).array for i in range(7)])
    np.testing.assert_allclose(found.array, one_by_one, atol=1e-6)
    assert found.rows.tolist() == list(range(7))


def test_bad_images_are_left_out_and_named(model: Model, photos) -> None:
    found = features_of(model, open_source(photos), batch_size=1)
    assert len(found.array) == 6
    assert [id for id, _ in found.bad] == ["cats/broken.jpg"]
    source = open_source(photos)
    for row, feature in zip(found.rows, found.array, strict=True):
        np.testing.assert_allclose(feature, embed(model, [source.image(row)]).array[0], atol=1e-6)


def test_a_file_that_goes_away_is_a_bad_image(model: Model, photos) -> None:
    source = open_source(photos)
    (photos / "dogs" / "2.png").unlink()
    assert "dogs/2.png" in dict(features_of(model, source).bad)


def test_broken_weights_are_a_sentence(model: Model) -> None:
    broken = copy.deepcopy(model)
    next(broken.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        embed(broken, [np.zeros((9, 9, 3), np.uint8)])


def test_the_hash_tells_models_and_kinds_apart(model: Model, other_model: Model) -> None:
    hashes = {model_feature_hash(one, kind) for one in (model, other_model) for kind in KINDS}
    assert len(hashes) == 2 * len(KINDS)


def test_progress_reaches_the_end(model: Model) -> None:
    told: list[tuple[int, int, str]] = []
    features_of(
        model, open_source("scenes:5"), batch_size=2, progress=lambda *now: told.append(now)
    )
    assert [done for done, _, _ in told] == [0, 2, 4, 5] and {total for _, total, _ in told} == {5}
