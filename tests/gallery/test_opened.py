"""An opened gallery: searching, refusing, looking; and what it says when something is gone."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Features, Gallery, build, embed
from dino_core.gallery.thumbnails import is_placeholder
from dino_core.models import Model

PCA = ("pca",)


@pytest.fixture
def gallery(model: Model, photos: Path, tmp_path: Path) -> Gallery:
    """Six photos in two folders, to be changed at will."""
    return build(model, open_source(photos), tmp_path / "galleries" / "photos", maps=PCA)


def test_by_id_finds_the_others(scenes_gallery: Gallery) -> None:
    hits = scenes_gallery.search("scenes/000007", k=100)
    assert len(hits) == 59 and 7 not in hits.rows
    similarity = scenes_gallery.features @ scenes_gallery.features[7]
    np.testing.assert_allclose(hits.scores, similarity[hits.rows], atol=1e-6)
    assert (np.diff(hits.scores) <= 0).all()
    assert hits.ids == scenes_gallery.images["id"].iloc[hits.rows].tolist()
    assert hits.labels == scenes_gallery.images["label"].iloc[hits.rows].tolist()


def test_by_image_finds_itself_first(scenes_gallery: Gallery, model: Model) -> None:
    hits = scenes_gallery.search(scenes_gallery.image(3), k=2, model=model)
    assert hits.rows[0] == 3 and hits.scores[0] == pytest.approx(1, abs=1e-5)


def test_by_features_is_by_image(scenes_gallery: Gallery, model: Model) -> None:
    image = scenes_gallery.image(3)
    by_image = scenes_gallery.search(image, model=model)
    by_features = scenes_gallery.search(embed(model, [image]))
    np.testing.assert_array_equal(by_image.rows, by_features.rows)


def test_the_graph_is_the_search(scenes_gallery: Gallery) -> None:
    rows, scores = scenes_gallery.neighbors()
    hits = scenes_gallery.search("scenes/000011", k=30)
    np.testing.assert_array_equal(rows[11], hits.rows)
    np.testing.assert_allclose(scores[11], hits.scores, atol=1e-6)


@pytest.mark.parametrize(
    "where",
    [
        lambda images: images["label"] == "mug",
        lambda images: np.flatnonzero(images["label"] == "mug"),
        lambda images: (images["label"] == "mug").tolist(),
    ],
    ids=["mask", "rows", "list"],
)
def test_where(scenes_gallery: Gallery, where) -> None:
    mugs = np.flatnonzero(scenes_gallery.images["label"] == "mug")
    assert len(mugs) > 1
    for given in (where, where(scenes_gallery.images)):
        hits = scenes_gallery.search("scenes/000000", k=60, where=given)
        assert set(hits.rows) == set(mugs) - {0}


def test_where_leaves_the_caller_s_mask_alone(scenes_gallery: Gallery) -> None:
    mask = np.ones(60, bool)
    scenes_gallery.search("scenes/000000", where=mask)
    assert mask.all()


def test_where_nothing(scenes_gallery: Gallery) -> None:
    assert len(scenes_gallery.search("scenes/000000", where=np.zeros(60, bool))) == 0


def test_images_that_are_gone_are_not_found(gallery: Gallery) -> None:
    gallery.images.loc[2, "gone"] = True
    assert 2 not in gallery.search(gallery.images["id"][0]).rows


def test_another_model_s_features_are_refused(
    scenes_gallery: Gallery, other_model: Model, model: Model
) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    for query, loaded in ((image, other_model), (embed(other_model, [image]), None)):
        with pytest.raises(UserError, match=r"features of tiny \(\w{8}\).* features of other \("):
            scenes_gallery.search(query, model=loaded)
    mean = embed(model, [image], kind="mean patch")
    with pytest.raises(UserError, match=r"cannot be compared|other weights"):
        scenes_gallery.search(mean)
    anonymous = Features(np.zeros((1, 48), np.float32), "0" * 64)
    with pytest.raises(UserError, match="another model"):
        scenes_gallery.search(anonymous)


def test_queries_that_cannot_be_answered(scenes_gallery: Gallery, model: Model) -> None:
    with pytest.raises(UserError, match="has no image 'nobody'"):
        scenes_gallery.search("nobody")
    with pytest.raises(UserError, match=r"load_model\('tiny'\)"):
        scenes_gallery.search(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        scenes_gallery.search(np.zeros((9, 9, 3), np.float32), model=model)
    with pytest.raises(UserError, match="no map 'tsne'; there are"):
        scenes_gallery.map("tsne")


def test_a_member_is_placed_near_itself(scenes_gallery: Gallery, model: Model) -> None:
    placed = scenes_gallery.place(scenes_gallery.image(5), "pca", model)
    assert placed.columns.tolist() == ["x", "y", "placed"] and placed["placed"].all()
    own = scenes_gallery.map("pca")
    low, high = own.min(), own.max()
    assert (placed[["x", "y"]].iloc[0] >= low).all() and (placed[["x", "y"]].iloc[0] <= high).all()


def test_the_table(gallery: Gallery, photos: Path) -> None:
    table = gallery.images.set_index("id")
    assert table.loc["dogs/0.png", "label"] == "dogs"
    assert table.loc["dogs/0.png", "path"] == "dogs/0.png"
    assert table.loc["dogs/0.png", "size"] == (photos / "dogs" / "0.png").stat().st_size
    assert table.loc["dogs/0.png", ["width", "height"]].tolist() == [192, 192]
    assert gallery.info.classes == ["cats", "dogs"] and not table["gone"].any()


def test_the_user_s_columns_come_along(model: Model, photos: Path, tmp_path: Path) -> None:
    lines = ["path,label,split,camera,size"]
    lines += [f"dogs/{i}.png,{'spot' if i else ''},train,lens{i},{i}" for i in (0, 2, 4)]
    (photos / "list.csv").write_text("\n".join(lines))
    gallery = build(model, open_source(photos / "list.csv"), tmp_path / "g", maps=PCA)
    images = gallery.images
    assert images["camera"].tolist() == ["lens0", "lens2", "lens4"]
    assert images["their_size"].tolist() == [0, 2, 4]
    assert images["split"].tolist() == ["train"] * 3
    assert images["label"].iloc[1] == "spot" and gallery.image(1).shape == (192, 192, 3)
    assert gallery.search("dogs/2.png").labels.count(None) == 1


def test_any_table_of_the_user_s_can_be_stored(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed types become text, what is missing stays so, and no two columns share a name."""
    source = open_source(photos)
    source.metadata = pd.DataFrame(
        [[1, "x", "a", 3, 0.5]] * (len(source) - 2) + [["two", None, "b", 4, 0.5]] * 2,
        columns=["mixed", "size", "their_size", "mixed", "share"],
    ).astype({"mixed": object})
    source.metadata.iloc[0, 0] = None
    images = build(model, source, tmp_path / "g", maps=PCA).images
    theirs = images[["mixed", "their_size", "their_size_2", "mixed_2", "share"]]
    assert list(images.columns[-5:]) == list(theirs.columns)
    assert set(images["mixed"].dropna()) == {"1", "two"} and images["mixed"].isna().sum() == 1
    assert images["mixed_2"].tolist()[-1] == 4 and images["share"].tolist() == [0.5] * 6


