"""Long computations behind a page: each done once, in a thread, for whoever asks; told, cancelled.

works = Works()
work = works.ask(("k-means", gallery, 12), lambda progress: kmeans(gallery, 12, progress))
work.state, work.done, work.total, work.message        # until `state` is "done": then `value`
"""

import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dino_core.catalog.questions import Withdrawn
from dino_core.errors import UserError

AT_ONCE = 2  # threads; a second one so that a quick question need not wait for a long one
KEPT = 24  # values


@dataclass(eq=False)
class Work:
    """One computation. `state` is "running" (from the asking on), "done" or "failed"."""

    state: str = "running"
    done: int = 0
    total: int = 0  # 0: not known
    message: str = "Waiting in line"  # of a failed one: the sentence to show
    value: Any = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        """Until it has ended, or so many seconds."""
        self._ended.wait(seconds)

    def tell(self, done: int, total: int, message: str) -> None:
        """Note how far it is: a `Progress`. Raises `Withdrawn` when nobody wants it any more."""
        if self._cancelled.is_set():
            raise Withdrawn
        self.done, self.total, self.message = done, total, message


class Works:
    """All computations of one server; several threads may use it."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._works: OrderedDict[Hashable, Work] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="work")

    def ask(self, key: Hashable, function: Callable[[Callable[..., None]], Any]) -> Work:
        """The computation of this key: the one that is known, or one that begins now."""
        with self._lock:
            if key not in self._works:
                self._works[key] = work = Work()
                self._threads.submit(_do, work, function)
                self._drop_oldest()
            self._works.move_to_end(key)
            return self._works[key]

    def find(self, key: Hashable) -> Work | None:
        """The computation of this key, if it was asked for."""
        return self._works.get(key)

    def cancel(self, key: Hashable) -> None:
        """Let it fail at its next sign of progress; one that waits in line does not begin."""
        if work := self._works.get(key):
            work._cancelled.set()

    def forget(self, key: Hashable) -> None:
        """Let the next `ask` begin anew."""
        with self._lock:
            self._works.pop(key, None)

    def _drop_oldest(self) -> None:
        ended = [key for key, work in self._works.items() if work.state != "running"]
        for key in ended[: max(0, len(self._works) - self._kept)]:
            del self._works[key]


def _do(work: Work, function: Callable[[Callable[..., None]], Any]) -> None:
    try:
        work.tell(0, 0, "Starting")
        work.value = function(work.tell)
        work.state = "done"
    except UserError as error:
        work.state, work.message = "failed", str(error)
    except Exception as error:  # a page must say it, whatever it was
        traceback.print_exc()
        work.state, work.message = "failed", f"This could not be computed ({error})"
    finally:
        work._ended.set()
