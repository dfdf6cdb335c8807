"""Start servers as child processes, wait until they answer, and end every one of them.

`Launcher(folder)` is for servers that are up together or not at all (`scripts/demo.py`). The folder
holds what it knows: `state.json` (its own id, the children by id and start time, their addresses)
and one `NAME.log` for each child. A lock on `state.json`, which ends with the process that holds
it, lets one launcher run per folder; what a killed one left running is ended by the next.
"""

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from dino_core.errors import UserError
from dino_core.processes import describe_process, is_alive

GRACE = 5.0  # seconds between asking a child to end and making it
POLL = 0.1  # seconds between two looks


@dataclass(frozen=True)
class Server:
    """A server to start: a name for people and for its log, its command, where it will answer."""

    name: str
    command: tuple[str, ...]
    address: str


class AlreadyRunning(Exception):
    """Another process holds the folder; `addresses` is where its servers are, by name."""

    def __init__(self, pid: int | None, addresses: dict[str, str]) -> None:
        super().__init__(f"already running as process {pid}")
        self.pid = pid
        self.addresses = addresses


class Launcher:
    """A context that owns `folder` and the children started in it; leaving it ends them.

    Entering raises `AlreadyRunning` while another process is inside with the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[Server, subprocess.Popen[bytes]] = {}
        self._state: IO[str] | None = None

    def __enter__(self) -> "Launcher":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._state = open(self.folder / "state.json", "a+", encoding="utf-8")
        left = _parsed(self._state)
        try:
            fcntl.flock(self._state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._state.close()
            raise AlreadyRunning(left.get("pid"), left.get("addresses", {})) from None
        for orphan in left.get("children", []):
            if "started" in orphan and is_alive(orphan):  # a bare pid may be another's by now
                _end_group(orphan["pid"], signal.SIGKILL)
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._state is not None
        with _undisturbed():
            self.stop()
            self._state.truncate(0)
            self._state.close()  # and with it the lock

    def start(self, server: Server) -> None:
        """Start a server in a process group of its own, its output in `NAME.log`."""
        with open(self._log(server), "wb") as log:
            self._children[server] = subprocess.Popen(
                server.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches us alone, and we end them in order
            )
        self._write()

    def wait_until_answering(
        self, seconds: float, answered: Callable[[Server], None] | None = None
    ) -> None:
        """Return when every server answers HTTP; `answered` is called once for each.

        Raises `UserError` when one ends, or does not answer within `seconds`.
        """
        waiting = list(self._children)
        deadline = time.monotonic() + seconds
        while waiting:
            self._check_alive()
            for server in [server for server in waiting if answers(server.address)]:
                waiting.remove(server)
                if answered is not None:
                    answered(server)
            if waiting and time.monotonic() > deadline:
                names = " and ".join(server.name for server in waiting)
                raise UserError(
                    f"{names}: no answer within {seconds:.0f} s; see {self._log(waiting[0])}"
                )
            time.sleep(POLL)

    def watch(self) -> None:
        """Wait for ever; raises `UserError` when a server ends by itself."""
        while True:
            self._check_alive()
            time.sleep(POLL)

    def stop(self) -> None:
        """End every child and what it started: ask, wait `GRACE` seconds, then make them."""
        for child in self._children.values():
            _end_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            _end_group(child.pid, signal.SIGKILL)  # the rest of its group, or a child that stays
            child.wait()
        self._children.clear()

    def _check_alive(self) -> None:
        for server, child in self._children.items():
            status = child.poll()
            if status is not None:
                last = _last_line(self._log(server))
                raise UserError(
                    f"{server.name}: ended by itself with status {status}"
                    f"{f' ({last})' if last else ''}; see {self._log(server)}"
                )

    def _log(self, server: Server) -> Path:
        return self.folder / f"{server.name}.log"

    def _write(self) -> None:
        assert self._state is not None
        value = {
            "pid": os.getpid(),
            "children": [describe_process(child.pid) for child in self._children.values()],
            "addresses": {server.name: server.address for server in self._children},
        }
        # In place, not renamed: the lock belongs to this very file.
        self._state.truncate(0)
        self._state.write(json.dumps(value, indent=2) + "\n")
        self._state.flush()


def answers(address: str, seconds: float = 2.0) -> bool:
    """Whether an HTTP server answers a GET at `address` at all, whatever its status code."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(address, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def ending_interrupts() -> Iterator[None]:
    """Within it, being told to end (SIGTERM, a closed terminal) is taken like Ctrl-C.

    So `finally` and `with` clean up. What is ignored (by `nohup`) stays ignored. For the main
    thread, where Python handles signals.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    with _handling(dict.fromkeys(heeded, interrupt)):
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within it, further requests to end are ignored: a second Ctrl-C leaves no child behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handling(dict.fromkeys(numbers, signal.SIG_IGN)):
        yield


@contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # when all of it has ended
        os.killpg(group, number)


def _parsed(state: IO[str]) -> dict[str, Any]:
    """What the state file says; `{}` for an empty one or one that is being written."""
    state.seek(0)
    try:
        return dict(json.loads(state.read()))
    except ValueError:
        return {}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
