"""A view: what someone is looking at, as one JSON or one URL query, replayed to the same picture.

    view = View(image=content_hash, model="starter", model_hash=model.hash, layer=11, head=2)
    View.from_query(view.to_query()) == view
    render(view, image, model).save("head.png")

The image travels as the hash of its content (`Source.fingerprint`), never as a path: whoever opens
a view finds the image by that hash among their gallery, the examples and their own uploads, or is
asked for it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
from PIL import Image

from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.models import Model

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class View:
    """One look at one image through one model. Fields are checked when made (`UserError`)."""

    image: str  # hash of its content, as `Source.fingerprint` gives it
    model: str  # spec
    model_hash: str = ""  # "" accepts any weights behind the spec
    layer: int = -1  # from the front, 0 first; negative from the back
    head: int | None = None  # None: mean over the heads
    size: int | None = None  # short side in pixels; None: the lens's default
    keep: float | None = 0.6  # share of the mass outlined, 0..1; None: no outline
    opacity: float = 0.6  # of the heat map, 0..1
    colormap: str = "inferno"
    selection: Polygon = ()  # a polygon on the gallery's map, (x, y) in map coordinates

    def __post_init__(self) -> None:
        for name in ("keep", "opacity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:  # also refuses NaN
                raise UserError(f"view: {name} is {value}; it must lie between 0 and 1")
        for name in ("layer", "head", "size"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise UserError(f"view: {name} is {value!r}; it must be a whole number")
        if not all(math.isfinite(value) for point in self.selection for value in point):
            raise UserError("view: the selection has a coordinate that is not a finite number")

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "View":
        """Read `to_json`'s text back; fields this version does not know are passed over."""
        try:
            values = json.loads(text)
            points = tuple((float(x), float(y)) for x, y in values.get("selection", ()))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"view: not a JSON object of a view ({error})") from None
        return cls._made({**values, "selection": points})

    def to_query(self) -> str:
        """A URL query of the fields that differ from their defaults."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                values[field.name] = _written(value)
        return urlencode(values)

    @classmethod
    def from_query(cls, query: str) -> "View":
        """Read `to_query`'s text (with or without the leading ?) back; foreign keys are left."""
        values: dict[str, Any] = dict(parse_qsl(query.lstrip("?"), keep_blank_values=True))
        try:
            for name, read in _READERS.items():
                if name in values:
                    values[name] = read(values[name])
        except ValueError as error:
            raise UserError(f"view: the query's {name} cannot be read ({error})") from None
        return cls._made(values)

    @classmethod
    def _made(cls, values: Mapping[str, Any]) -> "View":
        known = {
            field.name: values[field.name]
            for field in dataclasses.fields(cls)
            if field.name in values
        }
        missing = [name for name in ("image", "model") if not isinstance(known.get(name), str)]
        if missing:
            raise UserError(f"view: {' and '.join(missing)} missing; copy the whole link again")
        try:
            return cls(**known)
        except TypeError as error:
            raise UserError(f"view: a field has the wrong kind ({error})") from None


def render(view: View, image: np.ndarray, model: "Model") -> Image.Image:
    """The picture of `view`: the heat map over the image, the mass mask outlined.

    `image` uint8 [H, W, 3], the one with the hash `view.image`. Raises `UserError` when
    `model` has other weights than the view was made with, or lacks that layer or head.
    """
    from dino_core.lenses import render as pictures  # torch is imported only to draw
    from dino_core.lenses.attention import look, mass_mask

    if view.model_hash not in ("", model.hash):
        raise UserError(
            f"{model.spec}: has other weights than this view was made with "
            f"({model.hash[:12]}, not {view.model_hash[:12]}); open the model {view.model}"
        )
    attention = look(model, image, size=view.size)
    if not -attention.layers <= view.layer < attention.layers:
        raise UserError(f"view: layer {view.layer}, but {model.spec} has {attention.layers} layers")
    if view.head is not None and not 0 <= view.head < attention.heads:
        raise UserError(f"view: head {view.head}, but {model.spec} has {attention.heads} heads")
    heads = attention.maps[view.layer]
    shown = heads.mean(axis=0) if view.head is None else heads[view.head]
    picture = pictures.overlay(pictures.displayed(image), shown, view.opacity, view.colormap)
    if view.keep is not None:
        picture = pictures.outline(picture, mass_mask(shown, view.keep))
    return Image.fromarray(picture)


def _written(value: Any) -> str:
    """A field's value as query text that `_READERS` turn back exactly."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ";".join(f"{x!r},{y!r}" for x, y in value)
    return value if isinstance(value, str) else repr(value)


def _number(text: str) -> float | None:
    return None if text == "none" else float(text)


def _whole(text: str) -> int | None:
    return None if text == "none" else int(text)


def _polygon(text: str) -> Polygon:
    points = [point.split(",") for point in text.split(";") if point]
    return tuple((float(x), float(y)) for x, y in points)


_READERS: dict[str, Callable[[str], Any]] = {
    "layer": int,
    "head": _whole,
    "size": _whole,
    "keep": _number,
    "opacity": float,
    "selection": _polygon,
}
