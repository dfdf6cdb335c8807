"""The process of a run that `dino_core.training.launch` starts.

    python -m dino_core.training runs/mine

It does what `launch.json` in the run's folder asks for, and says from its first moment to its last
in `status.json` how it stands. On a terminal `scripts/train.py` is the one with the progress bar.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_core import distributed
from dino_core.errors import UserError, command
from dino_core.files import read_json
from dino_core.processes import this_process
from dino_core.runs import ALIVE, Run
from dino_core.training.heartbeat import beating
from dino_core.training.launch import REQUEST, STARTING

if TYPE_CHECKING:
    from dino_core.data import Source
    from dino_core.training.recipe import Recipe


@contextmanager
def told(run: Run) -> Iterator[None]:
    """Tell in the run's status that it starts and, if it never trains, why; `train` tells the rest.

    Says nothing while another process runs this run.
    """
    if not distributed.is_main():
        yield
        return
    before = run.status()
    try:
        if before.get("state") not in ALIVE:
            run.write_status(STARTING, **{k: before[k] for k in ("step", "steps") if k in before})
        with beating(run):
            yield
    except BaseException as error:
        now = run.status()
        if now.get("state") == STARTING and now.get("process") == this_process():
            state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            known = isinstance(error, UserError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            reason = "it was asked to stop" if state == "stopped" else reason
            progress = {k: now[k] for k in ("step", "steps") if k in now}
            run.write_status(state, reason=reason, **progress)
        raise


def recipe_for(run: Run, source: "Source", request: dict[str, Any]) -> "Recipe":
    """The recipe that was asked for; a name is planned, unless the run has its own already."""
    from dino_core.training.recipe import Recipe
    from dino_core.training.settings import changed

    asked, changes = request["recipe"], request.get("changes", {})
    if not isinstance(asked, str):
        return changed(Recipe.from_json(asked), changes)
    if run.exists():
        return Recipe.from_json(run.settings())
    from dino_core.training.plan import planned

    def tell(sentence: str) -> None:
        if distributed.is_main():
            print(sentence, file=sys.stderr, flush=True)
            run.log(sentence)

    return planned(
        asked,
        source,
        flags=lambda recipe: changed(recipe, changes),
        max_seconds=request["max_seconds"],
        tell=tell,
    )


def channels_of(run: Run, request: dict[str, Any]) -> int:
    """Of the images: as the run was started with, else as the recipe that was asked for has."""
    asked = request["recipe"]
    backbone = asked.get("backbone", {}) if isinstance(asked, dict) else {}
    wanted = request.get("changes", {}).get("backbone.channels", backbone.get("channels", 3))
    return run.channels() or int(wanted)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Imports that a SIGTERM waits for: raised amid one of them it is swallowed, or breaks it."""
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise KeyboardInterrupt


@command
def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("give the run's folder, with a launch.json in it, and nothing else")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = Run(Path(sys.argv[1]))
    request = read_json(run.path / REQUEST)
    if distributed.is_main():
        (run.path / "stop").unlink(missing_ok=True)  # of an earlier start
    with told(run):
        with undisturbed():
            from dino_core.data import open_source

        # Before torch: the data may have a word to say at once.
        source = open_source(request["data"], channels=channels_of(run, request))
        with undisturbed():
            from dino_core.training.loop import train

        recipe = recipe_for(run, source, request)
        if distributed.is_main() and run.stop_requested():
            raise KeyboardInterrupt  # the signal was lost: some imports catch whatever is raised
        train(
            recipe,
            source,
            run,
            resume=request["resume"],
            max_seconds=request["max_seconds"],
            tensorboard=request["tensorboard"],
            wandb=request["wandb"],
        )


if __name__ == "__main__":
    main()
