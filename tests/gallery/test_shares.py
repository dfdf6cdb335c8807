"""Sharing a gallery's images among processes: all of them once, in order, whatever dies when."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core import distributed
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, build, help_build
from dino_core.gallery.shares import PARTS, dealt, missing
from dino_core.models import Model, save_weights

EMBED = Path(__file__).resolve().parents[2] / "scripts" / "embed.py"
PCA = ("pca",)


@given(st.data())
def test_every_missing_image_is_dealt_to_one_process(data: st.DataObject) -> None:
    total = data.draw(st.integers(0, 60))
    cuts = sorted(data.draw(st.sets(st.integers(0, total), max_size=8)))
    done = cuts[0] if cuts else 0
    there = list(zip(cuts[1::2], cuts[2::2], strict=False))
    processes = data.draw(st.integers(1, 5))
    left = missing(done, total, there)
    shares = dealt(left, processes)
    images = [image for share in shares for start, stop in share for image in range(start, stop)]
    have = set(range(done)) | {image for start, stop in there for image in range(start, stop)}
    assert images == sorted(set(range(total)) - have)
    sizes = [sum(stop - start for start, stop in share) for share in shares]
    assert len(sizes) == processes and max(sizes) - min(sizes) <= 1
    assert all(start < stop for share in shares for start, stop in share)


def order_of(model: Model, source: Any, out: Path, shares: list) -> Callable[[Any], Any]:
    """What `agree` gives a helper: the first process's plan, cut like this."""
    from dino_core.gallery.building import plan_of

    return lambda _: {"plan": plan_of(model, source, "cls").of_features(), "shares": shares}


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)


@pytest.mark.parametrize("shares", [[[], [[0, 7]]], [[], [[4, 7]]], [[], [[2, 4], [5, 6]]]])
def test_one_process_finishes_what_several_began(
    model: Model, photos: Path, tmp_path: Path, second: None, shares: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = open_source(photos)
    whole = build(model, source, tmp_path / "a", maps=PCA, batch_size=2)
    out = tmp_path / "b"
    out.mkdir()
    (out / "status.json").write_text("{}")
    help_build(model, source, out, order_of(model, source, out, shares), batch_size=2)
    assert {int(path.name) for path in (out / PARTS).iterdir()} == {a for a, _ in shares[1]}
    told: list[int] = []
    again = build(
        model, source, out, maps=PCA, batch_size=2,
        progress=lambda done, total, message: told.append(done),
    )  # fmt: skip
    np.testing.assert_allclose(again.features, whole.features, atol=1e-6)
    assert again.images.equals(whole.images) and not (out / PARTS).exists()
    if shares[1] == [[0, 7]]:
        assert told[0] == 7  # nothing was computed again


def test_a_part_that_was_cut_off_is_gone_on_with(
    model: Model, tmp_path: Path, second: None
) -> None:
    """Killed in the middle of a share: the images before count, the others are dealt again."""
    source, out = open_source("scenes:12"), tmp_path / "g"
    out.mkdir()
    (out / "status.json").write_text("{}")
    order = order_of(model, source, out, [[], [[4, 12]]])
    real = type(source).image

    class Stopping(type(source)):  # type: ignore[misc]
        def image(self, i: int) -> np.ndarray:
            if i == 8:
                raise KeyboardInterrupt
            return real(self, i)

    source.__class__ = Stopping
    with pytest.raises(KeyboardInterrupt):
        help_build(model, source, out, order, batch_size=2, workers=0)
    building = json.loads((out / PARTS / "4" / "building.json").read_text())
    assert building["cursor"]["done"] == 4
    source.__class__ = Stopping.__bases__[0]
    told: list[int] = []
    gallery = build(
        model, source, out, maps=PCA, batch_size=2, workers=0,
        progress=lambda done, total, message: told.append(done),
    )  # fmt: skip
    whole = build(model, source, tmp_path / "whole", maps=PCA)
    np.testing.assert_allclose(gallery.features, whole.features, atol=1e-6)


def test_parts_of_another_model_are_not_taken_in(
    model: Model, other_model: Model, tmp_path: Path, second: None
) -> None:
    source, out = open_source("scenes:6"), tmp_path / "g"
    out.mkdir()
    (out / "status.json").write_text("{}")
    help_build(other_model, source, out, order_of(other_model, source, out, [[], [[0, 6]]]))
    gallery = build(model, source, out, maps=PCA)
    whole = build(model, source, tmp_path / "whole", maps=PCA)
    np.testing.assert_allclose(gallery.features, whole.features, atol=1e-6)


def test_a_process_that_sees_other_images_says_so(
    model: Model, tmp_path: Path, second: None
) -> None:
    order = order_of(model, open_source("scenes:6"), tmp_path, [[], [[0, 6]]])
    with pytest.raises(UserError, match="process 1 sees another model or other images"):
        help_build(model, open_source("scenes:7"), tmp_path, order)
    help_build(model, open_source("scenes:7"), tmp_path, lambda _: None)  # whole already
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_two_processes_make_the_gallery_that_one_makes(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    weights, out = tmp_path / "tiny.safetensors", tmp_path / "two"
    save_weights(weights, model.info, model.backbone.vit.state_dict())
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(EMBED), "--model", str(weights), "--data", str(photos), "--out", str(out),
        "--maps", "pca", "--batch-size", "2", "--workers", "0", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 images of") == 1  # the first process alone speaks
    assert not (out / PARTS).exists()
    one, two = build(model, open_source(photos), tmp_path / "one", maps=PCA), Gallery.open(out)
    np.testing.assert_allclose(two.features, one.features, atol=1e-6)
    assert two.images["id"].tolist() == one.images["id"].tolist()
    told: list[Any] = []
    build(model, open_source(photos), tmp_path / "one", maps=PCA, agree=told.append)
    assert told == [None]  # whole already: the others may go home
