"""What a file holds need not be what it should: any field may be missing, or another thing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Confused(NamedTuple):
    """One class taken for another, as files have it."""

    label: str
    taken_for: str
    images: int
    examples: list[str]  # ids of a few of them; none in files of before these were kept


def number(value: Any) -> float | None:
    """A finite number, and nothing else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def whole(value: Any) -> int | None:
    """A whole number, and nothing else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def at(values: Any, path: Sequence[str]) -> Any:
    """The value at the end of a path of names; None where it breaks off."""
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def records(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in listed(value) if isinstance(one, Mapping)]


def sentences(value: Any) -> list[str]:
    return [one for one in listed(value) if isinstance(one, str)]


def numbers(value: Any) -> dict[str, float]:
    found = {name: number(one) for name, one in mapping(value).items()}
    return {name: one for name, one in found.items() if one is not None}


def scored(value: Any) -> list[tuple[str, float]]:
    """(id, score) pairs."""
    pairs = [one for one in listed(value) if isinstance(one, list) and len(one) == 2]
    return [
        (one[0], score)
        for one in pairs
        if isinstance(one[0], str) and (score := number(one[1])) is not None
    ]


def confusions(value: Any) -> list[Confused]:
    """[class, taken for, images], and in files of today the ids of a few of these."""
    return [
        Confused(one[0], one[1], one[2], sentences(one[3]) if len(one) == 4 else [])
        for one in listed(value)
        if isinstance(one, list)
        and len(one) in (3, 4)
        and [type(part) for part in one[:3]] == [str, str, int]
    ]


def plain(value: Any) -> str:
    """A setting as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(plain(one) for one in value)
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    return str(value)


def counted(n: int, what: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def after(separator: str, text: str) -> str:
    """`text` behind a separator; nothing for no text."""
    return separator + text if text else ""
