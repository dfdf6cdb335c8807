"""Finding images by part of their id, and by what their columns say, among a million.

    suggestions(images["id"], "dog/1")                       # ids that a typist may mean
    asked = about(column(gallery, "breed"))                  # its values, or its range
    gallery.search(id, where=having(values, ["pug"]) & between(sizes, 0, 1e6))

`queries.filtered` is the plain twin of `having`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dino_core.gallery.queries import filtered

SUGGESTED = 12
MOST_VALUES = 1000  # that can be chosen from; of more, the most frequent
FEW_NUMBERS = 20  # distinct numbers up to which each is a choice of its own


@dataclass(frozen=True)
class About:
    """What can be asked of a column: one of its values, or, of numbers, a range."""

    values: list[Any]  # the most frequent first; None is what is missing; empty for a range
    counts: list[int]
    low: float = 0.0
    high: float = 0.0
    left_out: int = 0  # values too rare to be listed

    @property
    def is_range(self) -> bool:
        """Whether it is of many numbers, so that from and to are asked for."""
        return not self.values and self.high > self.low


def suggestions(ids: pd.Series, text: str, count: int = SUGGESTED) -> list[str]:
    """Ids that hold `text`, whatever the case: that id itself, then those whose file's name begins
    with it, then the rest; each in the order of rows.
    """
    text = text.strip()
    if not text:
        return []
    holding = ids[ids.str.contains(text, case=False, regex=False)]
    if holding.empty:
        return []
    folded = holding.iloc[: 100 * count].str.casefold()  # enough to find good ones among
    wanted = text.casefold()
    begins = folded.str.rsplit("/", n=1).str[-1].str.startswith(wanted).to_numpy(bool)
    order = np.argsort(np.where(folded == wanted, 0, np.where(begins, 1, 2)), kind="stable")
    exact = [text] if (holding == text).any() else []
    found = [id for id in holding.iloc[order[: count + 1]] if id not in exact]
    return [*exact, *map(str, found)][:count]


def about(values: pd.Series) -> About:
    """What can be asked of a column."""
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number and values.nunique() > FEW_NUMBERS:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        finite = numbers[np.isfinite(numbers)]
        return About([], [], float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf)))
    found = values.value_counts(dropna=True)
    found = found[found > 0]  # a category may have no image
    ranked = sorted(found.iloc[:MOST_VALUES].items(), key=lambda pair: (-pair[1], str(pair[0])))
    listed = [(value, int(count)) for value, count in ranked]
    missing = int(values.isna().sum())
    if missing:
        listed.append((None, missing))
    left_out = max(0, len(found) - MOST_VALUES)
    return About([value for value, _ in listed], [count for _, count in listed], left_out=left_out)


def having(values: pd.Series, wanted: list[Any]) -> np.ndarray:
    """Which images have one of the values, bool [n]; None is what is missing.

    As `queries.filtered`, but each distinct value is compared once.
    """
    if isinstance(values.dtype, pd.StringDtype):  # as distinct as ids, perhaps
        missing = any(not isinstance(one, str) and pd.isna(one) for one in wanted)
        found_N = values.isin([one for one in wanted if isinstance(one, str)]).to_numpy(bool)
        return found_N | values.isna().to_numpy(bool) if missing else found_N
    codes_N, distinct = pd.factorize(values)
    table = pd.DataFrame({"value": pd.Series([*distinct, None], dtype=object)})
    return filtered(table, "value", wanted)[codes_N]  # -1, missing, is the last


def between(values: pd.Series, low: float, high: float) -> np.ndarray:
    """Which images have a number from `low` to `high`, both included, bool [n]."""
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    return (numbers >= low) & (numbers <= high)