def test_thumbnails_are_small_jpegs_made_once(gallery: Gallery) -> None:
    path = gallery.thumbnail(0, side=50)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (50, 50))
    made = path.stat().st_mtime_ns
    assert gallery.thumbnail(0, side=50) == path and path.stat().st_mtime_ns == made
    assert path.is_relative_to(gallery.path / "thumbs")
    assert gallery.thumbnail(0, side=500).parent.parent.name == "500"
    with Image.open(gallery.thumbnail(0, side=500)) as picture:
        assert picture.size == (192, 192)  # nothing is enlarged


@pytest.mark.parametrize("content", ["../../../../outside", "/tmp", "", None])
def test_no_thumbnail_lies_outside_however_a_table_from_elsewhere_spells_contents(
    gallery: Gallery, content: str | None
) -> None:
    gallery.images["content_hash"] = content
    paths = {gallery.thumbnail(row, side=20) for row in range(2)}
    assert len(paths) == 2  # an image of its own each
    for path in paths:
        assert path.resolve().is_relative_to(gallery.path.resolve() / "thumbs" / "20")
        assert path.is_file() and not is_placeholder(path)


def test_images_that_were_moved_leave_the_rest_working(gallery: Gallery, photos: Path) -> None:
    assert gallery.images_missing() == ""
    shutil.move(photos, photos.parent / "elsewhere")
    opened = Gallery.open(gallery.path)
    assert "are not in" in opened.images_missing()
    with pytest.raises(UserError, match=r"cats/1.png cannot be read .* expected in"):
        opened.image(opened.row("cats/1.png"))
    tile = opened.thumbnail(0, side=64)
    with Image.open(tile) as picture:
        assert picture.size == (64, 64)
    shutil.move(photos.parent / "elsewhere", photos)
    assert is_placeholder(tile) and not is_placeholder(opened.thumbnail(0, side=64))
    assert opened.thumbnail(0, side=64) != tile  # the gray tile was not kept as the image's own
    assert len(opened.search("cats/1.png")) == 5


