"""How a long step says how far it is: a callback, and bars for a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, message)`; a new message begins a new step."""


def silent(done: int, total: int, message: str) -> None:
    """A progress callback for where nobody listens."""


@contextmanager
def bars() -> Iterator[Progress]:
    """A progress callback that draws one bar a step on stderr, or one line where no one watches."""
    bar: tqdm | None = None
    step, before = "", 0

    def progress(done: int, total: int, message: str) -> None:
        nonlocal bar, step, before
        if bar is None or step != message:
            if bar is not None:
                bar.close()
            bar, step, before = _bar(done, total, message), message, done
        bar.update(done - before)
        before = done

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


def _bar(done: int, total: int, message: str) -> tqdm:
    watched = sys.stderr.isatty()
    if not watched:
        print(message, file=sys.stderr, flush=True)
    # `initial` keeps what an earlier start had done out of the speed.
    return tqdm(total=total, initial=done, desc=message, disable=not watched, dynamic_ncols=True)
