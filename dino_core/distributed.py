"""Rank and world size, as torchrun sets them. One process needs no process group."""

import os


def rank() -> int:
    """This process's number, 0 .. world_size() - 1."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))
