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

from dino_core.errors import UserError, command
from dino_core.files import read_json
from dino_core.processes import this_process
from dino_core.runs import ALIVE, Run
from dino_core.training.launch import REQUEST, STARTING


@contextmanager
def told(run: Run) -> Iterator[None]:
    """Tell in the run's status that it starts and, if it never trains, why; `train` tells the rest.

    Says nothing while another process runs this run.
    """
    before = run.status()
    if before.get("state") not in ALIVE:
        run.write_status(STARTING, **{k: before[k] for k in ("step", "steps") if k in before})
    try:
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


@command
def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("give the run's folder, with a launch.json in it, and nothing else")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = Run(Path(sys.argv[1]))
    request = read_json(run.path / REQUEST)
    with told(run):
        from dino_core.data import open_source

        source = open_source(request["data"])  # before torch: it may have a word to say at once
        from dino_core.training.loop import train
        from dino_core.training.recipe import Recipe

        train(
            Recipe.from_json(request["recipe"]),
            source,
            run,
            resume=request["resume"],
            max_seconds=request["max_seconds"],
            tensorboard=request["tensorboard"],
            wandb=request["wandb"],
        )


if __name__ == "__main__":
    main()
