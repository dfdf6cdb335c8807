"""When to stop: Ctrl-C, SIGTERM, a file named `stop` in the run's folder, or time that is up."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dino_core import distributed
from dino_core.runs import INTERRUPTED, Run

SAME_MOMENT = 1.0  # seconds


@dataclass
class Stop:
    """Asked after every step; `reason` says who wanted it."""

    run: Run
    max_seconds: float | None = None
    """Wall time of this process, from the making of this object."""
    reason: str = ""
    started: float = field(default_factory=time.monotonic)
    asked: float = 0.0
    """When a signal came."""

    def wanted(self) -> bool:
        if self.reason:
            return True
        if self.max_seconds is not None and time.monotonic() - self.started >= self.max_seconds:
            self.reason = "its time is up"
        elif distributed.is_main() and self.run.stop_requested():
            self.reason = "it was asked to stop"
        return bool(self.reason)


@contextmanager
def stop_signals(stop: Stop) -> Iterator[None]:
    """Within: Ctrl-C or SIGTERM asks for a stop after this step; a second Ctrl-C ends it at once.

    Only a person presses twice: schedulers and torchrun send SIGTERM again and again, and what
    forwards a Ctrl-C sends it a second time within the same moment.
    """

    def ask(kind: int, _frame: object) -> None:
        if stop.reason:
            if kind == signal.SIGINT and time.monotonic() - stop.asked > SAME_MOMENT:
                raise KeyboardInterrupt
            return
        stop.reason, stop.asked = INTERRUPTED, time.monotonic()
        # Not print: the signal may have come in the middle of one.
        os.write(sys.stderr.fileno(), b"\nstopping after this step; the state is saved\n")

    try:
        previous = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller's signals are the caller's
        yield
        return
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
