"""Quality checks while training: what they measure and keep, and that they disturb nothing."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from dino_core.data import open_source
from dino_core.files import write_json
from dino_core.lenses import LensPayload, look
from dino_core.lenses.tokens import read_tokens
from dino_core.models import load_model
from dino_core.runs import Run
from dino_core.training import QualityConfig, Recipe, train
from dino_core.training.quality import Examiner, Quality, principal, split
from dino_core.training.step import TrainState

CHECKED = QualityConfig(checks=2, hold_out=0.25, k=5, probes=2)


@pytest.fixture(scope="module")
def recipe(tiny) -> Recipe:
    return dataclasses.replace(tiny, quality=CHECKED, save_every=100, keep=1)


@pytest.fixture(scope="module")
def run(recipe, pictures, tmp_path_factory) -> Run:
    return train(recipe, open_source(pictures), Run(tmp_path_factory.mktemp("runs") / "checked"))


def checks(run: Run, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in run.metrics() if name in row}


@pytest.mark.parametrize("images", [0, 7, 39, 40, 100, 1000, 10**6])
def test_a_split_parts_the_images_for_good(recipe, images):
    parts = split(recipe, images)
    both = np.concatenate([parts.training, parts.held_out])
    assert sorted(both.tolist()) == list(range(images))
    few = round(images / 4)
    assert len(parts.held_out) == (0 if few < 10 else min(few, 2000))
    again = split(recipe, images)
    assert np.array_equal(parts.held_out, again.held_out)


def test_labels_are_voted_on_before_amid_and_after(run):
    accuracy = checks(run, "knn")
    assert list(accuracy) == [0, 5, 11]
    assert all(0 <= value <= 100 for value in accuracy.values())
    assert list(checks(run, "rankme")) == [0, 5, 11]
    assert "k-NN" in (run.path / "log.txt").read_text()


def test_probes_tell_the_history_without_a_model(run, recipe, pictures):
    probes = run.path / "probes"
    held_out = json.loads((probes / "held_out.json").read_text())
    source = open_source(pictures)
    chosen = split(recipe, len(source)).held_out
    assert held_out["ids"] == [source.ids[i] for i in chosen]
    assert held_out["classes"] == source.classes
    assert held_out["shown"] == [0, 15], "far apart: neighbors in a folder are of one class"
    for step in (0, 6, 12):
        folder = probes / f"step-{step:08d}"
        features = np.load(folder / "features.npy")
        assert features.dtype == np.float16
        assert features.shape == (16, 64)
        np.testing.assert_allclose(np.linalg.norm(features.astype(float), axis=1), 1, atol=2e-3)
        assert json.loads((folder / "quality.json").read_text())["steps_done"] == step
    assert [line.split(":")[0] for line in run.history()] == ["step 0", "step 6", "step 12"]
    image = np.asarray(Image.open(probes / "images" / "0.png"))
    assert np.array_equal(image, source.image(int(chosen[0])))
    kept = LensPayload.from_bytes((probes / "step-00000012" / "attention-0.bin").read_bytes())
    attention = look(load_model(str(run.path), device="cpu"), image)
    assert np.array_equal(kept.codes, LensPayload.from_attention(attention).codes)


def test_patches_are_kept_along_directions_that_the_images_share(run):
    """Against scikit-learn's PCA of both images' tokens, up to each direction's sign."""
    folder, model = run.path / "probes", load_model(str(run.path), device="cpu")
    images = [np.asarray(Image.open(folder / "images" / f"{i}.png")) for i in (0, 1)]
    tokens = [read_tokens(model, image).patches for image in images]
    flat = np.concatenate([one.reshape(-1, one.shape[-1]) for one in tokens])
    expected = PCA(8, svd_solver="full").fit_transform(flat)
    kept = [np.load(folder / "step-00000012" / f"patches-{i}.npy") for i in (0, 1)]
    assert [one.dtype for one in kept] == [np.float16] * 2
    assert [one.shape for one in kept] == [(*one.shape[:2], 8) for one in tokens]
    ours = np.concatenate([one.reshape(-1, 8) for one in kept]).astype(float)
    signs = np.sign((ours * expected).sum(axis=0))
    np.testing.assert_allclose(ours * signs, expected, atol=2e-3)


