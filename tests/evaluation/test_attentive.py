"""The attentive probe: its step against plain autograd, what it can see that a mean cannot."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import attentive
from dino_core.evaluation.passes import Passing, features
from dino_core.models import Model, ModelInfo, create_backbone
from dino_core.rng import permutation

HERE = Passing(workers=0)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(depth=1, patch=8)


def tokens(images: int, patches: int = 6, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(images)
    array = random.normal(1, 1, (images, patches, dim)).astype(np.float32)
    return array.reshape(images, -1), random.integers(0, 3, images)


def plain_logits(
    x_BND: Tensor, query: Tensor, weight: Tensor, bias: Tensor, mean: Tensor
) -> Tensor:
    """Image by image, patch by patch."""
    rows = []
    for patches in x_BND:
        scores = torch.stack(
            [(query * (patch - mean)).sum() / math.sqrt(len(mean)) for patch in patches]
        )
        shares = scores.exp() / scores.exp().sum()
        gathered = sum(share * (patch - mean) for share, patch in zip(shares, patches, strict=True))
        rows.append(weight @ gathered + bias)
    return torch.stack(rows)


def test_probes_at_once_are_plain_probes_one_by_one() -> None:
    held, labels = tokens(30)
    mean, rates = torch.linspace(0.5, 1.5, 5), [0.05, 2.0]
    probes = attentive.Probes(rates, 5, 3, mean)
    start = probes.weight_RCD[0].clone()
    assert torch.equal(start, probes.weight_RCD[1]) and not probes.query_RD.any()
    attentive.train_probes(
        probes, held, np.arange(2, 30), labels, epochs=3, batch=10, until=2, seed=4
    )
    x, y = torch.from_numpy(held).view(30, 6, 5), torch.as_tensor(labels)
    for r, rate in enumerate(rates):
        query, weight, bias = torch.zeros(5), start.clone(), torch.zeros(3)
        parameters = [one.requires_grad_() for one in (query, weight, bias)]
        optimizer = torch.optim.SGD(parameters, rate, momentum=0.9)
        for epoch in range(2):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * epoch / 3)) / 2
            order = 2 + torch.as_tensor(permutation(28, 4, "attentive order", epoch))
            for some in order.split(10):
                optimizer.zero_grad()
                logits = plain_logits(x[some], query, weight, bias, mean)
                torch.nn.functional.cross_entropy(logits, y[some]).backward()
                optimizer.step()
        torch.testing.assert_close(probes.query_RD[r], query.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(probes.weight_RCD[r], weight.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(probes.bias_RC[r], bias.detach(), rtol=1e-3, atol=1e-5)
        expected = plain_logits(x, query, weight, bias, mean).detach()
        torch.testing.assert_close(probes.logits(x)[:, r], expected, rtol=1e-3, atol=1e-4)
    assert probes.query_RD[1].abs().max() > 0.1  # it did learn to look somewhere


def test_attention_is_shares_and_even_at_the_start() -> None:
    x = torch.from_numpy(tokens(4)[0]).view(4, 6, 5)
    probes = attentive.Probes([0.1, 1.0], 5, 3, torch.zeros(5))
    torch.testing.assert_close(probes.attention(x), torch.full((4, 2, 6), 1 / 6))
    probes.query_RD[1, 2] = 5.0
    shares = probes.attention(x)
    torch.testing.assert_close(shares.sum(2), torch.ones(4, 2))
    assert torch.equal(shares[:, 1].argmax(1), x[:, :, 2].argmax(1))


def test_it_finds_the_patch_that_a_mean_drowns() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 600)
    x = random.normal(0, 1, (600, 16, 6)).astype(np.float32)
    told = random.integers(0, 16, 600)  # one patch is marked, and it alone tells the class
    x[np.arange(600), told, 0] = 6
    x[:, :, 1] *= 2
    x[np.arange(600), told, 1] = np.where(labels, 1, -1)
    probes = attentive.Probes([0.5], 6, 2, torch.zeros(6))
    attentive.train_probes(
        probes, x.reshape(600, -1), np.arange(400), labels, epochs=40, batch=50, until=40, seed=0
    )
    taken = probes.logits(torch.from_numpy(x[400:]))[:, 0].argmax(1).numpy()
    even = x[400:, :, 1].mean(1) > 0
    assert (taken == labels[400:]).mean() > 0.97
    assert (even == labels[400:]).mean() < 0.7
    looked = probes.attention(torch.from_numpy(x[400:]))[:, 0].argmax(1).numpy()
    assert (looked == told[400:]).mean() > 0.97


def write_spots(folder: Path, each: int) -> Path:
    """A spot of the class's color anywhere on gray noise."""
    for name, color in {"a": (250, 60, 60), "b": (60, 250, 60), "c": (60, 60, 250)}.items():
        random = np.random.default_rng(each + ord(name))
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = random.integers(60, 160, (32, 32, 3)).astype(np.uint8)
            row, column = 8 * random.integers(0, 4, 2)
            pixels[row : row + 8, column : column + 8] = color
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


