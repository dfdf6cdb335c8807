"""A picture is found by what is in it, wherever it lies; another's upload never is."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dino_core import catalog
from dino_core.catalog.finding import content_hash, file_hash, find
from dino_core.data import BadImage, open_source
from dino_core.gallery import Gallery
from dino_core.gallery.images import images_table, write_table
from dino_core.gallery.manifest import GalleryInfo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, two of them the same."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, seed in (("a.png", 0), ("b.png", 1), ("copy of a.png", 0)):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def gallery_of(spec: str, out: Path) -> Gallery:
    """A gallery of a few images without a model: features are of no matter here."""
    source = open_source(spec)
    count = len(source)
    out.mkdir(parents=True)
    facts = [
        {"index": i, "width": 9, "height": 8, "fingerprint": source.fingerprint(i)}
        for i in range(count)
    ]
    write_table(out, images_table(source, facts))
    np.save(out / "features.npy", np.eye(4, dtype=np.float32)[np.arange(count) % 4])
    np.savez(
        out / "neighbors.npz", rows=np.zeros((count, 1), np.int32), scores=np.zeros((count, 1))
    )
    GalleryInfo(
        *("starter", "0" * 64, "cls", {}, "0" * 64, spec, "0" * 64),
        root=None if source.root is None else str(source.root), classes=[],
        generated=source.generated, count=count, dim=4, neighbors=1, maps={},
    ).write(out)  # fmt: skip
    return Gallery.open(out)


@pytest.fixture
def gallery(photos: Path, tmp_path: Path) -> Gallery:
    return gallery_of(str(photos), tmp_path / "galleries" / "few")


def test_a_file_s_hash_is_that_of_its_bytes_and_of_the_gallery(photos: Path, gallery: Gallery):
    expected = hashlib.blake2b((photos / "b.png").read_bytes(), digest_size=16).hexdigest()
    assert file_hash(photos / "b.png") == expected
    assert expected in set(gallery.images["content_hash"])


def test_an_uploaded_copy_is_the_gallery_s_picture(photos: Path, gallery: Gallery, tmp_path: Path):
    shutil.copy(photos / "b.png", tmp_path / "mine.png")
    upload = catalog.uploaded(tmp_path / "mine.png", "mine.png")
    found = find(content_hash(upload), [gallery], uploads=[upload])
    assert found is not None and found.gallery is not None
    assert found.title == "b.png" and content_hash(found) == content_hash(upload)
    np.testing.assert_array_equal(catalog.load(found), catalog.load(upload))


def test_an_upload_is_found_only_where_it_is_given(tmp_path: Path, photos: Path):
    upload = catalog.uploaded(photos / "a.png", "a.png")
    content = content_hash(upload)
    assert find(content, uploads=[upload]) is upload
    assert find(content, examples=catalog.examples()) is None


def test_every_example_is_found_by_its_hash():
    examples = catalog.examples()
    hashes = [content_hash(catalog.from_example(example)) for example in examples]
    assert len(set(hashes)) == len(hashes)
    for example, content in zip(examples, hashes, strict=True):
        found = find(content, examples=examples)
        assert found is not None and found.title == example.title


def test_a_scene_is_the_same_as_example_and_in_a_gallery(tmp_path: Path):
    gallery = gallery_of("scenes:12", tmp_path / "scenes")
    scene = next(example for example in catalog.examples() if example.scene == 4)
    found = find(content_hash(catalog.from_example(scene)), [gallery])
    assert found is not None and found.row == 4


def test_a_file_that_changed_or_went_is_not_that_picture(photos: Path, gallery: Gallery):
    content = file_hash(photos / "a.png")  # of "a.png" and of its copy
    shutil.copy(photos / "b.png", photos / "a.png")
    found = find(content, [gallery])
    assert found is not None and found.title == "copy of a.png"
    (photos / "copy of a.png").unlink()
    assert find(content, [gallery]) is None


def test_an_image_marked_as_gone_is_not_found(gallery: Gallery, photos: Path):
    table = pd.read_parquet(gallery.path / "images.parquet")
    write_table(gallery.path, table.assign(gone=True))
    assert find(file_hash(photos / "b.png"), [Gallery.open(gallery.path)]) is None


def test_a_hash_follows_the_file_and_one_that_is_gone_is_bad(photos: Path):
    before = file_hash(photos / "b.png")
    (photos / "b.png").write_bytes(b"something else")
    assert file_hash(photos / "b.png") != before
    (photos / "b.png").unlink()
    with pytest.raises(BadImage, match="No such file"):
        file_hash(photos / "b.png")
