"""A view is drawn again by a script: the same bytes as from Python, or a sentence."""

import dataclasses
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.catalog.finding import file_hash
from dino_core.data import decode_image, open_source
from dino_core.errors import WRONG
from dino_core.gallery import build
from dino_core.models import ModelInfo, create_backbone, load_model, save_weights
from dino_core.views import PICTURE, View, exported, render

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "view.py"
INFO = ModelInfo(
    *("vit_tiny_patch16_224", 8, 32), options={"depth": 1, "embed_dim": 24, "num_heads": 2}
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos, a gallery of them, and the model that made it."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "photos").mkdir()
    for name, seed in (("a.png", 0), ("b.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name)
    save_weights(folder / "small.safetensors", INFO, create_backbone(INFO).vit.state_dict())
    model = load_model("small.safetensors", device="cpu", root=folder)
    photos = open_source(str(folder / "photos"))
    build(model, photos, folder / "galleries" / "few", workers=0, maps=())
    return folder


@pytest.fixture
def view(root: Path) -> View:
    content = file_hash(root / "photos" / "a.png")
    return View(content, "small.safetensors", head=1, size=16, keep=0.5, mode="spotlight")


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("view_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["view_script"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def replay(main, root, tmp_path, monkeypatch, capsys):
    """`replay(view, *words)`: the script's exit status and all it said."""

    def run(view: View | Path, *words: str) -> tuple[int, str]:
        file = view if isinstance(view, Path) else tmp_path / "look.json"
        if isinstance(view, View):
            file.write_text(view.to_json())
        fixed = ["--device", "cpu", "--root", str(root)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["view.py", str(file), *fixed, *words])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return run


def test_it_draws_what_python_draws(view, root, tmp_path, replay):
    status, said = replay(view, "--out", "again.png")
    assert (status, said) == (0, "a.png, seen by small.safetensors: again.png\n")
    model = load_model("small.safetensors", device="cpu", root=root)
    expected = render(view, decode_image(root / "photos" / "a.png"), model)
    with Image.open(tmp_path / "again.png") as drawn:
        assert drawn.tobytes() == expected.tobytes()


def test_a_picture_is_drawn_again_from_itself_bit_for_bit(view, root, tmp_path, replay):
    model = load_model("small.safetensors", device="cpu", root=root)
    first = exported(view, decode_image(root / "photos" / "a.png"), model)[PICTURE]
    (tmp_path / "mine.png").write_bytes(first)
    assert replay(tmp_path / "mine.png")[0] == 0
    assert (tmp_path / "view.png").read_bytes() == first


def test_an_export_is_written_whole(view, tmp_path, replay):
    assert replay(view, "--out", "look")[0] == 0
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == [
        *("attention.npz", "view.json", "view.png")
    ]
    about = json.loads((tmp_path / "look" / "view.json").read_text())
    assert View.from_json(json.dumps(about["view"])) == view
    assert replay(view, "--out", "look.zip")[0] == 0
    assert (tmp_path / "look.zip").read_bytes().startswith(b"PK")


def test_a_copy_elsewhere_can_be_named_and_another_image_is_refused(view, root, tmp_path, replay):
    shutil.copy(root / "photos" / "a.png", tmp_path / "copy.png")
    shutil.copy(root / "photos" / "b.png", tmp_path / "other.png")
    assert replay(view, "--image", "copy.png")[0] == 0
    code, said = replay(view, "--image", "other.png")
    other = file_hash(tmp_path / "other.png")
    assert code == WRONG and "Traceback" not in said
    assert f"({other[:8]})" in said and f"({view.image[:8]})" in said


def test_what_cannot_be_found_is_asked_for(view, replay):
    code, said = replay(dataclasses.replace(view, image="f" * 32))
    assert code == WRONG
    assert "(ffffffff) is neither in the galleries" in said and "--image" in said


def test_other_weights_and_no_view_are_sentences(view, tmp_path, replay):
    code, said = replay(dataclasses.replace(view, model_hash="0" * 64))
    assert code == WRONG and "has other weights" in said
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG")
    (tmp_path / "plain.png").write_bytes(plain.getvalue())
    code, said = replay(tmp_path / "plain.png")
    assert code == WRONG and "plain.png: this picture holds no view" in said
