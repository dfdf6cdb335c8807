"""Which images may be found: columns and the values or ranges wanted of them, in the address."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery.columns import column, stamp
from dino_core.gallery.finding import About, about, between, having
from explore import address
from explore.opened import Opened
from explore.working import work

NO_VALUE = "no value"


@dataclass(frozen=True)
class Filter:
    """What a search is limited to."""

    key: tuple[Any, ...] = ()  # all that it depends on, besides the gallery
    allowed: np.ndarray | None = None  # bool [n]; None: everything

    @property
    def names(self) -> set[str]:
        """The columns it looks at."""
        return {name for name, *_ in self.key}

    @property
    def count(self) -> int | None:
        """Images that pass, None where all do."""
        return None if self.allowed is None else int(np.count_nonzero(self.allowed))


def show(opened: Opened) -> Filter | None:
    """The pickers; None while a column is being read, or cannot be, which the page then says."""
    names = address.several(
        "Filter by", "by", opened.columns, placeholder="choose columns",
        format_func=lambda name: name[:1].upper() + name[1:],
    )  # fmt: skip
    key: tuple[Any, ...] = ()
    allowed_N: np.ndarray | None = None
    for name in names:
        changed = stamp(opened.gallery, name)
        read = work(("column", opened.key, name, changed), f"Reading {name}", _reader(opened, name))
        if read is None:
            return None
        wanted, passing_N = _asked(name, *read)
        if passing_N is not None:
            key += ((name, changed, wanted),)
            allowed_N = passing_N if allowed_N is None else allowed_N & passing_N
    return Filter(key, allowed_N)


def _reader(opened: Opened, name: str) -> Any:
    def read(_progress: Any) -> tuple[pd.Series, About]:
        values = column(opened.gallery, name)
        return values, about(values)

    return read


def _asked(name: str, values: pd.Series, known: About) -> tuple[Any, np.ndarray | None]:
    """What is wanted of one column, and who has it; None: nothing in particular."""
    if known.is_range:
        low, high = _range(name, known)
        whole = (low, high) == (known.low, known.high)
        return (low, high), None if whole else between(values, low, high)
    counts = {str(value): count for value, count in zip(known.values, known.counts, strict=True)}
    wanted = address.several(
        name[:1].upper() + name[1:], f"is {name}", known.values, placeholder="choose values",
        format_func=lambda value: f"{_spoken(value)} ({counts[str(value)]:,})",
    )  # fmt: skip
    if known.left_out:
        st.caption(f"{known.left_out:,} rarer values of {name} are not listed.")
    return tuple(map(str, wanted)), having(values, wanted) if wanted else None


def _spoken(value: Any) -> str:
    return NO_VALUE if value is None else str(value)


def _range(name: str, known: About) -> tuple[float, float]:
    """From and to, as a slider with two ends."""
    key, low, high = f"{address.page()}_in {name}", known.low, known.high
    if key not in st.session_state:
        found = re.fullmatch(r"([-+.e\d]+)\.\.([-+.e\d]+)", address.get(f"in {name}") or "")
        try:
            ends = sorted(float(end) for end in found.groups()) if found else [low, high]
        except ValueError:
            ends = [low, high]
        st.session_state[key] = tuple(ends)
    first, last = (min(max(float(end), low), high) for end in st.session_state[key])
    st.session_state[key] = (first, last)
    st.slider(name[:1].upper() + name[1:], low, high, key=key)
    first, last = st.session_state[key]
    whole = (first, last) == (low, high)
    address.put(**{f"in {name}": None if whole else f"{first:.9g}..{last:.9g}"})
    return first, last


def sentence(chosen: Filter, total: int) -> str:
    """What was searched, for people."""
    if chosen.count is None:
        return f"Exact: compared with every one of {total:,} images."
    if chosen.count == 0:
        return "No image passes the filter; take a value out of it."
    return f"Exact: compared with every one of the {chosen.count:,} images that pass the filter."


def check(chosen: Filter) -> None:
    """Raise `UserError` where nothing can be found."""
    if chosen.count == 0:
        raise UserError(sentence(chosen, 0))
