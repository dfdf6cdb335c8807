"""What binds on this machine, decoding or computing, and what to change: a dozen plain lines.

    for line in diagnosis(look_around(Path.cwd()), time_recipe("auto", None)):
        print(line)

What is measured: one process decoding and cropping for some seconds, and real training steps on a
batch that is already there. The rest follows from these two by arithmetic.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from dino_core import distributed
from dino_core.benchmarks.data import SIZE, write_jpegs
from dino_core.benchmarks.measuring import wait_for
from dino_core.data import Source, open_source, safe_image
from dino_core.models import device_of
from dino_core.serving import choose_port
from dino_core.training.auto import choose
from dino_core.training.feed import FromSource, ViewDataset, whole
from dino_core.training.plan import AUTO, planned
from dino_core.training.recipe import Recipe
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, train_step

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "tiff": ("tifffile",),
    "video": ("av",),
    "bench": ("playwright",),
    "logging": ("tensorboard", "wandb"),
}
PAGES = {"lens": 7860, "explorer": 8501}
GENERATED = 24  # pictures that are made where no data is given
USUAL = 10_000  # images that the recipe is chosen for then
AT_ONCE = 8  # images of a batch whose views are cut together
SECONDS = 2.0  # of decoding, and again of decoding and cropping
STEP_SECONDS = 10.0  # of steps, at most, but for the one that is under way
MOST_STEPS = 6
BATCH_ON_CPU = 16  # images a step at most: more change little on a CPU but the time it takes
LITTLE_MEMORY = 4 * 2**30
LITTLE_DISK = 5 * 2**30
BUSY = 0.25  # of the cores taken by others, from which on what is measured suffers

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """What is there; sizes in bytes, None where the system does not tell."""

    cores: int
    quota: float | None
    """Cores' worth of time that a container may use, where it is limited."""
    load: float | None
    """Cores that were busy in the last minute, on average, and who waited for one."""
    threads: int
    memory: int | None
    free_memory: int | None
    free_disk: int
    torch: str
    device: str
    """cpu, cuda or mps."""
    gpu: str
    """Its name, or why there is none."""
    bf16: bool
    extras: dict[str, bool]
    ports: dict[str, int]


@dataclass(frozen=True)
class Speeds:
    """What was measured with one recipe, in images a second."""

    recipe: str
    images: str
    """Which images, in words."""
    decoding: float
    """One core decoding."""
    feeding: float
    """One core decoding, and cutting all views."""
    computing: float
    """Steps on a batch that is there: all compute threads, or the GPU."""
    shared: bool
    """Whether the CPU does both."""


@dataclass(frozen=True)
class Balance:
    """Decoding against computing."""

    binds: str
    """decoding, or computing."""
    workers: int
    """Decoding processes that keep the computing busy, as far as there are cores."""
    images_per_second: float
    """What can be reached with them, at best."""
    feeding_share: float
    """Of the cores' time, 0 to 1."""


def balance(cores: float, feeding: float, computing: float, shared: bool) -> Balance:
    """Where the bottleneck is, from images a second: of one core feeding, and of computing.

    A GPU computes beside the cores, of which one is kept for the main process. Where the CPU does
    both (`shared`), `computing` is what all its cores reach, and every core's second spent on one
    is lost to the other.
    """
    if shared:
        feed, compute = 1 / feeding, cores / computing  # seconds of one core for an image
        share = feed / (feed + compute)
        binds = "decoding" if share > 0.5 else "computing"
        workers = max(1, min(round(share * cores), math.ceil(cores) - 1))
        return Balance(binds, workers, cores / (feed + compute), share)
    spare = max(1, int(cores) - 1)
    wanted = math.ceil(computing / feeding)
    workers = min(wanted, spare)
    reached = min(computing, workers * feeding)
    binds = "decoding" if wanted > spare else "computing"
    return Balance(binds, workers, reached, reached / feeding / cores)


