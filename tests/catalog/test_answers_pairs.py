"""Two pictures, one model: what a page is told of patches that are alike."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_core import catalog
from dino_core.catalog import Question, Scene, Workbench
from dino_core.errors import UserError
from dino_core.lenses.tokens import read_tokens
from dino_core.models import ModelInfo, create_backbone, load_model, save_weights

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3}
WIDE, TALL = 0, 1  # the examples' sides in a question


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, a wide picture of noise, and its left half as a tall one."""
    folder = tmp_path_factory.mktemp("pairs")
    info = ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=32, options=SMALL)
    save_weights(folder / "small.safetensors", info, create_backbone(info).vit.state_dict())
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    (folder / "uploads").mkdir()
    Image.fromarray(noise).save(folder / "uploads" / "wide.png")
    Image.fromarray(noise[:, :64]).save(folder / "uploads" / "tall.png")
    return folder


@pytest.fixture(scope="module")
def bench(root: Path) -> Workbench:
    uploads = str(root / "uploads")
    bench = Workbench(root, model=str(root / "small.safetensors"), device="cpu", uploads=uploads)
    bench.start()
    bench.wait()
    return bench


@pytest.fixture
def ask(bench: Workbench, root: Path) -> Callable[..., dict[str, Any]]:
    """Ask about the wide picture, beside the tall one."""
    scene = Scene(uploaded(root, "wide.png"), "small.safetensors", size=64)
    second = {"path": str(root / "uploads" / "tall.png"), "name": "tall.png"}
    return lambda about, **details: bench.ask(scene, about, Question({"second": second, **details}))


def uploaded(root: Path, name: str) -> catalog.Picture:
    return catalog.uploaded(root / "uploads" / name, name)


def cosines(bench: Workbench, root: Path) -> list[list[np.ndarray]]:
    """All cosines between the patches of both pictures, [side][side] of [N, M]."""
    model = load_model(str(root / "small.safetensors"), device="cpu")
    flat = [
        read_tokens(model, catalog.load(uploaded(root, name)), size=64).patches.reshape(-1, 24)
        for name in ("wide.png", "tall.png")
    ]
    return [[one @ other.T for other in flat] for one in flat]


def decoded(coded: dict[str, Any]) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(coded["codes"]), np.uint8)
    span = coded["high"] - coded["low"]
    return (coded["low"] + span * codes / 255).reshape(coded["grid"])


def test_the_pairs_are_mutual_and_best_first(ask: Any, bench: Workbench, root: Path) -> None:
    answer = ask("pair")
    assert answer["grids"] == [[8, 13], [12, 8]], "wide and tall, 64 px on the short side"
    between = cosines(bench, root)[WIDE][TALL]
    forward, backward = between.argmax(axis=1), between.argmax(axis=0)
    mutual = {(i, int(j)) for i, j in enumerate(forward) if backward[j] == i}
    told = [
        (13 * row + column, 8 * down + across) for row, column, down, across, _ in answer["pairs"]
    ]
    assert set(told) == mutual and len(told) == answer["count"]
    values = [pair[-1] for pair in answer["pairs"]]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values, [between[i, j] for i, j in told], atol=1e-4)
    assert f"{len(mutual)} patches" in answer["sentence"]


def test_the_second_picture_travels_with_them(ask: Any) -> None:
    answer = ask("pair")
    kind, _, data = answer["image"].partition(",")
    assert kind == "data:image/jpeg;base64" and answer["title"] == "tall.png"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 96)


@pytest.mark.parametrize(("side", "width"), [(WIDE, 13), (TALL, 8)])
def test_a_patch_of_either_side(
    ask: Any, bench: Workbench, root: Path, side: int, width: int
) -> None:
    answer = ask("alike", side=side, row=3, column=5)
    for other, coded in enumerate(answer["maps"]):
        expected = cosines(bench, root)[side][other][3 * width + 5]
        step = (coded["high"] - coded["low"]) / 255
        np.testing.assert_allclose(decoded(coded).ravel(), expected, atol=step / 2 + 1e-6)
    across = cosines(bench, root)[side][1 - side][3 * width + 5]
    best = answer["best"]
    assert best["row"] * (8, 13)[side] + best["column"] == across.argmax()
    assert best["cosine"] == pytest.approx(across.max(), abs=1e-5)


def test_a_picture_beside_itself_matches_patch_by_patch(bench: Workbench) -> None:
    picture = catalog.from_example(bench.examples[0])
    scene = Scene(picture, "small.safetensors", size=64)
    answer = bench.ask(scene, "pair", Question({"second": {"example": 0}}))
    height, width = answer["grids"][0]
    assert answer["count"] == height * width
    assert len(answer["pairs"]) == min(200, height * width)
    for row, column, down, across, cosine in answer["pairs"]:
        assert (row, column) == (down, across) and cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("about", "details", "said"),
    [
        ("alike", {"side": 0, "row": 8, "column": 0}, "row is 8; it must lie between 0 and 7"),
        ("alike", {"side": 1, "row": 0, "column": 8}, "column is 8; it must lie between 0 and 7"),
        ("alike", {"side": 2, "row": 0, "column": 0}, "side is 2"),
        ("pair", {"second": {"path": "/etc/hostname", "name": "a.jpg"}}, "did not arrive"),
        ("pair", {"second": None}, "second is missing"),
    ],
)
def test_what_does_not_fit_is_a_sentence(ask: Any, about: str, details: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(about, **details)
