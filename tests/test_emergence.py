"""A run's history from probes made by hand: what is read, what is left out, what moves how."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from scipy.linalg import orthogonal_procrustes

from dino_core.data import open_source
from dino_core.emergence import HeldOut, History, Maps, history
from dino_core.emergence.film import MOST_FRAMES, Scene, film, places_at
from dino_core.errors import UserError
from dino_core.files import write_json
from dino_core.gallery.thumbnails import placeholder_jpeg
from dino_core.lenses import Attention, LensPayload
from dino_core.rng import generator
from dino_core.runs import Run

LAYERS, HEADS, GRID, WIDTH = 3, 2, (4, 6), 10
STEPS = (0, 100, 200, 300)
COUNT = 24


def maps_of(step: int, picture: int) -> np.ndarray:
    random = generator(step, "attention by hand", picture)
    return random.random((LAYERS, HEADS, *GRID)).astype(np.float32) / 50


def features_of(step: int, count: int = COUNT) -> np.ndarray:
    rows = generator(step, "features by hand").standard_normal((count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def patches_of(step: int, picture: int) -> np.ndarray:
    random = generator(step, "patches by hand", picture)
    return (random.standard_normal((*GRID, 8)) / np.arange(1, 9)).astype(np.float16)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """A run with hand-made probes at these steps, of `scenes`."""

    def make(steps: tuple[int, ...] = STEPS, *, patches: bool = True, **recipe: Any) -> Run:
        run = Run(tmp_path / "runs" / "by hand")
        settings = {"data": f"scenes:{COUNT}", "images": 500, "steps": 400} | recipe
        settings.setdefault("quality", {"checks": 4, "hold_out": 0.05})
        write_json(run.path / "recipe.json", settings)
        source = open_source(f"scenes:{COUNT}")
        assert source.labels is not None
        probes = run.path / "probes"
        held_out = {"ids": list(source.ids), "labels": source.labels.tolist()}
        write_json(probes / "held_out.json", held_out | {"classes": source.classes})
        (probes / "images").mkdir()
        for i in (0, 1):
            Image.fromarray(source.image(i)).save(probes / "images" / f"{i}.png")
        for step in steps:
            folder = probes / f"step-{step:08d}"
            folder.mkdir()
            np.save(folder / "features.npy", features_of(step))
            row = {"step": max(step - 1, 0), "steps_done": step, "knn": step / 10, "rankme": 5.5}
            write_json(folder / "quality.json", row)
            for i in (0, 1):
                attention = Attention(maps_of(step, i), (32, 48), (64, 96), 8, "by hand", "0" * 64)
                blob = LensPayload.from_attention(attention).to_bytes()
                (folder / f"attention-{i}.bin").write_bytes(blob)
                if patches:
                    np.save(folder / f"patches-{i}.npy", patches_of(step, i))
        return run

    return make


def folder_of(run: Run, step: int) -> Path:
    return run.path / "probes" / f"step-{step:08d}"


# -- reading ------------------------------------------------------------------------------------


def test_every_check_is_read_in_order(make):
    kept = History.read(make())
    assert kept.steps == [0, 100, 200, 300]
    assert [check.knn for check in kept.checks] == [0, 10, 20, 30]
    assert kept.checks[1].sentence() == "step 100: k-NN 10.0 %, RankMe 5.5"
    assert (kept.pictures, kept.depth, kept.notes) == ([0, 1], (LAYERS, HEADS), [])
    assert len(kept.ids) == len(kept.labels) == COUNT
    norms = np.linalg.norm(kept.checks[2].features(), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_without_labels_the_consistency_is_told(make):
    run = make((0,))
    row = {"step": 0, "steps_done": 0, "rankme": 3.25, "neighbor_consistency": 0.5}
    write_json(folder_of(run, 0) / "quality.json", row)
    path = run.path / "probes" / "held_out.json"
    write_json(path, json.loads(path.read_text()) | {"labels": None, "classes": []})
    kept = History.read(run)
    assert kept.checks[0].sentence() == "step 0: RankMe 3.2, neighbors kept 0.50"
    assert set(kept.labels.tolist()) == {-1}
    assert kept.neighbors(3).sharing(kept.labels).max() == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("features.npy", cut),
        ("features.npy", lambda path: path.unlink()),
        ("features.npy", lambda path: np.save(path, features_of(200, COUNT - 1))),
        ("features.npy", lambda path: np.save(path, features_of(200) * np.float16(np.nan))),
        ("quality.json", lambda path: path.write_text("{")),
        ("quality.json", lambda path: path.write_text("[]")),
        ("attention-1.bin", cut),
        ("attention-1.bin", lambda path: path.write_bytes(b"")),
        ("patches-0.npy", cut),
    ],
)
def test_a_damaged_check_is_left_out_and_named(make, name, damage):
    run = make()
    damage(folder_of(run, 200) / name)
    kept = History.read(run)
    assert kept.steps == [0, 100, 300]
    (note,) = kept.notes
    assert note.startswith("The check at step 200 is left out: ") and name in note


def test_where_no_check_is_whole_it_says_so(make):
    run = make((0,))
    cut(folder_of(run, 0) / "features.npy")
    with pytest.raises(UserError, match=r"no check is whole.*features\.npy is missing or cut"):
        History.read(run)


@pytest.mark.parametrize(
    ("recipe", "state", "sentence"),
    [
        ({}, "running", "too early; the first check is made before the first step"),
        ({}, "dead", "it ended before its first quality check"),
        ({"quality": {"checks": 0}}, "running", "makes no quality checks"),
        ({"images": 100}, "running", "too few of its 100 images are held out"),
    ],
)
def test_a_run_without_checks_says_why(make, monkeypatch, recipe, state, sentence):
    run = make((), **recipe)
    monkeypatch.setattr(Run, "status", lambda self: {"state": state})
    with pytest.raises(UserError, match=sentence):
        History.read(run)


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        History.read(Run(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("made", "state", "next_one"),
    [((0,), "running", 100), ((0, 100, 200), "running", 300), ((0,), "finished", None)],
)
def test_the_next_check_is_known(make, monkeypatch, made, state, next_one):
    monkeypatch.setattr(Run, "status", lambda self: {"state": state})
    assert History.read(make(made)).awaited() == next_one


def test_of_a_run_that_goes_on_only_the_new_check_is_read(make, monkeypatch):
    run, load, read = make(), history._load, []
    assert len(History.read(run).checks) == 4
    monkeypatch.setattr(history, "_load", lambda path: (read.append(path), load(path))[1])
    shutil.copytree(folder_of(run, 300), folder_of(run, 400))
    assert History.read(run).steps == [0, 100, 200, 300, 400]
    assert {path.parent for path in read} == {folder_of(run, 400)}
    read.clear()
    again = folder_of(run, 100) / "features.npy"  # a run that went back writes its checks again
    again.unlink()
    np.save(again, features_of(500))
    History.read(run)
    assert {path.parent for path in read} == {folder_of(run, 100)}


def test_many_checks_are_thinned_evenly(make, monkeypatch):
    monkeypatch.setattr(history, "MOST_CHECKS", 3)
    kept = History.read(make((0, 1, 2, 3, 4)))
    assert kept.steps == [0, 2, 4]
    assert kept.notes == ["Of 5 checks, 3 are shown, evenly chosen."]


# -- the fixed images ---------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "layer"), [(0, 0), (1, 1), (-1, 2), (-3, 0), (9, 2), (-9, 0)])
def test_one_layer_of_a_payload_is_a_payload(make, asked, layer):
    blobs = History.read(make()).heads(1, asked)
    for step, blob in zip(STEPS, blobs, strict=True):
        assert blob is not None
        ours = LensPayload.from_bytes(blob)
        attention = Attention(maps_of(step, 1)[[layer]], (32, 48), (64, 96), 8, "by hand", "0" * 64)
        theirs = LensPayload.from_attention(attention)
        assert np.array_equal(ours.codes, theirs.codes)
        assert np.array_equal(ours.kept, theirs.kept)
        np.testing.assert_allclose(ours.peak, theirs.peak)


def test_attention_that_was_not_kept_is_none(make):
    run = make()
    (folder_of(run, 100) / "attention-0.bin").unlink()
    kept = History.read(run)
    assert [blob is None for blob in kept.heads(0)] == [False, True, False, False]
    assert kept.heads(7) == [None] * 4


def test_a_turned_basis_changes_no_color(make):
    """The same scores behind any rotation of the kept directions, mirrored ones too."""
    run, cells = make((0, 100, 200)), GRID[0] * GRID[1]
    columns, _ = np.linalg.qr(generator(5, "scores").standard_normal((2 * cells, 8)))
    scores = columns * 4 / np.arange(1, 9)  # uncorrelated, the first varies most: principal
    for step in (0, 100, 200):
        turn, _ = np.linalg.qr(generator(step, "turn").standard_normal((8, 8)))
        turned = scores if step == 200 else scores @ turn
        for picture, part in enumerate(np.split(turned.astype(np.float16), 2)):
            np.save(folder_of(run, step) / f"patches-{picture}.npy", part.reshape(*GRID, 8))
    for picture in (0, 1):
        first, middle, last = History.read(run).colors(picture)
        assert first.dtype == np.uint8 and first.shape == (*GRID, 3)
        assert np.abs(first.astype(int) - last).max() <= 2  # float16 rounds
        assert np.abs(middle.astype(int) - last).max() <= 2


def test_square_turns_are_those_of_scipy():
    """Three columns onto three: the orthogonal Procrustes problem as SciPy solves it."""
    random = generator(0, "turns")
    earlier, last = random.standard_normal((2, 40, 3))
    last *= np.where((last**3).sum(axis=0) < 0, -1, 1)  # longer tails are up already
    turn, _ = orthogonal_procrustes(earlier, last)
    ours = history.steady([earlier, last])
    np.testing.assert_allclose(ours[1], last)
    np.testing.assert_allclose(ours[0], earlier @ turn, atol=1e-12)


def test_wide_turns_are_better_than_any_other():
    random = generator(1, "turns")
    earlier, last = random.standard_normal((40, 8)), random.standard_normal((40, 8))
    ours, goal = history.steady([earlier, last])
    best = (ours * goal).sum()
    for _ in range(200):
        other, _ = np.linalg.qr(random.standard_normal((8, 3)))
        assert (earlier @ other * goal).sum() < best


def test_colors_are_stretched_between_percentiles():
    column = np.arange(101.0)
    codes = history.stretched(np.stack([column, -column, 0 * column], axis=1))
    assert codes[[0, 1, 50, 99, 100], 0].tolist() == [0, 0, 128, 255, 255]
    assert codes[:, 1].tolist() == codes[::-1, 0].tolist()
    assert set(codes[:, 2].tolist()) == {0}


def test_older_runs_kept_no_patches(make):
    assert History.read(make(patches=False)).colors(0) == [None] * 4


# -- the held-out images ------------------------------------------------------------------------


def test_neighbors_are_those_of_brute_force(make):
    kept = History.read(make())
    found = kept.neighbors(5)
    assert found.rows.shape == found.cosines.shape == (4, COUNT, 5)
    for t, step in enumerate(STEPS):
        exact = features_of(step).astype(np.float64)
        cosines = exact @ exact.T
        for row in range(COUNT):
            others = sorted(set(range(COUNT)) - {row}, key=lambda i: -cosines[row, i])
            assert found.rows[t, row].tolist() == others[:5]
            np.testing.assert_allclose(
                found.cosines[t, row] / 100, cosines[row, others[:5]], atol=0.006
            )
    labels = kept.labels
    by_hand = [[sum(labels[j] == labels[i] for j in row) for i, row in enumerate(rows)]
               for rows in found.rows.tolist()]  # fmt: skip
    assert found.sharing(labels).tolist() == by_hand


def test_few_images_have_few_neighbors():
    rows, cosines = history.nearest(np.eye(3, dtype=np.float32), 12)
    assert rows.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert not cosines.any()


def test_maps_are_kept_until_there_are_other_checks(make, monkeypatch):
    drawn = []

    def draw(features: list[np.ndarray], progress: object) -> list[np.ndarray]:
        drawn.append(len(features))
        return [one[:, :2] for one in features]

    monkeypatch.setattr(history, "aligned_maps", draw)
    run = make((0, 100))
    first = History.read(run)
    assert first.drawn_maps() is None
    maps = first.maps()
    assert maps.steps == [0, 100] and maps.points.shape == (2, COUNT, 2)
    np.testing.assert_array_equal(maps.points[1], first.checks[1].features()[:, :2])
    np.testing.assert_array_equal(History.read(run).maps().points, maps.points)
    assert drawn == [2]
    shutil.copytree(folder_of(run, 100), folder_of(run, 150))  # the run goes on
    older, is_whole = History.read(run).drawn_maps()
    assert older.steps == [0, 100] and not is_whole
    shutil.rmtree(folder_of(run, 150))
    assert History.read(run).drawn_maps()[1]
    np.save(folder_of(run, 100) / "features.npy", features_of(7))  # rolled back, and made again
    assert History.read(run).drawn_maps() is None
    History.read(run).maps()
    (run.path / "probes" / "maps.npz").write_bytes(b"PK no archive")
    History.read(run).maps()
    assert drawn == [2, 2, 2]


def test_the_quick_map_of_a_run_that_stands_still_stands_still(make):
    run = make((0, 100, 200))
    for step in (100, 200):
        np.save(folder_of(run, step) / "features.npy", features_of(0))
    maps = History.read(run).components()
    assert maps.steps == [0, 100, 200]
    assert np.ptp(maps.points[0], axis=0).min() > 0.5
    np.testing.assert_allclose(maps.points[1:], maps.points[[0, 0]], atol=1e-5)


def test_maps_move_what_moves(make):
    """Two groups that part: apart on the last map by more than on the first, of all images."""
    run = make((0, 100))
    group = np.arange(COUNT) % 2
    for step, apart in ((0, 0.0), (100, 4.0)):
        rows = generator(step, "group").standard_normal((COUNT, WIDTH)) * 0.5
        rows[:, 0] += apart * (group - 0.5)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(folder_of(run, step) / "features.npy", rows.astype(np.float16))
    first, last = History.read(run).maps().points

    def gap(points: np.ndarray) -> float:
        """How far the groups' means are apart, in spreads within a group."""
        parts = [points[group == g] for g in (0, 1)]
        within = np.mean([part.std(axis=0).mean() for part in parts])
        return float(np.linalg.norm(parts[0].mean(axis=0) - parts[1].mean(axis=0)) / within)

    assert gap(last) > 2 > gap(first)


