"""The head atlas: numbers against the whole softmax, images that excite against all of them."""

import io
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from timm.layers import set_fused_attn

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, build
from dino_core.gallery import atlas_building as building
from dino_core.gallery.atlas import (
    BINS,
    KEPT,
    STATISTICS,
    Atlas,
    _photo,
    commonest,
    excited,
    in_words,
)
from dino_core.gallery.atlas_building import build_atlas, lattice, measured, seconds_per_image
from dino_core.lenses import LensPayload
from dino_core.models import Model, ModelInfo, create_backbone

SIDE = 40  # pixels: 5 x 5 patches of 8
P = 25


def lively(registers: int = 0, architecture: str = "vit_tiny_patch16_224") -> Model:
    """Two layers of three heads that are not flat."""
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "reg_tokens": registers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        backbone = create_backbone(ModelInfo(architecture, 8, SIDE, options=options))
    with torch.no_grad():
        for block in backbone.vit.blocks:
            block.attn.qkv.weight.mul_(8)
    return Model(backbone, "lively", torch.device("cpu"))


@pytest.fixture(scope="module")
def looked():
    """A model, six images as it gets them, and its WHOLE attention, float64 [B, L, A, N, N]."""
    model = lively(registers=2)
    pixels = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    seen = []
    set_fused_attn(False)  # then timm makes the weights and hands them to a dropout
    try:
        slow = lively(registers=2).backbone
    finally:
        set_fused_attn(True)
    for block in slow.vit.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        slow.tokens(pixels)
    return model, pixels, torch.stack(seen, dim=1).double().numpy()


def of(found, name):
    return found.values[STATISTICS.index(name)]


def test_measures_are_those_of_the_whole_softmax(looked):
    model, pixels, whole = looked
    masks = np.random.default_rng(0).random((6, P))
    masks[4] = np.nan
    found = measured(model, pixels, masks)
    cls = whole[:, :, :, 0, 3:]  # behind CLS and two registers
    share = cls / cls.sum(axis=-1, keepdims=True)
    assert np.allclose(found.maps.reshape(cls.shape), cls, atol=1e-6)
    assert np.allclose(of(found, "entropy"), -(share * np.log(share)).sum(axis=-1), atol=1e-4)
    assert np.allclose(of(found, "outside"), whole[:, :, :, 0, :3].sum(axis=-1), atol=1e-5)
    best = np.sort(cls, axis=-1)[..., -2:].sum(axis=-1)  # a tenth of 25 are 2
    assert np.allclose(of(found, "excitement"), best, atol=1e-6)
    inside = (share * masks[:, None, None]).sum(axis=-1)
    assert np.allclose(of(found, "foreground")[:4], inside[:4], atol=1e-5)
    assert np.isnan(of(found, "foreground")[4]).all()


def test_distance_is_that_of_the_paper_where_all_patches_ask(looked):
    model, pixels, whole = looked
    found = measured(model, pixels, np.full((6, P), np.nan))
    patches = whole[..., 3:, 3:]
    by_hand = np.zeros(patches.shape[:3])
    for i in range(P):
        for j in range(P):
            apart = math.dist(divmod(i, 5), divmod(j, 5))
            by_hand += patches[..., i, j] / patches[..., i, :].sum(axis=-1) * apart / P
    assert np.allclose(of(found, "distance"), by_hand, atol=1e-4)
    assert by_hand.std() > 0.02  # else any constant would pass


def test_a_large_grid_asks_from_a_lattice():
    assert lattice((3, 4)).tolist() == list(range(12))
    rows, columns = np.divmod(lattice((16, 24)), 24)
    assert np.unique(rows).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert np.unique(columns).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert len(lattice((28, 37))) == 64


def test_even_attention_has_the_even_figures(monkeypatch):
    """Queries of zero attend to all tokens alike: what `even` promises is what is measured."""
    model = lively(registers=1)
    for block in model.backbone.vit.blocks:
        block.attn.qkv.weight[:48] = 0
        block.attn.qkv.bias[:48] = 0
    found = measured(model, torch.randn(2, 3, SIDE, SIDE), np.full((2, P), 0.25))
    monkeypatch.setattr(building, "DEFAULT_PATCHES", 5)
    tally = building._Tally(building._Eye(None, model))
    tally.area, tally.masked = 0.5, 2
    for name, value in tally._even().items():
        assert np.allclose(of(found, name), value, atol=1e-5), name


def test_where_patches_do_not_attend_there_is_no_distance():
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2, "cls_attn_layers": 2}
    backbone = create_backbone(ModelInfo("xcit_nano_12_p8_224", 8, SIDE, options=options))
    model = Model(backbone, "xcit", torch.device("cpu"))
    found = measured(model, torch.randn(2, 3, SIDE, SIDE), np.full((2, P), 0.5))
    assert found.maps.shape == (2, 2, 2, 5, 5)
    assert np.isnan(of(found, "distance")).all()
    assert np.allclose(of(found, "foreground"), 0.5, atol=1e-5)
    assert np.allclose(of(found, "outside"), 1 - found.maps.sum(axis=(-2, -1)), atol=1e-5)


