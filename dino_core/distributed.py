"""What this process is among others, as torchrun tells it; the cores it may use. Torch-free.

A user's mistake is met by all processes at once, again after every restart, and torchrun ends with
a report of its own. So one of them says it (`let_first_speak`), and leaves it where torchrun's
report is made from and where the processes of the next attempt find it (`leave_word`).
"""

import json
import os
import sys
import time
from pathlib import Path

TURN = 5.0  # seconds that another process gives the first one to speak


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


def let_first_speak() -> None:
    """Wait, in any process but the first, for what the first one says: torchrun ends the others
    when it has ended."""
    if not is_main():
        try:
            time.sleep(TURN)
        except KeyboardInterrupt:
            sys.exit(1)


def leave_word(sentence: str) -> None:
    """Give torchrun the user's mistake for its report, and to those that it starts in our place."""
    if place := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        word = {"message": sentence, "timestamp": str(int(time.time())), "mistake": True}
        Path(place).write_text(json.dumps(word))


def left_word() -> str | None:
    """The user's mistake with which the attempt before this one ended on this machine."""
    place, attempt = os.environ.get("TORCHELASTIC_ERROR_FILE"), _restarts()
    if not place or not attempt:
        return None
    # .../attempt_1/LOCAL_RANK/error.json, as torchrun lays them out.
    for file in Path(place).parents[2].glob(f"attempt_{attempt - 1}/*/error.json"):
        try:
            word = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if word.get("mistake"):
            return str(word["message"])
    return None


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
