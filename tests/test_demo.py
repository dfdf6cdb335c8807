"""The demo from its first start to Ctrl-C: gallery, both apps, a busy port, a second start."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.launcher import answers
from dino_core.models import ModelInfo, create_backbone, save_weights
from scripts import demo as demo_script

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "scripts" / "demo.py"
LONG = 300.0  # seconds; a guard against waiting for ever, not a mark


@pytest.fixture(autouse=True)
def heeded_ctrl_c():
    """Children heed Ctrl-C even where pytest was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def photos(tmp_path):
    """A folder of eight images: too few for UMAP, whose compilation takes a minute."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes = open_source("scenes:8")
    for i in range(len(scenes)):
        Image.fromarray(scenes.image(i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def weights(tmp_path):
    """A small untrained model as a file."""
    info = ModelInfo("vit_tiny_patch16_224", patch_size=8, image_size=32, options={"depth": 2})
    path = tmp_path / "small.safetensors"
    save_weights(path, info, create_backbone(info).vit.state_dict())
    return path


class Demo:
    """One start of the demo; everything it says is kept."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / f"demo-{time.monotonic_ns()}.log"
        command = [sys.executable, str(DEMO), "--root", str(folder), "--no-open", *arguments]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        return self.log.read_text()

    def says(self, sentence: str) -> str:
        """All it has said, once `sentence` is among it."""
        deadline = time.monotonic() + LONG
        while sentence not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        return self.said()

    def addresses(self) -> list[str]:
        return re.findall(r"http://\S+", self.said())


def test_a_first_start_a_second_one_and_the_end(tmp_path, photos, weights):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        arguments = ("--model", str(weights), "--data", str(photos), "--lens-port", str(port))
        first = Demo(tmp_path, *arguments, "--explorer-port", str(port + 20))
        try:
            said = first.says("Ctrl-C stops both")
            assert f"lens: port {port} is in use; using" in said
            assert "a map of 8 images" in said
            assert len(first.addresses()) == 2
            assert all(map(answers, first.addresses()))

            second = Demo(tmp_path, *arguments)
            assert second.process.wait(LONG) == 0
            assert f"running already, as process {first.process.pid}" in second.said()
            assert second.addresses() == first.addresses()

            first.process.send_signal(signal.SIGINT)
            assert first.process.wait(LONG) == 0
            assert "Stopped." in first.said()
            assert not any(map(answers, first.addresses()))
        finally:
            first.process.kill()


@pytest.mark.soak
def test_an_interrupted_start_ends_quietly_and_keeps_what_is_done(tmp_path, weights):
    arguments = ("--model", str(weights), "--data", "scenes:400")
    first = Demo(tmp_path, *arguments)
    first.says("Computing features")
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(LONG) == 0
    assert "Stopped. The same command goes on" in first.said()
    assert "Traceback" not in first.said()
    (gallery,) = (tmp_path / "galleries").iterdir()
    assert gallery.name == f"scenes-400-small-{gallery.name[-6:]}"
    assert (gallery / "building.json").is_file()
    assert os.listdir(tmp_path / ".dino-demo") == ["state.json"]


def test_data_that_is_not_there_is_a_sentence(tmp_path):
    demo = Demo(tmp_path, "--data", "no/such/folder")
    assert demo.process.wait(LONG) == 2
    assert "error: no/such/folder: no such file or folder" in demo.said()
    assert "Traceback" not in demo.said()


def test_a_model_that_is_not_there_is_a_sentence(tmp_path, monkeypatch, capsys):
    """In this process, which has loaded torch already."""
    words = [str(DEMO), "--root", str(tmp_path), "--no-open", "--model", "runs/none"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        demo_script.main()
    assert end.value.code == 2
    assert "error: runs/none: " in capsys.readouterr().err