# -- over a gallery ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seer():
    return lively()


@pytest.fixture(scope="module")
def made(seer, tmp_path_factory):
    """A gallery of 40 scenes with the atlas of all, and what each image showed, by row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "DEFAULT_PATCHES", 5)
        out = tmp_path_factory.mktemp("atlas") / "scenes"
        gallery = build(seer, open_source("scenes:40"), out, maps=())
        atlas = build_atlas(gallery, seer, images=None)
        eye = building._Eye(gallery, seer)
        items = [eye.image(row) for row in range(40)]
    pixels = torch.stack([seer.normalize(cut) for _, cut, _ in items])
    found = measured(seer, pixels, np.stack([mask for *_, mask in items]))
    return gallery, atlas, found


def test_means_deviations_and_histograms_are_those_of_all_images(made):
    _, atlas, found = made
    assert atlas.info.images == atlas.info.masked == 40
    for name in STATISTICS:
        values = of(found, name)
        assert np.allclose(atlas.mean[name], values.mean(axis=0), atol=1e-5)
        assert np.allclose(atlas.deviation[name], values.std(axis=0), atol=1e-3)
        edges = np.linspace(0, atlas.info.most[name], BINS + 1)
        for layer, head in np.ndindex(2, 3):
            counts = np.histogram(values[:, layer, head], edges)[0]
            assert abs(atlas.counts[name][layer, head] - counts).sum() <= 2  # on an edge
            assert atlas.counts[name][layer, head].sum() == 40


def test_the_most_excited_images_are_kept_with_their_maps(made):
    gallery, atlas, found = made
    excitement = of(found, "excitement")
    for layer, head in np.ndindex(2, 3):
        rows = [gallery.row(atlas.ids[at]) for at in atlas.top[layer, head]]
        assert len(set(rows)) == KEPT
        payload = LensPayload.from_bytes(atlas.payload(layer, head))
        assert payload.codes.shape == (1, KEPT, 5, 5) and payload.image_size == (SIDE, SIDE)
        best = np.sort(excitement[:, layer, head])[::-1][:KEPT]
        assert np.allclose(atlas.scores[layer, head], best, atol=1e-6)
        assert np.allclose(excitement[rows, layer, head], best, atol=1e-6)
        for place, row in enumerate(rows):
            true, drawn = found.maps[row, layer, head], payload.maps()[0, place]
            apart = np.sqrt(drawn / drawn.max()) - np.sqrt(true / true.max())
            assert abs(apart).max() <= 0.51 / 255 + 1e-4
            falling = np.sort(true.ravel())[::-1].cumsum() / true.sum()
            assert payload.kept[0, place, 12] == (falling < 0.6).sum() + 1


def test_masks_are_cut_as_the_images_are(made, seer, monkeypatch):
    """A foreground share of a patch is the mask's mean over the pixels that the patch shows."""
    monkeypatch.setattr(building, "DEFAULT_PATCHES", 5)
    eye = building._Eye(made[0], seer)
    mask = np.zeros((200, 200), bool)
    mask[:, 100:] = True  # the right half: of 5 columns the last two, and half of the third
    shares = eye._shares(mask).reshape(5, 5)
    assert np.allclose(shares[:, [0, 1, 3, 4]], [0, 0, 1, 1], atol=0.02)
    assert np.allclose(shares[:, 2], 0.5, atol=0.03)
    mask[:] = False
    mask[:, :3] = True  # outside the cut
    assert np.isnan(eye._shares(mask)).all()


def test_it_is_read_back_as_it_was_written(made):
    gallery, atlas, _ = made
    there = Atlas.read(gallery)
    assert there.info.arrays.startswith("atlas-") and there.is_current(gallery)
    assert there.ids == atlas.ids and there.info.even == atlas.info.even
    for name in ("top", "scores", "codes", "peak", "kept"):
        assert np.array_equal(getattr(there, name), getattr(atlas, name))
    for name in STATISTICS:
        assert np.array_equal(there.mean[name], atlas.mean[name])
        assert np.array_equal(there.counts[name], atlas.counts[name])


def test_images_are_shown_without_the_model_and_named_without_their_files(made):
    gallery, atlas, _ = made
    found = excited(gallery, atlas, 1, 2, side=64)
    assert [one.id for one in found] == [atlas.ids[at] for at in atlas.top[1, 2]]
    assert all(gallery.images["id"][one.row] == one.id for one in found)
    assert Image.open(io.BytesIO(found[0].photo)).size == (64, 64)
    moved = Gallery(gallery.path, gallery.info)
    moved.images = gallery.images.assign(path="nowhere.png")
    gone = excited(moved, atlas, 1, 2, side=64)
    assert [one.id for one in gone] == [one.id for one in found]
    assert all(one.photo is None for one in gone)


