"""Updating: what comes out is what building anew gives, whatever changed and whenever it ended."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, build, build_patches, build_status, building, replacing
from dino_core.gallery import updating as module
from dino_core.gallery.manifest import how_made
from dino_core.gallery.maps import umap_map
from dino_core.gallery.updating import update
from dino_core.models import Model, save_weights
from dino_core.rng import generator

PCA = ("pca",)


def paint(path: Path, number: int) -> None:
    """An image that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator(number, "updating test").integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(24):
        paint(tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png", number)
    return tmp_path / "photos"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ids of all images that go through the model."""
    real, seen = building.model_batches, []

    def count(model, source, images, *args, **kwargs):
        seen.extend(source.ids[index] for index in images)
        return real(model, source, images, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(building, "model_batches", count)
        yield seen


def assert_same(one: Gallery, other: Gallery) -> None:
    """Equal features, tables and neighbors."""
    pd.testing.assert_frame_equal(one.images, other.images)
    np.testing.assert_allclose(one.features, other.features, atol=1e-6)
    np.testing.assert_array_equal(one.neighbors()[0], other.neighbors()[0])
    np.testing.assert_allclose(one.neighbors()[1], other.neighbors()[1], atol=1e-6)
    np.testing.assert_allclose(one.map("pca"), other.map("pca"), atol=1e-5)
    assert one.info.source_hash == other.info.source_hash
    assert one.info.quarantined == other.info.quarantined
    reports = [gallery.path / "quarantine.jsonl" for gallery in (one, other)]
    assert len({report.read_text() if report.exists() else "" for report in reports}) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_any_series_of_changes_gives_what_building_anew_gives(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random, number = generator(seed, "changes"), 1000
    build(model, open_source(folder), tmp_path / "g", maps=PCA)
    for turn in range(3):
        before = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
        files = sorted(before)
        random.shuffle(files)
        gone, changed, touched, renamed = files[:2], files[2:5], files[5:8], files[8:10]
        added, broken, computed = [], files[10], []
        for name in gone:
            (folder / name).unlink()
        for name in changed:
            paint(folder / name, number := number + 1)
        for name in touched:
            os.utime(folder / name, (turn, turn))
        for name in renamed:  # into the other class
            to = name.replace("a/", "b/x") if name[0] == "a" else name.replace("b/", "a/x")
            (folder / name).rename(folder / to)
            added.append(to)
        for _ in range(int(random.integers(0, 4))):
            name = f"{'ab'[number % 2]}/new{number}.png"
            paint(folder / name, number := number + 1)
            added.append(name)
            computed.append(name)
        (folder / broken).write_bytes(b"\x89PNG no more")
        with counted(monkeypatch) as seen:
            updated = update(model, open_source(folder), tmp_path / "g")
        bad_before = {name for name in seen if (folder / name).stat().st_size < 20}
        assert set(seen) == {*changed, *computed} | bad_before and len(seen) == len(set(seen))
        anew = build(model, open_source(folder), tmp_path / f"anew-{turn}", maps=PCA)
        assert_same(updated, anew)
        said = updated.info.update
        unreadable = 1 if broken in before else 0
        assert (said["added"], said["gone"], said["changed"]) == (
            len(added), len(gone) + len(renamed) + unreadable, len(changed),
        )  # fmt: skip
        (folder / broken).unlink()
        update(model, open_source(folder), tmp_path / "g")


def test_nothing_is_computed_of_images_that_were_moved(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(model, open_source(folder), tmp_path / "g")
    points = old.map("umap")
    (folder / "a").rename(tmp_path / "elsewhere")
    moved = folder.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").rename(moved / "a")
    assert "not in" in Gallery.open(old.path).problems()[0]
    with counted(monkeypatch) as seen:
        again = build(model, open_source(moved), old.path)  # names, sizes, times: all the same
        for file in moved.rglob("*.png"):
            os.utime(file, (1, 1))
        copied = shutil.copytree(moved, tmp_path / "copied", copy_function=shutil.copyfile)
        with pytest.raises(UserError, match=r"holds the images of .*moved, not of .*--update"):
            build(model, open_source(copied), old.path)
        update(model, open_source(copied), old.path)
    assert not seen and not again.problems()
    there = Gallery.open(old.path)
    np.testing.assert_array_equal(there.image(3), open_source(copied).image(3))
    pd.testing.assert_frame_equal(there.map("umap"), points)
    assert there.news == "" and there.info.update["added"] == there.info.update["gone"] == 0


def test_sources_without_files_are_compared_by_content(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model, open_source("scenes:20"), tmp_path / "g", maps=PCA)
    with counted(monkeypatch) as seen:
        updated = update(model, open_source("scenes:10-24"), tmp_path / "g")
    assert len(seen) == 4 and updated.news.startswith("4 added, 10 gone, 0 changed")
    assert_same(updated, build(model, open_source("scenes:10-24"), tmp_path / "anew", maps=PCA))


def test_down_to_few_and_up_again(model: Model, folder: Path, tmp_path: Path) -> None:
    build(model, open_source(folder), tmp_path / "g")
    shutil.rmtree(folder / "a")
    for file in sorted((folder / "b").iterdir())[3:]:
        file.unlink()
    few = update(model, open_source(folder), tmp_path / "g", shrink=True)
    assert len(few) == 3 and few.info.maps["umap"]["method"] == "pca"
    for number in range(50, 62):
        paint(folder / "a" / f"{number}.png", number)
    many = update(model, open_source(folder), tmp_path / "g")
    assert_same(many, build(model, open_source(folder), tmp_path / "anew", maps=PCA))
    assert many.info.maps["umap"]["method"] == "umap" and "placed" not in many.map("umap")


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_source_that_lost_most_of_its_images_takes_none_along_unasked(
    model: Model, folder: Path, tmp_path: Path, kind: str
) -> None:
    """One of two mounted folders is not there: nothing tells that its images are gone for good."""
    for number in range(30, 33):
        paint(folder / "a" / f"{number}.png", number)  # 15 of 27
    data = folder
    if kind == "table":  # it still names them
        data = tmp_path / "table.csv"
        files = sorted(folder.rglob("*.png"))
        data.write_text("".join(f"{file}\n" for file in ["path", *files]))
    out = tmp_path / "g"
    build(model, open_source(data), out, maps=PCA)
    (folder / "a").rename(tmp_path / "not mounted")
    (folder / "a").mkdir()
    source = open_source(data)
    for call in (lambda: update(model, source, out), lambda: build(model, source, out, maps=PCA)):
        with pytest.raises(UserError, match=r"15 of its 27 images are gone from .* --update` to"):
            call()
        assert len(Gallery.open(out)) == 27 and not (out / "update").exists()
    assert "15 of its 27" in build_status(out)["message"]  # what the page shows
    paint(folder / "b" / "01.png", 200)  # changed: it is there
    (tmp_path / "not mounted" / "00.png").rename(folder / "b" / "of-a.png")  # moved: there, too
    (tmp_path / "not mounted" / "02.png").rename(folder / "b" / "too.png")
    if kind == "folder":
        assert update(model, open_source(data), out).news == "2 added, 15 gone, 1 changed"
        return
    assert len(update(model, source, out, shrink=True)) == 12


# -- maps -------------------------------------------------------------------------------------


def test_a_few_new_images_are_placed_by_their_neighbors_and_the_rest_stay(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    old = build(model, open_source(folder), tmp_path / "g").map("umap")
    paint(folder / "a" / "07b.png", 100)
    paint(folder / "b" / "01.png", 101)
    new = update(model, open_source(folder), tmp_path / "g")
    frame, ids = new.map("umap"), new.images["id"].tolist()
    placed = [ids.index("a/07b.png"), ids.index("b/01.png")]
    assert np.flatnonzero(frame["placed"]).tolist() == sorted(placed)
    old_ids = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    old_ids.remove("a/07b.png")
    old = old.set_axis(old_ids)
    for row, id in enumerate(ids):
        if row not in placed:
            assert frame[["x", "y"]].iloc[row].tolist() == old.loc[id, ["x", "y"]].tolist()
    for row in placed:  # the weighted mean, written out
        sums, weights = np.zeros(2), 0.0
        for other in np.argsort(-(new.features @ new.features[row])):
            if other not in placed:
                weight = np.exp(float(new.features[other] @ new.features[row]) / 0.07)
                sums += weight * frame[["x", "y"]].iloc[other].to_numpy(np.float64)
                weights += weight
        np.testing.assert_allclose(frame[["x", "y"]].iloc[row], sums / weights, rtol=1e-4)
    assert new.info.maps["umap"]["placed_since"] == 2
    assert new.news == "1 added, 0 gone, 1 changed"
    assert "2 images were placed on the map umap by their neighbors since" in how_made(new.info)[0]


def test_beyond_a_tenth_or_when_asked_the_map_is_drawn_anew(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    build(model, open_source(folder), tmp_path / "g")
    paint(folder / "a" / "x1.png", 100)
    paint(folder / "a" / "x2.png", 101)
    assert update(model, open_source(folder), tmp_path / "g").map("umap")["placed"].sum() == 2
    paint(folder / "a" / "x3.png", 102)  # 3 of 27, two of them from before
    third = update(model, open_source(folder), tmp_path / "g")
    assert third.news == "1 added, 0 gone, 0 changed; the map umap was drawn anew"
    expected = umap_map(np.array(third.features), *third.neighbors())[0]
    np.testing.assert_array_equal(third.map("umap"), expected)
    paint(folder / "a" / "x4.png", 103)
    asked = update(model, open_source(folder), tmp_path / "g", refit=True)
    assert "drawn anew" in asked.news and "placed" not in asked.map("umap")
    paint(folder / "a" / "x5.png", 104)
    update(model, open_source(folder), tmp_path / "g")
    drawn = building.draw_map(Gallery.open(tmp_path / "g"), redo=True)
    assert "placed" not in drawn.map("umap") and "placed_since" not in drawn.info.maps["umap"]


# -- what stays and what goes -----------------------------------------------------------------


def test_what_people_added_stays_and_patches_of_other_images_go(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    gallery = build(model, open_source(folder), tmp_path / "g", maps=PCA)
    for name in ("user/tags.jsonl", "clusters/mine.npz"):
        (gallery.path / name).parent.mkdir()
        (gallery.path / name).write_text("mine")
    gallery.thumbnail(0)
    build_patches(gallery, model, per_image=2)
    paint(folder / "a" / "new.png", 100)
    updated = update(model, open_source(folder), gallery.path)
    assert "its patches were of the images before and are gone" in updated.news
    assert not (gallery.path / "patches").exists() and updated.patches is None
    for name in ("user/tags.jsonl", "clusters/mine.npz"):
        assert (gallery.path / name).read_text() == "mine"
    assert list((gallery.path / "thumbs").rglob("*.jpg"))
    build_patches(updated, model, per_image=2)
    (folder / "a" / "new.png").unlink()
    build(model, open_source(folder), gallery.path, maps=PCA, redo=True)
    assert not (gallery.path / "patches").exists()


def test_another_model_s_gallery_is_refused(
    model: Model, other_model: Model, folder: Path, tmp_path: Path
) -> None:
    build(model, open_source(folder), tmp_path / "g", maps=PCA)
    with pytest.raises(UserError, match="holds cls features of tiny, not cls of other"):
        update(other_model, open_source(folder), tmp_path / "g")
    with pytest.raises(UserError, match="no such gallery"):
        update(model, open_source(folder), tmp_path / "nothing")


def test_an_opened_gallery_never_mixes_two_sets(model: Model, folder: Path, tmp_path: Path) -> None:
    build(model, open_source(folder), tmp_path / "g", maps=PCA)
    before = Gallery.open(tmp_path / "g")
    features = np.array(before.features)
    paint(folder / "a" / "00.png", 100)
    update(model, open_source(folder), tmp_path / "g")
    np.testing.assert_array_equal(before.features, features)
    for late in (lambda: before.images, before.neighbors, lambda: before.map("pca")):
        with pytest.raises(UserError, match="built again or removed since it was opened"):
            late()


# -- ended at any moment ----------------------------------------------------------------------


def changed(folder: Path) -> None:
    for number in range(5):
        paint(folder / "a" / f"new{number}.png", 100 + number)
    (folder / "b" / "01.png").unlink()
    paint(folder / "b" / "03.png", 200)


@pytest.mark.parametrize("after", [0, 2, 4])
def test_an_interrupted_update_goes_on_where_it_was(
    model: Model, folder: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(model, open_source(folder), tmp_path / "g", maps=PCA)
    old_images = old.images
    changed(folder)

    def progress(done: int, total: int, message: str) -> None:
        if message == "Computing features" and done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(model, open_source(folder), old.path, batch_size=2, progress=progress)
    there = Gallery.open(old.path)
    pd.testing.assert_frame_equal(there.images, old_images)
    assert "an update of it was stopped; the gallery works as it was" in there.problems()[0]
    with counted(monkeypatch) as seen:
        updated = update(model, open_source(folder), old.path, batch_size=2)
    assert len(seen) == 6 - after and not updated.problems()
    assert_same(updated, build(model, open_source(folder), tmp_path / "anew", maps=PCA))
    assert not (old.path / "update").exists() and not (old.path / "updated").exists()


def test_images_that_change_again_after_an_interruption(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    build(model, open_source(folder), tmp_path / "g", maps=PCA)
    changed(folder)

    def progress(done: int, total: int, message: str) -> None:
        if message == "Computing features" and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(model, open_source(folder), tmp_path / "g", batch_size=2, progress=progress)
    paint(folder / "a" / "new0.png", 300)
    updated = update(model, open_source(folder), tmp_path / "g", batch_size=2)
    assert_same(updated, build(model, open_source(folder), tmp_path / "anew", maps=PCA))


@pytest.mark.parametrize("step", ["write_quarantine", "write_table", "write_graph", "draw"])
def test_killed_between_the_steps(
    model: Model, folder: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(model, open_source(folder), tmp_path / "g", maps=PCA).images
    changed(folder)
    with monkeypatch.context() as patched:
        patched.setattr(module, step, lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            update(model, open_source(folder), tmp_path / "g")
    pd.testing.assert_frame_equal(Gallery.open(tmp_path / "g").images, old)
    updated = update(model, open_source(folder), tmp_path / "g")
    assert_same(updated, build(model, open_source(folder), tmp_path / "anew", maps=PCA))


def test_killed_while_files_are_put_in_place(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the n-th rename, for every n: what is opened is the old set whole, or the new."""
    build(model, open_source(folder), tmp_path / "g", maps=PCA)
    changed(folder)
    anew = build(model, open_source(folder), tmp_path / "anew", maps=PCA)
    real, ends = replacing.os.replace, []
    for last in range(20):
        out = shutil.copytree(tmp_path / "g", tmp_path / f"g-{last}")
        old = Gallery.open(out)
        before = old.images, old.neighbors(), old.map("pca")
        with monkeypatch.context() as patched:
            patched.setattr(replacing, "os", Dying(last, real))
            try:
                update(model, open_source(folder), out)
                break
            except ZeroDivisionError:
                pass
        there = Gallery.open(out)
        ends.append(len(there) == len(anew))
        if ends[-1]:
            assert_same(there, anew)
            assert not there.problems()  # no word of an update that was stopped
        else:
            pd.testing.assert_frame_equal(there.images, before[0])
            np.testing.assert_array_equal(there.neighbors()[0], before[1][0])
        assert_same(update(model, open_source(folder), out), anew)
    assert ends == [False, True, True, True, True, True]  # the first rename decides; 4 files follow


class Dying:
    """`os`, but for its `replace`, which ends the program at the n-th call."""

    def __init__(self, last: int, real: Callable[..., None]) -> None:
        self.left, self.real = last, real

    def replace(self, *args: object) -> None:
        if self.left == 0:
            raise ZeroDivisionError
        self.left -= 1
        self.real(*args)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


@pytest.mark.soak
def test_killed_at_many_moments(
    model: Model, folder: Path, tmp_path: Path, repository: Path
) -> None:
    """SIGKILL while a script updates, many times: the gallery opens after every one."""
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, model.info, model.backbone.vit.state_dict())
    script = [sys.executable, str(repository / "scripts" / "embed.py"), "--model", str(weights)]
    script += ["--data", str(folder), "--batch-size", "2", "--maps", "pca", "--out"]
    out, kills = tmp_path / "g", 0
    subprocess.run([*script, str(out)], check=True)
    for number in range(300):
        paint(folder / "a" / f"new{number}.png", 1000 + number)
    before = len(Gallery.open(out))
    for delay in generator(0, "update kills").uniform(0, 1, 6):
        process = subprocess.Popen([*script, str(out)])
        while process.poll() is None and build_status(out)["process"].get("pid") != process.pid:
            time.sleep(0.01)
        time.sleep(delay)
        kills += process.poll() is None
        process.kill()
        process.wait()
        assert len(Gallery.open(out)) in (before, before + 300)
    subprocess.run([*script, str(out)], check=True)
    assert kills
    subprocess.run([*script, str(tmp_path / "anew")], check=True)
    assert_same(Gallery.open(out), Gallery.open(tmp_path / "anew"))
