"""Passes: the same figures kept or not, resumed where they were stopped, shared by processes."""

import json
import shutil
import tarfile
from contextlib import ExitStack
from dataclasses import replace
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
from dino_core.evaluation.linear_features import RandomCrops
from dino_core.evaluation.passes import WAITING, Passing, each, features, kind_look
from dino_core.files import held
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
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("noise")
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(noise).resize((50, 40)).save(folder / f"{i:02d}.png")
    return open_source(str(folder))


class Stop(Exception):
    pass


def stop_at(image: int) -> Any:
    """Progress that ends the pass when so many images are done."""

    def progress(done: int, *_: Any) -> None:
        if done >= image:
            raise Stop

    return progress


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
    look = replace(kind_look(model), unit=False)
    raw = features(model, source, look, Passing(workers=0)).array
    unit = features(model, source, kind_look(model), Passing(workers=0)).array
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    np.testing.assert_allclose(raw / lengths, unit, atol=1e-6)


def test_a_pass_that_was_stopped_goes_on(model, source, tmp_path, monkeypatch) -> None:
    look, seen = kind_look(model), []
    passing = Passing(keep=tmp_path, batch_size=4, workers=0)
    with pytest.raises(Stop):
        features(model, source, look, replace(passing, progress=stop_at(12)))
    found = count_images(monkeypatch, seen)(model, source, look, passing)
    assert seen == list(range(12, COUNT)), "what was done is not done again"
    plain = features_of(model, source, batch_size=4, workers=0).array
    np.testing.assert_array_equal(found.array, plain)
    features(model, source, look, passing)
    assert len(seen) == COUNT - 12


def test_other_weights_images_or_settings_are_another_pass(model, source, tmp_path) -> None:
    passing = Passing(keep=tmp_path, workers=0)
    look = kind_look(model)
    features(model, source, look, passing)
    features(untrained(model), source, kind_look(model), passing)
    features(model, open_source("scenes:2"), look, passing)
    features(model, source, replace(look, settings={"size": 1}), passing)
    features(model, source, replace(look, unit=False), passing)
    assert len(list(tmp_path.iterdir())) == 5


def tar_of(place: Path, colors: list[int]) -> Any:
    """Images of one color each, named by number."""
    with tarfile.open(place, "w") as tar:
        for i, color in enumerate(colors):
            path = place.parent / f"{i:02d}.png"
            Image.fromarray(np.full((40, 50, 3), color, np.uint8)).save(path)
            tar.add(path, path.name)
            path.unlink()
    return open_source(str(place))


