"""Answers to a page's questions: what is asked for is bounded, and what is told holds no path."""

import base64
import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dino_core.catalog import Question, Scene, Workbench, from_example, from_gallery
from dino_core.catalog.answers import clips, near
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.gallery import Gallery, build, build_patches
from dino_core.lenses import video
from dino_core.lenses.pca import PcaBasis
from dino_core.lenses.tokens import read_tokens
from dino_core.models import ModelInfo, create_backbone, load_model, save_weights

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3}
MODEL = "small.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a gallery of scenes, and a folder where uploads arrive."""
    folder = tmp_path_factory.mktemp("answers")
    info = ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=32, options=SMALL)
    save_weights(folder / MODEL, info, create_backbone(info).vit.state_dict())
    model = load_model(str(folder / MODEL), device="cpu")
    build(model, open_source("scenes:12"), folder / "galleries/few", workers=0, maps=())
    (folder / "uploads").mkdir()
    return folder


@pytest.fixture(scope="module")
def bench(root: Path) -> Workbench:
    bench = Workbench(root, model=str(root / MODEL), device="cpu", uploads=root / "uploads")
    bench.start()
    bench.wait()
    return bench


@pytest.fixture(scope="module")
def scene(bench: Workbench) -> Scene:
    key = bench.galleries()[0][0]
    return Scene(from_gallery(bench.gallery_at(key), key, 3), MODEL, key, 64)


def ask(bench: Workbench, scene: Scene, about: str, **details: Any) -> dict[str, Any]:
    return bench.ask(scene, about, Question(details))


# -- what can be asked --------------------------------------------------------------------------


def test_an_unknown_question_is_a_sentence(bench, scene):
    with pytest.raises(UserError, match="cannot be asked that"):
        ask(bench, scene, "__import__")


@pytest.mark.parametrize(
    ("about", "details"),
    [
        ("patch", {"row": 10**9, "column": 0}),
        ("patch", {"row": 0.5, "column": 0}),
        ("object", {"kind": "everything"}),
        ("object", {"kind": "head", "layer": 2, "head": 0, "keep": 0.5}),
        ("object", {"kind": "head", "layer": 0, "head": 0, "keep": 7}),
        ("colors", {"of": "kept", "basis": "not base64!"}),
        ("colors", {"of": "kept", "basis": base64.b64encode(b"PK\x03\x04 no zip").decode()}),
        ("colors", {"of": "everything"}),
        ("near", {"box": {"left": 0.5, "top": 0.5, "right": 0.5, "bottom": 0.6}}),
        ("near", {"column": "content_hash", "value": "x"}),
        ("export", {"query": "image=1"}),
        ("clip", {"files": [{"path": "/etc/passwd", "name": "passwd.mp4"}]}),
        ("clip", {"files": []}),
    ],
)
def test_what_cannot_be_answered_is_a_sentence_without_a_path(bench, scene, root, about, details):
    with pytest.raises(UserError) as error:
        ask(bench, scene, about, **details)
    text = str(error.value)
    assert text and "\n" not in text and str(root) not in text and "/etc/" not in text


# -- colors and objects -------------------------------------------------------------------------


def test_kept_colors_are_those_of_the_basis(bench, scene, root):
    own = ask(bench, scene, "colors", of="picture")
    model = load_model(str(root / MODEL), device="cpu")
    tokens = read_tokens(model, scene.picture.read(), size=64)
    basis = PcaBasis.from_bytes(base64.b64decode(own["basis"]), "own")
    assert basis.model_hash == model.hash and own["grid"] == list(tokens.grid)
    again = ask(bench, scene, "colors", of="kept", basis=own["basis"])
    assert again["rgb"] == own["rgb"]
    shared = ask(bench, scene, "colors", of="gallery")
    assert shared["rgb"] != own["rgb"] and "few" in shared["told"]


def test_an_object_comes_as_mask_polygons_and_cutout(bench, scene):
    answer = ask(bench, scene, "object", kind="head", layer=1, head=-1, keep=0.5, cutout=True)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    cutout = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["cutout"]))))
    image = scene.picture.read()
    assert cutout.shape == (*image.shape[:2], 4)
    np.testing.assert_array_equal(cutout[..., 3] > 0, mask > 0)
    np.testing.assert_array_equal(cutout[mask > 0][:, :3], image[mask > 0])
    sides = [
        ask(bench, scene, "object", kind="object", **{side: True}) for side in ("whole", "other")
    ]
    both = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"])))) for one in sides]
    assert ((both[0] > 0) ^ (both[1] > 0)).all(), "the two sides make the whole picture"


# -- neighbors ----------------------------------------------------------------------------------


def test_the_whole_picture_as_a_box_has_the_picture_itself_first(bench, scene):
    whole = {"left": 0, "top": 0, "right": 1, "bottom": 1}
    found = ask(bench, scene, "near", box=whole)["neighbors"]
    assert found[0]["row"] == 3 and found[0]["score"] == pytest.approx(1, abs=1e-4)
    assert all(one["row"] != 3 for one in ask(bench, scene, "near")["neighbors"])


