"""What this process is among others, as torchrun tells it; the cores it may use. Torch-free.

A user's mistake is met by all processes at once, again after every restart, and torchrun ends with
a report of its own. So one of them says it (`may_speak`), and leaves it where torchrun's report is
made from and where the processes of the next attempt find it (`leave_word`).
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

TURN = 5.0  # seconds that another process gives the first one to speak
PAUSE = 0.05  # seconds between two looks whether it has


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0; the first alone writes files and speaks."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of the processes on this machine it is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def was_restarted() -> bool:
    """Whether torchrun started this process anew after one of the group had died."""
    return _restarts() > 0


def cores() -> int:
    """Processor cores that this process may run on, fewer than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def may_speak() -> bool:
    """Whether this process is the one to tell of a user's mistake; asked when it has met one.

    The first process is. Another one waits until a process on this machine has left word, or no
    more: a mistake that it alone has met ends the others, whereupon torchrun sends it SIGTERM.
    """
    if is_main():
        return True
    ended: list[int] = []
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda kind, _frame: ended.append(kind))
    until = time.monotonic() + TURN
    while not (ended or _word_of(_restarts())) and time.monotonic() < until:
        time.sleep(PAUSE)
    return _word_of(_restarts()) is None


def leave_word(sentence: str, met_at: float) -> None:
    """Give torchrun the user's mistake for its report, and to those that it starts in our place.

    `met_at` is the time of day at which it was met: torchrun takes the first for the cause. The
    file is whole or not there (on a full disk), since torchrun fails at half a one.
    """
    if place := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        word = {"message": sentence, "timestamp": str(int(met_at)), "mistake": True}
        with contextlib.suppress(OSError):
            partial = Path(f"{place}.partial")
            partial.write_text(json.dumps(word))
            partial.replace(place)


def left_word() -> str | None:
    """The user's mistake with which the attempt before this one ended on this machine."""
    return _word_of(_restarts() - 1)


def _word_of(attempt: int) -> str | None:
    """What a process of an attempt on this machine has left."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not place or attempt < 0:
        return None
    # .../attempt_1/LOCAL_RANK/error.json, as torchrun lays them out.
    for file in Path(place).parents[2].glob(f"attempt_{attempt}/*/error.json"):
        try:
            word = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if word.get("mistake"):
            return str(word["message"])
    return None


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
