"""The recipe as a list of settings, for whoever asks for them one by one: a form, a table.

    for setting in settings(Recipe()): ...            # optim.lr, a number, what it means
    recipe = changed(recipe, {"optim.lr": "0.001", "batch_size": 64})

Names, kinds and explanations are read off the dataclasses, so nothing is said twice.
"""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dino_core.errors import UserError
from dino_core.training.recipe import Recipe

Kind = Literal["whole", "number", "flag", "choice", "text", "numbers"]
TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Setting:
    """One field of a recipe."""

    name: str
    """Its path, e.g. `optim.lr`; a field of the run itself has no dot."""
    kind: Kind
    value: Any
    """What the recipe has; None where it leaves the choice to the program."""
    help: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    """Whether it may be left to the program."""

    @property
    def group(self) -> str:
        """The part of the recipe that it belongs to, "" for the run itself."""
        return self.name.rpartition(".")[0]

    def spelled(self) -> str:
        """Its value as it could be typed."""
        if self.value is None:
            return ""
        if self.kind == "numbers":
            return ", ".join(f"{one:g}" for one in self.value)
        return f"{self.value:g}" if self.kind == "number" else str(self.value)

    def read(self, typed: Any) -> Any:
        """A typed value as the field has it. Raises `UserError` for one that cannot be."""
        text = str(typed).strip()
        if self.optional and text.lower() in ("", "none"):
            return None
        try:
            return _READERS[self.kind](text, self)
        except ValueError as error:
            raise UserError(f"{self.name} is {text!r}; it has to be {error}") from None


def settings(recipe: Recipe) -> list[Setting]:
    """Every setting of a recipe, those of the run itself first."""
    found = list(_settings(recipe, ""))
    return sorted(found, key=lambda setting: bool(setting.group))


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, by path; each typed or of the field's own type.

    Raises `UserError` for a name that is none and a value that cannot be.
    """
    known = {setting.name: setting for setting in settings(recipe)}
    for name, typed in changes.items():
        if name not in known:
            raise UserError(f"{name}: the recipe has no such setting")
        recipe = _with(recipe, name.split("."), known[name].read(_joined(typed)))
    return recipe


def _settings(part: Any, prefix: str) -> Iterator[Setting]:
    hints, said = get_type_hints(type(part)), _explanations(type(part))
    for one in fields(part):
        value = getattr(part, one.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{one.name}.")
            continue
        kind, choices, optional = _kind(hints[one.name])
        help = said.get(one.name, "")
        yield Setting(f"{prefix}{one.name}", kind, value, help, choices, optional)


def _with(part: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(part, **{name: _with(getattr(part, name), rest, value) if rest else value})


def _kind(hint: Any) -> tuple[Kind, tuple[str, ...], bool]:
    """What may be typed there: its kind, the choices, and whether nothing is one of them."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (one for one in get_args(hint) if one is not type(None))
        return *_kind(inner)[:2], True
    if get_origin(hint) is Literal:
        return "choice", get_args(hint), False
    if get_origin(hint) is tuple:
        return "numbers", (), False
    named: dict[Any, Kind] = {bool: "flag", int: "whole", float: "number", str: "text"}
    return named[hint], (), False


def _explanations(cls: Any) -> dict[str, str]:
    """The string below each field of a dataclass, which Python itself does not keep."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    said = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            said[line.target.id] = " ".join(str(below.value.value).split())
    return said


# -- reading what was typed ---------------------------------------------------------------------


def _joined(typed: Any) -> Any:
    return ", ".join(map(str, typed)) if isinstance(typed, tuple | list) else typed


def _whole(text: str, _: Setting) -> int:
    value = _number(text, _)
    if value % 1:
        raise ValueError("a whole number")
    return int(value)


def _number(text: str, _: Setting) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not abs(value) < float("inf"):
        raise ValueError("a finite number")
    return value


def _flag(text: str, _: Setting) -> bool:
    if text.lower() not in TRUE | FALSE:
        raise ValueError("yes or no")
    return text.lower() in TRUE


def _choice(text: str, setting: Setting) -> str:
    if text not in setting.choices:
        raise ValueError(f"one of {', '.join(setting.choices)}")
    return text


def _numbers(text: str, setting: Setting) -> tuple[float, ...]:
    try:
        values = tuple(float(one) for one in text.strip("()[]").split(","))
    except ValueError:
        raise ValueError(f"numbers with commas between, e.g. {setting.spelled()}") from None
    # mean and std have as many as the images have channels; of the others each has its meaning
    if len(values) != len(setting.value) and not setting.name.endswith((".mean", ".std")):
        raise ValueError(f"{len(setting.value)} numbers, e.g. {setting.spelled()}")
    return values


_READERS = {
    "whole": _whole,
    "number": _number,
    "flag": _flag,
    "choice": _choice,
    "text": lambda text, _: text,
    "numbers": _numbers,
}