def test_a_filter_leaves_what_it_names(bench, scene):
    labels = bench.gallery_at(scene.gallery).images["label"]
    columns = ask(bench, scene, "filters")["columns"]
    assert columns["label"] == sorted(set(labels))
    found = ask(bench, scene, "near", column="label", value=columns["label"][0])["neighbors"]
    wanted = set(np.flatnonzero(labels == columns["label"][0])) - {3}
    assert {one["row"] for one in found} == wanted


def test_a_patch_finds_itself_once_the_gallery_holds_patches(bench, scene, root):
    middle = {"x": 0.5, "y": 0.5}
    with pytest.raises(UserError, match="--patches"):
        ask(bench, scene, "near", patch=middle)
    gallery = Gallery.open(root / "galleries/few")
    build_patches(gallery, load_model(str(root / MODEL), device="cpu"), per_image=None, workers=0)
    assert all(hit["row"] != 3 for hit in ask(bench, scene, "near", patch=middle)["neighbors"])
    copy = replace(scene, picture=replace(scene.picture, gallery=None, row=None))
    hits = ask(bench, copy, "near", patch=middle)["neighbors"]
    assert hits[0]["row"] == 3 and hits[0]["score"] == pytest.approx(1, abs=0.01)
    left, top, right, bottom = hits[0]["patch"]
    assert left <= 0.5 <= right and top <= 0.5 <= bottom
    assert ask(bench, scene, "near", patch={"x": 0, "y": 1})["neighbors"], "also beside the crop"


# -- clips --------------------------------------------------------------------------------------

CLIP = {"every": 1, "frames": 8, "layer": -1, "smoothing": 0, "opacity": 0.5, "colormap": "inferno"}


@pytest.fixture
def files(root: Path) -> list[dict[str, str]]:
    """Four frames as a visitor's uploads."""
    found = []
    for at in range(4):
        path = root / "uploads" / f"frame{at}.png"
        Image.fromarray(open_source(f"scenes:{at}-{at + 1}").image(0)).resize((40, 32)).save(path)
        found.append({"path": str(path), "name": f"holiday {at}.png"})
    return found


def test_a_clip_leaves_nothing_behind(bench, scene, files, root):
    before = sorted(root.joinpath("uploads").iterdir())
    answer = ask(bench, scene, "clip", files=files, **CLIP)
    assert answer["kind"] in ("video/mp4", "image/webp") and answer["told"].startswith("4 frames")
    with pytest.raises(UserError) as error:
        ask(bench, scene, "clip", files=files[:1], **CLIP | {"layer": 99})
    assert str(root) not in str(error.value)
    assert sorted(root.joinpath("uploads").iterdir()) == before


def refused(bench: Workbench, scene: Scene, files: list[dict[str, str]], **details: Any) -> str:
    """The sentence that a clip is refused with; no path of ours is in it, and nothing stays."""
    before = sorted(bench.uploads.iterdir())
    with pytest.raises(UserError) as error:
        ask(bench, scene, "clip", files=files, **CLIP | details)
    text = str(error.value)
    assert str(bench.uploads) not in text and "dino-clip" not in text and "\n" not in text
    assert "\0" not in text and sorted(bench.uploads.iterdir()) == before
    return text


def test_a_damaged_frame_is_called_what_its_owner_calls_it(bench, scene, files):
    Path(files[2]["path"]).write_bytes(Path(files[2]["path"]).read_bytes()[:60])
    assert refused(bench, scene, files).startswith("holiday 2.png: ")
    Image.new("RGB", (8, 8)).save(files[2]["path"])
    assert "holiday 2.png is 8 x 8 px, the first is 40 x 32" in refused(bench, scene, files)
    Path(files[0]["path"]).write_bytes(b"none")
    files[0]["name"] = "one\0two\n.png"
    assert refused(bench, scene, files).startswith("onetwo.png: ")
    assert refused(bench, scene, files[:1]).startswith("onetwo.png: ")


@pytest.mark.parametrize("name", ["a.p\0ng", "\n", "", "a." + "x" * 4_000, "../../a.png", "a"])
def test_any_name_will_do(bench, scene, files, name):
    for few in (files[:1], files):
        few[0]["name"] = name
        answer = ask(bench, scene, "clip", files=few, **CLIP)
        assert answer["told"].startswith(f"{len(few)} frame")


def test_what_leaves_frames_out_is_told_without_a_path(bench, scene, files):
    note = ask(bench, scene, "clip", files=files, **CLIP | {"frames": 2})["note"]
    assert note.startswith("only the first 2 of 4 frames")


@pytest.mark.parametrize("ending", [".mp4", ".webp"])
def test_a_clip_that_cannot_be_written_is_told_without_a_path(
    bench, scene, files, monkeypatch, ending
):
    monkeypatch.setattr(clips, "_ending", lambda: ending)
    monkeypatch.setattr(video, "ENCODERS", ("none",))
    monkeypatch.setattr(video, "MAX_HELD", 3 * 40 * 32 * 4 - 1)
    monkeypatch.setattr(clips, "_side", lambda *asked: 640)
    text = refused(bench, scene, files)
    assert ("no encoder" if ending == ".mp4" else "attention.webp: 4 frames of 40 x 32") in text


