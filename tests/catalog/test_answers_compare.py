"""One picture, two models: which heads a page is told to be partners."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_core import catalog
from dino_core.catalog import Question, Scene, Workbench
from dino_core.catalog.answers.compare import beside
from dino_core.errors import UserError
from dino_core.lenses import LensPayload
from dino_core.models import ModelInfo, create_backbone, save_weights
from dino_core.runs import CHECKPOINT_FILES

HEADS, WIDTH = 4, 32
ORDERS = ((2, 0, 3, 1), (1, 3, 2, 0))  # of the heads of each layer in the shuffled model


def info(**options: Any) -> ModelInfo:
    sizes = {"depth": 2, "embed_dim": WIDTH, "num_heads": HEADS, **options}
    return ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=32, options=sizes)


def shuffled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network with its heads in another order: head h is what was ORDERS[layer][h]."""
    state = dict(state)
    each = WIDTH // HEADS
    for layer, order in enumerate(ORDERS):
        channels = torch.cat([torch.arange(each) + each * head for head in order])
        attention = f"blocks.{layer}.attn"
        for name in (f"{attention}.qkv.weight", f"{attention}.qkv.bias"):
            state[name] = torch.cat([part[channels] for part in state[name].split(WIDTH)])
        state[f"{attention}.proj.weight"] = state[f"{attention}.proj.weight"][:, channels]
    return state


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A run whose second checkpoint has its heads shuffled, and a deeper one with fewer heads."""
    root = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    state = create_backbone(info()).vit.state_dict()
    for name in state:
        if name.endswith("qkv.weight"):
            state[name] *= 6  # fresh weights attend to everything alike; these have preferences
    deep = info(depth=5, num_heads=2)
    save(root, "a", 1, info(), state)
    save(root, "a", 2, info(), shuffled(state))
    save(root, "deep", 1, deep, create_backbone(deep).vit.state_dict())
    bench = Workbench(root, model=None, device="cpu")
    bench.start()
    bench.wait()
    return bench


def save(root: Path, run: str, step: int, info: ModelInfo, state: dict[str, torch.Tensor]) -> None:
    """A checkpoint of a run, as whole as a page needs it."""
    folder = root / "runs" / run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (root / "runs" / run / "recipe.json").write_text("{}")
    for name in CHECKPOINT_FILES:
        if name.endswith(".json"):
            (folder / name).write_text("{}")
        else:
            save_weights(folder / name, info, state)


@pytest.fixture
def ask(bench: Workbench) -> Callable[..., dict[str, Any]]:
    def compared(model: str, first: str = "runs/a@1", names_allowed: bool = True) -> dict[str, Any]:
        picture = catalog.from_example(bench.examples[0])
        scene = Scene(picture, first, size=64, names_allowed=names_allowed)
        return bench.ask(scene, "compare", Question({"model": model}))

    return compared


def test_shuffled_heads_of_a_later_checkpoint_are_found(ask: Any) -> None:
    answer = ask("runs/a")
    assert answer["across"] == answer["back"] == [0, 1]
    for link, order in zip(answer["links"], ORDERS, strict=True):
        assert link["first"] == link["second"]
        assert link["alone"] == [[], []]
        for head, partner, correlation in link["pairs"]:
            assert order[partner] == head
            assert correlation > 0.99
    assert answer["title"] == "runs/a"
    assert "4 of 4 pairs of heads look alike" in answer["sentence"]


def test_the_second_model_s_maps_travel_with_it(ask: Any, bench: Workbench) -> None:
    payload = LensPayload.from_bytes(base64.b64decode(ask("runs/a")["payload"]))
    plain = LensPayload.from_bytes(base64.b64decode(ask("runs/a@1")["payload"]))
    for layer, order in enumerate(ORDERS):
        for head, was in enumerate(order):
            difference = payload.maps()[layer, head] - plain.maps()[layer, was]
            assert np.abs(difference).max() < 0.02 * plain.peak[layer, was]


def test_a_deeper_model_is_matched_by_relative_depth(ask: Any) -> None:
    answer = ask("runs/deep")
    assert answer["across"] == [0, 4]
    assert answer["back"] == [0, 0, 1, 1, 1]
    layers = [(link["first"], link["second"]) for link in answer["links"]]
    assert layers == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]
    for link in answer["links"]:
        assert len(link["pairs"]) == 2, "the deeper model has two heads"
        paired = {first for first, _, _ in link["pairs"]}
        assert sorted([*paired, *link["alone"][0]]) == [0, 1, 2, 3]
        assert link["alone"][1] == []


@pytest.mark.parametrize(
    ("layers", "others", "expected"),
    [
        (12, 12, list(range(12))),
        (4, 12, [0, 4, 7, 11]),  # 11/3 = 3.67, 22/3 = 7.33
        (3, 2, [0, 1, 1]),  # 0.5 up
        (5, 1, [0, 0, 0, 0, 0]),
        (1, 5, [4]),
    ],
)
def test_layers_at_the_same_relative_depth(layers: int, others: int, expected: list[int]) -> None:
    assert beside(layers, others) == expected


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/etc/passwd", "not in the list"),
        ("runs/none", "not in the list"),
        ("timm:no_such_model", "published names are off"),
    ],
)
def test_a_second_model_obeys_the_rules_of_the_first(ask: Any, model: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(model, names_allowed=False)
