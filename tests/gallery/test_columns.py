"""Columns that are derived of a gallery: clusters by their names, tags."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dino_core.gallery import Gallery
from dino_core.gallery.clusters import kmeans
from dino_core.gallery.columns import column
from dino_core.gallery.notes import Notes
from dino_core.gallery.selection import NO_VALUE, color_by


@pytest.fixture
def gallery(scenes_gallery: Gallery, tmp_path: Path) -> Gallery:
    return Gallery.open(shutil.copytree(scenes_gallery.path, tmp_path / "scenes"))


@pytest.mark.parametrize(
    "named", [{}, {0: "x", 2: "x"}, {0: "3 (1)", 1: "3", 3: "3"}, {0: "1", 1: "0", 2: "1 (0)"}]
)
def test_clusters_of_alike_names_stay_apart(gallery: Gallery, named: dict[int, str]) -> None:
    made = kmeans(gallery, 4)
    for cluster, name in named.items():
        Notes(gallery.path).name_cluster("kmeans-4", cluster, name)
    values = column(gallery, "cluster: kmeans-4")
    assert values.nunique() == len(values.cat.categories) == 4
    assert np.array_equal(values.cat.codes, made.labels)
    for cluster, name in named.items():
        assert values.cat.categories[cluster].startswith(name)


@pytest.mark.parametrize("tag", ["rare", "not"])
def test_images_without_a_tag_have_no_value(gallery: Gallery, tag: str) -> None:
    ids = gallery.images["id"]
    Notes(gallery.path).tag([ids[7], "gone since", ids[2]], tag)
    values = column(gallery, f"tag: {tag}")
    assert np.flatnonzero(values.notna()).tolist() == [2, 7]
    assert set(values.dropna()) == {tag}
    assert color_by(values).entries == [(tag, 2), (NO_VALUE, 58)]
    assert column(gallery, "tag: of nobody").isna().all()
