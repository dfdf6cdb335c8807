"""Polygons as text short enough for an address.

    spelled((((0.5, 1.25), (2.0, 0.0), (1.0, 3.0)),))     # "…", letters, digits, - and _
    read_polygons(text)                                    # the same again, exactly

The text is a row of whole numbers. Each is written five bits a letter, lowest first, and a sixth
bit says that more follow; a sign takes the lowest bit. The numbers are: the power of ten that all
coordinates are multiples of; for every polygon the number of its corners; for every corner how far
it lies from the one before, in x and in y. Two letters at the end tell whether all is as written.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal

Polygon = tuple[tuple[float, float], ...]  # corners (x, y)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # RFC 4648, base64url
LONGEST = 100_000  # letters that are read
FEWEST_CORNERS = 3
LARGEST_POWER = 400  # of ten: a float has none beyond


def spelled(polygons: Iterable[Polygon]) -> str:
    """The polygons as text; "" for none. Raises `ValueError` for what is not finite."""
    exact = [[(Decimal(repr(x)), Decimal(repr(y))) for x, y in polygon] for polygon in polygons]
    if not exact:
        return ""
    flat = [value.normalize() for polygon in exact for corner in polygon for value in corner]
    if not all(value.is_finite() for value in flat):
        raise ValueError("a corner lies nowhere")
    power = min((int(value.as_tuple().exponent) for value in flat if value), default=0)
    numbers, at = [power], (0, 0)
    for polygon in exact:
        numbers.append(len(polygon))
        for corner in polygon:
            x, y = (_multiple(value, power) for value in corner)
            numbers += [x - at[0], y - at[1]]
            at = x, y
    text = "".join(map(_written, numbers))
    return text + _check(text)


def read_polygons(text: str) -> tuple[Polygon, ...]:
    """What `spelled` wrote; () for "" and for anything that it did not write."""
    body, check = text[:-2], text[-2:]
    if len(text) > LONGEST or not body or check != _check(body):
        return ()
    try:
        return tuple(_polygons(_read(body)))
    except (ValueError, RuntimeError):  # RuntimeError: there are fewer numbers than it says
        return ()


def _polygons(numbers: Iterator[int]) -> Iterator[Polygon]:
    power, at = next(numbers), (0, 0)
    if abs(power) > LARGEST_POWER:
        raise ValueError(power)
    for count in numbers:
        if count < FEWEST_CORNERS:
            raise ValueError(count)
        corners = []
        for _ in range(count):
            at = at[0] + next(numbers), at[1] + next(numbers)
            corners.append((_float(at[0], power), _float(at[1], power)))
        yield tuple(corners)


def _float(times: int, power: int) -> float:
    value = float(f"{times}e{power}")
    if not math.isfinite(value):
        raise ValueError(times)
    return value


def _multiple(value: Decimal, power: int) -> int:
    """How many times ten to that power, exactly."""
    sign, digits, exponent = value.as_tuple()
    whole = int("".join(map(str, digits)) or "0") * 10 ** max(int(exponent) - power, 0)
    whole //= 10 ** max(power - int(exponent), 0)  # zeros at its end
    return -whole if sign else whole


def _written(number: int) -> str:
    left = number << 1 if number >= 0 else (-number << 1) - 1
    letters = ""
    while left >= 32:
        letters += LETTERS[32 | (left & 31)]
        left >>= 5
    return letters + LETTERS[left]


def _read(text: str) -> Iterator[int]:
    value = shift = 0
    for letter in text:
        bits = LETTERS.index(letter)
        value |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            yield -((value + 1) >> 1) if value & 1 else value >> 1
            value = shift = 0
    if shift:
        raise ValueError("ends within a number")


def _check(text: str) -> str:
    """Twelve bits of its CRC-32."""
    found = zlib.crc32(text.encode("utf-8", "replace"))
    return LETTERS[found & 63] + LETTERS[found >> 6 & 63]
