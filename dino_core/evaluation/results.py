"""What the results of all protocols share: a model, its untrained twin, and what was left out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

UNTRAINED = "untrained"
SHOWN = 3  # names in a sentence


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one model under one protocol; each protocol adds its own."""

    model: str
    model_hash: str
    notes: list[str] = field(default_factory=list)  # sentences: what was left out and why
    random_init: Self | None = None  # the same for the untrained backbone

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the protocol's own fields first."""
        values = asdict(self)
        if self.random_init is not None:
            values["random_init"] = self.random_init.as_dict()
        shared = {one.name: values.pop(one.name) for one in fields(Result)}
        return values | shared

    def rows(self) -> dict[str, Self]:
        """What a table shows, by name: the model, and its untrained twin where that was judged."""
        rows = {self.model: self}
        if self.random_init is not None:
            rows[UNTRAINED] = self.random_init
        return rows


def named(names: Sequence[str]) -> str:
    """The first of many names, for a sentence: `a, b, c, ...`."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def left_out(names: Sequence[str], one: str, many: str) -> list[str]:
    """`3 images have no mask and are left out: a.jpg, b.jpg, c.jpg`; no sentence without names."""
    if not names:
        return []
    what = f"1 image {one} and is" if len(names) == 1 else f"{len(names):,} images {many} and are"
    return [f"{what} left out: {named(names)}"]


def unreadable(bad: Sequence[tuple[str, str]]) -> list[str]:
    """The same for (id, reason) of images that cannot be read."""
    names = [f"{name} ({reason})" for name, reason in bad]
    return left_out(names, "cannot be read", "cannot be read")
