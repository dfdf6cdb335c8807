"""Models and galleries kept open, and what is answered with them."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dino_core import catalog
from dino_core.catalog import Workbench, label_vote
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import build
from dino_core.lenses import LensPayload
from dino_core.measures.knn import knn_vote
from dino_core.models import ModelInfo, create_backbone, load_model, save_weights

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3}


def save_model(path: Path) -> Path:
    info = ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=32, options=SMALL)
    save_weights(path, info, create_backbone(info).vit.state_dict())
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    model = load_model(str(save_model(folder / "small.safetensors")), device="cpu")
    source = open_source("scenes:12")
    build(model, source, folder / "galleries" / "few", batch_size=12, workers=0, maps=())
    return folder


@pytest.fixture
def bench(root: Path) -> Workbench:
    bench = Workbench(root, model=str(root / "small.safetensors"), device="cpu")
    bench.start()
    bench.wait()
    return bench


@pytest.fixture
def picture() -> catalog.Picture:
    return catalog.from_example(catalog.examples()[0])


def test_a_look_is_a_payload_and_a_photo(bench: Workbench, picture: catalog.Picture) -> None:
    sight = bench.look(picture, "small.safetensors")
    payload = LensPayload.from_bytes(sight.payload)
    assert payload.codes.shape[:2] == (2, 3)
    assert sight.photo.startswith(b"\xff\xd8")
    assert "640 × 427 px" in sight.sentence and "small.safetensors" in sight.sentence
    assert str(bench.root) not in sight.sentence, "the page tells no paths"


def test_the_same_look_is_not_computed_twice(bench: Workbench, picture: catalog.Picture) -> None:
    assert bench.look(picture, "small.safetensors") is bench.look(picture, "small.safetensors")


def test_the_nearest_neighbor_of_a_picture_is_itself(bench: Workbench) -> None:
    [(key, title)] = bench.galleries()
    assert title == "few · 12 generated images · small.safetensors"
    scene = catalog.Picture("a scene", "", "scene", lambda: open_source("scenes:12").image(5))
    near = bench.neighbors(scene, "small.safetensors", key, k=4)
    assert len(near.neighbors) == 4
    assert near.neighbors[0].row == 5
    assert near.neighbors[0].score == pytest.approx(1, abs=1e-4)
    assert sum(share for _, share in near.vote) == pytest.approx(1)


def test_an_image_of_the_gallery_is_not_its_own_neighbor(bench: Workbench) -> None:
    [(key, _)] = bench.galleries()
    near = bench.neighbors(bench.picture(key, 5), "small.safetensors", key, k=4)
    assert len(near.neighbors) == 4
    assert 5 not in [neighbor.row for neighbor in near.neighbors]


def test_another_model_is_refused_in_a_sentence(
    root: Path, picture: catalog.Picture, tmp_path: Path
) -> None:
    other = Workbench(root, model=str(save_model(tmp_path / "other.safetensors")), device="cpu")
    other.start()
    [(key, _)] = other.galleries()
    with pytest.raises(UserError, match="cannot be compared") as refusal:
        other.neighbors(picture, "other.safetensors", key)
    assert str(root) not in str(refusal.value), "the page tells no paths"


@pytest.mark.parametrize("row", [-1, 12, 10**9])
def test_a_row_that_is_not_there_is_a_sentence(bench: Workbench, row: int) -> None:
    [(key, _)] = bench.galleries()
    with pytest.raises(UserError):
        bench.picture(key, row)
    with pytest.raises(UserError):
        bench.thumbnail(key, row)


def test_a_gallery_is_opened_by_its_public_name_alone(bench: Workbench) -> None:
    for wrong in ("", "few", str(bench.root / "galleries" / "few"), "../few"):
        with pytest.raises(UserError, match="gone"):
            bench.gallery_at(wrong)


def test_galleries_of_the_named_model_stand_before_others(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "galleries"
    shutil.copytree(root / "galleries" / "few", folder / "b")
    manifest = json.loads((folder / "b" / "gallery.json").read_text())
    shutil.copytree(folder / "b", folder / "a")
    (folder / "a" / "gallery.json").write_text(json.dumps(manifest | {"model": "another"}))
    titles = [title for _, title in Workbench(tmp_path, model=manifest["model"]).galleries()]
    assert [title[0] for title in titles] == ["b", "a"]


def test_the_gallery_named_at_the_start_stands_first_and_once(root: Path, tmp_path: Path) -> None:
    named = root / "galleries" / "few"
    assert len(Workbench(root, gallery=named).galleries()) == 1
    assert len(Workbench(tmp_path, gallery=named).galleries()) == 1


def test_a_model_that_does_not_load_is_said_and_others_still_work(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, model=str(tmp_path / "none.safetensors"), device="cpu")
    bench._start()
    assert bench.status().state == "ready"
    assert "none.safetensors" in bench.status().sentence


def test_closer_neighbors_vote_more_and_the_unlabeled_do_not() -> None:
    vote = label_vote(["dog", "cat", None, "cat"], [0.9, 0.7, 0.99, 0.6])
    dog, cat = math.exp(0.9 / 0.07), math.exp(0.7 / 0.07) + math.exp(0.6 / 0.07)
    assert [label for label, _ in vote] == ["dog", "cat"]
    assert vote[0][1] == pytest.approx(dog / (dog + cat))
    assert label_vote([None, None], [0.5, 0.4]) == []
    assert label_vote([], []) == []


def test_the_vote_agrees_with_the_protocol() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(60, 8))
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    query = train[:1] + 0.3 * rng.normal(size=(1, 8))
    query /= np.linalg.norm(query)
    labels = rng.integers(0, 4, 60)
    scores = train @ query[0]
    nearest = np.argsort(-scores)[:20]
    mine = [
        int(label) for label, _ in label_vote([str(labels[i]) for i in nearest], scores[nearest])
    ]
    published = knn_vote(train, labels, query, [20])[20][0].tolist()
    assert mine == published[: len(mine)]


def test_import_errors_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    bench = Workbench(tmp_path)
    bench._start()
    assert bench.status().state == "failed"
    with pytest.raises(UserError, match="PyTorch could not be loaded"):
        bench.wait()
