"""Durations as a person writes and says them."""

import re

from dino_core.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def seconds_of(duration: str) -> float:
    """`90s`, `30m`, `1.5h`, `2d` or `1h30m` in seconds; a `UserError` for anything else."""
    parts = _DURATION.findall(duration.strip())
    if not parts or "".join(number + unit for number, unit in parts) != duration.strip():
        raise UserError(f"{duration!r} is not a time; write 90s, 30m, 1.5h or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"{duration!r} leaves no time for anything; write e.g. 30m")
    return seconds


def spoken(seconds: float) -> str:
    """A duration as a person says it: 40 s, 25 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
