"""What a page asks about the picture on it, and how a question from a browser is read.

Nothing a browser sends is trusted: every field is read with its kind and its bounds, and what does
not fit is a sentence. Importing this imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino_core.catalog.pictures import Picture
from dino_core.errors import UserError

LONGEST_SHOWN = 40  # characters


@dataclass(frozen=True)
class Scene:
    """What is on the page: a picture, the model that looks at it, and the gallery beside it."""

    picture: Picture
    model: str  # as picked or typed
    gallery: str | None = None  # public name
    size: int | None = None  # short side in pixels; None: the lens's default
    model_hash: str = ""  # of the weights that drew it; "": any
    names_allowed: bool = True  # whether published model names may be typed here


class Withdrawn(UserError):
    """Whoever asked wants no answer any more; nothing to be alarmed about."""

    def __init__(self) -> None:
        super().__init__("cancelled; nothing was kept")


@dataclass
class Job:
    """An answer that takes long: how far it is, and whether its asker still wants it."""

    done: int = 0
    total: int = 0  # 0: not known
    message: str = "waiting in line"
    cancelled: bool = False

    def tell(self, done: int, total: int, message: str) -> None:
        """Note how far the work is."""
        self.done, self.total, self.message = done, total, message


class Question:
    """The fields of one question, each read with its kind and bounds (`UserError` otherwise)."""

    def __init__(self, values: Any) -> None:
        self._values = dict(values) if isinstance(values, Mapping) else {}

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def whole(self, name: str, least: int = 0, most: int = 2**31) -> int:
        """A whole number in `least..most`."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
            raise UserError(f"{name} is {_shown(value)}; it must be a whole number")
        return int(self._bounded(name, value, least, most))

    def number(self, name: str, least: float, most: float) -> float:
        """A finite number in `least..most`."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name} is {_shown(value)}; it must be a number")
        return float(self._bounded(name, value, least, most))

    def text(self, name: str, longest: int = 200) -> str:
        """A text of at most `longest` characters."""
        value = self._values.get(name)
        if not isinstance(value, str) or len(value) > longest:
            raise UserError(f"{name} is missing or too long")
        return value

    def flag(self, name: str) -> bool:
        """True where the field is there and says so."""
        return self._values.get(name) is True

    def parts(self, name: str, most: int) -> list["Question"]:
        """Several questions inside the question, one at least."""
        values = self._values.get(name)
        if not isinstance(values, list) or not 1 <= len(values) <= most:
            raise UserError(f"{name}: there must be between 1 and {most} of them")
        return [Question({name: value}).part(name) for value in values]

    def part(self, name: str) -> "Question":
        """A question inside the question."""
        value = self._values.get(name)
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is missing")
        return Question(value)

    def _bounded(self, name: str, value: float, least: float, most: float) -> float:
        if not least <= value <= most:  # nor is NaN
            raise UserError(
                f"{name} is {_shown(value)}; it must lie between {least:g} and {most:g}"
            )
        return value


def _shown(value: Any) -> str:
    """What was sent, as far as it fits in a sentence."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"