def test_images_of_generated_sources_and_tars(scenes_gallery: Gallery, tmp_path: Path) -> None:
    np.testing.assert_array_equal(scenes_gallery.image(9), open_source("scenes:60").image(9))


@pytest.mark.parametrize("spec", ["relative folder", "tar"])
def test_images_are_found_from_any_working_directory(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(photos.parent)
    data = "photos"
    if spec == "tar":
        data = shutil.make_archive("photos", "tar", photos)
        data = Path(data).name
    gallery = build(model, open_source(data), Path("g"), maps=PCA)
    expected = gallery.image(0)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(Gallery.open(tmp_path / "g").image(0), expected)


def test_a_read_only_gallery_keeps_its_thumbnails_elsewhere(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (gallery.path / "thumbs").write_text("in the way")
    path = gallery.thumbnail(0)
    assert path.is_file() and not path.is_relative_to(gallery.path)


def test_what_is_no_gallery_is_said(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such gallery"):
        Gallery.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a gallery"):
        Gallery.open(tmp_path / "empty")


@pytest.mark.parametrize("name", ["features.npy", "images.parquet"])
def test_damage_is_said(gallery: Gallery, name: str) -> None:
    (gallery.path / name).unlink()
    with pytest.raises(UserError, match=rf"is damaged \({name} is missing\)"):
        Gallery.open(gallery.path)


def test_features_of_another_length_are_damage(gallery: Gallery) -> None:
    np.save(gallery.path / "features.npy", np.zeros((2, 48), np.float32))
    with pytest.raises(UserError, match=r"holds \(2, 48\), gallery.json says \(6, 48\)"):
        Gallery.open(gallery.path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ('{"version": 99}', "format version 99"),
        ('{"version": 1, "model": "tiny"}', "lacks something"),
        ("[]", "format version None"),
    ],
)
def test_manifests_that_cannot_be_used(gallery: Gallery, text: str, sentence: str) -> None:
    (gallery.path / "gallery.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        Gallery.open(gallery.path)


def test_a_half_made_gallery_names_the_command_that_finishes_it(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if done > 3:
            raise KeyboardInterrupt

    out = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        build(model, open_source(photos), out, progress=stop, batch_size=2)
    command = f"python scripts/embed.py --model tiny --data {photos} --out {out}"
    with pytest.raises(UserError, match=f"is half made; run `{command}` again to finish it"):
        Gallery.open(out)


def test_an_image_s_row_is_found_by_its_id_also_where_hashes_are_alike(gallery, monkeypatch):
    from dino_core.gallery import opened as module

    ids = list(gallery.images["id"])
    assert [gallery.row(id) for id in ids] == list(range(len(ids)))
    monkeypatch.setattr(module, "HASHED_AT_ONCE", 2)  # several blocks, the last one not full
    again = Gallery.open(gallery.path)
    assert [again.row(id) for id in ids] == list(range(len(ids)))
    monkeypatch.setattr(module, "_hashed", lambda ids: np.full(len(ids), 7, np.uint64))
    alike = Gallery.open(gallery.path)
    assert [alike.row(id) for id in ids] == list(range(len(ids)))
    for one in (gallery, alike):
        with pytest.raises(UserError, match="has no image 'nobody'"):
            one.row("nobody")
        with pytest.raises(UserError, match="has no image"):
            one.row("\ud800")
