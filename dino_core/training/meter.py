"""What a run tells: a bar on a terminal, a line per epoch elsewhere, metrics and status on disk."""

import math
import sys
import time

import numpy as np
from tqdm import tqdm

from dino_core.errors import UserError
from dino_core.runs import Run
from dino_core.training.recipe import Recipe
from dino_core.training.step import StepMetrics, as_floats


class Meter:
    """Progress: a bar on a terminal, one line per epoch elsewhere, and `metrics.jsonl`.

    Metrics are read one step late, so that the host never waits for the step it has just started.
    """

    def __init__(
        self, run: Run, recipe: Recipe, start: int, steps: int, steps_per_epoch: int
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=start, unit="step", disable=not self.terminal, dynamic_ncols=True
        )
        self.waiting: tuple[int, StepMetrics, float, float] | None = None
        self.rows: list[dict[str, float]] = []
        self.epoch_losses: list[float] = []
        self.clock, self.clock_step = time.perf_counter(), start

    def update(self, step: int, metrics: StepMetrics, lr: float, teacher_temp: float) -> None:
        late, self.waiting = self.waiting, (step, metrics, lr, teacher_temp)
        if late is not None:
            self._read(*late)
        self.bar.update()

    def flush(self) -> None:
        """Read what is still waiting."""
        late, self.waiting = self.waiting, None
        if late is not None:
            self._read(*late)

    def _read(self, step: int, metrics: StepMetrics, lr: float, teacher_temp: float) -> None:
        values = as_floats(metrics)
        # fp16 overflows now and then by design: its scaler skips such a step and scales less.
        watched = values["loss"] if self.recipe.precision == "fp16" else sum(values.values())
        if not math.isfinite(watched):
            raise UserError(
                f"{self.run.path}: loss or gradients of step {step} are not finite; what was saved "
                f"before is good: start a new run from it with --init, in fp32 or at a lower --lr"
            )
        self.epoch_losses.append(values["loss"])
        if (step + 1) % self.recipe.log_every == 0 or step + 1 == self.steps:
            self._log(step, values, lr, teacher_temp)
        if (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.steps:
            self._epoch_line(step, lr)

    def _log(self, step: int, values: dict[str, float], lr: float, teacher_temp: float) -> None:
        now = time.perf_counter()
        images = (step + 1 - self.clock_step) * self.recipe.global_batch
        speed = images / (now - self.clock)
        self.clock, self.clock_step = now, step + 1
        row = {"step": step, "epoch": step / self.steps_per_epoch, **values}
        row |= {"lr": lr, "teacher_temp": teacher_temp, "images_per_second": speed}
        self.run.append_metrics([{key: _rounded(value) for key, value in row.items()}])
        self.run.write_status("running", step=step + 1, steps=self.steps)
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, lr {lr:.1e}, {speed:.0f} img/s")

    def _epoch_line(self, step: int, lr: float) -> None:
        epoch = step // self.steps_per_epoch + 1
        loss = float(np.mean(self.epoch_losses))
        self.epoch_losses.clear()
        line = f"epoch {epoch}: step {step + 1}/{self.steps}, loss {loss:.4f}, lr {lr:.2e}"
        self.run.log(line)
        if not self.terminal:
            print(line, file=sys.stderr, flush=True)


def _rounded(value: float) -> float | None:
    """Seven digits, as many as a float32 holds; None for what JSON cannot say (an overflow)."""
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.7g}")
