"""How a long step says how far it is: a callback, and bars for a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, message)`; a new message begins a new step."""

LEAST, MOST = 5.0, 30.0  # seconds between two lines of a step where no one watches
SHARE = 10  # of a step: a tenth more is worth a line


def silent(done: int, total: int, message: str) -> None:
    """A progress callback for where nobody listens."""


@contextmanager
def bars() -> Iterator[Progress]:
    """A progress callback that draws one bar a step on stderr, or writes lines into a log."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    bar: tqdm | None = None
    step, before = "", 0

    def progress(done: int, total: int, message: str) -> None:
        nonlocal bar, step, before
        if bar is None or step != message:
            if bar is not None:
                bar.close()
            # `initial` keeps what an earlier start had done out of the speed.
            bar = tqdm(total=total, initial=done, desc=message, dynamic_ncols=True)
            step, before = message, done
        bar.update(done - before)
        before = done

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


class _Lines:
    """A line as a step begins, few while it goes on, and one as it ends.

    In between one says each tenth, if that took 5 seconds or more, and none is silent for longer
    than 30 seconds while anything happens.
    """

    def __init__(self) -> None:
        self.step: str | None = None
        self.ended = False
        self.told, self.at = 0, 0.0  # `done` of the last line, and when that was

    def __call__(self, done: int, total: int, message: str) -> None:
        ends = done >= total
        if message != self.step or (self.ended and not ends):  # or the same once more
            self.step = message
            self._tell(done, total, begins=True)
        elif not self.ended and (ends or self._is_due(done, total)):
            self._tell(done, total)
        self.ended = ends

    def _is_due(self, done: int, total: int) -> bool:
        passed = time.monotonic() - self.at
        return passed >= MOST or (passed >= LEAST and (done - self.told) * SHARE >= total)

    def _tell(self, done: int, total: int, *, begins: bool = False) -> None:
        how_far = f": {done:,} of {total:,}" if total > 1 else ": done"
        nothing_yet = begins and (not done or total <= 1)
        print(f"{self.step}{'' if nothing_yet else how_far}", file=sys.stderr, flush=True)
        self.told, self.at = done, time.monotonic()
