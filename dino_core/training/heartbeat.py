"""A sign of life in `status.json` while a run is too busy to give one: a check, a save, planning.

A run on another machine is known by its heartbeat alone, so a silence must mean that its process
is gone. The thread here touches that one field, draws no random numbers, and ends with its block.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dino_core import distributed
from dino_core.errors import UserError
from dino_core.runs import Run

EVERY = 30.0  # seconds: a twentieth of the silence after which a run counts as dead


@contextmanager
def beating(run: Run, every: float = EVERY) -> Iterator[None]:
    """Within: what this process last said in the status of `run` stays fresh, while it is alive.

    Of several processes that train together only the first beats.
    """
    if not distributed.is_main():
        yield
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every):
            with suppress(UserError):  # a disk that is full: the run itself will say so
                run.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
