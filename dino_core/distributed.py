"""What this process is among others, as torchrun tells it; the cores it may use. Torch-free."""

import os


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
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def cores() -> int:
    """Processor cores that this process may run on, fewer than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
