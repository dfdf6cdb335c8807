"""Where a value stops being usual, said by the values themselves.

Cosines of one model lie near 0.3, of another near 0.99, so no fixed threshold fits both. What they
share is the shape: distances spread by factors, not by sums. So a fence is the median of the
logarithms and a few of their robust standard deviations (1.4826 MAD; Rousseeuw & Croux,
"Alternatives to the median absolute deviation", 1993), which half of the values cannot move.
"""

import math

import numpy as np

MAD_TO_SIGMA = 1.4826  # of a normal distribution
SIGMAS = 3.0
LEAST = 1e-7  # distances below are none: float32 cosines near 1 are no finer


def fences(distances_N: np.ndarray, sigmas: float = SIGMAS) -> tuple[float, float]:
    """Below the first a distance is unusually small, above the second unusually large.

    `distances_N`: float, at least 0; what is not finite does not count. (0.0, inf) for none.
    """
    known = distances_N[np.isfinite(distances_N)]
    if len(known) == 0:
        return 0.0, float("inf")
    logs = np.log(np.maximum(known, LEAST).astype(np.float64))
    middle = float(np.median(logs))
    spread = sigmas * MAD_TO_SIGMA * float(np.median(np.abs(logs - middle)))
    return float(np.exp(middle - spread)), float(np.exp(middle + spread))


def scale(low: float, high: float, value: float, fewest: int = 100) -> tuple[float, ...]:
    """A scale in round steps, of at least `fewest`, that holds a range: (low, high, value, step).

    Steps are 1, 2 or 5 times a power of ten; `value` is brought onto the scale.
    """
    if not high > low:
        return low, low, low, 0.01
    finest = (high - low) / fewest
    power = math.floor(math.log10(finest))
    step = max(m * 10.0**power for m in (1, 2, 5) if m * 10.0**power <= finest * (1 + 1e-9))
    digits = max(0, -power)
    ends = (
        round(math.floor(low / step) * step, digits),
        round(math.ceil(high / step) * step, digits),
    )
    onto = round(round(value / step) * step, digits)
    return *ends, min(max(onto, ends[0]), ends[1]), round(step, digits)