def test_a_run_that_showed_the_first_images_goes_on_with_them(recipe, pictures, tmp_path):
    recipe, source = dataclasses.replace(recipe, steps=6), open_source(pictures)
    run = Run(tmp_path / "older")
    train(recipe, source, run, max_seconds=1e-9)
    shutil.rmtree(run.path / "probes")
    chosen = split(recipe, len(source)).held_out
    write_json(run.path / "probes" / "held_out.json", {"ids": [source.ids[i] for i in chosen]})
    while run.status()["state"] != "finished":
        train(recipe, source, run, resume=True, max_seconds=1e-9)
    image = np.asarray(Image.open(run.path / "probes" / "images" / "1.png"))
    assert np.array_equal(image, source.image(int(chosen[1])))


def test_directions_of_narrow_tokens_and_of_none():
    assert principal([]) == []
    tokens = np.arange(18, dtype=np.float32).reshape(3, 3, 2)  # on a line: one direction varies
    (scores,) = principal([tokens])
    assert scores.shape == (3, 3, 2)
    along = (np.arange(9) - 4) * 2 * np.sqrt(2)  # steps of (2, 2)
    np.testing.assert_allclose(np.abs(scores[..., 0].ravel()), np.abs(along), rtol=1e-3)
    np.testing.assert_allclose(scores[..., 1], 0, atol=1e-3)


def test_the_best_checkpoint_is_kept(run):
    saved = json.loads((run.checkpoint().path / "state.json").read_text())["progress"]
    accuracy = checks(run, "knn")
    steps = {0: 0, 6: 5, 12: 11}
    assert saved["best_value"] == pytest.approx(max(accuracy.values()))
    assert saved["start_value"] == pytest.approx(accuracy[0])
    kept = [checkpoint.step for checkpoint in run.checkpoints()]
    assert kept == sorted({saved["best_step"], 12})
    assert accuracy[steps[saved["best_step"]]] == pytest.approx(saved["best_value"])


def test_without_labels_neighbors_are_counted(recipe, unlabeled, tmp_path):
    recipe = dataclasses.replace(recipe, steps=6, quality=dataclasses.replace(CHECKED, checks=1))
    run = train(recipe, open_source(unlabeled), Run(tmp_path / "run"))
    assert not checks(run, "knn")
    kept = checks(run, "neighbor_consistency")
    assert list(kept) == [0, 5]
    assert all(0 < value <= 1 for value in kept.values())


def test_looking_changes_nothing(run, recipe, pictures, tmp_path):
    often = dataclasses.replace(CHECKED, checks=6)
    other = train(
        dataclasses.replace(recipe, quality=often), open_source(pictures), Run(tmp_path / "often")
    )
    ours = load_file(run.checkpoint().path / "teacher.safetensors")
    theirs = load_file(other.checkpoint().path / "teacher.safetensors")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_check_that_is_cut_short_is_made_again(run, recipe, pictures, tmp_path):
    """Resumed between two checks a run tells each of them once, with the same numbers."""
    stopped = Run(tmp_path / "stopped")
    source = open_source(pictures)
    train(recipe, source, stopped, max_seconds=1e-9)
    while stopped.status()["state"] != "finished":
        train(recipe, source, stopped, resume=True, max_seconds=1e-9)
    assert checks(stopped, "knn") == checks(run, "knn")


@pytest.mark.parametrize(("later", "warned"), [(79.0, False), (50.0, True)])
def test_a_continued_model_that_gets_worse_is_warned_about(
    later, warned, run, recipe, pictures, tmp_path, monkeypatch
):
    def check(_self: Examiner, state: TrainState) -> Quality:
        return Quality(state.step, 80.0 if state.step == 0 else later, 9.0, None)

    monkeypatch.setattr(Examiner, "check", check)
    continued = dataclasses.replace(recipe, init=str(run.path), steps=6)
    other = train(continued, open_source(pictures), Run(tmp_path / "continued"))
    warnings = other.path / "warnings.jsonl"
    assert warnings.exists() == warned
    if warned:
        assert "50.0 now, 80.0 then" in warnings.read_text()
        assert other.checkpoints()[0].step == 0  # the best stays


@pytest.mark.parametrize(("last", "told"), [(41.0, False), (40.0, True), (12.0, True)])
def test_a_run_that_ends_no_better_than_it_began_says_so(
    last, told, recipe, pictures, tmp_path, monkeypatch
):
    values = {0: 40.0, 3: 90.0, 6: last}

    def check(_self: Examiner, state: TrainState) -> Quality:
        return Quality(state.step, values[state.step], 9.0, None)

    monkeypatch.setattr(Examiner, "check", check)
    short = dataclasses.replace(recipe, steps=6)
    run = train(short, open_source(pictures), Run(tmp_path / "run"))
    sentence = f"k-NN, {last} %, is not above that of the untrained network, 40.0 %"
    assert (sentence in (run.path / "log.txt").read_text()) == told
