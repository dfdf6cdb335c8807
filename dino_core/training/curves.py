"""What a run has logged, as curves: read as it grows, thinned to what a chart can show.

    curves = Curves(run)
    curves.update()                       # reads only what was added since
    curves.points("loss", most=300)       # [(step, value), ...]

Needs no torch.
"""

import math
import threading
from typing import Any

import numpy as np

from dino_core.runs import Run
from dino_core.training.launch import Tail, rows_of

NOT_CURVES = {"step", "epoch", "steps_done"}


class Curves:
    """The metrics of one run. Several threads may use it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail = Tail(run.path / "metrics.jsonl")
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def update(self) -> None:
        """Take in what the run has logged since; a run that went back is told anew."""
        with self._lock:  # two at once would both read the same lines
            lines = self._tail.read()
            if self._tail.replaced:
                self._steps, self._values = {}, {}
            for row in rows_of(lines):
                self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name in NOT_CURVES or not isinstance(value, int | float) or isinstance(value, bool):
                continue  # null: it was not finite
            self._steps.setdefault(name, []).append(int(row.get("step", 0)))
            self._values.setdefault(name, []).append(float(value))

    @property
    def names(self) -> list[str]:
        """What was logged, by name."""
        return list(self._values)

    def newest(self, name: str) -> float | None:
        """The last value of a curve, None where there is none."""
        return self._values[name][-1] if name in self._values else None

    def points(self, name: str, most: int = 300) -> list[tuple[float, float]]:
        """At most `most` (step, value); of more, the means of stretches of equal length."""
        values = np.array(self._values.get(name, []), np.float64)
        steps = np.array(self._steps.get(name, []), np.float64)[: len(values)]
        values = values[: len(steps)]
        stretch = math.ceil(len(values) / most)
        if stretch > 1:
            starts = np.arange(0, len(values), stretch)
            counts = np.diff([*starts, len(values)])
            values = np.add.reduceat(values, starts) / counts
            steps = np.add.reduceat(steps, starts) / counts
        return list(zip(steps.tolist(), values.tolist(), strict=True))
