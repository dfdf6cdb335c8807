"""The run folder on disk: newest whole checkpoint, metrics, status. Knows nothing of torch.

    runs/NAME/
        recipe.json       the resolved recipe, with versions and the compute thread count
        metrics.jsonl     one JSON object per logged step
        status.json       state, heartbeat, host, pid with process start time and boot id
        log.txt           what was said to the user
        warnings.jsonl    what looked wrong, with the remedy
        stop              a request to stop: whoever wants the run to end makes this file
        checkpoints/step-00001000/{student,teacher,optimizer}.safetensors, state.json

A checkpoint appears whole or not at all (written aside, flushed, renamed), so a folder whose name
fits and whose four files are there can be trusted.
"""

import json
import platform
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.errors import UserError
from dino_core.files import read_json, whole_file, write_json
from dino_core.processes import is_alive, this_process

CHECKPOINT_FILES = (
    "student.safetensors",
    "teacher.safetensors",
    "optimizer.safetensors",
    "state.json",
)
ORIGIN = ("data", "images", "ids", "versions")  # in recipe.json, but no settings
INTERRUPTED = "it was interrupted"  # the reason of a run that Ctrl-C or SIGTERM stopped
ALIVE = ("starting", "running")
SILENCE = 600.0  # seconds without a heartbeat after which a run on another machine counts as dead
_TELLING = threading.Lock()  # so that a heartbeat never puts back what was said before
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run: the number of optimizer steps done, and its folder."""

    step: int
    path: Path

    def missing(self) -> list[str]:
        """The files that ought to be there and are not."""
        return [name for name in CHECKPOINT_FILES if not (self.path / name).is_file()]


class Run:
    """A training run on disk, readable while it is being written by another process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether a run was started here (its recipe is written before its first step)."""
        return (self.path / "recipe.json").is_file()

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, as written at the start."""
        return read_json(self.path / "recipe.json")

    def settings(self) -> dict[str, Any]:
        """The fields of that recipe, without what else was written down beside them."""
        return {name: value for name, value in self.recipe().items() if name not in ORIGIN}

    def channels(self) -> int | None:
        """Of the images that it was started on; None before it was."""
        return self.recipe().get("backbone", {}).get("channels", 3) if self.exists() else None

    # -- checkpoints ------------------------------------------------------------------------

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Checkpoint]:
        """All whole checkpoints, oldest first."""
        return [found for found in self._found() if not found.missing()]

    def incomplete(self) -> list[Checkpoint]:
        """Checkpoints that lack a file: nothing of ours leaves these, but a copy may."""
        return [found for found in self._found() if found.missing()]

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint at `step`, or the newest. Raises `UserError` when there is none."""
        whole = self.checkpoints()
        if step is None:
            if not whole:
                raise UserError(f"{self.path}: no checkpoint yet; train first, or wait for one")
            return whole[-1]
        for found in whole:
            if found.step == step:
                return found
        steps = ", ".join(str(found.step) for found in whole) or "none"
        raise UserError(f"{self.path}: no whole checkpoint at step {step} (there are: {steps})")

    def _found(self) -> list[Checkpoint]:
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            return []
        named = ((_CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.iterdir())
        found = [Checkpoint(int(match[1]), path) for match, path in named if match]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    # -- metrics ----------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged step; a line that is cut short (being written now) is left out."""
        return list(_json_lines(self.path / "metrics.jsonl"))

    def history(self) -> list[str]:
        """One line for each quality check, e.g. `step 300: k-NN 31.2 %, RankMe 20.1`."""
        lines = []
        for row in self.metrics():
            if "rankme" in row:
                knn = f"k-NN {row['knn']:.1f} %, " if "knn" in row else ""
                lines.append(f"step {row['steps_done']}: {knn}RankMe {row['rankme']:.1f}")
        return lines

    def append_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to `metrics.jsonl`, one JSON object a line."""
        _append(self.path / "metrics.jsonl", "".join(map(_line, rows)))

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged at or after `step`, so a resumed run does not tell it twice."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            kept = [row for row in self.metrics() if row.get("step", 0) < step]
            with whole_file(path) as aside:
                aside.write_text("".join(map(_line, kept)), encoding="utf-8")

    def warn(self, step: int, sentence: str) -> None:
        """Add a warning to `warnings.jsonl`; a run that was killed and says it again adds none."""
        path, line = self.path / "warnings.jsonl", _line({"step": step, "warning": sentence})
        if not path.is_file() or line not in path.read_text(encoding="utf-8"):
            _append(path, line)

    def warnings(self) -> list[dict[str, Any]]:
        """What looked wrong so far: `step` and `warning`, a sentence, each."""
        return list(_json_lines(self.path / "warnings.jsonl"))

    def log(self, line: str) -> None:
        """Add a dated line to `log.txt`."""
        _append(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    # -- status -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The last status written, `{}` before the first; `state` is corrected for a dead process.

        `state` is one of `starting`, `running`, `finished`, `stopped`, `failed`, `dead` (its
        process is gone without a word: killed, or the machine was restarted). The process of a run
        on another machine cannot be looked at from here: its heartbeat is.
        """
        path = self.path / "status.json"
        if not path.is_file():
            return {}
        status: dict[str, Any] = read_json(path)
        if status.get("state") in ALIVE and not _shows_life(status):
            status["state"] = "dead"
        return status

    def write_status(self, state: str, **more: Any) -> None:
        """Say what this process is doing, with a heartbeat (seconds since the epoch)."""
        value = {"state": state, "heartbeat": time.time(), "process": this_process()}
        with _TELLING:
            write_json(self.path / "status.json", value | {"host": platform.node()} | more)

    def beat(self) -> None:
        """Renew the heartbeat of what this very process said, if by that it is still at work."""
        path = self.path / "status.json"
        with _TELLING:
            said = read_json(path) if path.is_file() else {}
            if said.get("state") in ALIVE and said.get("process") == this_process():
                write_json(path, said | {"heartbeat": time.time()})

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()


def list_runs(root: Path) -> list[Run]:
    """The runs under `root/runs`, by name."""
    folder = root / "runs"
    if not folder.is_dir():
        return []
    return [run for run in map(Run, sorted(folder.iterdir())) if run.exists()]


def _shows_life(status: dict[str, Any]) -> bool:
    here = platform.node()
    if status.get("host", here) != here:
        return time.time() - float(status.get("heartbeat", 0)) < SILENCE
    return is_alive(status.get("process", {}))


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
