"""Schedules as pure functions: learning rate, weight decay, momentum, teacher temperature.

As published, the first three are indexed by iteration and the temperature by epoch. The learning
rate starts at exactly its start value (0) in iteration 0 and reaches its base at the last warm-up
iteration, which the cosine then repeats.
"""

import numpy as np


def cosine_schedule(
    base: float, final: float, steps: int, warmup_steps: int = 0, start: float = 0.0
) -> np.ndarray:
    """Linear warm-up from `start` to `base`, then half a cosine from `base` towards `final`.

    Returns float64 [steps]. Needs `0 <= warmup_steps <= steps`.
    """
    warmup = np.linspace(start, base, warmup_steps)
    remaining = steps - warmup_steps
    i = np.arange(remaining)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / max(remaining, 1)))
    return np.concatenate([warmup, cosine])


def teacher_temperature(epoch: int, warmup: float, final: float, warmup_epochs: int) -> float:
    """Linear from `warmup` in epoch 0 to `final` in epoch `warmup_epochs - 1`, then constant."""
    if epoch >= warmup_epochs:
        return final
    return float(np.linspace(warmup, final, warmup_epochs)[epoch])
