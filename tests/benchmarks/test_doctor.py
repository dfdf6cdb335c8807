"""What the doctor concludes from made-up figures, and that it measures the real ones."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dino_core.benchmarks import doctor
from dino_core.benchmarks.doctor import (
    EXTRAS,
    Machine,
    Speeds,
    advice,
    balance,
    cpu_has_bf16,
    diagnosis,
    look_around,
    memory,
    quota,
    time_recipe,
)

GB = 2**30
MACHINE = Machine(
    cores=8, quota=None, load=1.9, threads=8, memory=64 * GB, free_memory=60 * GB,
    free_disk=500 * GB, torch="2.15", device="cuda", gpu="NVIDIA H200", bf16=True,
    extras={"export": True, "tiff": False}, ports={"lens": 7860},
)  # fmt: skip
SPEEDS = Speeds("auto", "photos/", decoding=500, feeding=300, computing=1200, shared=False)


@pytest.mark.parametrize(
    ("cores", "computing", "binds", "workers", "reached"),
    [
        (8, 1200, "computing", 4, 1200),  # four cores feed what the GPU takes
        (8, 1201, "computing", 5, 1201),
        (8, 2100, "computing", 7, 2100),
        (8, 9000, "decoding", 7, 2100),  # one core stays with the main process
        (1, 9000, "decoding", 1, 300),
    ],
)
def test_a_gpu_is_fed_by_the_cores_beside_it(cores, computing, binds, workers, reached):
    found = balance(cores, 300, computing, shared=False)
    assert (found.binds, found.workers, found.images_per_second) == (binds, workers, reached)


@pytest.mark.parametrize(
    ("cores", "feeding", "computing", "binds", "workers", "reached"),
    [
        # 8 cores: 10 ms of feeding and 70 of computing an image make 80 ms of a core
        (8, 100, 8 / 0.070, "computing", 1, 100),
        (8, 100, 8 / 0.006, "decoding", 5, 500),
        (2, 1000, 20, "computing", 1, 2 / 0.101),
        (1, 100, 100, "computing", 1, 50),
    ],
)
def test_a_cpu_shares_its_cores(cores, feeding, computing, binds, workers, reached):
    found = balance(cores, feeding, computing, shared=True)
    assert (found.binds, found.workers) == (binds, workers)
    assert found.images_per_second == pytest.approx(reached)
    assert 0 < found.feeding_share < 1


def test_what_binds_is_said_with_what_to_do():
    lines = diagnosis(MACHINE, SPEEDS)
    text = "\n".join(lines)
    assert len(lines) <= 15
    assert "binds      computing: 1,200.0 images/s at best" in text and "--workers 4" in text
    assert 'pip install "dino-core[tiff]"' in text and "7860 is free for lens" in text
    assert "change" not in text
    starved = diagnosis(MACHINE, replace(SPEEDS, computing=9000))
    assert any(line.startswith("change     keep images decoded in memory") for line in starved)


@pytest.mark.parametrize(
    ("machine", "speeds", "says"),
    [
        ({"load": 3.26}, {}, "other programs want the cores, too (a load of 3.3 on 8 "),
        ({"quota": 2.5}, {}, "--threads 2: the container grants the time of 2.5 cores"),
        ({"free_memory": GB}, {}, "memory is short"),
        ({"free_disk": GB}, {}, "the disk is nearly full"),
        ({}, {"feeding": 50, "computing": 100}, "fewer local crops"),
        ({"device": "cpu"}, {"shared": True, "computing": 10}, "a GPU, smaller crops"),
    ],
)
def test_advice(machine, speeds, says):
    changed, faster = replace(MACHINE, **machine), replace(SPEEDS, **speeds)
    found = balance(8, faster.feeding, faster.computing, faster.shared)
    (sentence,) = advice(changed, faster, found)
    assert says in sentence


def test_the_load_is_that_of_the_last_minute_where_the_system_tells(monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (1.5, 9, 9))
    assert doctor.load() == 1.5
    monkeypatch.delattr(doctor.os, "getloadavg")
    assert doctor.load() is None
    machine = replace(MACHINE, load=None)
    assert advice(machine, SPEEDS, balance(8, 300, 1200, shared=False)) == []


def test_what_a_container_grants(tmp_path: Path):
    assert quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert quota(tmp_path) == 1.5
    meminfo = tmp_path / "meminfo"
    assert memory(meminfo, tmp_path) == (None, None)
    meminfo.write_text("MemTotal:  8 kB\nMemFree: 1 kB\nMemAvailable:   6 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(meminfo, tmp_path) == (8192, 6144)
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.current").write_text("1024\n")
    assert memory(meminfo, tmp_path) == (4096, 3072)


def test_a_processor_says_whether_it_has_bf16(tmp_path: Path):
    flags = tmp_path / "cpuinfo"
    assert not cpu_has_bf16(flags)
    flags.write_text("flags\t\t: fpu avx512f avx512_bf16 sse2\n")
    assert cpu_has_bf16(flags)
    flags.write_text("flags\t\t: fpu avx512f avx2\n")
    assert not cpu_has_bf16(flags)


def test_the_extras_are_those_of_the_project():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    declared = project["project"]["optional-dependencies"]
    named = {
        extra: tuple(re.split(r"[<>=\[]", line)[0] for line in lines)
        for extra, lines in declared.items()
        if extra != "test"
    }
    assert named == EXTRAS


def test_this_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "SECONDS": 0.1, "STEP_SECONDS": 0.1, "MOST_STEPS": 1, "GENERATED": 2, "BATCH_ON_CPU": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(doctor, name, value)
    # One thread: several would wait for each other on a busy machine.
    monkeypatch.setattr(doctor.distributed, "cores", lambda: 1)
    threads = torch.get_num_threads()
    speeds = time_recipe("auto", None, "cpu")
    assert torch.get_num_threads() == threads
    assert min(speeds.decoding, speeds.feeding, speeds.computing) > 0 and speeds.shared
    assert "2 images a step" in speeds.recipe and "generated" in speeds.images
    machine = look_around(tmp_path, "cpu")
    assert machine.cores >= 1 and machine.free_disk > 0 and set(machine.ports) == {
        "lens", "explorer"
    }  # fmt: skip
    assert 13 <= len(diagnosis(machine, speeds)) <= 17


def test_every_figure_stands_in_its_place(monkeypatch: pytest.MonkeyPatch):
    for name, rate in {"_rate": 7.0, "_feeding": 5.0, "_computing": 3.0}.items():
        monkeypatch.setattr(doctor, name, lambda *_, rate=rate: rate)
    monkeypatch.setattr(doctor, "GENERATED", 2)
    speeds = time_recipe("auto", None, "cpu")
    assert (speeds.decoding, speeds.feeding, speeds.computing) == (7.0, 5.0, 3.0)