def test_what_is_written_fits_into_an_animation_before_it_is_looked_at(
    bench, scene, files, monkeypatch
):
    """The frames are made smaller than 40 x 32 px where four of those would not fit."""
    monkeypatch.setattr(clips, "_ending", lambda: ".webp")
    monkeypatch.setattr(video, "MAX_HELD", 3 * 20 * 20 * 4)
    answer = ask(bench, scene, "clip", files=files, **CLIP | {"frames": 4})
    with Image.open(io.BytesIO(base64.b64decode(answer["clip"]))) as made:
        assert (made.size, made.n_frames) == ((20, 16), 4)


def test_the_most_that_can_be_asked_for_fits():
    for frames in range(1, clips.MOST_FRAMES + 1):
        side = clips._side(".webp", frames)
        assert frames * side * side * 3 <= video.MAX_HELD and 600 <= side <= clips.LONG_SIDE


def test_files_of_a_clip_take_no_second_place_on_the_disk(bench, scene, files, monkeypatch):
    kept = []
    take = clips._take

    def taking(upload: Path, ours: Path, name: str) -> None:
        take(upload, ours, name)
        kept.append((ours.samefile(upload), ours.read_bytes() == upload.read_bytes()))

    monkeypatch.setattr(clips, "_take", taking)
    ask(bench, scene, "clip", files=files, **CLIP)
    assert kept == [(True, True)] * 4

    def no_link(*paths: Path) -> None:
        raise OSError("another disk")

    kept.clear()
    monkeypatch.setattr(clips.os, "link", no_link)
    ask(bench, scene, "clip", files=files, **CLIP)
    assert kept == [(False, True)] * 4


def test_a_file_named_twice_and_too_many_bytes_are_refused(bench, scene, files, monkeypatch):
    again = Path(files[0]["path"])
    again = again.parent / ".." / again.parent.name / again.name  # the same by another spelling
    text = refused(bench, scene, [*files, {"path": str(again), "name": "again.png"}])
    assert text == "again.png: named twice; choose each picture once"
    size = sum(Path(file["path"]).stat().st_size for file in files)
    monkeypatch.setattr(clips, "MOST_BYTES", size)
    ask(bench, scene, "clip", files=files, **CLIP)
    monkeypatch.setattr(clips, "MOST_BYTES", size - 1)
    assert "MB in 4 files, the limit is 0 MB" in refused(bench, scene, files)


def test_a_clip_is_cancelled_in_line_and_while_it_is_looked_at(bench, scene, files):
    question = Question({"files": files, **CLIP})
    bench.cancel("early")
    with pytest.raises(UserError, match="cancelled"):
        bench.ask(scene, "clip", question, "early")
    assert bench.job("early") is None

    told: list[str] = []

    def run() -> None:
        try:
            bench.ask(scene, "clip", question, "late")
        except UserError as error:
            told.append(str(error))

    with bench.computing():  # as if another answer were being made
        thread = threading.Thread(target=run)
        thread.start()
        while bench.job("late") is None:
            pass
        bench.cancel("late")
    thread.join()
    assert told == ["cancelled; nothing was kept"]


def test_numbers_of_cancelled_questions_do_not_pile_up(bench):
    for number in range(1_000):
        bench.cancel(f"never asked {number}")
    assert len(bench._jobs) + len(bench._cancelled) <= 256


# -- pictures by name ---------------------------------------------------------------------------


def test_a_picture_is_found_by_its_content(bench, scene):
    sight = bench.look(scene.picture, MODEL, size=64)
    assert bench.find(sight.content).row == 3
    example = bench.look(from_example(bench.examples[0]), MODEL, size=64)
    assert bench.find(example.content).title == bench.examples[0].title
    with pytest.raises(UserError, match="add it"):
        bench.find("0" * 32)


@pytest.mark.parametrize(
    "values",
    [
        pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-01"]),
        np.array([0.1, 0.2, 0.1], np.float32),
        np.array([1, 2, 1]),
        ["a", None, "a b"],
        [True, False, True],
    ],
)
def test_every_value_that_is_offered_finds_its_images(values):
    images = pd.DataFrame({"taken": values, "id": list("abc")})
    offered = near.choices(images)["taken"]
    found = {text: near.matching(images, "taken", text) for text in offered}
    assert len(found) == 2 and all(rows.any() for rows in found.values())
    assert sum(rows.sum() for rows in found.values()) == images["taken"].notna().sum()


def test_columns_of_lists_and_of_many_values_are_not_offered():
    images = pd.DataFrame({"tags": [["a"], ["b"]] * 50, "note": [f"n{at}" for at in range(100)]})
    assert near.choices(images.assign(label=images["note"])) == {"label": sorted(images["note"])}
