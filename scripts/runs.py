"""See how training runs stand, watch one, stop it, take it up again.

    python scripts/runs.py list
    python scripts/runs.py follow mine
    python scripts/runs.py stop mine
    python scripts/runs.py resume mine

Ctrl-C ends the watching, never the run. A stopped run has saved what it was about to lose; a run
that is taken up again goes on in the background, under its own recipe.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.errors import UserError, command
from dino_core.runs import ALIVE, Run
from dino_core.training import launch
from dino_core.training.durations import spoken

Name = Annotated[str, tyro.conf.Positional]
SILENT = 120.0  # seconds without a heartbeat that are worth a word

app = tyro.extras.SubcommandApp()


def named(name: str, root: Path) -> Run:
    """The run called `name`, or at the path `name`. Raises `UserError` when there is none."""
    for path in (root / "runs" / name, root / name, Path(name)):
        run = Run(path)
        if run.exists() or run.status():
            return run
    there = ", ".join(run.name for run in launch.list_runs(root)) or "none"
    raise UserError(f"{name}: no such run under {root / 'runs'} (there are: {there})")


@app.command(name="list")
def list_all(root: Path = Path(".")) -> None:
    """One line for each run: state, steps, loss, k-NN or RankMe, what is left.

    Args:
        root: The folder that `runs/` is in.
    """
    rows = [line(launch.overview(run)) for run in launch.list_runs(root)]
    if not rows:
        print(f"{root / 'runs'}: no runs yet; scripts/train.py makes one")
        return
    rows.insert(0, ("run", "state", "step", "loss", "quality", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


@app.command
def follow(name: Name, root: Path = Path(".")) -> None:
    """Print what a run says, from its beginning to its end.

    Args:
        name: A run of the list, or its folder.
        root: The folder that `runs/` is in.
    """
    state = ""
    for news in launch.follow(named(name, root)):
        for said in news.lines:
            print(said)
        state = news.status.get("state", "")
    if state == "dead":
        print("its process is gone without a word; `resume` goes on at the last checkpoint")


@app.command
def stop(name: Name, wait: float = 60.0, root: Path = Path(".")) -> None:
    """End a run after its current step, saved.

    Args:
        name: A run of the list, or its folder.
        wait: Seconds to wait for its end.
        root: The folder that `runs/` is in.
    """
    run = named(name, root)
    if not launch.stop(run, wait=wait):
        print(f"{run.path}: is not running ({described(run.status())})")
    elif run.status().get("state") in ALIVE:
        print(f"{run.path}: was asked to stop, and is still at it after {wait:.0f} s")
    else:
        print(f"{run.path}: {described(run.status())}")


@app.command
def resume(name: Name, root: Path = Path(".")) -> None:
    """Take a run up again where it stopped, in the background.

    Args:
        name: A run of the list, or its folder.
        root: The folder that `runs/` is in, and that the names of its data count from.
    """
    run = launch.resume(named(name, root), root=root)
    print(f"{run.path}: {described(run.status())}; `follow` shows what it says")


def described(status: dict[str, Any]) -> str:
    """A status in a few words."""
    if not status:
        return "never started"
    reason = f": {status['reason']}" if status.get("reason") else ""
    step, steps = status.get("step", 0), status.get("steps", "?")
    return f"{status['state']} at step {step} of {steps}{reason}"


def line(run: launch.Overview) -> tuple[str, ...]:
    """A run as cells of the table."""
    note = run.reason
    if run.seconds_left is not None:
        note = f"{spoken(run.seconds_left)} left"
    if run.state in ALIVE and run.silence > SILENT:
        note = f"no sign of life for {spoken(run.silence)}"
    return (
        run.name,
        run.state or "never started",
        f"{run.step}/{run.steps}" if run.steps else "-",
        "-" if run.loss is None else f"{run.loss:.3f}",
        quality(run),
        note,
    )


def quality(run: launch.Overview) -> str:
    """k-NN where there are labels, the effective rank where there are none."""
    if run.knn is not None:
        return f"k-NN {run.knn:.1f} %"
    return "-" if run.rankme is None else f"RankMe {run.rankme:.1f}"


@command
def main() -> None:
    app.cli(description=__doc__)


if __name__ == "__main__":
    main()