def test_a_photo_is_the_square_that_the_model_saw(seer, tmp_path):
    """Left of the square all is black, right of it white: it has neither."""
    image = np.full((100, 300, 3), 127, np.uint8)
    share = 224 / 256
    image[:, : int(150 - 50 * share)] = 0
    image[:, int(150 + 50 * share) + 1 :] = 255
    folder = tmp_path / "wide"
    folder.mkdir()
    for name in "ab":
        Image.fromarray(image).save(folder / f"{name}.png")
    gallery = build(seer, open_source(str(folder)), tmp_path / "gallery", maps=())
    square = np.asarray(Image.open(io.BytesIO(_photo(gallery, 0, 100, share))))
    assert square.shape == (100, 100, 3)
    assert abs(square[:, 4:-4].astype(int) - 127).max() <= 8


def test_times_are_told_in_words():
    assert in_words(1) == "about 5 seconds"
    assert in_words(43) == "about 45 seconds"
    assert in_words(100) == "about 2 minutes"
    assert in_words(7300) == "about 2 hours"


def test_the_commonest_label_is_named():
    assert commonest(pd.Series(["b", None, "a", "b", "a"])) == ("a", 2)
    assert commonest(pd.Series([None, None])) == ("", 0)


# -- what is refused --------------------------------------------------------------------------


def copied(gallery, tmp_path):
    shutil.copytree(gallery.path, tmp_path / "copy")
    return Gallery.open(tmp_path / "copy")


def test_other_weights_are_refused(made, model):
    gallery = made[0]
    with pytest.raises(UserError, match="has other weights"):
        build_atlas(gallery, model)
    with pytest.raises(UserError, match="has other weights"):
        seconds_per_image(gallery, model)


def test_a_model_without_heads_says_so(made):
    info = ModelInfo("resnet18", patch_size=1, image_size=64)
    resnet = Model(create_backbone(info), "resnet", torch.device("cpu"))
    with pytest.raises(UserError, match="no attention to show"):
        build_atlas(made[0], resnet)


def test_an_atlas_of_other_weights_or_damaged_is_refused(made, tmp_path):
    gallery = copied(made[0], tmp_path)
    header = gallery.path / "heads" / "atlas.json"
    arrays = next((gallery.path / "heads").glob("*.npz"))
    content, text = arrays.read_bytes(), header.read_text()
    arrays.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        Atlas.read(gallery)
    arrays.write_bytes(content)
    header.write_text(json.dumps(json.loads(text) | {"heads": 4}))
    with pytest.raises(UserError, match=r"cannot be read .*not"):
        Atlas.read(gallery)
    header.write_text(json.dumps(json.loads(text) | {"model_hash": "f" * 64}))
    with pytest.raises(UserError, match="compute the atlas again"):
        Atlas.read(gallery)
    header.write_text(json.dumps(json.loads(text) | {"version": 2}))
    with pytest.raises(UserError, match="format version 2"):
        Atlas.read(gallery)
    header.unlink()
    assert Atlas.read(gallery) is None


def test_a_new_atlas_takes_the_place_of_the_old_and_a_cancelled_one_does_not(
    made, seer, tmp_path, monkeypatch
):
    monkeypatch.setattr(building, "DEFAULT_PATCHES", 5)
    gallery = copied(made[0], tmp_path)

    def cancel(done, total, message):
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build_atlas(gallery, seer, images=20, progress=cancel)
    assert Atlas.read(gallery).info.images == 40
    said = []
    build_atlas(gallery, seer, images=20, progress=lambda *of: said.append(of))
    assert Atlas.read(gallery).info.images == 20
    assert [done for done, _, _ in said] == [0, 16, 20] and {total for _, total, _ in said} == {20}
    assert len(list((gallery.path / "heads").iterdir())) == 2


def test_images_that_are_gone_are_left_out(made, seer, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "DEFAULT_PATCHES", 5)
    gallery = copied(made[0], tmp_path)
    gallery.images.loc[:29, "gone"] = True
    gallery.images.loc[30:31, "path"] = "nowhere.png"
    atlas = build_atlas(gallery, seer)
    assert (atlas.info.asked, atlas.info.images) == (10, 8)
    assert (atlas.top[..., 8:] == -1).all() and (atlas.scores[..., 8:] == 0).all()
    assert set(atlas.ids) == {f"scenes/{row:06d}" for row in range(32, 40)}
    assert len(excited(gallery, atlas, 0, 0, side=32)) == 8
    assert LensPayload.from_bytes(atlas.payload(0, 0)).codes.shape[:2] == (1, 8)
    gallery.images["path"] = "nowhere.png"
    with pytest.raises(UserError, match="none of its images can be read"):
        build_atlas(gallery, seer)
