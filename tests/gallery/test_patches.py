"""Patches: what a click finds, held against brute force; a folder that is whole or not there."""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import (
    Gallery,
    Patches,
    PatchHits,
    build,
    build_patches,
    patch_features,
    plan_patches,
)
from dino_core.gallery.jobs import build_status
from dino_core.gallery.patches import Frame, rank_within
from dino_core.models import Model, ModelInfo, create_backbone
from dino_core.models.preprocess import cropped

GRID = (8, 8)
SCENES = 30
STEPS = {"resize": 256, "crop": 224}  # the published ones


@pytest.fixture(scope="module")
def seeing() -> Model:
    """A tiny model with a grid of 8 x 8 patches."""
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        info = ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=64, options=options)
        return Model(create_backbone(info), "seeing", torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(seeing: Model, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """30 scenes, without patches. For reading only."""
    out = tmp_path_factory.mktemp("galleries") / "scenes"
    return build(seeing, open_source(f"scenes:{SCENES}"), out, maps=("pca",))


@pytest.fixture(scope="module")
def truth(seeing: Model, whole: Gallery) -> np.ndarray:
    """Features of every patch, one image at a time: [30, 64, 48]."""
    return np.stack([patch_features(seeing, whole.image(row)).array for row in range(SCENES)])


@pytest.fixture(scope="module")
def exact(seeing: Model, whole: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Patches:
    """All patches as they are. For reading only."""
    copy = copied(whole, tmp_path_factory.mktemp("exact"))
    return build_patches(copy, seeing, per_image=None, code="Flat")


@pytest.fixture
def gallery(whole: Gallery, tmp_path: Path) -> Gallery:
    """The scenes, to be changed at will."""
    return copied(whole, tmp_path)


def copied(gallery: Gallery, to: Path) -> Gallery:
    return Gallery.open(shutil.copytree(gallery.path, to / "scenes"))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def at(hits: PatchHits) -> list[tuple[int, int]]:
    """The hits as (image, patch)."""
    cells = hits.cells[:, 0] * hits.grid[1] + hits.cells[:, 1]
    return list(zip(hits.rows.tolist(), cells.tolist(), strict=True))


def brute_force(
    truth: np.ndarray, query_MD: np.ndarray, k: int, allowed: set[int], per_image: int
) -> list[tuple[int, int]]:
    """The same by sorting all, one after the other."""
    scores = (truth @ query_MD.T).max(axis=2)
    images, cells = np.indices(scores.shape)
    hits: list[tuple[int, int]] = []
    for place in np.argsort(-scores, axis=None, kind="stable"):
        image, cell = int(images.flat[place]), int(cells.flat[place])
        if image in allowed and sum(one == image for one, _ in hits) < per_image:
            hits.append((image, cell))
    return hits[:k]


# -- searching ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["SQ8", "IVF16,SQ8"])
def test_a_click_finds_that_very_patch_first(seeing: Model, gallery: Gallery, code: str) -> None:
    patches = build_patches(gallery, seeing, per_image=None, code=code)
    for row in (0, 7, SCENES - 1):
        image = gallery.image(row)
        seen = patch_features(seeing, image)
        for cell in ((0, 0), (3, 4), (7, 7)):
            left, top, right, bottom = seen.frame.box(*cell)
            hits = patches.search(seen.under((left + right) // 2, (top + bottom) // 2), k=3)
            assert hits.rows[0] == row and hits.ids[0] == gallery.images["id"][row]
            assert tuple(hits.cells[0]) == cell and hits.grid == GRID
            assert tuple(hits.boxes[0]) == (left, top, right, bottom)
            assert hits.scores[0] == pytest.approx(1, abs=2e-3)
            assert hits.labels == gallery.images["label"].iloc[hits.rows].tolist()


@pytest.mark.parametrize("per_image", [1, 3, 64])
@pytest.mark.parametrize("kind", ["all", "mask", "function"])
def test_search_is_brute_force(
    exact: Patches, truth: np.ndarray, per_image: int, kind: str
) -> None:
    labels = exact.gallery.images["label"]
    label = labels[4]
    where = {
        "all": None,
        "mask": (labels == label).to_numpy(),
        "function": lambda images: images["label"] == label,
    }[kind]
    allowed = set(range(SCENES)) if kind == "all" else set(np.flatnonzero(labels == label))
    assert len(allowed) > 1
    for row, cell in ((4, 0), (11, 27), (25, 50)):
        query = truth[row, cell]
        hits = exact.search(query, k=20, where=where, per_image=per_image)
        assert at(hits) == brute_force(truth, query[None], 20, allowed, per_image)
        expected = [truth[image, cell] @ query for image, cell in at(hits)]
        np.testing.assert_allclose(hits.scores, expected, atol=1e-5)


def test_several_patches_ask_together(exact: Patches, truth: np.ndarray) -> None:
    query = truth[[2, 2, 19], [9, 10, 33]]
    hits = exact.search(3 * query, k=25, per_image=2)  # lengths do not count
    assert at(hits) == brute_force(truth, query, 25, set(range(SCENES)), 2)


def test_several_patches_ask_for_more_until_nothing_better_can_come(
    exact: Patches, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_core.gallery.patches.CANDIDATES", 1)
    monkeypatch.setattr("dino_core.gallery.patches.MORE", 2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = truth[rng.integers(0, SCENES, (2, 4)), rng.integers(0, 64, (2, 4))]
        query = 2 * one + other  # no two patches are equally near to it
        query /= np.linalg.norm(query, axis=1, keepdims=True)
        hits = exact.search(query, k=6)
        assert at(hits) == brute_force(truth, query, 6, set(range(SCENES)), 1)


def test_all_of_one_image_is_found_in_whatever_list_it_lies(
    seeing: Model, gallery: Gallery, truth: np.ndarray
) -> None:
    patches = build_patches(gallery, seeing, per_image=None, code="IVF32,Flat")
    assert patches.info.probes is not None and patches.info.probes < 32
    only = np.arange(SCENES) == 5
    hits = patches.search(truth[20, 1], k=100, where=only, per_image=100)
    assert at(hits) == brute_force(truth, truth[20, 1][None], 100, {5}, 100) and len(hits) == 64
    assert len(patches.search(truth[20, 1], k=5000, per_image=100)) == len(patches)


def test_images_that_are_gone_are_not_found(
    exact: Patches, truth: np.ndarray, tmp_path: Path
) -> None:
    gallery = copied(exact.gallery, tmp_path)
    gallery.images.loc[5, "gone"] = True
    assert gallery.patches is not None
    assert 5 not in gallery.patches.search(truth[5, 8], k=SCENES).rows


def test_nothing_to_find(exact: Patches, truth: np.ndarray) -> None:
    hits = exact.search(truth[0, 0], where=np.zeros(SCENES, bool))
    assert len(hits) == 0 and hits.cells.shape == (0, 2) and hits.boxes.shape == (0, 4)
    assert len(exact.search(truth[0, 0], k=0)) == 0


def test_features_of_another_model_are_refused(
    exact: Patches, model: Model, whole: Gallery
) -> None:
    others = patch_features(model, whole.image(0)).at(0, 0)
    with pytest.raises(UserError, match=r"seen by seeing, which cannot be compared .* of tiny"):
        exact.search(others)
    with pytest.raises(ValueError, match="48 numbers"):
        exact.search(np.ones(47, np.float32))


@pytest.mark.parametrize(("code", "least", "most"), [("SQ8", 0.95, 1), ("IVF16,PQ12", 0.4, 0.95)])
def test_the_recall_is_as_stated(
    seeing: Model, gallery: Gallery, truth: np.ndarray, code: str, least: float, most: float
) -> None:
    patches = build_patches(gallery, seeing, per_image=None, code=code)
    flat = truth.reshape(-1, truth.shape[-1])
    similarity = flat @ flat.T
    np.fill_diagonal(similarity, -1)
    found = []
    for patch in range(0, len(flat), 13):  # other patches than those that the build judged
        true = set(np.argsort(-similarity[patch])[:10].tolist())
        hits = patches.search(flat[patch], k=11, per_image=64)
        others = [64 * image + cell for image, cell in at(hits)]
        found.append(len(true & set([one for one in others if one != patch][:10])) / 10)
    assert patches.info.judged == 256 and patches.info.neighbors == 10
    assert np.mean(found) == pytest.approx(patches.info.recall, abs=0.06)
    assert least <= patches.info.recall <= most


@given(st.lists(st.integers(0, 4), max_size=30))
def test_the_rank_within_a_group_is_the_number_before(groups: list[int]) -> None:
    expected = [groups[:place].count(group) for place, group in enumerate(groups)]
    assert rank_within(np.array(groups, np.int64)).tolist() == expected


# -- building -------------------------------------------------------------------------------


def test_the_same_patches_in_every_build(seeing: Model, whole: Gallery, tmp_path: Path) -> None:
    tables = []
    for number, batch_size in enumerate((64, 7)):
        gallery = copied(whole, tmp_path / str(number))
        patches = build_patches(gallery, seeing, per_image=5, batch_size=batch_size)
        tables.append(patches.table)
    for name in ("image", "row", "column"):
        np.testing.assert_array_equal(tables[0][name], tables[1][name])
    cells = tables[0]["row"].astype(int) * 8 + tables[0]["column"]
    chosen = [set(cells[tables[0]["image"] == row]) for row in range(SCENES)]
    assert {len(one) for one in chosen} == {5}
    # Not the same ones in every image: 150 draws of 64 leave few patches out.
    assert len(set.union(*chosen)) > 45


def test_what_is_held_is_what_the_model_sees(
    seeing: Model, gallery: Gallery, truth: np.ndarray
) -> None:
    patches = build_patches(gallery, seeing, per_image=5, code="Flat")
    table, index = patches.table, faiss.read_index(str(patches.path / "index.faiss"))
    cells = table["row"].astype(int) * 8 + table["column"]
    np.testing.assert_allclose(
        index.reconstruct_n(0, index.ntotal), truth[table["image"], cells], atol=1e-5
    )


def test_a_plan_says_what_it_takes(seeing: Model, gallery: Gallery) -> None:
    plan = plan_patches(gallery, seeing, per_image=10)
    assert plan.sentence == (
        "300 patches, 10 an image, take about 16.2 kB on the disk (54 bytes each, coded SQ8)"
    )
    patches = build_patches(gallery, seeing, per_image=10)
    headers = 256 + 48 * 2 * 4 + 1024  # FAISS's, a least value and a step a dimension, three .npy
    assert plan.bytes <= patches.info.bytes <= plan.bytes + headers
    lying = sum((patches.path / name).stat().st_size for name in ("index.faiss", "patches.npz"))
    assert patches.info.bytes == lying


@pytest.mark.parametrize(("count", "code"), [(1_000_000, "SQ8"), (1_000_001, "IVF1000,PQ12")])
def test_big_collections_take_less_a_patch(count: int, code: str) -> None:
    from dino_core.gallery.patch_building import _usual_code

    assert _usual_code(count, 48) == code


def test_a_build_that_ends_in_the_middle_leaves_nothing(
    seeing: Model, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names_in(gallery.path)

    def killed(done: int, total: int, message: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_patches(gallery, seeing, batch_size=10, progress=killed)
    assert names_in(gallery.path) == before and gallery.patches is None
    assert build_status(gallery.path)["state"] == "stopped"

    def full(index: faiss.Index, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("no space left")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="make room"):
        patched.setattr(faiss, "write_index", full)
        build_patches(gallery, seeing)
    assert names_in(gallery.path) == before

    (gallery.path / ".patches.0.tmp").mkdir()  # as a kill -9 leaves it
    assert len(build_patches(gallery, seeing)) == SCENES * 49
    assert names_in(gallery.path) == before | {"patches"}


def test_the_same_again_keeps_what_is_there(seeing: Model, gallery: Gallery) -> None:
    first = build_patches(gallery, seeing, per_image=4)
    stamp = (first.path / "index.faiss").stat()
    said: list[str] = []
    again = build_patches(
        gallery.path, seeing, per_image=4, progress=lambda done, total, what: said.append(what)
    )
    assert (again.path / "index.faiss").stat() == stamp and not said
    with pytest.raises(UserError, match=r"holds 4 patches .* SQ8, not all coded SQ8; .*--redo"):
        build_patches(gallery, seeing, per_image=None)
    assert gallery.patches is not None and len(gallery.patches) == 4 * SCENES
    build_patches(gallery, seeing, per_image=None, redo=True)
    assert len(gallery.patches) == 64 * SCENES  # of the gallery that was open meanwhile
    assert not [name for name in names_in(gallery.path) if name.endswith(".tmp")]


def test_another_model_is_refused(seeing: Model, model: Model, gallery: Gallery) -> None:
    with pytest.raises(UserError, match=r"holds features of seeing .* cannot be compared"):
        build_patches(gallery, model)
    assert gallery.patches is None


def test_patches_of_other_images_do_not_count(seeing: Model, gallery: Gallery) -> None:
    build_patches(gallery, seeing, per_image=4)
    fewer = build(seeing, open_source("scenes:12"), gallery.path, maps=("pca",), redo=True)
    assert fewer.patches is None
    assert len(build_patches(fewer, seeing, per_image=3)) == 36  # without a redo: of no use


def test_images_that_are_not_as_they_were_have_no_patches(
    seeing: Model, photos: Path, tmp_path: Path
) -> None:
    gallery = build(seeing, open_source(photos), tmp_path / "g", maps=("pca",))
    (photos / "dogs" / "0.png").unlink()
    Image.new("RGB", (50, 50)).save(photos / "cats" / "1.png")
    (photos / "dogs" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    patches = build_patches(gallery, seeing, per_image=6, batch_size=2)
    assert patches.info.skipped == {"gone": 1, "changed": 1, "unreadable": 1}
    left = {gallery.images["id"][row] for row in patches.table["image"]}
    assert left == {"cats/3.png", "dogs/4.png", "cats/5.png"} and patches.info.images == 3
    assert "18 patches of 3 images, 1 gone, 1 changed, 1 unreadable;" in patches.info.says()
    row = gallery.row("dogs/4.png")  # patches and images still belong together
    cell = tuple(patches.search(patch_features(seeing, gallery.image(row)).array[:1]).cells[0])
    assert cell in set(zip(patches.table["row"], patches.table["column"], strict=True))
    for path in photos.glob("*/*"):
        path.write_bytes(b"gone")
    shutil.rmtree(patches.path)
    with pytest.raises(UserError, match="none of its images can be read"):
        build_patches(gallery, seeing, per_image=6)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("HNSW32", "code 'HNSW32' is unknown; use auto, Flat,"),
        ("IVF4,PQ7", "48 numbers cannot be parted into 7"),
        ("IVF4000,SQ8", "needs at least 4,000 patches .* there are 120"),
        ("IVF4,PQ12", "needs at least 256 patches"),
    ],
)
def test_codes_that_cannot_be(seeing: Model, gallery: Gallery, code: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_patches(gallery, seeing, per_image=4, code=code)


def test_a_full_disk_is_told_before(
    seeing: Model, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"take about .* on the disk .*1 kB are free; make room"):
        build_patches(gallery, seeing)


def test_damage_is_a_sentence(seeing: Model, gallery: Gallery) -> None:
    patches = build_patches(gallery, seeing, per_image=4)
    manifest = patches.path / "patches.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"version": 2}))
    with pytest.raises(UserError, match="format version 2, and this program reads 1"):
        _ = gallery.patches
    manifest.write_text(json.dumps({key: value[key] for key in value if key != "dim"}))
    with pytest.raises(UserError, match="lacks something"):
        _ = gallery.patches
    manifest.write_text(json.dumps(value))
    (patches.path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(UserError, match=r"index\.faiss cannot be read"):
        Gallery.open(gallery.path).patches.search(np.ones(48))  # type: ignore[union-attr]
    (patches.path / "index.faiss").unlink()
    with pytest.raises(UserError, match=r"index\.faiss is missing"):
        _ = gallery.patches


# -- places ---------------------------------------------------------------------------------


def test_the_frame_by_hand() -> None:
    """Short side to 256, the middle 224 of it: 16 px of margin at scale 1, and 144 in the width."""
    frame = Frame.of((256, 512), STEPS, (14, 14))
    assert frame.box(0, 0) == (144, 16, 160, 32)
    assert frame.box(13, 13) == (352, 224, 368, 240)
    assert Frame.of((512, 512), STEPS, (14, 14)).box(1, 0) == (32, 64, 64, 96)
    assert frame.cell(144, 16) == (0, 0) and frame.cell(159, 32) == (1, 0)
    with pytest.raises(UserError, match=r"\(143, 16\) is outside .* x 144 to 368 and y 16 to 240"):
        frame.cell(143, 16)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 13), st.integers(0, 13))
def test_the_middle_of_a_patch_is_in_it(height: int, width: int, row: int, column: int) -> None:
    frame = Frame.of((height, width), STEPS, (14, 14))
    left, top, right, bottom = frame.box(row, column)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    x = frame.left + (column + 0.5) * frame.width / 14 - 0.5
    y = frame.top + (row + 0.5) * frame.height / 14 - 0.5
    assert frame.cell(x, y) == (row, column)
    assert left <= x + 0.5 <= right and top <= y + 0.5 <= bottom


@pytest.mark.parametrize("size", [(300, 700), (900, 210), (64, 64), (12, 1000)])
@pytest.mark.parametrize("cell", [(0, 0), (3, 5), (7, 2)])
def test_a_box_is_what_the_model_sees_of_the_patch(
    seeing: Model, size: tuple[int, int], cell: tuple[int, int]
) -> None:
    """White where the box is: after the model's own preprocessing, white where the patch is."""
    left, top, right, bottom = Frame.of(size, {"resize": 73, "crop": 64}, GRID).box(*cell)
    image = np.zeros((*size, 3), np.uint8)
    image[top:bottom, left:right] = 255
    patches = cropped(image, seeing.info)[..., 0].reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255
    assert patches[cell] > 0.85
    far = np.abs(np.indices(GRID) - np.array(cell)[:, None, None]).max(axis=0) > 1
    assert patches[far].max() < 0.05 and patches[cell] == patches.max()