def test_a_tar_of_the_same_names_and_other_images_is_another_pass(model, tmp_path) -> None:
    passing = Passing(keep=tmp_path / "kept", workers=0)
    for colors in ([40, 41, 42], [200, 201, 202]):
        features(model, tar_of(tmp_path / "photos.tar", colors), kind_look(model), passing)
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("crops", [False, True])
def test_a_tar_in_which_one_image_was_mended_is_another_pass(model, tmp_path, crops) -> None:
    """Of 40 images 16 are looked at, and number 1 is none of these."""
    passing = Passing(keep=tmp_path / "kept", workers=0)
    for place, color in (("old.tar", 1), ("new.tar", 250)):
        source = tar_of(tmp_path / place, [0, color, *range(2, 40)])
        shown = RandomCrops(source, model.info, view=1, seed=0) if crops else source
        features(model, shown, kind_look(model), passing)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_however_model_and_data_are_spelled_it_is_one_pass(model, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((40, 50, 3), 40 * i, np.uint8)).save(folder / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    same = Model(model.backbone, "runs/same", torch.device("cpu"))
    seen: list[int] = []
    run = count_images(monkeypatch, seen)
    for one, spec in ((model, "photos"), (model, "./photos"), (same, f"{tmp_path}/photos/")):
        run(one, open_source(spec), kind_look(one), Passing(keep=Path("kept"), workers=0))
    (kept,) = Path("kept").iterdir()
    assert seen == list(range(5)), "computed once"
    assert json.loads((kept / passes.PLAN).read_text())[passes.SPELLED] == {
        "model": "tiny", "data": "photos",
    }  # fmt: skip


def count_images(monkeypatch: pytest.MonkeyPatch, seen: list[int]) -> Any:
    """`features`; the numbers of the images that are computed go to `seen`."""

    def counting(source: Any, images: Any, *args: Any, **how: Any) -> Any:
        seen.extend(images)
        return batches(source, images, *args, **how)

    batches = passes.batches
    monkeypatch.setattr(passes, "batches", counting)
    return features


@pytest.mark.parametrize("what", ["REVISION", "__version__"])
def test_what_other_code_computed_is_another_pass(
    model, source, tmp_path, monkeypatch, what
) -> None:
    passing = Passing(keep=tmp_path, workers=0)
    for code in (1, 2):
        monkeypatch.setattr(passes, what, code)
        features(model, source, kind_look(model), passing)
        each("squares", {}, ITEMS, lambda i: i * i, passing, "Squaring")
    assert len(list(tmp_path.iterdir())) == 4


# -- found whole, or computed by somebody else ------------------------------------------------


def lying(folder: Path) -> dict[str, Any]:
    """All that lies in a folder, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_whole_pass_is_only_read(model, source, tmp_path, monkeypatch) -> None:
    """So it may lie on a disk that cannot be written, and its lock be held by somebody."""

    def ask() -> tuple[np.ndarray, list[int]]:
        passing = Passing(keep=tmp_path, workers=0)
        array = features(model, source, kind_look(model), passing).array
        return array, each("squares", {}, ITEMS, lambda i: i * i, passing, "Squaring")

    def write(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be written")

    array, squares = ask()
    there = lying(tmp_path)
    assert sum(passes.PLAN in path for path in there) == 2
    for module, name in ((passes, "held"), (passes, "write_json"), (Path, "mkdir")):
        monkeypatch.setattr(module, name, write)
    again, values = ask()
    np.testing.assert_array_equal(again, array)
    assert values == squares and lying(tmp_path) == there


class Elsewhere:
    """Another process that computes the pass in `folder`, until the second look at it."""

    def __init__(self, folder: Path, leaves: Path) -> None:
        self.folder, self.leaves, self.looks = folder, leaves, 0
        folder.mkdir(parents=True)
        self.lock = ExitStack()
        self.lock.enter_context(held(folder / passes.LOCK, "held twice"))

    def sleep(self, _: float) -> None:
        self.looks += 1
        if self.looks == 2:
            shutil.copytree(self.leaves, self.folder, dirs_exist_ok=True)
            self.lock.close()


@pytest.mark.parametrize("died", [False, True])
def test_who_asks_for_what_another_computes_waits_for_it(
    model, source, tmp_path, monkeypatch, died
) -> None:
    look, told = kind_look(model), []
    seen: list[int] = []
    run = count_images(monkeypatch, seen)
    if died:
        with pytest.raises(Stop):
            stopping = Passing(tmp_path / "a", batch_size=4, workers=0, progress=stop_at(12))
            features(model, source, look, stopping)
    else:
        features(model, source, look, Passing(tmp_path / "a", batch_size=4, workers=0))
    (made,) = (tmp_path / "a").iterdir()
    other = Elsewhere(tmp_path / "b" / made.name, made)
    monkeypatch.setattr(passes.time, "sleep", other.sleep)
    seen.clear()
    passing = Passing(
        tmp_path / "b", batch_size=4, workers=0, progress=lambda *said: told.append(said)
    )
    found = run(model, source, look, passing)
    assert seen == (list(range(12, COUNT)) if died else [])
    plain = features_of(model, source, batch_size=4, workers=0).array
    np.testing.assert_array_equal(found.array, plain)
    message, waiting = f"Features (cls) of {source.spec} by tiny", WAITING.format(other.folder)
    assert [said for said in told if waiting in said[2]] == [(0, 1, f"{message}: {waiting}")]
    assert told[-1] == (COUNT, COUNT, message)


def test_items_that_another_computes_are_waited_for(tmp_path, monkeypatch) -> None:
    def compute(i: int) -> int:
        if i == 3 and not stopped:
            stopped.append(i)
            raise Stop
        asked.append(i)
        return i * i

    asked: list[int] = []
    stopped: list[int] = []
    with pytest.raises(Stop):
        each("squares", {}, ITEMS, compute, Passing(tmp_path / "a"), "Squaring")
    (made,) = (tmp_path / "a").iterdir()
    other = Elsewhere(tmp_path / "b" / made.name, made)
    monkeypatch.setattr(passes.time, "sleep", other.sleep)
    values = each("squares", {}, ITEMS, compute, Passing(tmp_path / "b"), "Squaring")
    assert values == [i * i for i in range(7)] and asked == list(range(7))


def test_a_group_waits_as_a_whole(tmp_path, monkeypatch) -> None:
    """Two processes in turn: what the first one met is what the second is told."""
    each("squares", {}, ITEMS, lambda i: i * i, Passing(tmp_path / "a"), "Squaring")
    (made,) = (tmp_path / "a").iterdir()
    other = Elsewhere(tmp_path / "b" / made.name, made)
    monkeypatch.setattr(passes.time, "sleep", other.sleep)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said: list[Any] = []

    def run(rank: int, agree: Any) -> Any:
        monkeypatch.setenv("RANK", str(rank))
        passing = Passing(tmp_path / "b", agree=agree)
        return each("squares", {}, ITEMS, lambda i: [][i], passing, "Squaring")

    def first(value: Any) -> Any:
        said.append(value)
        return value

    squares = [i * i for i in range(7)]
    assert run(0, first) == squares
    assert said == [True, passes.BUSY, passes.BUSY, passes.WHOLE, passes.WHOLE]
    assert run(1, lambda _: said.pop(0)) == squares and not said


def test_items_that_a_hand_took_away_say_what_to_do(tmp_path) -> None:
    each("squares", {}, ITEMS, lambda i: i * i, Passing(tmp_path), "Squaring")
    (lines,) = tmp_path.rglob(passes.ITEMS.format(0))
    lines.write_text(lines.read_text()[:-20])
    with pytest.raises(UserError, match="delete it to compute it again"):
        each("squares", {}, ITEMS, lambda i: i * i, Passing(tmp_path), "Squaring")


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


def test_a_full_disk_is_a_sentence_and_a_lost_file_is_not_one(tmp_path, monkeypatch) -> None:
    def lost(_: int) -> Any:
        raise OSError(5, "Input/output error")

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="Input/output error"):
        each("squares", {}, ITEMS, lost, Passing(tmp_path), "Squaring")
    monkeypatch.setattr(passes, "open", full, raising=False)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        each("squares", {}, ITEMS, lambda i: i * i, Passing(tmp_path), "Squaring")
