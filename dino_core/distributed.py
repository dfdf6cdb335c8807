"""What this process is among others: the world size that torchrun sets, the cores it may use."""

import os


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def cores() -> int:
    """Processor cores that this process may run on, fewer than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
