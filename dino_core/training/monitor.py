"""Names what goes wrong while a run trains, with the remedy that the authors give.

Fed with the numbers of every watched step, it keeps the last `WINDOW` and answers with a `Warning`
when they show one of these (K prototypes, D dimensions; see `Watched` for the numbers):

uniform         every target is flat: its entropy stays near ln K (and so does the loss)
one prototype   all images share a target: the mean target has little entropy, ln K - kl_uniform
same features   the features of all images point the same way: deviation near 0, rank near 1
stuck           the loss has not left ln K in the first `PATIENT` share of the run
gradients       the gradient norm has grown a hundredfold over what it was

Thresholds and how soon each is named were measured (docs/log.md).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

WINDOW = 5  # watched steps that must agree
FLAT = 0.98  # of ln K: targets of a healthy teacher stay below, however early
SPREAD = 0.6  # of ln(min(K, views)): the entropy that the mean target of a healthy teacher exceeds
ALIKE = 0.05  # of the deviation that independent directions would have
NEAR = 0.02  # of ln K: how near to it a loss counts as stuck
PATIENT = 0.3  # of the run, in which a loss may stay there
EXPLODED = 100.0

JUDGED = (
    *("loss", "grad_norm", "teacher_entropy", "kl_uniform"),
    *("used_prototypes", "feature_std", "effective_rank"),
)  # the numbers that say something of trouble

Row = Mapping[str, float]

_LOWER = "lower --teacher-temp (0.02 to 0.04)"


@dataclass(frozen=True)
class Warning:
    """What was seen, since which step, and what to do."""

    kind: str
    step: int
    sentence: str
    collapse: bool = True


@dataclass
class Monitor:
    """Every kind of trouble is named once."""

    prototypes: int
    views: int
    """Global views in a step: two for each image of the batch."""
    steps: int
    """The run's length."""
    named: set[str] = field(default_factory=set)
    window: deque[Row] = field(default_factory=lambda: deque(maxlen=WINDOW))
    early_norms: list[float] = field(default_factory=list)

    def see(self, step: int, numbers: Row) -> list[Warning]:
        """The new warnings after a watched step; `numbers` are its metrics, all finite."""
        if "teacher_entropy" not in numbers or not all(map(math.isfinite, numbers.values())):
            return []
        self.window.append({name: numbers[name] for name in JUDGED if name in numbers})
        if len(self.early_norms) < WINDOW:
            self.early_norms.append(numbers["grad_norm"])
        if len(self.window) < WINDOW:
            return []
        found = [warning for warning in self._found(step) if warning.kind not in self.named]
        self.named |= {warning.kind for warning in found}
        return found

    def memory(self) -> dict[str, Any]:
        """What it must remember where a run goes on, as JSON: see `remember`."""
        return {
            "named": sorted(self.named),
            "window": [dict(row) for row in self.window],
            "early_norms": list(self.early_norms),
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from the `memory` of a monitor; from `{}` as one that has seen nothing."""
        self.named = set(memory.get("named", ()))
        self.window = deque(memory.get("window", ()), maxlen=WINDOW)
        self.early_norms = list(memory.get("early_norms", ()))

    def _found(self, step: int) -> list[Warning]:
        uniform = math.log(self.prototypes)
        spread = SPREAD * math.log(min(self.prototypes, self.views))
        seen = self._always
        found = []
        if seen(lambda row: row["teacher_entropy"] > FLAT * uniform):
            found.append(
                Warning(
                    "uniform",
                    step,
                    f"the teacher's targets are flat (entropy {self._last('teacher_entropy'):.2f} "
                    f"of ln K = {uniform:.2f}), so there is nothing to learn from them: {_LOWER}",
                )
            )
        elif seen(lambda row: uniform - row["kl_uniform"] < spread):
            found.append(
                Warning(
                    "one prototype",
                    step,
                    f"all images get the same target ({self._last('used_prototypes'):.0f} of "
                    f"{self.prototypes} prototypes used): use centering (--center-momentum 0.9), "
                    "raise --batch-size, or choose fewer prototypes (--out-dim)",
                )
            )
        if seen(self._same_features):
            found.append(
                Warning(
                    "same features",
                    step,
                    "the features of all images have become the same (deviation "
                    f"{self._last('feature_std'):.3f}, rank {self._last('effective_rank'):.1f}): "
                    f"lower --lr, {_LOWER}, or lower --momentum",
                )
            )
        if self._stuck(step, uniform):
            found.append(
                Warning(
                    "stuck",
                    step,
                    f"the loss has not left ln K = {uniform:.2f} in {step + 1} steps: {_LOWER}, "
                    "raise --batch-size, choose fewer prototypes (--out-dim), or lower --momentum",
                )
            )
        early = median(self.early_norms)
        if early > 0 and seen(lambda row: row["grad_norm"] > EXPLODED * early):
            found.append(
                Warning(
                    "gradients",
                    step,
                    f"the gradient norm has grown from {early:.3g} to "
                    f"{self._last('grad_norm'):.3g}: lower --lr, or clip more (--clip-grad)",
                    collapse=False,
                )
            )
        return found

    def _always(self, sign: Callable[[Row], bool]) -> bool:
        return all(map(sign, self.window))

    def _last(self, name: str) -> float:
        return self.window[-1].get(name, math.nan)

    @staticmethod
    def _same_features(row: Row) -> bool:
        return row["feature_std"] < ALIKE and row.get("effective_rank", 1.0) < 2

    def _stuck(self, step: int, uniform: float) -> bool:
        late = step + 1 >= PATIENT * self.steps
        return late and self._always(lambda row: abs(row["loss"] - uniform) < NEAR * uniform)
