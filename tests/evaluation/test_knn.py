"""The k-NN protocol around the vote: labels by name, left-out images, what it is compared with."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import knn
from dino_core.evaluation.passes import Passing
from dino_core.gallery import features_of
from dino_core.measures import knn_accuracy
from dino_core.models import Model, ModelInfo, create_backbone, save_weights

TINY = ModelInfo(
    architecture="vit_tiny_patch16_224",
    patch_size=16,
    image_size=32,
    options={"depth": 1, "embed_dim": 24, "num_heads": 2},
)


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(create_backbone(TINY), "tiny", torch.device("cpu"))


def write_colors(folder: Path, classes: dict[str, tuple[int, int, int]], each: int = 4) -> Path:
    """Class folders of nearly plain colors, which raw pixels tell apart."""
    random = np.random.default_rng(len(classes))
    for name, color in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(each):
            noise = random.integers(-20, 20, (40, 40, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_colors(tmp_path / "train", {"a": RED, "b": GREEN, "c": BLUE})


@pytest.fixture(name="test")
def held_out(tmp_path: Path) -> Path:
    return write_colors(tmp_path / "test", {"b": GREEN, "c": BLUE})


def test_figures_are_the_vote_on_the_gallery_s_features(model: Model) -> None:
    train, test = open_source("scenes:40"), open_source("scenes:100-116")
    result = knn.evaluate(model, train, test, ks=(3, 10), random_init=False)
    expected = knn_accuracy(
        features_of(model, train).array, train.labels,
        features_of(model, test).array, test.labels, (3, 10),
    )  # fmt: skip
    assert result.per_k == expected
    best = max(expected.values(), key=lambda accuracy: accuracy.top1)
    assert result.top1 == best.top1 and result.per_k[result.k].top5 == result.top5
    assert (result.train_images, result.test_images) == (40, 16)


def test_classes_are_matched_by_name_not_by_number(model: Model, train: Path, test: Path) -> None:
    result = knn.evaluate(model, open_source(train), open_source(test), ks=(1,), pixels=True)
    assert result.pixels is not None and result.pixels.top1 == 100  # b is 1 in train, 0 in test
    assert result.random_init is not None and result.random_init.model == "untrained"
    assert result.random_init.model_hash != result.model_hash


def test_classes_that_training_lacks_count_as_wrong_and_are_named(
    model: Model, train: Path, test: Path
) -> None:
    shutil.copytree(train / "a", test / "zebra")
    result = knn.evaluate(
        model, open_source(train), open_source(test), ks=(1,), random_init=False, pixels=True
    )
    assert result.pixels is not None
    assert result.pixels.top1 == pytest.approx(100 * 2 / 3)
    assert result.notes == ["1 test classes are not in train (zebra): they count as wrong"]


def test_what_was_taken_for_what_is_counted(model: Model, train: Path, test: Path) -> None:
    shutil.copytree(train / "a", test / "zebra")
    result = knn.evaluate(
        model, open_source(train), open_source(test), ks=(1,), random_init=False, pixels=True
    ).pixels
    assert result is not None
    assert result.per_class == {"b": 100, "c": 100, "zebra": 0}
    assert result.confusions == [("zebra", "a", 4)]


def test_kept_features_give_the_same_figures(model: Model, tmp_path: Path) -> None:
    train, test = open_source("scenes:40"), open_source("scenes:100-116")
    passing = Passing(keep=tmp_path)
    first, again, plain = (
        knn.evaluate(model, train, test, ks=(3,), passing=how)
        for how in (passing, passing, Passing())
    )
    assert first == again == plain and len(list(tmp_path.iterdir())) == 4


def test_bad_images_are_left_out_and_counted(model: Model, train: Path, test: Path) -> None:
    (train / "a" / "0.png").write_bytes(b"nothing")
    (test / "b" / "0.png").write_bytes(b"nothing")
    result = knn.evaluate(
        model, open_source(train), open_source(test), ks=(1,), random_init=False, pixels=True
    )
    assert (result.train_images, result.test_images) == (11, 7)
    assert result.notes == ["2 unreadable images were left out"]
    assert result.pixels is not None and result.pixels.top1 == 100  # rows and labels still fit


def test_k_above_the_number_of_images_is_that_number(model: Model, train: Path, test: Path) -> None:
    result = knn.evaluate(model, open_source(train), open_source(test), random_init=False)
    assert list(result.per_k) == [10, 12]
    assert result.notes == ["k above 12 counts as 12: so many images vote"]


@pytest.mark.parametrize(
    ("train_spec", "test_spec", "sentence"),
    [
        ("flat", "test", "flat: has no labels"),
        ("train", "flat", "flat: has no labels"),
        ("train", "train", "is both train and test"),
        ("train", "other", "have no class in common"),
    ],
)
def test_what_cannot_be_judged_is_a_sentence(
    model: Model, train: Path, test: Path, tmp_path: Path,
    train_spec: str, test_spec: str, sentence: str,
) -> None:  # fmt: skip
    shutil.copytree(train / "a", tmp_path / "flat")
    write_colors(tmp_path / "other", {"x": RED, "y": BLUE})
    with pytest.raises(UserError, match=sentence):
        knn.evaluate(model, open_source(tmp_path / train_spec), open_source(tmp_path / test_spec))


@pytest.mark.parametrize("ks", [(), (0, 10)])
def test_without_neighbors_nothing_can_vote(model: Model, ks: tuple[int, ...]) -> None:
    train, test = open_source("scenes:4"), open_source("scenes:4-8")
    with pytest.raises(UserError, match="at least one number of neighbors"):
        knn.evaluate(model, train, test, ks=ks)


def test_the_command_line_saves_what_it_prints(
    model: Model, train: Path, test: Path, tmp_path: Path, repository: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, model.info, model.backbone.vit.state_dict())
    specification = importlib.util.spec_from_file_location(
        "evaluate_script", repository / "scripts" / "evaluate.py"
    )
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(__import__("sys").modules, "evaluate_script", script)
    specification.loader.exec_module(script)
    words = ["evaluate.py", "knn", "--model", weights, "--train", train, "--test", test]
    words += ["--json", tmp_path / "knn.json", "--ks", "1", "5", "--pixels"]
    words += ["--features", tmp_path / "features"]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    script.main()
    saved = json.loads((tmp_path / "knn.json").read_text())
    for figures in (saved, saved["random_init"], saved["pixels"]):
        assert 0 <= figures["top1"] <= figures["top5"] <= 100
        assert set(figures["per_k"]) == {"1", "5"}
    assert saved["protocol"] == "knn" and len(list((tmp_path / "features").iterdir())) == 4
    table = capsys.readouterr().out
    assert f"{saved['top1']:.2f}" in table and "untrained" in table and "raw pixels" in table
