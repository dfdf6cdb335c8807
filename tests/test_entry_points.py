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


# Runs each script with --help in a process of its own, forked from one that has imported the
# packages that take seconds, but none of ours: a start of Python but for that.
EVERY_HELP = """
import os, runpy, sys, traceback
import timm, torch, tyro
folder, *scripts = sys.argv[1:]
for script in scripts:
    place = os.path.join(folder, os.path.basename(script))
    child = os.fork()
    if child == 0:
        for number, ending in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(place + ending, os.O_WRONLY | os.O_CREAT), number)
        sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # taking torch down in order would take longer than all the rest
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(place + ".code", "w") as file:
        file.write(str(code))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """A folder with what each script printed, NAME.out and NAME.err, and its status, NAME.code."""
    folder = tmp_path_factory.mktemp("helps")
    words = [folder, *(ROOT / "scripts" / name for name in SCRIPTS)]
    subprocess.run(
        [*PYTHON, "-c", EVERY_HELP, *words],
        cwd="/",
        env=bare_environment(),
        stdin=subprocess.DEVNULL,
        timeout=HELP_BOUND,
        check=True,
    )
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_explains_itself_from_anywhere(helps, name):
    assert (helps / f"{name}.code").read_text() == "0", (helps / f"{name}.err").read_text()
    out = (helps / f"{name}.out").read_text()
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
