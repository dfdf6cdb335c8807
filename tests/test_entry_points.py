"""Every program starts, from `/`, without the package being installed."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dino_core.errors import INTERRUPTED
from dino_core.launcher import Launcher, Server, answers
from dino_core.serving import choose_port

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))

HELP_BOUND = 300.0  # seconds; a guard: importing torch, timm and the rest takes ten, cold
ANSWER_BOUND = 50.0  # seconds; ten times the mark for a page

# -S skips the .pth files by which an editable install puts this repository on the path, so that a
# script finds `dino_core` only by its own doing; PYTHONPATH gives it back the other packages.
PYTHON = (sys.executable, "-S")


def bare_environment() -> dict[str, str]:
    packages = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(packages)}


@pytest.fixture(scope="module")
def helps():
    """`--help` of every script, all started at once: most of their time is waiting for imports."""
    running = {
        name: subprocess.Popen(
            [*PYTHON, str(ROOT / "scripts" / name), "--help"],
            cwd="/",
            env=bare_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in SCRIPTS
    }
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_explains_itself_from_anywhere(helps, name):
    out, err = helps[name].communicate(timeout=HELP_BOUND)
    assert helps[name].returncode == 0, err
    assert "usage:" in out
    assert f"scripts/{name}" in out, "the help shows a command to run"


HEAVY = (
    *("attend.py", "embed.py", "evaluate.py", "export.py"),
    *("preview.py", "train.py", "view.py"),
)
ENDLESS = "import time\nprint('loading', flush=True)\nwhile True: time.sleep(0.01)\n"


@pytest.mark.parametrize("name", HEAVY)
def test_ctrl_c_while_torch_is_loading_ends_quietly(name, tmp_path):
    """A torch that never ends loading stands in for the seconds that the real one takes."""
    (tmp_path / "torch.py").write_text(ENDLESS)
    environment = bare_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    process = subprocess.Popen(
        [*PYTHON, str(ROOT / "scripts" / name), "--help"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in its background would have them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=ANSWER_BOUND)
    assert (process.returncode, err) == (INTERRUPTED, "")


def test_without_the_script_s_own_doing_the_package_is_not_found():
    """What the other tests here rest on; a plain (not editable) install would make them idle."""
    code = "import importlib.util; print(importlib.util.find_spec('dino_core'))"
    found = subprocess.run(
        [*PYTHON, "-c", code], cwd="/", env=bare_environment(), capture_output=True, text=True
    )
    if "site-packages" in found.stdout:
        pytest.skip("the package is installed for good here, not as an editable one")
    assert found.stdout.strip() == "None"


APPS = {
    "lens": ("{root}/apps/lens.py", "--port", "{port}", "--root", "{work}"),
    "explorer": (
        *("-m", "streamlit", "run", "{root}/apps/explorer.py", "--server.port", "{port}"),
        *("--", "--root", "{work}"),
    ),
}


@pytest.mark.parametrize("name", APPS)
def test_an_app_answers_from_anywhere(name, tmp_path, monkeypatch):
    for variable, value in bare_environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir("/")
    port = choose_port(18000).number
    words = [word.format(root=ROOT, port=port, work=tmp_path) for word in APPS[name]]
    server = Server(name, (*PYTHON, *words), f"http://127.0.0.1:{port}/")
    with Launcher(tmp_path / "launcher") as launcher:
        launcher.start(server)
        launcher.wait_until_answering(ANSWER_BOUND)
        assert answers(server.address)
    assert not answers(server.address)