def advice(machine: Machine, speeds: Speeds, found: Balance) -> list[str]:
    """What to change, a sentence each, the most useful first."""
    said = []
    if machine.load is not None and machine.load >= BUSY * machine.cores:
        said.append(
            f"other programs want the cores, too (a load of {machine.load:.1f} on {machine.cores} "
            "in the last minute): end them, or wait for them; all figures are better without"
        )
    if found.binds == "decoding":
        said.append(
            "keep images decoded in memory (--resident always), or reduced on disk (--cache "
            "--stored-size 288); or give it more cores"
        )
    elif machine.device == "cpu":
        said.append("a GPU, smaller crops or a larger patch: decoding is not what takes the time")
    if speeds.feeding < speeds.decoding / 8:
        said.append("cutting views takes most of the feed: fewer local crops (--local-count)")
    if machine.quota is not None and machine.quota < machine.threads:
        said.append(
            f"--threads {max(1, int(machine.quota))}: the container grants the time of "
            f"{machine.quota:g} cores, and more threads wait for each other"
        )
    if machine.free_memory is not None and machine.free_memory < LITTLE_MEMORY:
        said.append("memory is short: a smaller --batch-size, and --resident never")
    if machine.free_disk < LITTLE_DISK:
        said.append("the disk is nearly full: checkpoints and galleries need room")
    return said


def diagnosis(machine: Machine, speeds: Speeds) -> list[str]:
    """All that there is to say, a line each."""
    cores = min(machine.cores, machine.quota or machine.cores)
    found = balance(cores, speeds.feeding, speeds.computing, speeds.shared)
    granted = "" if machine.quota is None else f", of which a container grants {machine.quota:g}"
    there = [name for name, is_there in machine.extras.items() if is_there]
    lacking = [name for name, is_there in machine.extras.items() if not is_there]
    install = f'; pip install "dino-core[{",".join(lacking)}]" for the rest' if lacking else ""
    share = "of the cores' time"
    return [
        f"cores      {machine.cores}{granted}; {machine.threads} compute threads",
        f"memory     {_sized(machine.free_memory)} free of {_sized(machine.memory)}",
        f"disk       {_sized(machine.free_disk)} free here",
        f"torch      {machine.torch}",
        f"GPU        {machine.gpu}",
        f"bf16       {'yes' if machine.bf16 else 'no: steps on a CPU run in fp32'}",
        f"extras     {', '.join(there) or 'none'}{install}",
        "ports      "
        + ", ".join(f"{port} is free for {app}" for app, port in machine.ports.items()),
        f"recipe     {speeds.recipe}",
        f"decoding   {speeds.decoding:,.0f} images/s a core, {speeds.feeding:,.0f} with all views "
        f"cut ({speeds.images})",
        f"computing  {speeds.computing:,.1f} images/s",
        f"binds      {found.binds}: {found.images_per_second:,.1f} images/s at best, feeding takes "
        f"{100 * found.feeding_share:.0f} % {share}",
        f"workers    {found.workers} would balance the two (--workers {found.workers})",
        *(f"change     {sentence}" for sentence in advice(machine, speeds, found)),
    ]


def look_around(folder: Path, device: str = "auto") -> Machine:
    """What this machine is. Nothing is computed yet."""
    where = device_of(device)
    total, free = memory()
    on_cpu = where.type == "cpu"
    bf16 = cpu_has_bf16() if on_cpu else where.type == "cuda" and torch.cuda.is_bf16_supported()
    return Machine(
        cores=distributed.cores(),
        quota=quota(),
        load=load(),
        threads=torch.get_num_threads(),
        memory=total,
        free_memory=free,
        free_disk=shutil.disk_usage(folder).free,
        torch=f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'})",
        device=where.type,
        gpu=gpu(),
        bf16=bf16,
        extras={name: all(map(find_spec, parts)) for name, parts in EXTRAS.items()},
        ports={app: choose_port(port).number for app, port in PAGES.items()},
    )


