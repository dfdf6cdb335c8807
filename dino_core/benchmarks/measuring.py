"""Timing in alternation: what is compared runs in turns, so that a noisy machine bothers all alike.

    seconds = in_alternation({"fast": step, "plain": plain_step}, rounds=5)
    ratio(seconds["plain"], seconds["fast"])

A `Measured` is what a benchmark says of one recipe, and what `--json` writes.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from dino_core.errors import UserError


@dataclass(frozen=True)
class Measured:
    """One recipe on one machine. Either a rate or a duration is known; None is not measured."""

    name: str
    hardware: str
    images_per_second: float | None = None
    milliseconds: float | None = None
    ratio_to_plain: float | None = None
    """How many times faster than the plain twin, measured in alternation in the same run."""
    share_of_limit: float | None = None
    """Of what `limit` names, 0 to 1."""
    limit: str = ""
    """What it could be at best: "matrix products at 790 TFLOP/s", "the bare forward pass"."""
    phases: dict[str, float] = field(default_factory=dict)
    """Where the time goes: milliseconds by name."""
    notes: tuple[str, ...] = ()
    """What a reader has to know besides, a sentence each."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def in_alternation(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    warmup: int = 1,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, by name.

    All of them first run `warmup` times (compiling, filling caches), then take turns, the order
    turned round every time: what the machine does besides then hits each alike. On a GPU each
    turn waits for its own work, and no longer.
    """
    for run in contenders.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        names = list(contenders)
        for name in names if turn % 2 == 0 else reversed(names):
            wait_for(device)
            start = time.perf_counter()
            contenders[name]()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


class Elsewhere:
    """A contender in a process of its own, with its own threads and its own heap.

    `make(*args)` is called there once and gives what a turn calls. To be closed at the end.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *args: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.ours, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_take_turns, args=(theirs, make, args), daemon=False)
        self.process.start()
        theirs.close()

    def __call__(self) -> None:
        """One turn. Raises what it raised there."""
        self.ours.send("go")
        try:
            failed = self.ours.recv()
        except EOFError:
            raise UserError("a contender of the benchmark ended before its turn did") from None
        if failed is not None:
            raise failed

    def close(self) -> None:
        self.ours.close()
        self.process.join()


def _take_turns(
    pipe: Connection, make: Callable[..., Callable[[], object]], args: tuple[Any, ...]
) -> None:
    turn: Callable[[], object] | None = None
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        try:
            turn = turn or make(*args)
            turn()
        except Exception as error:
            pipe.send(error)
        else:
            pipe.send(None)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: the median over rounds of one round's quotient."""
    return median(s / f for s, f in zip(slow, fast, strict=True))


def wait_for(device: torch.device | None) -> None:
    """Until a GPU has done what it was given; at once for a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


class Phases:
    """A stopwatch for the parts of a step: milliseconds by name, summed over `with` blocks.

    A phase inside another counts for itself alone. On a GPU every part waits for the device, so
    phases add up but run slower than the whole.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}
        self._outer: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.enter(name)
        yield
        self.leave()

    def enter(self, name: str) -> None:
        self._turn()
        self._outer.append(name)

    def leave(self) -> None:
        self._turn()
        self._outer.pop()

    def _turn(self) -> None:
        """Count the time since the last turn for the phase that is on."""
        wait_for(self.device)
        now = time.perf_counter()
        if self._outer:
            name = self._outer[-1]
            spent = 1000 * (now - self._since)
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent
        self._since = now

    def per(self, count: int) -> dict[str, float]:
        """Milliseconds by name for each of `count` steps or images."""
        return {name: spent / count for name, spent in self.milliseconds.items()}


def report(results: Sequence[Measured]) -> str:
    """All results as text for a terminal, one block each."""
    return "\n\n".join(_block(result) for result in results)


def _block(result: Measured) -> str:
    lines = [f"{result.name}  ({result.hardware})"]
    if result.images_per_second is not None:
        lines.append(f"  {result.images_per_second:,.1f} images/s")
    if result.milliseconds is not None:
        lines.append(f"  {result.milliseconds:,.1f} ms")
    if result.ratio_to_plain is not None:
        lines.append(f"  {result.ratio_to_plain:.2f} times its plain twin")
    if result.share_of_limit is not None:
        lines.append(f"  {100 * result.share_of_limit:.0f} % of the limit: {result.limit}")
    if result.phases:
        total = sum(result.phases.values())
        parts = [
            f"{name} {spent:,.1f} ms ({100 * spent / total:.0f} %)"
            for name, spent in sorted(result.phases.items(), key=lambda item: -item[1])
        ]
        lines.append("  " + ", ".join(parts))
    lines += [f"  {note}" for note in result.notes]
    return "\n".join(lines)
