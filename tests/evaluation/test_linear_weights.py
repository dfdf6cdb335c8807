"""Linear layers as files: the published columns, ours, and what does not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dino_core.errors import UserError
from dino_core.evaluation.linear_weights import (
    LinearWeights,
    deinterleaved,
    interleaved,
    read_linear_weights,
    write_linear_weights,
)
from dino_core.models import Model

WIDTH = 24


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(depth=3)


def layer(dim: int, classes: int = 5) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(dim)
    weight = torch.randn(classes, dim, generator=draw)
    return {"linear.weight": weight, "linear.bias": torch.randn(classes, generator=draw)}


def published(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """As eval_linear saves it: distributed names, beside an optimizer."""
    content: dict[str, Any] = {"epoch": 100, "best_acc": 78.2, "optimizer": {"state": {}}}
    content["state_dict"] = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(content, path)
    return path


def test_interleaving_is_the_published_reshape_and_undone() -> None:
    first, mean = torch.randn(3, 6), torch.randn(3, 6)
    # The published arrangement, step by step.
    stacked = torch.cat((first.unsqueeze(-1), mean.unsqueeze(-1)), dim=-1).reshape(3, -1)
    assert torch.equal(interleaved(torch.cat([first, mean], dim=1)), stacked)
    assert torch.equal(deinterleaved(stacked), torch.cat([first, mean], dim=1))


def test_a_published_layer_gives_its_logits_on_features_side_by_side(
    model: Model, tmp_path: Path
) -> None:
    state = layer(2 * WIDTH)
    found = read_linear_weights(published(tmp_path / "vitb.pth", state), model)
    assert (found.blocks, found.avgpool, found.classes) == (1, True, None)
    first, mean = torch.randn(7, WIDTH), torch.randn(7, WIDTH)
    as_trained = torch.cat((first.unsqueeze(-1), mean.unsqueeze(-1)), dim=-1).reshape(7, -1)
    theirs = torch.nn.functional.linear(as_trained, state["linear.weight"], state["linear.bias"])
    ours = torch.cat([first, mean], dim=1) @ found.weight_CD.T + found.bias_C
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("blocks", [1, 3])
def test_class_tokens_of_blocks_lie_as_they_come(model: Model, tmp_path: Path, blocks: int) -> None:
    state = layer(blocks * WIDTH)
    found = read_linear_weights(published(tmp_path / "vits.pth", state), model)
    assert (found.blocks, found.avgpool) == (blocks, False)
    assert torch.equal(found.weight_CD, state["linear.weight"])
    assert torch.equal(found.bias_C, state["linear.bias"])


def test_two_blocks_are_told_from_average_pooling_by_the_asker(
    model: Model, tmp_path: Path
) -> None:
    path = published(tmp_path / "two.pth", layer(2 * WIDTH))
    plain = layer(2 * WIDTH)["linear.weight"]
    assert torch.equal(read_linear_weights(path, model, blocks=2).weight_CD, plain)
    found = read_linear_weights(path, model, avgpool=False)
    assert (found.blocks, found.avgpool) == (2, False)
    assert read_linear_weights(path, model, blocks=1).avgpool


@pytest.mark.parametrize("names", [("weight", "bias"), ("linear.weight", "linear.bias")])
def test_safetensors_with_any_names_are_read(
    model: Model, tmp_path: Path, names: tuple[str, str]
) -> None:
    state = layer(WIDTH)
    save_file(dict(zip(names, state.values(), strict=True)), tmp_path / "one.safetensors")
    found = read_linear_weights(tmp_path / "one.safetensors", model)
    assert torch.equal(found.weight_CD, state["linear.weight"])


def test_ours_say_what_they_are(model: Model, tmp_path: Path) -> None:
    state, names = layer(3 * WIDTH, classes=2), ["b", "ä"]
    linear = LinearWeights(state["linear.weight"], state["linear.bias"], 2, True, names, "a1")
    write_linear_weights(tmp_path / "ours.safetensors", linear)
    found = read_linear_weights(tmp_path / "ours.safetensors", model)
    assert (found.blocks, found.avgpool, found.classes) == (2, True, names)
    assert found.model_hash == "a1"
    assert torch.equal(found.weight_CD, linear.weight_CD)
    assert torch.equal(found.bias_C, linear.bias_C)


@pytest.mark.parametrize(
    ("dim", "asked", "sentence"),
    [
        (WIDTH + 1, {}, f"was made for {WIDTH + 1} features, but tiny has {WIDTH}"),
        (4 * WIDTH, {}, "was made for 96 features"),  # of four blocks, and there are three
        (WIDTH, {"blocks": 2}, "is a classifier of 1 blocks without average pooling"),
        (WIDTH, {"avgpool": True}, "is a classifier of 1 blocks without average pooling"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    model: Model, tmp_path: Path, dim: int, asked: dict[str, Any], sentence: str
) -> None:
    path = published(tmp_path / "other.pth", layer(dim))
    with pytest.raises(UserError, match=sentence):
        read_linear_weights(path, model, **asked)


def test_other_files_are_sentences(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_linear_weights(tmp_path / "none.pth", model)
    torch.save(model.backbone.vit.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="not a linear classifier"):
        read_linear_weights(tmp_path / "backbone.pth", model)
    state = layer(WIDTH) | {"linear.bias": torch.zeros(3)}
    with pytest.raises(UserError, match="weight 5 x 24 and bias 3"):
        read_linear_weights(published(tmp_path / "bias.pth", state), model)
    (tmp_path / "cut.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_linear_weights(tmp_path / "cut.safetensors", model)
    torch.save({"linear.weight": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="refused"):
        read_linear_weights(tmp_path / "evil.pth", model)


def test_a_description_that_does_not_fit_is_a_sentence(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    metadata = {"blocks": "1", "avgpool": "0", "classes": '["a"]'}
    save_file(layer(WIDTH), path, metadata)
    with pytest.raises(UserError, match=r"1 names for 5 classes"):
        read_linear_weights(path, model)
    save_file(layer(WIDTH), path, metadata | {"blocks": "2", "classes": "null"})
    with pytest.raises(UserError, match=f"was made for {WIDTH} features"):
        read_linear_weights(path, model)
