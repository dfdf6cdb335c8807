"""Building a gallery in a process of its own, and what is known about it from outside.

A build survives the page that started it: it runs in its own session, and all that is known about
it lies in the gallery's `status.json`. Knows nothing of torch.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dino_core.errors import UserError
from dino_core.files import held, remove_leftovers, write_json
from dino_core.gallery.manifest import BUILDING, MANIFEST, STATUS, UPDATE, require_there
from dino_core.gallery.progress import Progress
from dino_core.processes import is_alive, start_detached, this_process

LOG = "build.log"
LOCK = ".building.lock"
BESIDE = {"user", "thumbs", "clusters", "heads", "comparisons"}  # folders that no build makes
SECONDS_BETWEEN_WRITES = 0.5


def start_build(
    model: str,
    data: str,
    out: str | Path,
    *,
    root: str | Path = ".",
    redo: bool = False,
    update: bool = False,
    patches: int | None = None,
) -> int:
    """Build a gallery of `data` with `model` in a detached process; returns its process id.

    A gallery of these is brought up to date where their images changed (see `updating.update`);
    `update` does so where `data` is spelled otherwise than before, too. `patches`: how many of each
    image to hold as well. Relative model and data spellings are resolved from `root`. What the
    process says goes to `build.log` in the folder; `build_status(out)` tells how it stands. Raises
    `UserError` when a build is running there already, or the folder holds something else.
    """
    arguments = ["--model", model, "--data", data]
    arguments += ["--redo"] if redo else []
    arguments += ["--update"] if update else []
    arguments += [] if patches is None else ["--patches", str(patches)]
    return _start(Path(root, out).resolve(), arguments, root)


def start_map(
    path: str | Path,
    n_neighbors: int,
    min_dist: float,
    *,
    root: str | Path = ".",
    redo: bool = False,
) -> int:
    """Draw a map of the gallery in `path` in a detached process; returns its process id.

    `redo` draws one that is there anew, without images placed on it. Otherwise as `start_build`.
    """
    require_there(Path(root, path))
    arguments = ["--n-neighbors", str(n_neighbors), "--min-dist", str(min_dist)]
    return _start(Path(root, path).resolve(), arguments + (["--redo"] if redo else []), root)


def _start(out: Path, arguments: list[str], root: str | Path) -> int:
    """Run `python -m dino_core.gallery` on `out`; returns once it has said its first word."""
    _refuse_foreign(out)
    status = build_status(out)
    if status["state"] == "running":
        raise UserError(f"{out}: is being built already (process {status['process'].get('pid')})")
    with contextlib.suppress(FileNotFoundError):
        (out / STATUS).unlink()
    out.mkdir(parents=True, exist_ok=True)
    words = ["-m", "dino_core.gallery", "--out", str(out), *arguments]
    process = start_detached(words, out / LOG, cwd=root)
    _wait_for_first_word(out, process)
    return process.pid


def stop_build(path: str | Path) -> bool:
    """Ask the build in `path` to stop; what is done so far is kept. False when none is running."""
    status = build_status(Path(path))
    if status["state"] != "running":
        return False
    if status["process"]["pid"] == os.getpid():  # never the server that happens to draw a map
        return False
    os.kill(status["process"]["pid"], signal.SIGTERM)
    return True


def build_status(path: str | Path) -> dict[str, Any]:
    """How the build in `path` stands: `state`, `message` (a sentence), `done`, `total`, `process`,
    and `asked`, the `model` and `data` that it was started for.

    `state` is `none` (never begun), `running`, `done`, `stopped`, `failed`, or `dead`: its process
    is gone without a word (killed, or the machine was restarted). Stopped, failed and dead builds
    go on where they were when they are started again.
    """
    path = Path(path)
    nothing = {"message": "", "done": 0, "total": 0, "process": {}, "asked": {}}
    status: dict[str, Any] = {"state": "none"} | nothing
    with contextlib.suppress(OSError, ValueError, TypeError):  # being replaced, or not there yet
        there = dict(json.loads((path / STATUS).read_text(encoding="utf-8")))
        if all(isinstance(there.get(name, value), type(value)) for name, value in status.items()):
            status |= there
    if status["state"] == "running" and not is_alive(status["process"]):
        whole = (path / MANIFEST).is_file() and not (path / UPDATE).is_dir()
        status["state"] = "done" if whole else "dead"
        status["message"] = "" if whole else "The build was killed; start it again to finish it."
    return status


@contextlib.contextmanager
def reported(
    path: Path, progress: Progress | None, asked: dict[str, str] | None = None
) -> Iterator[Progress]:
    """Run a build's body, with its state kept in `status.json`; yields the progress to call.

    `asked`: the `model` and `data` it is started for, so that whoever finds it can start it again.

    Only one process builds in a folder at a time: a second raises `UserError` at once, as does a
    folder that holds something else.
    """
    _refuse_foreign(path)
    path.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: is being built by another process; wait for it, or stop it"
    with held(path / LOCK, busy):
        remove_leftovers(path)
        reporter = _Reporter(path, progress, asked or {})
        reporter.write("running", "Starting.")
        try:
            yield reporter
        except KeyboardInterrupt:
            reporter.write("stopped", "Stopped; start it again to finish it.")
            raise
        except UserError as error:
            reporter.write("failed", str(error))
            raise
        except BaseException as error:
            reporter.write("failed", f"{type(error).__name__}: {error}")
            raise
        reporter.write("done", "Done.")


class _Reporter:
    """A progress callback that also keeps `status.json`, at most twice a second."""

    def __init__(self, path: Path, progress: Progress | None, asked: dict[str, str]) -> None:
        self.path, self.progress, self.asked = path, progress, asked
        self.done = self.total = 0
        self.message = ""
        self.written = 0.0

    def __call__(self, done: int, total: int, message: str) -> None:
        news = message != self.message or done == total
        self.done, self.total, self.message = done, total, message
        if news or time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self.write("running", message)
        if self.progress is not None:
            self.progress(done, total, message)

    def write(self, state: str, message: str) -> None:
        self.written = time.monotonic()
        value = {"state": state, "message": message, "done": self.done, "total": self.total}
        value |= {"time": time.time(), "process": this_process(), "asked": self.asked}
        with contextlib.suppress(UserError):  # a full disk is reported by what needs the space
            write_json(self.path / STATUS, value)


def _refuse_foreign(out: Path) -> None:
    """Never mix a gallery into a folder of something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; a gallery is a folder, choose another name for it")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and not there & {MANIFEST, BUILDING, STATUS, LOCK, LOG, *BESIDE}:
        raise UserError(
            f"{out}: is a folder with other files in it; choose another for the gallery"
        )


def _wait_for_first_word(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once the child has written its own status, or has ended."""
    while not (out / STATUS).exists() and process.poll() is None:
        time.sleep(0.01)