def test_figures_of_a_whole_run(model: Model, tmp_path: Path) -> None:
    train = open_source(write_spots(tmp_path / "train", 30))
    test = open_source(write_spots(tmp_path / "test", 10))
    (tmp_path / "test" / "a" / "00.png").write_bytes(b"nothing")
    result = attentive.evaluate(model, train, test, epochs=15, passing=HERE)
    assert (result.train_images, result.test_images, result.classes) == (90, 29, 3)
    assert result.top1 > 60 and result.lr in attentive.RATES and 1 <= result.epoch <= 15
    right = sum(result.per_class[name] / 100 * n for name, n in {"a": 9, "b": 10, "c": 10}.items())
    assert result.top1 == pytest.approx(100 * right / 29)
    assert sum(one.images for one in result.confusions) == round(29 - right)
    assert all(one.examples[0].startswith(f"{one.label}/") for one in result.confusions)
    (note,) = result.notes
    assert note.startswith("1 image cannot be read and is left out: a/00.png (")
    assert result.gigabytes == pytest.approx(119 * 16 * 24 * 4e-9)
    assert attentive.gigabytes(model, 119) == pytest.approx(result.gigabytes)
    assert result.random_init is not None and result.random_init.model_hash != result.model_hash
    saved = json.loads(json.dumps(result.as_dict()))
    assert saved["random_init"]["top1"] == result.random_init.top1
    assert f"{result.top1:.2f}" in result.table() and "untrained" in result.table()


def test_tokens_are_the_last_block_s_patches(model: Model, tmp_path: Path) -> None:
    source = open_source(write_spots(tmp_path / "train", 2))
    found = features(model, source, attentive.patch_look(model), HERE)
    with torch.inference_mode():
        x = torch.stack([model.preprocess(source.image(i)) for i in range(6)])
        expected = model.backbone.tokens(x)[:, 1:]
    np.testing.assert_allclose(found.array.reshape(6, 16, 24), expected, atol=1e-4)


def test_the_mean_token_is_that_of_all_patches_of_some_images() -> None:
    held, _ = tokens(9)
    mean = attentive._mean(held, np.array([1, 5, 8]), 5, torch.device("cpu"))
    np.testing.assert_allclose(mean, held.reshape(9, 6, 5)[[1, 5, 8]].mean((0, 1)), rtol=1e-5)


def test_rate_and_epoch_are_those_that_are_best_on_the_tenth(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_source(write_spots(tmp_path / "train", 20))
    test = open_source(write_spots(tmp_path / "test", 2))
    asked: list[tuple[np.ndarray, np.ndarray, int]] = []
    pick = attentive.pick
    monkeypatch.setattr(attentive, "pick", lambda *a: asked.append(a) or pick(*a))
    rates = (0.01, 1.0)
    result = attentive.evaluate(
        model, train, test, rates=rates, epochs=5, random_init=False, passing=HERE
    )
    ((top1, loss, images),) = asked
    assert top1.shape == loss.shape == (5 * 2,) and images == 6  # epochs of both rates, 2 a class
    place = pick(top1, loss, images)
    assert (result.epoch, result.lr) == (place // 2 + 1, rates[place % 2])
    assert result.held_out == top1[place]


def test_classes_of_one_image_are_learned_but_not_chosen_on(model: Model, tmp_path: Path) -> None:
    train = open_source(write_spots(tmp_path / "train", 1))
    test = open_source(write_spots(tmp_path / "test", 2))
    result = attentive.evaluate(
        model, train, test, rates=(1.0, 0.01, 0.1), epochs=2, random_init=False, passing=HERE
    )
    assert (result.lr, result.epoch, result.held_out) == (0.1, 2, None)
    assert result.notes == ["no class has two images, so rate and epoch were not chosen"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"most_gigabytes": 1e-6}, "their patch tokens need .* GB, more than 1e-06"),
        ({"rates": ()}, "each has to be above 0"),
        ({"epochs": 0}, "each has to be above 0"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    model: Model, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    train = open_source(write_spots(tmp_path / "train", 2))
    test = open_source(write_spots(tmp_path / "test", 1))
    with pytest.raises(UserError, match=sentence):
        attentive.evaluate(model, train, test, **options)


def test_a_model_without_patches_is_a_sentence(tmp_path: Path) -> None:
    info = ModelInfo("resnet18", 1, 32)
    model = Model(create_backbone(info), "resnet", torch.device("cpu"))
    train = open_source(write_spots(tmp_path / "train", 2))
    test = open_source(write_spots(tmp_path / "test", 1))
    with pytest.raises(UserError, match="has no patches"):
        attentive.evaluate(model, train, test)
