"""Processes that outlive the one that started them: starting one, and knowing it again.

A pid alone says little: it is given to another process after the first one's end. With the time at
which its process started, and the id of the machine's boot, it names one process forever.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dino_core

PROC = Path("/proc")
ENDED = frozenset("ZXx")  # of a process that has ended and that nobody has waited for yet


def start_detached(
    arguments: Sequence[str], output: Path, *, cwd: str | Path = ".", append: bool = False
) -> subprocess.Popen[bytes]:
    """Start `python ARGUMENTS` so that it survives this process, its terminal and its page.

    It has a session of its own, no input, and this package importable in any folder `cwd`; what it
    says goes to the file `output`. Modules that lie about in `cwd` do not get in its way.
    """
    with open(output, "ab" if append else "wb") as file:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=_importable(os.environ) | {"PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Whoever has started a process must wait for it, or it stays in the process table as a zombie.
    threading.Thread(target=child.wait, daemon=True).start()
    return child


def this_process() -> dict[str, Any]:
    """What tells this process from a later one that was given the same pid."""
    return describe_process(os.getpid())


def is_alive(process: dict[str, Any]) -> bool:
    """Whether the very process that `describe_process` described still runs on this machine.

    One that has ended and waits to be waited for (a zombie) does not run.
    """
    pid = process.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    state, started = _look_up(pid)
    return state not in ENDED and _describe(pid, started) == process


def describe_process(pid: int) -> dict[str, Any]:
    """pid, start time and boot id; the last two only where the system tells them."""
    return _describe(pid, _look_up(pid)[1])


def _describe(pid: int, started: int | str | None) -> dict[str, Any]:
    if started is None:
        return {"pid": pid}
    boot = _boot_id()
    return {"pid": pid, "started": started} | ({"boot": boot} if boot else {})


def _look_up(pid: int) -> tuple[str, int | str | None]:
    """State letter and start time: clock ticks since boot on Linux, else a date; "" and None if
    the system does not tell."""
    if not PROC.is_dir():
        return _ask_ps(pid)
    try:
        # Field 3 of stat is the state, field 22 the start time; the name in field 2 may hold
        # spaces and brackets.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", None


def _ask_ps(pid: int) -> tuple[str, str | None]:
    """The same where there is no /proc (macOS)."""
    told = _said_by("ps", "-o", "state=", "-o", "lstart=", "-p", str(pid))
    state, _, started = told.partition(" ")
    return state[:1], " ".join(started.split()) or None


def _boot_id() -> str:
    if PROC.is_dir():
        try:
            return (PROC / "sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
    return _said_by("sysctl", "-n", "kern.bootsessionuuid")


def _said_by(*command: str) -> str:
    """What a command of the system prints, nothing where there is no such command."""
    environment = dict(os.environ) | {"LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _importable(environment: "os._Environ[str]") -> dict[str, str]:
    """The environment, with this package importable from any working directory."""
    home = str(Path(dino_core.__file__).parents[1])
    paths = [home, environment.get("PYTHONPATH", "")]
    return dict(environment) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
