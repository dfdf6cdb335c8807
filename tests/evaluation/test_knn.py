"""The k-NN protocol around the vote: labels by name, left-out images, what it is compared with."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
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
from dino_core.measures import knn as vote
from dino_core.measures import knn_accuracy, knn_vote
from dino_core.models import Model, save_weights


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
    assert result.random_init is not None and result.random_init.model == "tiny (random init)"
    assert result.random_init.model_hash != result.model_hash


def test_classes_that_training_lacks_count_as_wrong_and_are_named(
    model: Model, train: Path, test: Path
) -> None:
    shutil.copytree(train / "a", test / "zebra")
    result = knn.evaluate(
        model, open_source(train), open_source(test), ks=(1,), random_init=False, pixels=True
    )
    assert result.pixels is not None
    assert result.pixels.top1 == pytest.approx(100 * 12 / 24)
    assert result.notes == ["1 test classes are not in train (zebra): they count as wrong"]


def test_what_was_taken_for_what_is_counted(model: Model, train: Path, test: Path) -> None:
    shutil.copytree(train / "a", test / "zebra")
    result = knn.evaluate(
        model, open_source(train), open_source(test), ks=(1,), random_init=False, pixels=True
    ).pixels
    assert result is not None
    assert result.per_class == {"b": 100, "c": 100, "zebra": 0}
    expected = [f"zebra/{number:02}.png" for number in range(4)]
    assert result.confusions == [("zebra", "a", 12, expected)]


def test_kept_features_give_the_same_figures(model: Model, tmp_path: Path) -> None:
    train, test = open_source("scenes:40"), open_source("scenes:100-116")
    passing = Passing(keep=tmp_path)
    first, again, plain = (
        knn.evaluate(model, train, test, ks=(3,), passing=how)
        for how in (passing, passing, Passing())
    )
    assert first == again == plain and len(list(tmp_path.iterdir())) == 4


def test_bad_images_are_left_out_and_named(model: Model, train: Path, test: Path) -> None:
    (train / "a" / "00.png").write_bytes(b"nothing")
    jpeg = test / "b" / "half.jpg"
    Image.open(test / "b" / "00.png").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])  # Pillow could show its top
    result = knn.evaluate(
        model, open_source(train), open_source(test), ks=(1,), random_init=False, pixels=True
    )
    assert (result.train_images, result.test_images) == (35, 12)
    assert len(result.notes) == 1 and result.notes[0] in result.table()
    assert result.notes[0].startswith("2 images cannot be read and are left out: a/00.png (")
    assert "b/half.jpg (truncated" in result.notes[0]
    assert result.pixels is not None and result.pixels.top1 == 100  # rows and labels still fit


def test_k_above_the_number_of_images_is_that_number(model: Model, train: Path, test: Path) -> None:
    result = knn.evaluate(model, open_source(train), open_source(test), random_init=False)
    assert list(result.per_k) == [10, 20, 36]
    assert result.notes == ["k above 36 counts as 36: so many images vote"]


def test_the_table_says_how_k_was_chosen(model: Model, train: Path, test: Path) -> None:
    result, one = (
        knn.evaluate(model, open_source(train), open_source(test), ks=ks, pixels=True)
        for ks in ((1, 36), (36,))
    )
    assert "best on test, as published" in result.table().splitlines()[0]
    assert "best on test" not in one.table()
    assert [line.split()[0] for line in result.table().splitlines()[2:5]] == [
        "tiny", "untrained", "raw",
    ]  # fmt: skip
    assert one.per_k[36].top5 == one.top5 == 100  # three classes are always among the first five


def test_raw_pixels_of_any_channels_are_small_normalized_images(
    make_model: Callable[..., Model], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "four" / name).mkdir(parents=True)
        for index in range(3):
            pixels = random.integers(0, 255, (32, 32, 4), np.uint8)
            pixels[..., 3] = 200 if name == "a" else 20
            np.save(tmp_path / "four" / name / f"{index}.npy", pixels)
    source = open_source(tmp_path / "four", channels=4)
    found = knn.pixel_features(source, Passing(workers=0)).array
    plain = (source.image(1).astype(np.float64) / 255 - 0.45) / 0.225  # 32 px already
    np.testing.assert_allclose(found[1], plain.ravel() / np.linalg.norm(plain), atol=1e-6)
    shutil.copytree(tmp_path / "four", tmp_path / "again")
    result = knn.evaluate(
        make_model(channels=4), source, open_source(tmp_path / "again", channels=4), ks=(1,),
        random_init=False, pixels=True,
    )  # fmt: skip
    assert result.pixels is not None and result.pixels.top1 == 100


def test_raw_pixels_of_rgb_are_normalized_as_for_a_model(train: Path) -> None:
    source = open_source(train)
    found = knn.pixel_features(source, Passing(workers=0)).array
    small = np.array(Image.fromarray(source.image(0)).resize((32, 32), Image.Resampling.BICUBIC))
    plain = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found[0], plain.ravel() / np.linalg.norm(plain), atol=1e-6)


def test_raw_pixels_are_kept_and_gone_on_with(train: Path, tmp_path: Path) -> None:
    """3,072 numbers an image are 15.7 GB of ImageNet: on the disk, mapped, and not made twice."""

    class Stop(Exception):
        pass

    def stop(done: int, *_: object) -> None:
        if done >= 20:
            raise Stop

    (train / "a" / "00.png").write_bytes(b"nothing")
    source, keep = open_source(train), tmp_path / "keep"
    with pytest.raises(Stop):
        knn.pixel_features(source, Passing(keep, batch_size=4, workers=0, progress=stop))
    said: list[int] = []
    passing = Passing(keep, batch_size=4, workers=0, progress=lambda done, *_: said.append(done))
    found = knn.pixel_features(source, passing)
    plain = knn.pixel_features(source, Passing(workers=0))
    assert min(said) == 20 and isinstance(found.array, np.memmap)
    np.testing.assert_array_equal(found.array, plain.array)
    assert found.rows.tolist() == plain.rows.tolist() == list(range(1, 36))
    assert [name for name, _ in found.bad] == [name for name, _ in plain.bad] == ["a/00.png"]
    again = knn.pixel_features(open_source(train), replace(passing, progress=stop_at_once))
    np.testing.assert_array_equal(again.array, plain.array)
    (kept,) = keep.iterdir()
    assert kept.name.startswith("raw-pixels-")


def stop_at_once(done: int, total: int, _: str) -> None:
    assert done == total, "nothing is computed"


@pytest.mark.parametrize(
    ("voters", "classes", "k", "most_rows"),
    [
        (1_281_167, 1000, 200, 52),  # ImageNet: 5 MB of similarities for each test image
        (100, 10_000_000, 10, 1),  # 160 MB of votes
        (10**9, 2, 1, 1),  # more than allowed for a single one
        (1000, 10, 20, vote.MOST_ROWS),
    ],
)
def test_what_a_vote_holds_at_a_time_is_bounded(
    voters: int, classes: int, k: int, most_rows: int
) -> None:
    rows = vote.rows_at_once(voters, classes, k)
    assert rows == most_rows
    if rows > 1:
        assert rows * voters * 4 <= vote.SIMILARITY_BYTES
        assert rows * (classes * 16 + k * 24) <= vote.VOTES_BYTES


def test_a_vote_in_small_pieces_is_the_plain_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    train, test = (random.normal(size=(n, 6)).astype(np.float32) for n in (40, 23))
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    labels = random.integers(0, 7, 40)
    monkeypatch.setattr(vote, "SIMILARITY_BYTES", 40 * 4 * 5)  # five test images
    pieces: list[int] = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda x, *a, **b: pieces.append(len(x)) or topk(x, *a, **b)
    )
    ranked = knn_vote(train, labels, test, [3, 9], num_classes=7)
    assert pieces == [5, 5, 5, 5, 3]
    for k in (3, 9):
        for i, similarities in enumerate(test @ train.T):
            votes = np.zeros(7)
            for j in sorted(range(40), key=lambda j: -similarities[j])[:k]:
                votes[labels[j]] += np.exp(similarities[j] / 0.07)
            expected = sorted(range(7), key=lambda c: (-votes[c], c))[:5]
            assert ranked[k][i].tolist() == expected


def test_top5_of_fewer_neighbors_counts_no_more_classes_than_these() -> None:
    """Three images on a circle, by hand; the published script counts min(5, k) classes."""
    angles = np.radians([0, 10, 20, 90, 100, 110, 180])
    train = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels, test = np.array([3, 4, 5, 0, 1, 2, 6]), train[[0, 3, 6]]
    truth = np.array([4, 1, 0])  # of the second, second and fourth neighbor
    found = knn_accuracy(train, labels, test, truth, [1, 2, 5])
    assert [(one.top1, round(one.top5, 3)) for one in found.values()] == [
        (0, 0), (0, 66.667), (0, 100),
    ]  # fmt: skip
    filled = knn_vote(train, labels, test, [1])[1]
    assert filled[2].tolist() == [6, 0, 1, 2, 3]  # and class 0 would have counted


def test_fewer_neighbors_flatter_no_protocol(model: Model) -> None:
    train, test = open_source("scenes:40"), open_source("scenes:100-116")
    result = knn.evaluate(model, train, test, ks=(1,), random_init=False, pixels=True)
    assert result.top5 == result.top1 == result.per_k[1].top5
    assert result.pixels is not None and result.pixels.top5 == result.pixels.top1


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
    model: Model, train: Path, test: Path, tmp_path: Path, write_colors: Callable[..., Path],
    train_spec: str, test_spec: str, sentence: str,
) -> None:  # fmt: skip
    shutil.copytree(train / "a", tmp_path / "flat")
    write_colors(tmp_path / "other", {"x": 2, "y": 2})
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
    assert saved["protocol"] == "knn" and len(list((tmp_path / "features").iterdir())) == 6
    table = capsys.readouterr().out
    assert f"{saved['top1']:.2f}" in table and "untrained" in table and "raw pixels" in table
