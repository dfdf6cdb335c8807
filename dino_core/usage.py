"""What a process on this machine uses right now: cores, memory, GPUs. For a page that watches it.

watch = Watch(run.status()["process"])
watch.look()              # Usage(cores=1.9, memory=1.2e9 bytes, gpus=[...]), None once it is gone
"""

import contextlib
import shutil
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

import psutil

from dino_core.processes import is_alive

QUERY = "name,utilization.gpu,memory.used,memory.total"
PATIENCE = 3.0  # seconds for nvidia-smi


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine, by all that use it."""

    name: str
    busy: float  # percent of the last second in which a kernel ran
    used: float  # MiB of its memory
    total: float  # MiB


@dataclass(frozen=True)
class Usage:
    """Of a process and all that it started."""

    cores: float  # that it keeps busy, since the last look
    memory: int  # bytes, what is shared between its processes counted once for each
    gpus: list[Gpu]


class Watch:
    """Looks at one process, as `processes.this_process` describes it, again and again.

    Several threads may do so, one after the other.
    """

    def __init__(self, process: dict[str, Any]) -> None:
        self.process = process
        self._known: dict[int, psutil.Process] = {}  # their clocks run from look to look
        self._lock = threading.Lock()

    def look(self) -> Usage | None:
        """What it uses; None when it is gone, or elsewhere. The first look tells 0 cores."""
        if not is_alive(self.process):
            return None
        cores, memory = 0.0, 0
        with self._lock:
            for process in self._family():
                with contextlib.suppress(psutil.Error):  # ended meanwhile
                    process = self._known.setdefault(process.pid, process)
                    cores += process.cpu_percent() / 100
                    memory += process.memory_info().rss
        return Usage(cores, memory, gpus())

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process["pid"])
            return [parent, *parent.children(recursive=True)]
        except psutil.Error:
            return []


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine, [] where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return parsed(said.stdout)
    return []


def parsed(table: str) -> list[Gpu]:
    """The lines of nvidia-smi's table; numbers that a card does not tell are 0."""
    found = []
    for line in table.splitlines():
        name, *numbers = (cell.strip() for cell in line.rsplit(",", 3))
        if len(numbers) == 3:
            found.append(Gpu(name, *(_number(one) for one in numbers)))
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
