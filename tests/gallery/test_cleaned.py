"""The table after a review, opened as the data it is meant to be."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery.cleaned import (
    decisions_of,
    free_name,
    in_folder,
    write_cleaned,
)
from dino_core.gallery.images import images_table, their_columns
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.notes import Notes, Review
from dino_core.gallery.opened import Gallery


def gallery_of(data: Path, out: Path) -> Gallery:
    """What writing a table needs of a gallery of `data`, without a model."""
    source = open_source(data)
    facts = [
        {"index": i, "width": 8, "height": 8, "fingerprint": f"{i}"} for i in range(len(source))
    ]
    out.mkdir(parents=True)
    info = GalleryInfo(
        model="starter", model_hash="0", kind="cls", preprocessing={}, feature_hash="0",
        data=str(data), source_hash="0", root=str(source.root), classes=[], generated=False,
        count=len(source), dim=4, neighbors=3, maps={},
    )  # fmt: skip
    info.write(out)
    mine = Gallery(out, info)
    mine.images = images_table(source, facts, their_columns(source))
    return mine


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of two classes in two splits; one name with a comma, a quote and a margin."""
    names = ["train/cat/a.png", 'train/cat/b, "c".png', "train/dog/ d.png"]
    names += ["val/cat/e.png", "val/dog/f.png", "val/dog/ü.png"]
    for number, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(path)
    return tmp_path / "photos"


def pictures(source: Any) -> list[int]:
    """Which of the six pictures each row is, told by its gray."""
    return [round(int(source.image(i)[0, 0, 0]) / 40) for i in range(len(source))]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("folder", ["cleaned", ".", "photos"])
def test_the_table_opens_as_the_data_that_is_left(
    photos: Path, tmp_path: Path, ending: str, folder: str
) -> None:
    mine = gallery_of(photos, tmp_path / "galleries" / "photos")
    notes, ids = Notes(mine.path), mine.images["id"]
    notes.review([ids[0], ids[4]], "remove")
    notes.review([ids[1]], "keep")
    notes.review([ids[3]], "relabel", "lynx, young")
    notes.review([ids[4]], None)
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    done = write_cleaned(mine, tmp_path / folder / f"clean{ending}")
    assert (done.images, done.kept, done.relabeled, done.removed) == (5, 1, 1, 1)
    assert "5 images" in done.sentence() and "1 with a new label" in done.sentence()
    source = open_source(done.path)
    assert source.labels is not None and source.splits is not None
    assert pictures(source) == [1, 2, 3, 4, 5]
    assert [source.classes[code] for code in source.labels] == [
        "cat", "dog", "lynx, young", "dog", "dog",
    ]  # fmt: skip
    assert list(source.splits) == ["train", "train", "val", "val", "val"]
    assert source.metadata is not None
    decided = source.metadata["decision"].tolist()
    assert [one if isinstance(one, str) else None for one in decided] == [
        "keep", None, "relabel", None, None,
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before
    relative = "photos" not in folder and folder != "."
    assert source.ids[0].startswith("/") == relative


def test_the_user_s_columns_go_along(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "path,label,site,size,decision\n"
        "photos/train/cat/a.png,cat,north,3,yes\nphotos/val/dog/f.png,,south,4,no\n"
    )
    mine = gallery_of(table, tmp_path / "galleries" / "table")
    Notes(mine.path).review([mine.images["id"][1]], "relabel", "fox")
    done = write_cleaned(mine, tmp_path / "cleaned.parquet")
    frame = pd.read_parquet(done.path)
    assert frame.columns.tolist() == [
        "path", "label", "site", "their_size", "their_decision", "decision",
    ]  # fmt: skip
    assert frame["site"].tolist() == ["north", "south"]
    assert frame["their_size"].tolist() == [3, 4]
    assert frame["their_decision"].tolist() == ["yes", "no"]
    assert frame["label"].tolist() == ["cat", "fox"]
    assert frame["path"].tolist() == ["photos/train/cat/a.png", "photos/val/dog/f.png"]


def test_nothing_is_written_over(photos: Path, tmp_path: Path) -> None:
    mine = gallery_of(photos, tmp_path / "g")
    assert free_name(tmp_path, "my pets") == "my-pets.csv"
    first = write_cleaned(mine, tmp_path / free_name(tmp_path, "my pets")).path
    text = first.read_text()
    with pytest.raises(UserError, match=r"my-pets\.csv: is there already"):
        write_cleaned(mine, first)
    assert first.read_text() == text
    assert free_name(tmp_path, "my pets") == "my-pets-2.csv"


def test_what_a_csv_cannot_say_is_refused_and_leaves_no_file(photos: Path, tmp_path: Path) -> None:
    mine = gallery_of(photos, tmp_path / "g")
    Notes(mine.path).review(mine.images["id"], "relabel", "007")
    with pytest.raises(UserError, match=r"call the table out\.parquet"):
        write_cleaned(mine, tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "photos"]
    assert open_source(write_cleaned(mine, tmp_path / "out.parquet").path).classes == ["007"]
    odd = gallery_of(photos, tmp_path / "odd")
    odd.images["a;b;c;d;e;f;g"] = 1
    with pytest.raises(UserError, match="parquet"):
        write_cleaned(odd, tmp_path / "odd.csv")


@pytest.mark.parametrize("links", [True, False])
def test_of_two_who_write_one_table_the_second_is_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """The other's file appears after the first look, while ours is being written."""
    mine, path = gallery_of(photos, tmp_path / "g"), tmp_path / "out.parquet"
    write = pd.DataFrame.to_parquet

    def overtaken(table: pd.DataFrame, *args: Any, **kwargs: Any) -> None:
        write(table, *args, **kwargs)
        path.write_text("theirs")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "this disk has no links")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", overtaken)
        with pytest.raises(UserError, match=r"out\.parquet: is there already, and nothing is"):
            write_cleaned(mine, path)
    assert path.read_text() == "theirs"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["g", "out.parquet", "photos"]
    assert len(open_source(write_cleaned(mine, tmp_path / "free.parquet").path)) == 6


