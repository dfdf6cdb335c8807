"""Galleries whose files were cut short or written over: a sentence, and everything else works."""

import contextlib
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, build, build_patches, damage, list_galleries, opened
from dino_core.gallery.damage import Damaged
from dino_core.models import Model
from dino_core.rng import generator

CORE = ("features.npy", "images.parquet", "gallery.json")
FILES = (
    *CORE, "neighbors.npz", "maps/umap.parquet", "maps/pca.parquet", "status.json",
    "patches/patches.json", "patches/patches.npz", "patches/index.faiss",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("damage") / "galleries" / "g"
    build_patches(build(model, open_source("scenes:14"), out), model, per_image=2)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "galleries" / "g")


def uses(gallery: Gallery, model: Model) -> dict[str, Callable[[], object]]:
    """What people do with a gallery, by the file that it hangs on."""
    id, image = open_source("scenes:14").ids[3], open_source("scenes:14").image(3)
    return {
        "images.parquet": lambda: gallery.images,
        "features.npy": lambda: len(gallery.search(id, k=3)),
        "": lambda: len(gallery.search(image, model=model, k=3)),
        "neighbors.npz": gallery.neighbors,
        "maps/umap.parquet": lambda: gallery.map("umap"),
        "maps/pca.parquet": lambda: gallery.place(image, "pca", model),
        "patches": lambda: gallery.patches and len(gallery.patches.search(np.eye(1, 48), k=1)),
        "thumbnail": lambda: gallery.thumbnail(0),
        "problems": gallery.problems,
    }


def test_a_whole_one_has_no_problems(whole: Path, model: Model) -> None:
    gallery = Gallery.open(whole)
    assert gallery.problems() == []
    for name, use in uses(gallery, model).items():
        if name != "patches":
            use()


@pytest.mark.parametrize("name", ["neighbors.npz", "maps/umap.parquet", "maps/pca.parquet"])
@pytest.mark.parametrize("left", [0, 0.5, None])
def test_the_others_work_without_one_file(
    copy: Path, model: Model, name: str, left: float | None
) -> None:
    file = copy / name
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    gallery = Gallery.open(copy)
    problems = gallery.problems()
    assert len(problems) == 1 and f"({name} " in problems[0]
    assert f"`python scripts/embed.py --model tiny --data scenes:14 --out {copy}`" in problems[0]
    for used, use in uses(gallery, model).items():
        if used == name:
            with pytest.raises(UserError, match=rf"is damaged \({name} "):
                use()
        elif used != "patches":
            use()


@pytest.mark.parametrize("name", ["features.npy", "images.parquet"])
def test_without_the_core_it_is_refused_with_what_to_do(copy: Path, name: str) -> None:
    file = copy / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"\({name} .*; run `python scripts/embed.py .* stays"):
        Gallery.open(copy)


@pytest.mark.parametrize("values", ["zeros", "nan"])
def test_features_that_are_none_are_damage(copy: Path, values: str) -> None:
    wrong = np.zeros((14, 48), np.float32) + (np.nan if values == "nan" else 0)
    np.save(copy / "features.npy", wrong)
    with pytest.raises(UserError, match=r"features.npy holds rows that are not of length 1"):
        Gallery.open(copy)
    np.save(copy / "features.npy", np.eye(14, 48))
    with pytest.raises(UserError, match=r"features.npy holds float64, not float32"):
        Gallery.open(copy)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("features.npy", (np, "load")),
        ("images.parquet", (pq, "read_metadata")),
        ("images.parquet", (opened, "read_table")),
        ("neighbors.npz", (opened, "map_arrays")),
        ("maps/umap.parquet", (pd, "read_parquet")),
    ],
)
def test_what_cannot_be_read_now_is_not_thrown_away(
    copy: Path,
    model: Model,
    name: str,
    reader: tuple[object, str],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {file: file.stat().st_ino for file in copy.rglob("*") if file.name != "status.json"}

    def fail(path: object, *_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(*reader, fail if name[:4] != "maps" else only(name, fail, pd.read_parquet))
        with pytest.raises(UserError, match=r"cannot be read now \((Too many|not enough)") as said:
            build(model, open_source("scenes:14"), copy)
    assert not isinstance(said.value, Damaged)
    assert {file: file.stat().st_ino for file in before} == before
    assert build(model, open_source("scenes:14"), copy).news == ""


def only(name: str, fail: Callable[..., None], read: Callable[..., Any]) -> Callable[..., Any]:
    """`read`, failing on one file."""

    def some(path: Path, *args: Any, **kwargs: Any) -> Any:
        return (fail if str(path).endswith(name) else read)(path, *args, **kwargs)

    return some


def test_a_file_on_a_disk_that_fails_is_a_problem_and_the_rest_works(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    gallery = Gallery.open(copy)
    monkeypatch.setattr(damage.zipfile, "ZipFile", fail)
    problems = gallery.problems()
    assert len(problems) == 1 and "neighbors.npz: cannot be read now (Stale" in problems[0]


def test_neighbors_that_are_nobody_are_damage(copy: Path) -> None:
    gallery = Gallery.open(copy)
    rows, scores = (array.copy() for array in gallery.neighbors())
    rows[5, 2] = 14
    np.savez(copy / "neighbors.npz", rows=rows, scores=scores)
    with pytest.raises(UserError, match="is damaged"):
        Gallery.open(copy).neighbors()


def test_patches_of_other_images_are_told(copy: Path, model: Model) -> None:
    text = (copy / "patches" / "patches.json").read_text()
    (copy / "patches" / "patches.json").write_text(text.replace('"count": 14', '"count": 13'))
    problems = Gallery.open(copy).problems()
    assert len(problems) == 1 and "of other images than the gallery holds now" in problems[0]
    (copy / "patches" / "patches.json").write_text("{")
    assert "patches/ cannot be read" in Gallery.open(copy).problems()[0]
    build_patches(copy, model, per_image=2, redo=True)
    assert not Gallery.open(copy).problems()


def fuzz(whole: Path, folder: Path, model: Model, cases: range) -> int:
    """Damage one file at a time, each at random; how many galleries could still be opened."""
    opened = 0
    for case in cases:
        random = generator(case, "damage")
        out = shutil.copytree(whole, folder / str(case) / "galleries" / "g")
        file = out / FILES[case % len(FILES)]
        data, how = bytearray(file.read_bytes()), case // len(FILES) % 3
        at = int(random.integers(0, len(data)))
        if how == 0:
            data = data[:at]
        elif how == 1:  # a stretch of noise
            noise = random.integers(0, 256, int(random.integers(1, 60)), np.uint8).tobytes()
            data[at : at + len(noise)] = noise
        else:  # something else altogether
            data = bytearray(random.integers(0, 256, at, np.uint8).tobytes())
        file.write_bytes(data)
        list_galleries(out.parent.parent)
        try:
            gallery = Gallery.open(out)
        except UserError:
            assert file.name in CORE, file
            continue
        opened += 1
        for use in uses(gallery, model).values():
            with contextlib.suppress(UserError):
                use()
        shutil.rmtree(out)
    return opened


def test_any_damage_gives_a_working_gallery_or_a_sentence(
    whole: Path, model: Model, tmp_path: Path
) -> None:
    cases = 3 * len(FILES)
    assert fuzz(whole, tmp_path, model, range(cases)) >= cases * 7 // 10 - 1


@pytest.mark.soak
def test_any_damage_a_thousand_times(whole: Path, model: Model, tmp_path: Path) -> None:
    fuzz(whole, tmp_path, model, range(1000, 2000))
