"""What a run tells: a bar on a terminal, a line per epoch elsewhere, metrics and status on disk."""

import math
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from dino_core import distributed
from dino_core.runs import Run
from dino_core.training.quality import Quality
from dino_core.training.readings import Reading
from dino_core.training.recipe import Recipe
from dino_core.training.sinks import Sink

SIGNALS = ("stop", "late", "finite")  # between processes, not about learning
QUIET = 30.0  # seconds without a word, where there is no bar, after which a line is due


class Meter:
    """Progress of one stretch of training. Only the first process of a group says anything."""

    def __init__(
        self, run: Run, recipe: Recipe, start: int, steps_per_epoch: int, sinks: Sequence[Sink]
    ) -> None:
        assert recipe.steps is not None
        self.run = run
        self.recipe = recipe
        self.steps = recipe.steps
        self.steps_per_epoch = steps_per_epoch
        self.sinks = sinks
        self.speaks = distributed.is_main()
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=self.steps,
            initial=start,
            unit="step",
            disable=not (self.terminal and self.speaks),
            dynamic_ncols=True,
        )
        self.epoch_losses: list[float] = []
        self.clock, self.clock_step = time.perf_counter(), start
        self.last_word = time.perf_counter()

    def update(self, reading: Reading, numbers: Mapping[str, float]) -> None:
        """Take in the numbers of a step."""
        self.bar.update(reading.step + 1 - self.bar.n)
        if not self.speaks:
            return
        done = reading.step + 1
        if math.isfinite(numbers["loss"]):
            self.epoch_losses.append(numbers["loss"])
        if done % self.recipe.log_every == 0 or done == self.steps:
            self._log(reading, numbers)
        if done % self.steps_per_epoch == 0 or done == self.steps or self._is_quiet():
            self._line(reading)

    def quality(self, quality: Quality) -> None:
        """Take in a quality check."""
        if self.speaks:
            self._append(quality.row())
            self.say(quality.sentence())

    def say(self, sentence: str) -> None:
        """To the log, and to whoever is watching."""
        self.run.log(sentence)
        tqdm.write(sentence, file=sys.stderr) if self.terminal else _print(sentence)
        self.last_word = time.perf_counter()

    def _log(self, reading: Reading, numbers: Mapping[str, float]) -> None:
        done, settings = reading.step + 1, reading.settings
        now = time.perf_counter()
        speed = (done - self.clock_step) * self.recipe.batch_size / (now - self.clock)
        self.clock, self.clock_step = now, done
        row = {"step": reading.step, "epoch": reading.step / self.steps_per_epoch}
        row |= {name: value for name, value in numbers.items() if name not in SIGNALS}
        row |= {"lr": settings.lr, "teacher_temp": settings.teacher_temp}
        row |= {"momentum": settings.momentum}
        row |= {"images_per_second": speed}
        self._append(row)
        self.run.write_status("running", step=done, steps=self.steps)
        self.bar.set_postfix_str(
            f"loss {numbers['loss']:.3f}, lr {settings.lr:.1e}, {speed:.0f} img/s"
        )

    def _append(self, row: dict[str, float]) -> None:
        self.run.append_metrics([{name: _rounded(value) for name, value in row.items()}])
        finite = {k: v for k, v in row.items() if k != "step" and math.isfinite(v)}
        for sink in self.sinks:
            sink.write(int(row["step"]), finite)

    def _is_quiet(self) -> bool:
        return not self.terminal and time.perf_counter() - self.last_word > QUIET

    def _line(self, reading: Reading) -> None:
        epoch = reading.step // self.steps_per_epoch + 1
        loss = float(np.mean(self.epoch_losses)) if self.epoch_losses else math.nan
        if (reading.step + 1) % self.steps_per_epoch == 0:
            self.epoch_losses.clear()
        line = (
            f"epoch {epoch}: step {reading.step + 1}/{self.steps}, "
            f"loss {loss:.4f}, lr {reading.settings.lr:.2e}"
        )
        self.run.log(line)
        if not self.terminal:
            _print(line)
        self.last_word = time.perf_counter()


def _print(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _rounded(value: float) -> float | None:
    """Seven digits, as many as a float32 holds; None for what JSON cannot say (an overflow)."""
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.7g}")