@pytest.mark.parametrize(("step", "x"), [(0, 0), (50, 1), (100, 2), (250, 5), (300, 6), (999, 6)])
def test_between_two_maps_images_are_between_their_places(step, x):
    points = np.array([[[0, 0]], [[2, 1]], [[6, 3]]], np.float32)
    place = places_at(Maps([0, 100, 300], points), step)
    assert place.tolist() == [[x, x / 2]]


def test_pictures_come_from_the_data(make, tmp_path):
    kept = History.read(make())
    there = HeldOut.open(kept)
    assert not there.note
    ours = np.asarray(Image.open(io.BytesIO(there.thumbnail(3, 192))), int)
    theirs = open_source(f"scenes:{COUNT}").image(3)
    assert np.abs(ours - theirs).mean() < 6  # JPEG
    fewer = HeldOut.open(History.read(make_other(kept.run, f"scenes:{COUNT - 4}")))
    assert fewer.note == f"4 of {COUNT} held-out images are no longer in scenes:{COUNT - 4}."
    assert fewer.has(0) and not fewer.has(COUNT - 1)
    assert fewer.thumbnail(COUNT - 1, 64) == placeholder_jpeg(64)
    gone = HeldOut.open(History.read(make_other(kept.run, str(tmp_path / "gone"))))
    assert "cannot be opened" in gone.note and "gone: no such file or folder" in gone.note
    assert gone.thumbnail(0, 64) == placeholder_jpeg(64)


