"""Servers as child processes: started, waited for, watched, ended; one set per folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dino_core.errors import UserError
from dino_core.launcher import AlreadyRunning, Launcher, Server, answers, ending_interrupts
from dino_core.processes import describe_process, is_alive

LONG = 60.0  # seconds; a guard against waiting for ever, not a mark

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def web_server(tmp_path: Path, name: str = "web") -> Server:
    port = free_port()
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
    return Server(name, (*command, "--directory", str(tmp_path)), f"http://127.0.0.1:{port}")


def program(code: str, name: str = "program") -> Server:
    return Server(name, (sys.executable, "-c", code), f"http://127.0.0.1:{free_port()}")


def ended(process: dict) -> bool:
    """Whether a process is gone, or about to be, within a generous bound."""
    deadline = time.monotonic() + LONG
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(process)


def only_child(launcher: Launcher) -> dict:
    (child,) = launcher._children.values()
    return describe_process(child.pid)


def test_a_server_answers_inside_and_is_gone_outside(tmp_path):
    server = web_server(tmp_path)
    answered = []
    with Launcher(tmp_path / "demo") as launcher:
        launcher.start(server)
        launcher.wait_until_answering(LONG, answered.append)
        assert answers(server.address)
        child = only_child(launcher)
    assert answered == [server]
    assert not is_alive(child)
    assert not answers(server.address)


def test_what_answers_with_an_error_status_answers(tmp_path):
    server = web_server(tmp_path)
    with Launcher(tmp_path / "demo") as launcher:
        launcher.start(server)
        launcher.wait_until_answering(LONG)
        assert answers(server.address + "/no/such/page")


def test_a_server_that_ends_by_itself_is_named_with_its_last_words(tmp_path):
    server = program("print('cannot bind the port'); raise SystemExit(7)", "lens")
    with Launcher(tmp_path) as launcher:
        launcher.start(server)
        with pytest.raises(UserError, match=r"^lens: .*status 7 \(cannot bind the port\)"):
            launcher.wait_until_answering(LONG)


def test_a_server_that_ends_later_is_noticed(tmp_path):
    with Launcher(tmp_path) as launcher:
        launcher.start(program("raise SystemExit(0)", "map"))
        with pytest.raises(UserError, match=r"^map: ended by itself with status 0; see"):
            launcher.watch()


def test_a_server_that_never_answers_is_named(tmp_path):
    with Launcher(tmp_path) as launcher:
        launcher.start(program("import time; time.sleep(600)", "silent"))
        with pytest.raises(UserError, match=r"^silent: no answer within 0 s"):
            launcher.wait_until_answering(0.2)


def test_a_stubborn_server_and_what_it_started_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("dino_core.launcher.GRACE", 0.3)
    told = tmp_path / "grandchild"
    code = (
        "import subprocess, sys, pathlib;"
        f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]);"
        f"pathlib.Path({str(told)!r}).write_text(str(child.pid));" + STUBBORN
    )
    with Launcher(tmp_path / "demo") as launcher:
        launcher.start(program(code))
        deadline = time.monotonic() + LONG
        while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        family = [only_child(launcher), describe_process(int(told.read_text()))]
        assert all(map(is_alive, family))
    assert all(map(ended, family))


def test_a_second_launcher_learns_the_addresses_of_the_first(tmp_path):
    server = web_server(tmp_path)
    with Launcher(tmp_path / "demo") as launcher:
        launcher.start(server)
        with pytest.raises(AlreadyRunning) as second, Launcher(tmp_path / "demo"):
            pass
        assert second.value.pid == os.getpid()
        assert second.value.addresses == {"web": server.address}
    with Launcher(tmp_path / "demo"):  # free again
        pass


def test_what_a_killed_launcher_left_running_is_ended_by_the_next(tmp_path):
    code = f"""
import os, signal, sys
from pathlib import Path
from dino_core.launcher import Launcher, Server
with Launcher(Path({str(tmp_path)!r})) as launcher:
    launcher.start(Server("left", (sys.executable, "-c", {STUBBORN!r}), "http://127.0.0.1:9"))
    print(*[child.pid for child in launcher._children.values()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[1]
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    orphan = describe_process(int(killed.stdout))
    assert is_alive(orphan)
    with Launcher(tmp_path):
        pass
    # It is reparented when its parent dies; until the reaper comes it may stay a zombie.
    state = Path(f"/proc/{orphan['pid']}/stat")
    deadline = time.monotonic() + LONG
    while is_alive(orphan) and "Z" not in state.read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_unreadable_state_file_is_no_obstacle(tmp_path):
    (tmp_path / "state.json").write_text('{"children": [')
    with Launcher(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_taken_like_ctrl_c(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ending_interrupts():
        os.kill(os.getpid(), number)
        time.sleep(LONG)
    assert signal.getsignal(number) == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
