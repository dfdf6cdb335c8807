"""A selection for other programs: what is in it, what is refused, what a spreadsheet would run."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, exporting
from dino_core.gallery.exporting import as_csv, as_parquet, as_paths, link_folder, table
from dino_core.gallery.images import images_table, write_table
from dino_core.gallery.manifest import GalleryInfo
from dino_core.gallery.notes import Notes


def gallery_of(out: Path, spec: str) -> Gallery:
    """A gallery that knows where its images are, and nothing of their features."""
    source = open_source(spec)
    facts = [
        {"index": i, "width": 8, "height": 8, "fingerprint": source.fingerprint(i)}
        for i in range(len(source))
    ]
    out.mkdir(parents=True)
    write_table(out, images_table(source, facts))
    given = {"model": "starter", "model_hash": "0", "kind": "cls", "preprocessing": {}}
    given |= {"feature_hash": "0", "data": spec, "source_hash": "0", "count": len(source)}
    info = GalleryInfo(**given, root=source.root and str(source.root))
    info.write(out)
    return Gallery(out, info)


@pytest.fixture
def photos(tmp_path):
    """cat/1.png, cat/2.png, dog/1.PNG, dog/1.png: ids in this order."""
    for place, gray in (("cat/1.png", 10), ("cat/2.png", 20), ("dog/1.PNG", 30), ("dog/1.png", 40)):
        path = tmp_path / "photos" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), gray, np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def gallery(photos, tmp_path):
    return gallery_of(tmp_path / "galleries" / "mine", str(photos))


def files_in(folder):
    found = [path for path in folder.rglob("*") if not path.is_dir()]
    return {path.relative_to(folder).as_posix(): int(np.asarray(Image.open(path)).max())
            for path in sorted(found)}  # fmt: skip


# -- tables -----------------------------------------------------------------------------------


def test_a_table_says_what_is_known_of_the_rows_in_their_order(gallery, photos):
    Notes(gallery.path).tag(["dog/1.png", "elsewhere.png"], "good")
    Notes(gallery.path).tag(["dog/1.png"], "blurred")
    (photos / "cat" / "2.png").unlink()
    frame = table(gallery, np.array([3, 1]))
    assert frame["id"].tolist() == ["dog/1.png", "cat/2.png"]
    assert frame["label"].tolist() == ["dog", "cat"]
    assert frame["path"].tolist() == [str(photos / "dog/1.png"), str(photos / "cat/2.png")]
    assert frame["gone"].tolist() == [False, True]
    assert frame["tags"].tolist() == ["blurred; good", ""]
    assert "tags" not in gallery.images


def test_parquet_keeps_all_values(gallery):
    gallery.images["note"] = ["=1+1", None, "-3", "plain"]
    frame = pd.read_parquet(io.BytesIO(as_parquet(table(gallery, np.arange(4)))))
    assert frame["note"].tolist()[0] == "=1+1"
    assert list(frame.columns) == [*gallery.images.columns, "tags"]


def test_what_is_exported_opens_as_the_same_data(gallery, tmp_path):
    frame = table(gallery, np.array([3, 0]))
    for name, data in (("a.csv", as_csv(frame)), ("a.parquet", as_parquet(frame))):
        (tmp_path / name).write_bytes(data)
        source = open_source(str(tmp_path / name))
        assert [int(source.image(i).max()) for i in range(2)] == [40, 10]
        assert [source.classes[label] for label in source.labels] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=HYPERLINK(0)", "'=HYPERLINK(0)"), ("+1+1", "'+1+1"), ("-a|' /C b'!A0", "'-a|' /C b'!A0"),
        ("@SUM(1)", "'@SUM(1)"), ("\t=1", "'\t=1"), ("＝1", "'＝1"),
        ("-1_000", "'-1_000"), ("-3", "-3"), ("+1.5e-3", "+1.5e-3"), ("a=b", "a=b"), ("-", "'-"),
        ("", ""), ("dog, \"big\"\n", "dog, \"big\"\n"), ("été", "été"),
    ],
)  # fmt: skip
def test_cells_are_harmless_for_spreadsheets(value, cell):
    frame = pd.DataFrame({"=head": [value], "number": [-3.5], "flag": [True]})
    head, line = csv.reader(io.StringIO(as_csv(frame).decode(), newline=""))
    assert head == ["'=head", "number", "flag"]
    assert line == [cell, "-3.5", "True"]


@given(st.lists(st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=5)), min_size=1))
def test_no_cell_begins_as_a_formula_does(values):
    text = as_csv(pd.DataFrame({"x": pd.Series(values, dtype=object)})).decode()
    for cell, *_ in list(csv.reader(io.StringIO(text, newline="")))[1:]:
        assert cell.lstrip("-+").isdecimal() or not cell or cell[0] not in "=+-@\t\r\n＝＋－＠"


def test_missing_values_are_empty_cells():
    frame = pd.DataFrame({"a": [None, "x"], "b": pd.array([1, None], dtype="Int64")})
    assert as_csv(frame).decode() == "a,b\n,1\nx,\n"


def test_a_list_of_paths_holds_what_is_there(gallery, photos):
    (photos / "cat" / "1.png").unlink()
    wanted = [photos / "dog/1.png", photos / "cat/2.png"]
    assert as_paths(gallery, np.array([3, 0, 1])).decode() == "".join(f"{one}\n" for one in wanted)


# -- folders of links -------------------------------------------------------------------------


def test_links_lead_to_the_files_and_names_are_unique(gallery, photos, tmp_path):
    made = link_folder(gallery, np.array([3, 2, 1, 0]), tmp_path / "exports", " all  of them ")
    assert made.folder == tmp_path / "exports" / "all of them"
    assert (made.linked, made.copied, made.gone) == (4, 0, 0)
    found = files_in(made.folder)
    assert found == {"1.png": 40, "1-2.PNG": 30, "2.png": 20, "1-3.png": 10}
    assert all((made.folder / name).is_symlink() for name in found)
    assert os.readlink(made.folder / "2.png") == str(photos / "cat/2.png")
    assert made.sentence == f"4 links in {made.folder}."


def test_with_a_folder_for_each_label_it_opens_as_the_same_data(gallery, tmp_path):
    made = link_folder(gallery, np.arange(4), tmp_path, "labeled", by_label=True)
    assert files_in(made.folder) == {
        "cat/1.png": 10, "cat/2.png": 20, "dog/1.PNG": 30, "dog/1-2.png": 40
    }  # fmt: skip
    source = open_source(str(made.folder))
    assert (len(source), list(source.classes)) == (4, ["cat", "dog"])


def test_nothing_is_overwritten(gallery, tmp_path):
    for name, make in (("folder", Path.mkdir), ("file", Path.touch)):
        make(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: is there already; choose another name"):
            link_folder(gallery, np.arange(4), tmp_path, name)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        link_folder(gallery, np.arange(4), tmp_path, "dangling")


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../up", "a/b", "/etc", ".hidden", "a\\b", "C:x", "", "x" * 90, "a*", "end."],
)
def test_no_name_leads_elsewhere(gallery, tmp_path, name):
    exports = tmp_path / "exports"
    with pytest.raises(UserError):
        link_folder(gallery, np.arange(4), exports, name)
    assert not exports.exists()


@given(label=st.text(max_size=300), file=st.text(max_size=300))
def test_no_label_and_no_file_leads_out_of_the_folder(tmp_path_factory, label, file):
    inside, name = exporting._safe(label), exporting._safe(file)
    for part in (inside, name):
        assert not set(part) & set('/\\:*?"<>|\0\n')
        assert 0 < len(part.encode()) <= 255
        assert not part.startswith(".")
    place = tmp_path_factory.getbasetemp() / inside / name
    assert place.resolve().parent.parent == tmp_path_factory.getbasetemp().resolve()


def test_long_names_keep_their_suffix():
    assert exporting._safe("ü" * 200 + ".jpeg").endswith("ü.jpeg")
    assert exporting._safe("...") == "_"


def test_labels_that_would_lead_out_are_made_folders_inside(gallery, tmp_path):
    gallery.images["label"] = ["../../up", "/etc", "", None]
    made = link_folder(gallery, np.arange(4), tmp_path / "x", "odd", by_label=True)
    assert set(files_in(made.folder)) == {"__.._up/1.png", "_etc/2.png", "_/1.PNG", "1.png"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"odd"}


def test_gone_images_are_left_out_and_said(gallery, photos, tmp_path):
    (photos / "cat" / "2.png").unlink()
    made = link_folder(gallery, np.arange(4), tmp_path, "some")
    assert (made.linked, made.gone) == (3, 1)
    assert "1 images are gone and were left out" in made.sentence


def test_where_links_cannot_be_made_files_are_copied(gallery, photos, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("this disk has no links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    made = link_folder(gallery, np.arange(4), tmp_path, "copies")
    assert (made.linked, made.copied) == (0, 4)
    assert not any(path.is_symlink() for path in made.folder.iterdir())
    assert (made.folder / "2.png").read_bytes() == (photos / "cat/2.png").read_bytes()
    assert made.sentence == f"4 copies in {made.folder}."


def test_images_that_are_no_files_become_files(tmp_path):
    gallery = gallery_of(tmp_path / "scenes", "scenes:3")
    made = link_folder(gallery, np.array([2, 0]), tmp_path, "drawn")
    assert (made.linked, made.copied, made.gone) == (0, 2, 0)
    for row in (2, 0):
        name = f"{gallery.images['id'].iloc[row].rsplit('/', 1)[-1]}.png"
        np.testing.assert_array_equal(
            np.asarray(Image.open(made.folder / name)), gallery.image(row)
        )
    assert as_paths(gallery, np.arange(3)) == b""


def test_a_cancel_or_a_full_disk_leaves_nothing(gallery, tmp_path, monkeypatch):
    def cancel(done, total, message):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        link_folder(gallery, np.arange(4), tmp_path / "x", "half", progress=cancel)
    assert not list((tmp_path / "x").iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", full)
    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"half: cannot be written \(No space left on device\)"):
        link_folder(gallery, np.arange(4), tmp_path / "x", "half")
    assert not list((tmp_path / "x").iterdir())
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        link_folder(gallery, np.arange(4), tmp_path / "a file", "half")


def test_nothing_selected_is_refused(gallery, tmp_path):
    with pytest.raises(UserError, match="no image is selected"):
        link_folder(gallery, np.empty(0, np.int64), tmp_path, "none")
