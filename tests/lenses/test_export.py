"""Attention as files: what lies where, what a second run keeps, what bad images do."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.lenses import LensPayload, export, look, render
from dino_core.lenses.export import Settings, image_folder


def save(path: Path, height: int = 40, width: int = 64, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    save(folder / "cat" / "1.png", seed=1)
    save(folder / "dog" / "1.png", 64, 40, seed=2)
    return folder


def run(model, photos, out, **settings):
    chosen = Settings(**{"size": 64, **settings})
    return export.export(model, open_source(str(photos)), out, chosen, progress=False)


def test_everything_is_there_and_right(model, photos, tmp_path):
    result = run(model, photos, tmp_path / "out", keep=0.5, colormap="magma")
    assert (result.made, result.kept, result.bad, result.sentence) == (2, 0, 0, "")
    assert result.sheet == tmp_path / "out" / "index.html"
    assert not (tmp_path / "out" / "bad-images.jsonl").exists()
    folder = tmp_path / "out" / "images" / "cat" / "1.png"
    image = np.asarray(Image.open(photos / "cat" / "1.png"))
    seen = look(model, image, size=64)

    arrays = np.load(folder / "attention.npz")
    np.testing.assert_array_equal(arrays["maps"], seen.maps[-1:])
    np.testing.assert_array_equal(arrays["masks"], seen.mass_mask(0.5)[-1:])
    assert arrays["layers"].tolist() == [1] and arrays["image_size"].tolist() == [64, 104]

    for head in range(3):
        mask = np.asarray(Image.open(folder / f"layer1-head{head}-mask.png"))
        expected = render.nearest(seen.mass_mask(0.5)[-1, head], *mask.shape)
        np.testing.assert_array_equal(mask, 255 * expected.astype(np.uint8))
        heat = np.asarray(Image.open(folder / f"layer1-head{head}-heat.png").convert("RGB"))
        exact = render.heat(seen.maps[-1, head], *heat.shape[:2], "magma").convert("RGB")
        np.testing.assert_array_equal(heat, np.asarray(exact))
        assert (folder / f"layer1-head{head}-overlay.jpg").stat().st_size > 0
    assert (folder / "layer1-mean-heat.png").exists()
    payload = LensPayload.from_bytes((folder / "lens.bin").read_bytes())
    assert payload.codes.shape == (1, 3, 8, 13)


def test_layers(model, photos, tmp_path):
    run(model, photos, tmp_path / "all", layer="all")
    folder = tmp_path / "all" / "images" / "dog" / "1.png"
    assert np.load(folder / "attention.npz")["maps"].shape[0] == 2
    assert (folder / "layer0-head0-heat.png").exists()
    run(model, photos, tmp_path / "first", layer="0")
    folder = tmp_path / "first" / "images" / "dog" / "1.png"
    assert np.load(folder / "attention.npz")["layers"].tolist() == [0]
    for layer, says in (("2", "layers 0 to 1"), ("best", "use last, all, or a number")):
        with pytest.raises(UserError, match=says):
            run(model, photos, tmp_path / "none", layer=layer)
    assert not (tmp_path / "none").exists()


def test_a_second_run_keeps_what_is_right(model, photos, tmp_path):
    out = tmp_path / "out"
    run(model, photos, out)
    kept = out / "images" / "cat" / "1.png" / "attention.npz"
    before = kept.stat().st_mtime_ns
    assert (run(model, photos, out).made, kept.stat().st_mtime_ns) == (0, before)

    save(photos / "dog" / "1.png", seed=9)  # another picture under the same name
    save(photos / "dog" / "2.png", seed=3)
    again = run(model, photos, out)
    assert (again.made, again.kept) == (2, 1)
    assert kept.stat().st_mtime_ns == before

    assert run(model, photos, out, keep=0.3).made == 3  # other settings
    (out / "images" / "cat" / "1.png" / "about.json").write_text("{")  # damaged
    assert run(model, photos, out, keep=0.3).made == 1


def test_another_model_makes_all_anew(model, make_model, photos, tmp_path):
    run(model, photos, tmp_path / "out")
    assert run(make_model(patch=16), photos, tmp_path / "out").made == 2


def test_bad_images_are_reported_and_do_not_stop_it(model, photos, tmp_path):
    (photos / "cat" / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out"
    result = run(model, photos, out)
    assert (result.made, result.bad) == (2, 1)
    assert "cat/empty.jpg" in result.sentence
    report = [json.loads(line) for line in (out / "bad-images.jsonl").read_text().splitlines()]
    assert [row["id"] for row in report] == ["cat/empty.jpg"] and report[0]["reason"]

    save(photos / "cat" / "empty.jpg")  # mended
    assert run(model, photos, out).bad == 0
    assert not (out / "bad-images.jsonl").exists()


def test_nothing_readable_is_a_sentence(model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image to look at.*a\.jpg"):
        run(model, tmp_path / "in", tmp_path / "out")


def test_one_image_and_a_taken_name(model, photos, tmp_path):
    assert run(model, photos / "cat" / "1.png", tmp_path / "one").made == 1
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        run(model, photos, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..", ".hidden"])
def test_no_id_leads_out_of_the_folder(name):
    folder = image_folder(Path("/out"), name)
    assert folder.parts[:3] == ("/", "out", "images") and ".." not in folder.parts


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"keep": 1.5}, "keep 1.5"), ({"opacity": -1}, "opacity -1"), ({"colormap": "jet"}, "jet")],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(UserError, match=says):
        Settings(**settings)
