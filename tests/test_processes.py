"""Knowing a process again, on systems that tell much and little."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dino_core import processes
from dino_core.processes import describe_process, is_alive, start_detached, this_process


@pytest.fixture(params=["proc", "ps", "nothing"])
def system(request, monkeypatch, tmp_path) -> str:
    """Linux; a system with `ps` alone, as macOS; one that tells nothing."""
    if request.param == "proc" and not processes.PROC.is_dir():
        pytest.skip("there is no /proc here")
    if request.param != "proc":
        monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    if request.param == "nothing":
        monkeypatch.setattr(processes, "_said_by", lambda *command: "")
    return request.param


def ended(child: subprocess.Popen[bytes]) -> None:
    """Let a child end, and nobody wait for it: a zombie."""
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_a_process_lives_until_it_has_ended(system):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    described = describe_process(child.pid)
    assert is_alive(described) and is_alive(this_process())
    ended(child)
    if system != "nothing":
        assert not is_alive(described), "a zombie is taken for alive"
    child.wait()
    assert not is_alive(described)


def test_a_pid_given_to_another_process_is_seen(system):
    if system == "nothing":
        pytest.skip("where the system tells no start time there is nothing to see")
    assert not is_alive(this_process() | {"started": 1})
    assert not is_alive(this_process() | {"boot": "another"})


@pytest.mark.parametrize("process", [{}, {"pid": None}, {"pid": 0}, {"pid": -1}, {"pid": 10**20}])
def test_what_names_no_process_is_not_alive(process):
    assert not is_alive(process)


def test_a_detached_process_has_its_own_session_and_an_empty_input(tmp_path):
    output = tmp_path / "output.txt"
    code = "import os, sys, dino_core; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read()))"
    for times in (1, 2):
        child = start_detached(["-c", code], output, cwd=tmp_path, append=True)
        while child.poll() is None:
            time.sleep(0.01)
        assert output.read_text() == "True ''\n" * times
    assert not is_alive(describe_process(child.pid))


def test_a_module_in_the_folder_does_not_get_in_the_way(tmp_path):
    Path(tmp_path, "json.py").write_text("print('not the library')")
    child = start_detached(["-c", "import json"], tmp_path / "output.txt", cwd=tmp_path)
    assert child.wait() == 0
    assert (tmp_path / "output.txt").read_text() == ""
