"""scripts/evaluate.py: every protocol from the command line, on images that draw themselves."""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.data import open_source
from dino_core.models import ModelInfo, create_backbone, save_weights

TINY = ModelInfo(
    architecture="vit_tiny_patch16_224",
    patch_size=8,
    image_size=32,
    options={"depth": 2, "embed_dim": 24, "num_heads": 2},
)
SCENES = "scenes:24"
COMMON = {"model", "json", "random_init", "features", "batch_size", "workers", "device"}


@pytest.fixture(scope="module")
def script(repository: Path) -> Any:
    path = repository / "scripts" / "evaluate.py"
    specification = importlib.util.spec_from_file_location("evaluate_script", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["evaluate_script"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_weights(path, TINY, create_backbone(TINY).vit.state_dict())
    return path


@pytest.fixture
def run(script: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs it with these words; returns what it saved."""

    def run(protocol: str, *words: Any) -> Any:
        saved = tmp_path / f"{protocol}.json"
        line = ["evaluate.py", protocol, "--model", weights, "--json", saved, *words]
        line += ["--features", tmp_path / "features", "--workers", 0]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        script.main()
        return json.loads(saved.read_text(encoding="utf-8"))

    return run


def written(folder: Path, count: int) -> Path:
    """Generated scenes as files."""
    folder.mkdir(parents=True)
    source = open_source(f"scenes:{count}")
    for i in range(count):
        Image.fromarray(source.image(i)).resize((96, 64)).save(folder / f"{i:05d}.jpg")
    return folder


def computed(features: Path) -> dict[Path, Any]:
    """What lies in a folder of passes: arrays by when they were written, figures by their lines."""
    found = {path: path.stat().st_mtime_ns for path in features.rglob("*.npy")}
    return found | {path: path.read_text().split() for path in features.rglob("items-*.jsonl")}


def davis(root: Path) -> Path:
    """Two videos of a bright square that moves."""
    for name in ("one", "two"):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for frame in range(4):
            image = np.full((64, 96, 3), 40, np.uint8)
            image[20:44, 10 + 6 * frame : 34 + 6 * frame] = 220
            mask = np.where(image[..., 0] == 220, 255, 0).astype(np.uint8)
            Image.fromarray(image).save(root / f"JPEGImages/480p/{name}/{frame:05d}.jpg")
            Image.fromarray(mask).save(root / f"Annotations/480p/{name}/{frame:05d}.png")
    return root


def oxford(root: Path) -> Path:
    """Eight images, two of them asked about."""
    written(root, 8)
    truth = {
        "imlist": [f"{i:05d}" for i in range(2, 8)],
        "qimlist": ["00000", "00001"],
        "gnd": [
            {"bbx": [4, 4, 80, 60], "easy": [0, 1], "hard": [2], "junk": [5]},
            {"bbx": [0, 0, 96, 64], "easy": [3], "hard": [], "junk": []},
        ],
    }
    (root / "gnd_small.json").write_text(json.dumps(truth))
    return root


def copydays(root: Path) -> Path:
    """Six images and a piece of each."""
    originals = written(root / "originals", 6)
    (root / "copies").mkdir()
    for path in originals.iterdir():
        Image.open(path).crop((0, 0, 70, 50)).save(root / "copies" / f"{path.stem}-crop.jpg")
    return root


@pytest.mark.parametrize(
    ("protocol", "words", "figures"),
    [
        ("knn", ["--train", SCENES, "--test", "scenes:100-112"], ["top1", "top5"]),
        ("linear", ["--train", SCENES, "--test", "scenes:100-112", "--epochs", 3], ["top1"]),
        ("low-shot", ["--train", SCENES, "--test", "scenes:100-112", "--repeats", 2], []),
        ("attentive", ["--train", SCENES, "--test", "scenes:100-112", "--epochs", 2], ["top1"]),
        ("attention", ["--data", SCENES, "--size", 64], ["jaccard"]),
        ("objects", ["--data", SCENES, "--size", 64], ["jaccard", "corloc"]),
        ("saliency", ["--data", SCENES, "--size", 64], ["max_f", "iou", "accuracy"]),
        ("video", ["--data", davis, "--size", 64], ["j_mean", "f_mean", "jf_mean"]),
        ("retrieval", ["--data", oxford, "--size", 96], ["map_medium", "mp1_medium"]),
        ("copies", ["--data", copydays, "--size", 64], ["map", "top1"]),
        ("measures", ["--data", SCENES, "--corruptions", "contrast"], ["rankme", "uniformity"]),
    ],
)
def test_a_protocol_runs_saves_and_goes_on(
    run: Any, tmp_path: Path, capsys: Any, protocol: str, words: Any, figures: list[str]
) -> None:
    words = [word(tmp_path / "data") if callable(word) else word for word in words]
    saved = run(protocol, *words)
    table = capsys.readouterr().out
    assert saved["protocol"] == protocol and "untrained" in table
    assert saved["model_hash"] != saved["random_init"]["model_hash"]
    for name in figures:
        assert np.isfinite(saved[name]) and np.isfinite(saved["random_init"][name])
    before = computed(tmp_path / "features")
    assert before and run(protocol, *words) == saved
    assert computed(tmp_path / "features") == before, "nothing is computed twice"


def test_ctrl_c_says_what_is_kept(
    run: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script.knn, "evaluate", stopped)
    with pytest.raises(SystemExit) as end:
        run("knn", "--train", SCENES, "--test", "scenes:100-112")
    kept = f"what was computed is kept in {tmp_path / 'features'}; the same command goes on"
    assert end.value.code == 130 and kept in capsys.readouterr().err


def test_figures_are_saved_before_they_are_told(
    run: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was to read the table may have gone."""

    def unread(result: Any) -> str:
        raise BrokenPipeError

    monkeypatch.setattr(script.attention.AttentionResult, "table", unread)
    with pytest.raises(BrokenPipeError):
        run("attention", "--data", "scenes:2", "--size", 64, "--no-random-init")
    assert "jaccard" in json.loads((tmp_path / "attention.json").read_text(encoding="utf-8"))


def test_a_report_of_what_was_saved(run: Any, script: Any, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run("knn", "--train", SCENES, "--test", "scenes:100-112")
    run("attention", "--data", SCENES, "--size", 64)
    files = [str(tmp_path / f"{protocol}.json") for protocol in ("knn", "attention")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "report", *files, "--out", "page.html"])
    monkeypatch.chdir(tmp_path)
    script.main()
    told, page = capsys.readouterr().out, (tmp_path / "page.html").read_text(encoding="utf-8")
    assert told.rstrip().endswith("page.html") and "top-1" in told.lower()
    assert "data:image/jpeg;base64," in page and 'src="http' not in page


@pytest.mark.soak
@pytest.mark.parametrize("kept", [True, False])
def test_two_processes_find_what_one_finds(
    run: Any, repository: Path, weights: Path, tmp_path: Path, kept: bool
) -> None:
    """Features of each image, figures of each, and a head that each process trains."""
    sources = ["--train", SCENES, "--test", "scenes:100-112"]
    for protocol, words in (
        ("knn", [*sources, "--pixels"]),
        ("attention", ["--data", SCENES, "--size", "64"]),
        ("linear", [*sources, "--as-published", "--epochs", "2"]),
    ):
        alone, saved = run(protocol, *words), tmp_path / f"{protocol}-two.json"
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        line += [str(repository / "scripts" / "evaluate.py"), protocol, *words]
        line += ["--model", str(weights), "--json", str(saved), "--workers", "0"]
        line += ["--features", str(tmp_path / "shared") if kept else "None"]
        temporary = tmp_path / "temporary"
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("untrained") == 1, "the first process alone speaks"
        assert json.loads(saved.read_text(encoding="utf-8")) == alone
        assert not list(temporary.glob("dino-pass-*"))


def test_a_saved_linear_layer_is_judged_without_training_images(run: Any, tmp_path: Path) -> None:
    layer, test = tmp_path / "layer.safetensors", ["--test", "scenes:100-124"]
    trained = run("linear", "--train", SCENES, *test, "--epochs", 3, "--save", layer)
    given = run("linear", *test, "--weights", layer)
    assert (given["top1"], given["top5"]) == (trained["top1"], trained["top5"])
    assert given["weights"] == str(layer) and given["random_init"] is None


def test_training_needs_training_images(run: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        run("linear", "--test", SCENES)
    assert ended.value.code == 2 and "train: name images to learn from" in capsys.readouterr().err


def test_every_setting_of_a_protocol_is_a_flag_of_the_same_default(script: Any) -> None:
    modules = {"measures": script.unlabeled}
    for name, kind in script.PROTOCOLS.items():
        module = modules.get(name) or getattr(script, name.replace("-", "_"))
        settings = dict(inspect.signature(module.evaluate).parameters)
        for ours in ("model", "source", "passing", "seed", "originals", "copies"):
            settings.pop(ours, None)  # `data` holds the last two
        flags = {one.name: one.default for one in fields(kind)}
        assert flags.keys() >= settings.keys(), f"{name}: {settings.keys() - flags.keys()}"
        assert flags.keys() <= settings.keys() | COMMON | {"data"}, "a flag that sets nothing"
        for setting, parameter in settings.items():
            if parameter.default is not inspect.Parameter.empty:
                assert flags[setting] == parameter.default, f"{name} --{setting}"


def test_flags_of_all_protocols_have_the_defaults_of_passes(script: Any) -> None:
    for name in ("batch_size", "workers"):
        assert getattr(script.Common, name) == getattr(script.Passing, name)