def gpu() -> str:
    """The GPU's name, or why there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple's, by MPS"
    if torch.version.cuda is None and torch.version.hip is None:
        return "none that this torch could use: it is built for the CPU alone"
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        return "none: the system shows no NVIDIA device (in a container: start it with --gpus all)"
    return "none: a device is there, but its driver does not answer; see what nvidia-smi says"


def quota(cgroup: Path = CGROUP) -> float | None:
    """Cores' worth of time that the container grants; None without a limit."""
    try:
        granted, period = (cgroup / "cpu.max").read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def load() -> float | None:
    """How many processes ran or waited for a core in the last minute, on average; the system's."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        return None


def memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> tuple[int | None, int | None]:
    """Bytes in all and free, by what the container may use where that is less."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total, free = (1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return None, None
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return total, free
    return min(total, limit), min(free, max(0, limit - used))


def cpu_has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor multiplies bf16 by itself."""
    try:
        flags = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def time_recipe(name: str, data: str | None, device: str = "auto") -> Speeds:
    """Measure the recipe `name` (or `auto`) on `data`, or on generated JPEGs; about 20 s.

    Raises `UserError` for a name or data that cannot be used.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        generated = data is None
        images = data or f"generated JPEGs of {SIZE[0]} x {SIZE[1]} px"
        if data is None:
            data = stack.enter_context(tempfile.TemporaryDirectory())
            write_jpegs(Path(data), GENERATED)
        source = open_source(data)
        where = device_of(device)
        recipe = _recipe(name, source, where, generated)
        recipe = recipe.resolved(max(len(source), USUAL))  # a batch may hold an image twice
        if where.type == "cpu":
            recipe = replace(recipe, batch_size=min(recipe.batch_size, BATCH_ON_CPU))
        crops, backbone = recipe.crops, recipe.backbone
        return Speeds(
            recipe=f"{name}: {backbone.architecture} patch {backbone.patch_size}, "
            f"2 x {crops.global_size} + {crops.local_count} x {crops.local_size} px, "
            f"{recipe.batch_size} images a step",
            images=images,
            decoding=_rate(partial(safe_image, source), len(source)),
            feeding=_feeding(recipe, source),
            computing=_computing(recipe, source, where),
            shared=where.type == "cpu",
        )


def _recipe(name: str, source: Source, device: torch.device, generated: bool) -> Recipe:
    """What `name` means for these images; for generated ones, if there were a usual number."""
    if name != AUTO or not generated:
        return replace(planned(name, source), device=device.type)
    on_gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    found = choose(
        USUAL,
        min(SIZE),
        device=device.type,  # type: ignore[arg-type]
        memory=total,
        cores=distributed.cores(),
    )
    return replace(found.recipe, device=device.type)


def _rate(handle: Callable[[int], object], count: int) -> float:
    """How often a second `handle` runs, on 0, 1, ... `count` - 1 in turns."""
    handle(0)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        handle(done % count)
        done += 1
    return done / (time.perf_counter() - start)


def _feeding(recipe: Recipe, source: Source) -> float:
    """Images a second that one worker feeds."""
    views = ViewDataset(FromSource(source, recipe.feed.stored_size), recipe.crops, recipe.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        keys = [(0, i % len(source)) for i in range(AT_ONCE)]
        return AT_ONCE * _rate(lambda _: whole(views.__getitems__(keys)), 1)
    finally:
        torch.set_num_threads(threads)


def _computing(recipe: Recipe, source: Source, device: torch.device) -> float:
    """Images a second of steps on a batch that is there, the first step left out."""
    views = ViewDataset(FromSource(source, recipe.feed.stored_size), recipe.crops, recipe.seed)
    chosen = np.arange(recipe.batch_size) % len(source)
    batch = whole(views.__getitems__([(0, int(i)) for i in chosen]))
    torch.set_num_threads(recipe.threads)
    state, info = create_state(recipe, device), recipe.backbone.info()
    schedules = Schedules(replace(recipe, steps=1000), steps_per_epoch=100)
    ends: list[float] = []
    while len(ends) < 2 or (ends[-1] - ends[0] < STEP_SECONDS and len(ends) <= MOST_STEPS):
        settings = replace(schedules.settings(len(ends)), accumulate=1)
        train_step(state, [batch.views(info, device)], settings)
        wait_for(device)
        ends.append(time.perf_counter())
    return recipe.batch_size * (len(ends) - 1) / (ends[-1] - ends[0])


def _sized(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GB"
