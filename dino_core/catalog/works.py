"""Long computations behind a page: each done once, in a thread, for whoever asks; told, cancelled.

works = Works()
work = works.ask(("k-means", gallery, 12), lambda progress: kmeans(gallery, 12, progress))
work.state, work.done, work.total, work.message        # until `state` is "done": then `value`
"""

import atexit
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from dino_core.catalog.questions import Withdrawn
from dino_core.errors import UserError

AT_ONCE = 2  # threads; a second one so that a quick question need not wait for a long one
KEPT = 24  # values
MOST_BYTES = 1 << 30  # of all values, the newest aside
DEEP = 3  # levels of a value in which arrays are looked for
# Seconds after which what nobody asks for any more is given up. A page asks every half a second,
# one in a hidden tab once a minute; what others wait for is not held up that long.
UNASKED, IN_THE_WAY = 90.0, 10.0
GRACE = 2.0  # seconds at the end of the program for what still runs


@dataclass(eq=False)
class Work:
    """One computation. `state` is "running" (from the asking on), "done" or "failed"."""

    state: str = "running"
    done: int = 0
    total: int = 0  # 0: not known
    message: str = "Waiting in line"  # of a failed one: the sentence to show
    value: Any = None
    _to_end: bool = False
    _waits: bool = True
    _weight: int = 0  # bytes
    _asked: float = field(default_factory=time.monotonic)  # for the last time
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        """Until it has ended, or so many seconds."""
        self._ended.wait(seconds)


class Works:
    """All computations of one server; several threads may use it."""

    def __init__(self, kept: int = KEPT, most_bytes: int = MOST_BYTES) -> None:
        self._kept, self._most_bytes = kept, most_bytes
        self._works: OrderedDict[Hashable, Work] = OrderedDict()  # the last asked for is the last
        self._lock = threading.Lock()
        self._room = threading.Semaphore(AT_ONCE)
        self._over = threading.Event()
        atexit.register(self._end)

    def ask(
        self,
        key: Hashable,
        function: Callable[[Callable[..., None]], Any],
        *,
        to_end: bool = False,
    ) -> Work:
        """The computation of this key: the one that is known, or one that begins now.

        It is given up, and forgotten, when nobody asks for it any more, unless it goes on `to_end`.
        """
        with self._lock:
            if key not in self._works:
                self._works[key] = work = Work(_to_end=to_end)
                # Not of a pool: the program's end would wait for the last of them.
                threading.Thread(target=self._do, args=(key, work, function), daemon=True).start()
            return self._touched(key)

    def find(self, key: Hashable) -> Work | None:
        """The computation of this key, if it was asked for: that is asking, too."""
        with self._lock:
            return self._touched(key) if key in self._works else None

    def cancel(self, key: Hashable) -> None:
        """Let it fail at its next sign of progress; one that waits in line does not begin."""
        if work := self._works.get(key):
            work._cancelled.set()

    def forget(self, key: Hashable) -> None:
        """Let the next `ask` begin anew."""
        with self._lock:
            self._works.pop(key, None)

    def _touched(self, key: Hashable) -> Work:
        self._works.move_to_end(key)
        work = self._works[key]
        work._asked = time.monotonic()
        return work

    def _do(
        self, key: Hashable, work: Work, function: Callable[[Callable[..., None]], Any]
    ) -> None:
        tell, trouble = partial(self._tell, key, work), None
        with self._room:
            work._waits = False
            try:
                tell(0, 0, "Starting")
                work.value = function(tell)
                work._weight = weight(work.value)
                work.state = "done"
            except UserError as error:
                work.state, work.message = "failed", str(error)
            except Exception as error:  # a page must say it, whatever it was
                work.state, work.message = "failed", f"This could not be computed ({error})"
                trouble = error
            with self._lock:
                self._drop_oldest()
            work._ended.set()
        # At the program's end threads and files are refused before `_end` is called: not told.
        if trouble is not None and not self._over.wait(GRACE / 2):
            traceback.print_exception(trouble)

    def _tell(self, key: Hashable, work: Work, done: int, total: int, message: str) -> None:
        """Note how far it is: a `Progress`. Raises `Withdrawn` when nobody wants it any more."""
        with self._lock:
            if not work._to_end and self._is_left(work):
                work._cancelled.set()
                if self._works.get(key) is work:
                    del self._works[key]
        if work._cancelled.is_set():
            raise Withdrawn
        work.done, work.total, work.message = done, total, message

    def _is_left(self, work: Work) -> bool:
        idle = time.monotonic() - work._asked
        return idle > UNASKED or (
            idle > IN_THE_WAY and any(other._waits for other in self._works.values())
        )

    def _drop_oldest(self) -> None:
        """Keep the newest values: so many, and so many bytes of them; the very newest always."""
        count = size = 0
        for key, work in reversed(list(self._works.items())):
            if work.state != "running":
                count, size = count + 1, size + work._weight
                if count > self._kept or (count > 1 and size > self._most_bytes):
                    del self._works[key]

    def _end(self) -> None:
        """At the program's end: what runs has a moment to stop by itself, without a word."""
        self._over.set()
        until = time.monotonic() + GRACE
        for work in (left := list(self._works.values())):
            work._cancelled.set()
        for work in left:
            work.wait(max(0.0, until - time.monotonic()))


def weight(value: Any, deep: int = DEEP) -> int:
    """Bytes of arrays and bytes in a value, and in what it holds, so many levels deep."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    parts: Iterable[Any] = ()
    if is_dataclass(value):
        parts = (getattr(value, one.name) for one in fields(value))
    elif isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    return sum(weight(part, deep - 1) for part in parts) if deep else 0
