"""Passes: the same figures kept or not, resumed where they were stopped, shared by processes."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core import distributed
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import passes
from dino_core.evaluation.passes import Passing, each, features, kind_look
from dino_core.gallery import features_of
from dino_core.models import Model, ModelInfo, create_backbone, untrained

TINY = ModelInfo(
    "vit_tiny_patch16_224", 16, 32, options={"depth": 2, "embed_dim": 24, "num_heads": 3}
)

COUNT = 23


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(create_backbone(TINY), "tiny", torch.device("cpu"))


@pytest.fixture(scope="module")
def source() -> Any:
    return open_source(f"scenes:{COUNT}")


def test_kept_or_not_the_features_are_those_of_a_gallery(model, source, tmp_path: Path) -> None:
    look = kind_look(model)
    plain = features_of(model, source, batch_size=4, workers=0).array
    once = features(model, source, look, Passing(batch_size=4, workers=0))
    kept = features(model, source, look, Passing(keep=tmp_path, batch_size=4, workers=0))
    again = features(model, source, look, Passing(keep=tmp_path, batch_size=4, workers=0))
    for found in (once, kept, again):
        np.testing.assert_array_equal(found.array, plain)
        np.testing.assert_array_equal(found.rows, np.arange(COUNT))
    assert isinstance(kept.array, np.memmap)


def test_what_is_not_of_length_1_keeps_its_length(model, source) -> None:
    from dataclasses import replace

    look = replace(kind_look(model), unit=False)
    raw = features(model, source, look, Passing(workers=0)).array
    unit = features(model, source, kind_look(model), Passing(workers=0)).array
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    np.testing.assert_allclose(raw / lengths, unit, atol=1e-6)


def test_a_pass_that_was_stopped_goes_on(model, source, tmp_path, monkeypatch) -> None:
    look, seen = kind_look(model), []
    passing = Passing(keep=tmp_path, batch_size=4, workers=0)

    class Stop(Exception):
        pass

    def stopping(*args: Any, **how: Any) -> Any:
        for number, batch in enumerate(batches(*args, **how)):
            if number == 3:
                raise Stop
            yield batch

    def counting(source: Any, images: Any, *args: Any, **how: Any) -> Any:
        seen.extend(images)
        return batches(source, images, *args, **how)

    batches = passes.batches
    monkeypatch.setattr(passes, "batches", stopping)
    with pytest.raises(Stop):
        features(model, source, look, passing)
    monkeypatch.setattr(passes, "batches", counting)
    found = features(model, source, look, passing)
    assert seen == list(range(12, COUNT)), "what was done is not done again"
    plain = features_of(model, source, batch_size=4, workers=0).array
    np.testing.assert_array_equal(found.array, plain)
    features(model, source, look, passing)
    assert len(seen) == COUNT - 12


def test_other_weights_images_or_settings_are_another_pass(model, source, tmp_path) -> None:
    from dataclasses import replace

    passing = Passing(keep=tmp_path, workers=0)
    look = kind_look(model)
    features(model, source, look, passing)
    features(untrained(model), source, kind_look(model), passing)
    features(model, open_source(f"scenes:{COUNT - 1}"), look, passing)
    features(model, source, replace(look, settings={"size": 1}), passing)
    features(model, source, replace(look, unit=False), passing)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_tar_of_the_same_names_and_other_images_is_another_pass(model, tmp_path) -> None:
    for color in (40, 200):
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for i in range(3):
                path = tmp_path / f"{i}.png"
                Image.fromarray(np.full((40, 50, 3), color + i, np.uint8)).save(path)
                tar.add(path, path.name)
        source = open_source(str(tmp_path / "photos.tar"))
        features(model, source, kind_look(model), Passing(keep=tmp_path / "kept", workers=0))
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_unreadable_images_are_told_and_left_out(model, tmp_path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((40, 50, 3), 40 * i, np.uint8)).save(folder / f"{i}.jpg")
    (folder / "bad.jpg").write_text("no image")
    source = open_source(str(folder))
    place = list(source.ids).index("bad.jpg")
    for passing in (Passing(workers=0), Passing(keep=tmp_path / "kept", workers=0)):
        found = features(model, source, kind_look(model), passing)
        assert found.rows.tolist() == [i for i in range(6) if i != place]
        assert [id for id, _ in found.bad] == ["bad.jpg"] and len(found.array) == 5


@pytest.mark.parametrize("name", [passes.FACTS, passes.FEATURES])
def test_a_damaged_pass_says_what_to_do(model, source, tmp_path, name) -> None:
    passing = Passing(keep=tmp_path, workers=0)
    features(model, source, kind_look(model), passing)
    (folder,) = tmp_path.iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    with pytest.raises(UserError, match="delete it to compute it again"):
        features(model, source, kind_look(model), passing)


def test_a_place_that_cannot_be_written_is_named(model, source, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cls-.*cannot be made"):
        features(model, source, kind_look(model), Passing(keep=tmp_path / "file", workers=0))


# -- figures of each item ---------------------------------------------------------------------

ITEMS = [f"{i}.jpg" for i in range(7)]


def test_each_item_is_computed_once(tmp_path) -> None:
    asked: list[int] = []
    stopped: list[int] = []

    def compute(i: int) -> Any:
        if i == 4 and not stopped:
            stopped.append(i)
            raise KeyboardInterrupt
        asked.append(i)
        return {"iou": i / 7, "none": None, "nan": float("nan")}

    told: list[tuple[int, int, str]] = []
    passing = Passing(keep=tmp_path, progress=lambda *said: told.append(said))
    with pytest.raises(KeyboardInterrupt):
        each("attention", {"keep": 0.6}, ITEMS, compute, passing, "Looking")
    (folder,) = tmp_path.iterdir()
    lines = folder / passes.ITEMS.format(0)
    lines.write_text(lines.read_text() + '{"item": "4.jpg", "val')  # and was cut off
    values = each("attention", {"keep": 0.6}, ITEMS, compute, passing, "Looking")
    assert asked == [0, 1, 2, 3, 4, 5, 6]
    assert [value["iou"] for value in values] == [i / 7 for i in range(7)]
    assert told[-1] == (7, 7, "Looking") and (4, 7, "Looking") in told
    assert values[0]["none"] is None and np.isnan(values[0]["nan"])
    each("attention", {"keep": 0.6}, ITEMS, compute, passing, "Looking")
    assert len(asked) == 7
    each("attention", {"keep": 0.5}, ITEMS, compute, passing, "Looking")
    assert len(asked) == 14, "other settings are another pass"
    assert each("attention", {}, ITEMS, lambda i: i, Passing(), "Looking") == list(range(7))


def test_processes_share_the_items_and_all_get_all(tmp_path, monkeypatch) -> None:
    """Two processes in turn: the second finds what the first one wrote, and computes the rest."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked: dict[int, list[int]] = {0: [], 1: []}
    order: list[Any] = []

    def run(rank: int) -> Any:
        monkeypatch.setenv("RANK", str(rank))

        def agree(value: Any) -> Any:
            if rank == 0:
                order.append(value)
                return value
            return order.pop(0)

        def compute(i: int) -> int:
            asked[rank].append(i)
            return i * i

        passing = Passing(keep=tmp_path, agree=agree)
        return each("squares", {}, ITEMS, compute, passing, "Squaring")

    class Waiting(Exception):
        pass

    def waits(_: float) -> None:
        raise Waiting

    with monkeypatch.context() as patch:
        patch.setattr(passes.time, "sleep", waits)
        with pytest.raises(Waiting):
            run(0)
    order.append("whole")
    assert run(1) == [i * i for i in range(7)]
    assert asked == {0: [0, 2, 4, 6], 1: [1, 3, 5]}
    assert distributed.world_size() == 2


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(passes.json, "dumps", full)
    with pytest.raises(UserError, match="make room"), passes._appending(tmp_path / "a") as write:
        write(1)