def test_refusals_are_sentences(photos: Path, tmp_path: Path) -> None:
    mine = gallery_of(photos, tmp_path / "g")
    with pytest.raises(UserError, match=r"out\.txt: a table is called \.csv or \.parquet"):
        write_cleaned(mine, tmp_path / "out.txt")
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no table was written"):
        write_cleaned(mine, tmp_path / "out.csv")
    (tmp_path / "moved").rename(photos)
    Notes(mine.path).review(mine.images["id"], "remove")
    with pytest.raises(UserError, match="no image would be left"):
        write_cleaned(mine, tmp_path / "out.csv")
    mine.images["path"] = None
    with pytest.raises(UserError, match=r"no files of their own .*reviews\.jsonl"):
        write_cleaned(mine, tmp_path / "out.csv")


def test_images_that_are_gone_are_left_out_and_counted(photos: Path, tmp_path: Path) -> None:
    mine = gallery_of(photos, tmp_path / "g")
    mine.images.loc[2, "gone"] = True
    mine.images.loc[5, "path"] = None
    Notes(mine.path).review(mine.images["id"][[2, 3]], "remove")
    done = write_cleaned(mine, tmp_path / "out.csv")
    assert (done.images, done.removed, done.gone, done.unnamed) == (3, 1, 1, 1)
    assert pictures(open_source(done.path)) == [0, 1, 4]
    assert "their files are gone" in done.sentence() and "cannot spell" in done.sentence()


def test_a_name_stays_in_its_folder(tmp_path: Path) -> None:
    assert in_folder(tmp_path, " a b.csv ") == tmp_path / "a b.csv"
    for name in ("", "../a.csv", "/etc/a.csv", "a/b.csv", "..", ".a.csv", "a\\b.csv", "x" * 200):
        with pytest.raises(UserError):
            in_folder(tmp_path, name)


def test_decisions_by_id() -> None:
    ids = pd.Series(["a", "b", "c"])
    assert decisions_of(ids, {}).tolist() == [None, None, None]
    reviews = {"b": Review("keep"), "z": Review("remove")}
    assert decisions_of(ids, reviews).tolist() == [None, "keep", None]
