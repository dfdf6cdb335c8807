"""What a process uses, as seen from outside."""

import subprocess
import sys
import time

import pytest

from dino_core.processes import describe_process
from dino_core.usage import Gpu, Usage, Watch, parsed

BUSY = """
import sys, time
fill = bytearray(200 << 20)
print("here", flush=True)
while True: pass
"""


def test_a_busy_process_is_seen_and_then_gone():
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "here\n"
        watch = Watch(describe_process(child.pid))
        first = watch.look()
        assert isinstance(first, Usage) and first.cores == 0 and first.memory > 200 << 20
        seen = 0.0
        while seen < 0.05:  # whatever else the machine is doing
            time.sleep(0.3)  # processor time is told in steps of 0.01 s
            seen = max(seen, watch.look().cores)
        assert seen < 1.6
    finally:
        child.kill()
        child.wait()
    assert watch.look() is None


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", []),
        (
            "NVIDIA H200, 93, 1024, 143771\nNVIDIA, odd name, [N/A], 7, 80\n",
            [Gpu("NVIDIA H200", 93, 1024, 143771), Gpu("NVIDIA, odd name", 0, 7, 80)],
        ),
        ("No devices were found", []),
    ],
)
def test_the_table_of_gpus_is_read(table, expected):
    assert parsed(table) == expected
