"""Building: what a gallery holds, and that it ends the same however often it was interrupted."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import (
    Gallery,
    UmapSettings,
    approximate,
    build,
    build_status,
    building,
    draw_map,
    embed,
)
from dino_core.gallery.extraction import Batch
from dino_core.gallery.manifest import how_made
from dino_core.models import Model, save_weights
from dino_core.rng import generator

PCA = ("pca",)


def contents(path: Path) -> dict[str, bytes]:
    """What must be equal between two builds of the same: everything but times and process ids."""
    kept = {}
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name not in ("status.json", "build.log", ".building.lock"):
            kept[name] = file.read_bytes()
    info = json.loads(kept["gallery.json"])
    info.pop("created")
    return kept | {"gallery.json": json.dumps(info).encode()}


def test_what_lies_in_the_folder(scenes_gallery: Gallery, model: Model) -> None:
    path, info = scenes_gallery.path, scenes_gallery.info
    for name in (
        "gallery.json", "images.parquet", "features.npy", "neighbors.npz",
        "maps/umap.parquet", "maps/pca.parquet",
    ):  # fmt: skip
        assert (path / name).is_file(), name
    assert not (path / "building.json").exists() and not list(path.glob("*.part"))
    assert (info.count, info.dim, info.neighbors) == (60, 48, 30)
    assert (info.model, info.model_hash, info.generated) == ("tiny", model.hash, True)
    assert info.maps["umap"]["method"] == "umap"
    source = open_source("scenes:60")
    assert scenes_gallery.images["id"].tolist() == list(source.ids)
    one = embed(model, [source.image(7)]).array[0]
    np.testing.assert_allclose(scenes_gallery.features[7], one, atol=1e-6)


def test_bad_images_are_left_out_and_reported(model: Model, photos: Path, tmp_path: Path) -> None:
    gallery = build(model, open_source(photos), tmp_path / "g", maps=PCA)
    assert len(gallery) == len(gallery.features) == 6
    assert "cats/broken.jpg" not in gallery.images["id"].tolist()
    report = [json.loads(line) for line in (gallery.path / "quarantine.jsonl").open()]
    assert [one["id"] for one in report] == ["cats/broken.jpg"] and report[0]["reason"]
    assert gallery.info.quarantined == 1
    for row in range(6):
        np.testing.assert_allclose(
            gallery.features[row], embed(model, [gallery.image(row)]).array[0], atol=1e-6
        )


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_next_to_no_images(model: Model, tmp_path: Path, count: int) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"none")
    scenes = open_source("scenes:3")
    from PIL import Image

    for index in range(count):
        Image.fromarray(scenes.image(index)).save(folder / f"{index}.png")
    gallery = build(model, open_source(folder), tmp_path / "g")
    assert len(gallery) == len(gallery.images) == len(gallery.map()) == count
    assert gallery.neighbors()[0].shape == (count, max(0, count - 1))
    assert gallery.info.maps["umap"]["why"] == "fewer than 10 images"
    hits = gallery.search(scenes.image(0), model=model)
    assert len(hits) == count
    if count:
        assert hits.ids[0] == "0.png"
        assert gallery.place(scenes.image(0), model=model).shape == (1, 3)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_interrupted_while_computing(
    model: Model, photos: Path, tmp_path: Path, after: int, end: type[BaseException]
) -> None:
    whole = build(model, open_source(photos), tmp_path / "a", maps=PCA, batch_size=2)

    def progress(done: int, total: int, message: str) -> None:
        if done >= after:
            raise end

    with pytest.raises(end):
        build(model, open_source(photos), tmp_path / "b", maps=PCA, batch_size=2, progress=progress)
    with pytest.raises(UserError, match="half made"):
        Gallery.open(tmp_path / "b")
    told: list[int] = []
    again = build(
        model, open_source(photos), tmp_path / "b", maps=PCA, batch_size=2,
        progress=lambda done, total, message: told.append(done),
    )  # fmt: skip
    assert told[0] >= after  # what was done is not done again
    assert contents(whole.path) == contents(again.path)


@pytest.mark.parametrize("step", ["images_table", "write_table", "graph_of_all", "write_map"])
def test_killed_between_the_steps(
    model: Model, photos: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(model, open_source(photos), tmp_path / "a", maps=PCA)
    with monkeypatch.context() as patched:
        patched.setattr(building, step, lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(model, open_source(photos), tmp_path / "b", maps=PCA)
    again = build(model, open_source(photos), tmp_path / "b", maps=PCA)
    assert contents(whole.path) == contents(again.path)


def test_a_whole_gallery_is_opened_as_it_is(scenes_gallery: Gallery, model: Model) -> None:
    before = (scenes_gallery.path / "features.npy").stat().st_mtime_ns
    build(model, open_source("scenes:60"), scenes_gallery.path)
    assert (scenes_gallery.path / "features.npy").stat().st_mtime_ns == before


def test_a_map_asked_for_later_is_drawn_from_what_is_there(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("scenes:6")
    build(model, source, tmp_path / "g", maps=PCA)
    whole = build(model, source, tmp_path / "both")
    monkeypatch.setattr(building, "model_batches", lambda *args, **kwargs: 1 / 0)
    later = build(model, source, tmp_path / "g", maps=("pca", "umap"))
    assert later.info.maps == whole.info.maps and len(later.map("umap")) == 6
    assert contents(later.path) == contents(whole.path)


def test_a_second_map_of_other_settings_reads_the_stored_graph(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = build(model, open_source("scenes:12"), tmp_path / "g")
    usual = (gallery.path / "maps" / "umap.parquet").read_bytes()
    for name in ("model_batches", "graph_of_all"):
        monkeypatch.setattr(building, name, lambda *args, **kwargs: 1 / 0)
    settings = UmapSettings(n_neighbors=6, min_dist=0.5)
    build(model, open_source("scenes:12"), tmp_path / "g", umap=settings)
    wide = draw_map(gallery, UmapSettings(min_dist=0.9))
    assert set(wide.info.maps) == {"pca", "umap", "umap-6-0.5", "umap-15-0.9"}
    made = {"method": "umap", "n_neighbors": 6, "min_dist": 0.5, "metric": "cosine"}
    assert wide.info.maps["umap-6-0.5"] == made and len(wide.map("umap-6-0.5")) == 12
    assert (gallery.path / "maps" / "umap.parquet").read_bytes() == usual
    with pytest.raises(UserError, match="n_neighbors 40: a gallery holds 30 neighbors"):
        draw_map(gallery, UmapSettings(n_neighbors=40))


def test_how_neighbors_were_found_is_kept_and_told(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = build(model, open_source("scenes:40"), tmp_path / "exact", maps=PCA)
    assert exact.info.graph == {"method": "exact"} and not how_made(exact.info)
    monkeypatch.setattr(approximate, "EXACT_AT_MOST", 39)
    nearly = build(model, open_source("scenes:40"), tmp_path / "nearly", maps=PCA)
    assert nearly.info.graph["method"] == "ivf" and 0.9 < nearly.info.graph["recall"] <= 1
    assert "% of the true ones, judged on 40 images" in how_made(nearly.info)[0]


def test_another_half_made_gallery_is_refused_or_redone(
    model: Model, other_model: Model, photos: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    source, out = open_source(photos), tmp_path / "g"
    with pytest.raises(KeyboardInterrupt):
        build(model, source, out, maps=PCA, batch_size=2, progress=stop)
    before = (out / "features.npy.part").read_bytes()
    with pytest.raises(UserError, match=r"half-made gallery of .*photos seen by tiny .*--redo"):
        build(other_model, source, out, maps=PCA)
    assert (out / "features.npy.part").read_bytes() == before
    assert build(other_model, source, out, maps=PCA, redo=True).info.model == "other"


def test_another_model_is_refused_or_redone(
    model: Model, other_model: Model, photos: Path, tmp_path: Path
) -> None:
    gallery = build(model, open_source(photos), tmp_path / "g", maps=PCA)
    (gallery.path / "user").mkdir()
    (gallery.path / "user" / "tags.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match=r"holds cls features of tiny, not cls of other; .*--redo"):
        build(other_model, open_source(photos), gallery.path, maps=PCA)
    redone = build(other_model, open_source(photos), gallery.path, maps=PCA, redo=True)
    assert redone.info.model == "other"
    assert (gallery.path / "user" / "tags.jsonl").read_text() == "mine\n"


def test_changed_images_bring_up_to_date_or_start_over(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model, open_source(photos), tmp_path / "g", maps=PCA)
    shutil.copy(photos / "dogs" / "0.png", photos / "dogs" / "9.png")
    with monkeypatch.context() as patched:
        patched.setattr(building, "model_batches", none_of_them)
        updated = build(model, open_source(photos), tmp_path / "g", maps=PCA)
    assert len(updated) == 7 and updated.news == "1 added, 0 gone, 0 changed"
    (photos / "dogs" / "9.png").unlink()
    redone = build(model, open_source(photos), tmp_path / "g", maps=PCA, redo=True)
    assert len(redone) == 6 and not redone.news and not redone.info.update


def none_of_them(model, source, images, *_, **__):
    """Stands in for the model where it must see no good image."""
    assert [source.ids[index] for index in images] in ([], ["cats/broken.jpg"])
    yield from (
        Batch(np.empty((0, 48), np.float32), [{"index": index, "bad": "so"}]) for index in images
    )


@pytest.mark.parametrize("name", ["neighbors.npz", "maps/umap.parquet", "maps/pca.parquet"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "of others"])
def test_a_damaged_file_is_made_again_and_nothing_else(
    model: Model, photos: Path, tmp_path: Path, name: str, damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = build(model, open_source(photos), tmp_path / "g")
    before, file = contents(whole.path), whole.path / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        other = build(model, open_source("scenes:4"), tmp_path / "other")
        shutil.copy(other.path / name, file)
    assert len(Gallery.open(whole.path).problems()) == 1
    monkeypatch.setattr(building, "model_batches", lambda *args, **kwargs: 1 / 0)
    mended = build(model, open_source(photos), tmp_path / "g")
    assert mended.news == f"made again, for they were damaged: {name}"
    assert not mended.problems() and contents(mended.path) == before


@pytest.mark.parametrize("name", ["features.npy", "images.parquet"])
def test_without_features_or_table_it_is_built_again(
    model: Model, photos: Path, tmp_path: Path, name: str
) -> None:
    whole = build(model, open_source(photos), tmp_path / "g", maps=PCA)
    before, file = contents(whole.path), whole.path / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"\({name} .*run `python scripts/embed.py "):
        Gallery.open(whole.path)
    again = build(model, open_source(photos), tmp_path / "g", maps=PCA)
    assert "damaged" in again.news and contents(again.path) == before


def test_a_half_made_gallery_of_changed_images_starts_over(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(model, open_source(photos), tmp_path / "g", maps=PCA, batch_size=2, progress=stop)
    (photos / "cats" / "1.png").unlink()
    gallery = build(model, open_source(photos), tmp_path / "g", maps=PCA)
    assert len(gallery) == 5 and "cats/1.png" not in gallery.images["id"].tolist()


def test_folders_of_something_else_are_left_alone(model: Model, photos: Path) -> None:
    with pytest.raises(UserError, match="other files in it"):
        build(model, open_source(photos), photos, maps=PCA)
    with pytest.raises(UserError, match="is a file"):
        build(model, open_source(photos), photos / "dogs" / "0.png", maps=PCA)


def test_an_unknown_map(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="map 'tsne' is unknown; there are umap, pca"):
        build(model, open_source("scenes:3"), tmp_path / "g", maps=("tsne",))


def test_a_full_disk_is_a_sentence_and_what_was_done_stays(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_core.gallery import partial

    append, calls = partial.PartialFeatures.append, []

    def full(self, *batch):
        calls.append(1)
        if len(calls) < 3:
            return append(self, *batch)
        with self._disk_errors():
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(partial.PartialFeatures, "append", full)
        with pytest.raises(UserError, match=r"No space left on device.*is kept"):
            build(model, open_source(photos), tmp_path / "g", maps=PCA, batch_size=2)
    told: list[int] = []
    build(
        model, open_source(photos), tmp_path / "g", maps=PCA,
        progress=lambda done, total, message: told.append(done),
    )  # fmt: skip
    assert told[0] == 4


@pytest.mark.soak
def test_killed_at_many_moments(model: Model, tmp_path: Path, repository: Path) -> None:
    """SIGKILL up to a second after each of five starts has begun to compute."""
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, model.info, model.backbone.vit.state_dict())
    script = [sys.executable, str(repository / "scripts" / "embed.py"), "--model", str(weights)]
    script += ["--data", "scenes:400", "--batch-size", "4", "--maps", "pca", "--out"]
    subprocess.run([*script, str(tmp_path / "whole")], check=True)
    out, kills = tmp_path / "killed", 0
    for delay in generator(0, "kills").uniform(0, 1, 5):
        process = subprocess.Popen([*script, str(out)])
        while build_status(out)["done"] == 0 or build_status(out)["process"]["pid"] != process.pid:
            if process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(delay)
        kills += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run([*script, str(out)], check=True)
    assert kills
    assert contents(tmp_path / "whole") == contents(out)
