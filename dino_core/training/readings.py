"""The numbers of a step on their way to the host, so that the device need never be waited for.

A copy is begun right after its step and read once the next step has been started: the wait is for
that copy alone, not for all that was queued since.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dino_core.measures.rankme import rankme
from dino_core.training.parallel import summed
from dino_core.training.step import StepMetrics, StepSettings

RANK_ROWS = 256  # features whose effective rank is taken: 15 ms at 384 dimensions


@dataclass
class Reading:
    """One step's numbers: `numbers()` waits for them."""

    step: int
    settings: StepSettings
    names: list[str]
    values: Tensor
    features: Tensor | None
    arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls, step: int, settings: StepSettings, metrics: StepMetrics, *, stop: bool, late: bool
    ) -> "Reading":
        """Begin the copy. What one process wants, to `stop` or to save since it is `late`, all
        know with it, at the same step."""
        named = {
            "loss": metrics.loss,
            "grad_norm": metrics.grad_norm,
            "center_norm": metrics.center_norm,
            "finite": metrics.finite,
        }
        # Filled, not copied from the host: a copy would wait for the device.
        own = [metrics.loss.new_full((), float(wish)) for wish in (stop, late)]
        wishes = summed(torch.stack(own))
        named |= {"stop": wishes[0], "late": wishes[1]}
        if metrics.watched:
            named |= vars(metrics.watched)
        values = torch.stack([value.detach().float() for value in named.values()])
        features = None if metrics.features is None else metrics.features[:RANK_ROWS]
        on_gpu = values.device.type == "cuda"
        reading = cls(
            step,
            settings,
            names=list(named),
            values=values.to("cpu", non_blocking=on_gpu),
            features=None if features is None else features.to("cpu", non_blocking=on_gpu),
            arrived=torch.cuda.Event() if on_gpu else None,
        )
        if reading.arrived:
            reading.arrived.record()
        return reading

    def numbers(self) -> dict[str, float]:
        """By name; with `effective_rank` where features were taken."""
        if self.arrived:
            self.arrived.synchronize()
        numbers = dict(zip(self.names, self.values.tolist(), strict=True))
        if self.features is not None and bool(self.features.isfinite().all()):
            numbers["effective_rank"] = rankme(self.features)
        return numbers