def make_other(run: Run, data: str) -> Run:
    write_json(run.path / "recipe.json", run.recipe() | {"data": data})
    return run


def test_relative_data_is_found_beside_the_runs(make, tmp_path):
    run = make_other(make(), "photos")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    assert "no longer in" in HeldOut.open(History.read(run)).note


# -- the film -----------------------------------------------------------------------------------


def frames_of(gif: bytes) -> list[Image.Image]:
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(gif)))]


def test_a_film_goes_from_the_first_check_to_the_last(make):
    kept = History.read(make())
    told = []
    gif = film(kept, Scene(0, head=1), kept.components(), lambda *said: told.append(said))
    frames = frames_of(gif)
    assert len(frames) == 3 * 6 + 1 == told[-1][1]
    assert {frame.size for frame in frames} == {(720, 405)}
    assert Image.open(io.BytesIO(gif)).info["loop"] == 0
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    assert gif == film(kept, Scene(0, head=1), kept.components())
    assert gif != film(kept, Scene(0, head=0), kept.components())


def test_a_film_shows_the_head_where_it_looks(make):
    """One patch has all the attention: there the photo is bright yellow, elsewhere it is dark."""
    run = make((0,), patches=False)
    maps = np.full((LAYERS, HEADS, *GRID), 1e-4, np.float32)
    maps[2, 1, 1, 4] = 0.5
    attention = Attention(maps, (32, 48), (64, 96), 8, "by hand", "0" * 64)
    blob = LensPayload.from_attention(attention).to_bytes()
    (folder_of(run, 0) / "attention-0.bin").write_bytes(blob)
    Image.new("RGB", (96, 64), (90, 90, 90)).save(run.path / "probes" / "images" / "0.png")
    (frame,) = frames_of(film(History.read(run), Scene(0, layer=2, head=1)))
    side = (720 - 2 * 18 - 2 * 12) // 3  # the width of the photo, at 18, 52
    at = [(18 + round(side * (c + 0.5) / 6), 52 + round(side * 2 / 3 * (r + 0.5) / 4))
          for r, c in ((1, 4), (3, 0))]  # fmt: skip
    (red, green, blue), dark = (frame.getpixel(place) for place in at)
    assert red > 200 and green > 200 and blue > 120
    assert max(dark) < 120


def test_a_film_of_an_older_run_has_a_wider_map(make):
    """Without patch colors the map begins where they would be; its ground is there."""
    kept = History.read(make(patches=False))
    ground = frames_of(film(kept, Scene(0), kept.components()))[0].getpixel((300, 60))
    assert np.abs(np.array(ground) - (0x1B, 0x23, 0x36)).max() <= 6


def test_a_film_is_never_long(make, monkeypatch):
    monkeypatch.setattr("dino_core.emergence.film.MOST_FRAMES", 7)
    assert len(frames_of(film(History.read(make(patches=False)), Scene(1)))) == 7
    assert MOST_FRAMES < 100


def test_without_attention_there_is_no_film(make):
    run = make((0,))
    (folder_of(run, 0) / "attention-0.bin").unlink()
    with pytest.raises(UserError, match="no attention was kept of picture 0"):
        film(History.read(run), Scene(0))
