"""Runs from anywhere: started as processes of their own, then watched, stopped and taken up again.

    run = start(recipe, "photos/", "runs/mine")
    for news in follow(run):
        print(*news.lines, sep="\\n")
    stop(run)
    resume(run)

A run survives whoever started it: a page, a terminal, a notebook. All that is known about it lies
in its folder, so any process may watch or stop it. Besides what training writes there are

    launch.json    what was asked for: recipe, data, the folder that relative names count from
    output.txt     what the process said, tracebacks among it

Needs no torch: listing, following and stopping answer at once.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_core.errors import UserError
from dino_core.files import held, read_json, write_json
from dino_core.processes import is_alive, start_detached
from dino_core.runs import ALIVE, Run, list_runs

if TYPE_CHECKING:
    from dino_core.training.recipe import Recipe

__all__ = [
    "News",
    "Overview",
    "Tail",
    "begun_runs",
    "follow",
    "list_runs",
    "overview",
    "resume",
    "start",
    "stop",
]

REQUEST = "launch.json"
OUTPUT = "output.txt"
LOCK = ".launch.lock"
STARTING = "starting"

PATIENCE = 120.0  # seconds to wait for a run's first word; loading torch takes 5 to 30
BETWEEN_LOOKS = 0.05  # seconds


def start(
    recipe: "Recipe | str",
    data: str,
    out: str | Path,
    *,
    root: str | Path = ".",
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    processes: int = 1,
    max_seconds: float | None = None,
    tensorboard: bool = False,
    wandb: str | None = None,
    patience: float = PATIENCE,
) -> Run:
    """Train in a process of its own, as `dino_core.training.train` would with these arguments.

    A recipe may be a name, `auto` among them: the run then plans its length by `max_seconds`.
    `changes` are settings that take the place of the recipe's, by path (see `settings.changed`).
    Relative spellings of `data`, `out` and the recipe's `init` count from `root`. `processes` of
    this machine train together, one a GPU. Returns once the run trains or has ended well, or after
    `patience` seconds while it is still starting. Raises `UserError` with the run's own sentence
    when it cannot begin, and when a run is there already (with `resume` only when it is running),
    or the folder holds something else.
    """
    run = Run(Path(root, out))
    if run.exists() and not resume:
        _refuse_running(run)
        raise UserError(f"{run.path}: a run is already there; resume it, or name another folder")
    request: dict[str, Any] = {"recipe": recipe if isinstance(recipe, str) else recipe.to_json()}
    request |= {"changes": dict(changes or {})}
    request |= {"data": os.fspath(data), "resume": resume, "processes": processes}
    request |= {"max_seconds": max_seconds, "tensorboard": tensorboard, "wandb": wandb}
    return _launch(run, request, Path(root), patience)


def resume(
    run: Run,
    *,
    root: str | Path = ".",
    max_seconds: float | None = None,
    patience: float = PATIENCE,
) -> Run:
    """Take a run up again in a process of its own, under its own recipe and on its own data.

    `root` is where relative names count from, for a run that was not begun by `start`. Raises
    `UserError` for a run that is running, finished, or not there, and when it cannot go on.
    """
    _refuse_running(run)
    if run.status().get("state") == "finished":
        raise UserError(
            f"{run.path}: is finished; to train on, start a new run with --init {run.path}"
        )
    asked = read_json(run.path / REQUEST) if (run.path / REQUEST).is_file() else {}
    if run.exists():
        recipe, data = run.settings(), run.recipe().get("data", asked.get("data"))
    elif asked:
        recipe, data = asked["recipe"], asked["data"]
    else:
        raise UserError(f"{run.path}: no run is there; name one, e.g. runs/mine")
    known = asked.get("root")
    request = {"tensorboard": False, "wandb": None, "processes": 1} | asked
    request |= {"recipe": recipe, "data": data, "resume": True, "max_seconds": max_seconds}
    if run.exists():
        request["changes"] = {}  # its own recipe has them
    return _launch(run, request, Path(known if known and Path(known).is_dir() else root), patience)


def stop(run: Run, *, wait: float = 0.0) -> bool:
    """Ask a run to stop after its current step, saved; False when it is not running.

    Returns at once, or when the run has ended, `wait` seconds later at most: `run.status()` tells.
    """
    status = run.status()
    if status.get("state") not in ALIVE:
        return False
    (run.path / "stop").touch()
    if status["state"] == STARTING and is_alive(status["process"]):
        # There is nothing to save yet; and the file above is for runs that have begun.
        with contextlib.suppress(ProcessLookupError):
            os.kill(status["process"]["pid"], signal.SIGTERM)
    limit = time.monotonic() + wait
    while time.monotonic() < limit and run.status()["state"] in ALIVE:
        time.sleep(BETWEEN_LOOKS)
    return True


@dataclass(frozen=True)
class News:
    """What has happened in a run since the last look."""

    status: dict[str, Any]
    """As `Run.status()`."""
    lines: list[str]
    """New lines of the log."""
    metrics: list[dict[str, Any]]
    """New rows of `metrics.jsonl`; their steps never go back, also where the run did."""


def follow(run: Run, *, every: float = 0.5) -> Iterator[News]:
    """What a run has told so far, then whatever it tells, until it runs no more.

    Looks `every` that many seconds; the last news has the status that the run ended with. A run
    that is not running has one news: all of its past.
    """
    log, metrics = Tail(run.path / "log.txt"), Tail(run.path / "metrics.jsonl")
    told: dict[str, Any] = {}
    last_step, ended = -1, False
    while True:
        status = run.status()  # before the files, so that a run's last words are not missed
        lines = log.read()
        rows = list(rows_of(metrics.read()))
        if metrics.replaced:  # cut back: its steps are told when they are news
            rows = [row for row in rows if row.get("step", 0) > last_step]
        last_step = max([last_step, *(row.get("step", 0) for row in rows)])
        if lines or rows or status != told:
            yield News(status, lines, rows)
        over = status.get("state") not in ALIVE
        if over and (ended or not is_alive(status.get("process", {}))):
            return
        told, ended = status, over  # a process that still lives may have a last word
        time.sleep(every)


@dataclass(frozen=True)
class Overview:
    """A run in one line of a table."""

    name: str
    state: str
    """As in `Run.status()`; `` for a run that never told any."""
    step: int
    steps: int
    loss: float | None
    knn: float | None
    """Newest k-NN accuracy in percent, where there are labels."""
    rankme: float | None
    """Newest effective rank of the features, with labels or without."""
    seconds_left: float | None
    """At the speed of the last step told; None for a run that is not running."""
    silence: float
    """Seconds since the last heartbeat."""
    reason: str
    """Why it stopped or failed."""


def begun_runs(root: Path) -> list[Run]:
    """The runs under `root/runs`, by name, also those that are starting or never came to train."""
    folder = root / "runs"
    found = map(Run, sorted(folder.iterdir())) if folder.is_dir() else ()
    return [run for run in found if run.exists() or (run.path / REQUEST).is_file()]


def overview(run: Run) -> Overview:
    """How a run stands, from its status and the end of its metrics."""
    status = run.status()
    newest: dict[str, Any] = {}
    for row in rows_of(last_lines(run.path / "metrics.jsonl")):
        newest |= {name: value for name, value in row.items() if value is not None}
    step, steps = status.get("step", 0), status.get("steps", 0)
    speed, left = newest.get("images_per_second"), None
    if status.get("state") == "running" and speed:
        left = (steps - step) * run.recipe()["batch_size"] / speed
    return Overview(
        name=run.name,
        state=status.get("state", ""),
        step=step,
        steps=steps,
        loss=newest.get("loss"),
        knn=newest.get("knn"),
        rankme=newest.get("rankme"),
        seconds_left=left,
        silence=time.time() - status.get("heartbeat", time.time()),
        reason=status.get("reason", ""),
    )


# -- starting ---------------------------------------------------------------------------------


def _launch(run: Run, request: dict[str, Any], root: Path, patience: float) -> Run:
    _refuse_foreign(run)
    busy = f"{run.path}: is being started by another process; wait for it, then follow it"
    with held(run.path / LOCK, busy):
        _refuse_running(run)
        request["root"] = str(root.resolve())
        write_json(run.path / REQUEST, request)
        output = run.path / OUTPUT
        said_before = output.stat().st_size if output.exists() else 0
        path = str(_spelled(run.path.resolve(), root.resolve()))
        arguments = ["-m", "dino_core.training", path]
        if request["processes"] > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone"]
            arguments = [*torchrun, f"--nproc-per-node={request['processes']}", *arguments]
        began = time.time()
        child = start_detached(arguments, output, cwd=root, append=True)
        _wait_for_first_word(run, child, began, patience)
        if child.poll() is not None:
            _raise_failure(run, child, began, said_before)
    return run


def _wait_for_first_word(
    run: Run, child: subprocess.Popen[bytes], began: float, patience: float
) -> None:
    """Return once the child trains or has ended, or when patience is at an end."""
    limit = time.monotonic() + patience
    while child.poll() is None and time.monotonic() < limit:
        if _status_since(run, began).get("state") in ("running", "finished", "stopped"):
            return
        time.sleep(BETWEEN_LOOKS)


def _raise_failure(
    run: Run, child: subprocess.Popen[bytes], began: float, said_before: int
) -> None:
    """Raise the sentence of a child that has ended badly."""
    status = _status_since(run, began)
    if status.get("state") in ("finished", "stopped"):
        return
    output = run.path / OUTPUT
    said = output.read_bytes()[said_before:].decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        raise UserError(errors[-1])
    reason = status.get("reason") or f"it ended with exit status {child.returncode}"
    raise UserError(f"{run.path}: could not start: {reason}; what it said is in {output}")


def _status_since(run: Run, began: float) -> dict[str, Any]:
    """The status, `{}` where it was written before this launch."""
    status = run.status()
    return status if status.get("heartbeat", 0.0) >= began else {}


def _refuse_running(run: Run) -> None:
    status = run.status()
    if status.get("state") in ALIVE:
        who = f"process {status['process'].get('pid')} on {status.get('host', 'this machine')}"
        raise UserError(f"{run.path}: is {status['state']} already ({who}); follow it, or stop it")


def _refuse_foreign(run: Run) -> None:
    """Never mix a run into a folder of something else."""
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"{run.path}: is a file; a run is a folder, choose another name for it")
    there = {path.name for path in run.path.iterdir()} if run.path.is_dir() else set()
    ours = {REQUEST, OUTPUT, LOCK, "log.txt", "status.json", "recipe.json", ".training.lock"}
    if there and not there & ours:
        raise UserError(
            f"{run.path}: is a folder with other files in it; choose another for the run"
        )


def _spelled(path: Path, root: Path) -> Path:
    """A path as a user in `root` would write it: short in what the run says."""
    return path.relative_to(root) if path.is_relative_to(root) else path


# -- reading what grows -------------------------------------------------------------------------


class Tail:
    """The lines of a file that is being written, as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file, self.offset = 0, 0
        self.replaced = False
        """Whether the last `read` found another file of the name, and told all of it."""

    def read(self) -> list[str]:
        """Whole lines since the last call; a file that was replaced is told from its start."""
        try:
            with open(self.path, "rb") as opened:
                number = os.fstat(opened.fileno()).st_ino
                self.replaced = self.file not in (0, number)
                if self.replaced:
                    self.offset = 0
                self.file = number
                opened.seek(self.offset)
                told = opened.read()
        except FileNotFoundError:
            return []
        whole = told[: told.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.decode(errors="replace").splitlines()


def last_lines(path: Path, size: int = 65_536) -> list[str]:
    """The whole lines within the last `size` bytes of a file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def rows_of(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # cut short
            continue
        if isinstance(row, dict):
            yield row
