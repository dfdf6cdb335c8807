"""A view: what someone is looking at, as one JSON or one URL query, replayed to the same picture.

    view = View(image=content_hash, model="starter", model_hash=model.hash, layer=11, head=2)
    View.from_query(view.to_query()) == view
    render(view, image, model).save("head.png")     # as the browser draws it
    export(view, image, model, "head.zip")          # picture, arrays, and all settings

The image travels as the hash of its content (`Source.fingerprint`), never as a path: whoever opens
a view finds the image by that hash among their gallery, the examples and their own uploads, or is
asked for it. A picture that `export` wrote holds its view: `read_view("head.png")`.
"""

import dataclasses
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
from PIL import Image, PngImagePlugin

import dino_core
from dino_core.errors import UserError
from dino_core.files import whole_file, whole_folder

if TYPE_CHECKING:
    from dino_core.lenses import Attention
    from dino_core.models import Model

Polygon = tuple[tuple[float, float], ...]

MODES = ("heat", "masked", "spotlight", "colored")
COLORMAPS = ("inferno", "magma", "viridis", "turbo", "gray")  # as in dino_core.lenses.colormap
LARGEST = 100_000  # pixels or patches: beyond any image, and small enough to compute with
PNG_KEY = "dino-view"  # of the tEXt chunk with a view's JSON
EXPORT_VERSION = 1
PICTURE, ARRAYS, ABOUT = "view.png", "attention.npz", "view.json"


@dataclass(frozen=True)
class View:
    """One look at one image through one model. Fields are checked when made (`UserError`)."""

    image: str  # hash of its content, as `Source.fingerprint` gives it
    model: str  # spec
    model_hash: str = ""  # "" accepts any weights behind the spec
    layer: int = -1  # from the front, 0 first; negative from the back
    head: int | None = None  # None: mean over the heads
    size: int | None = None  # short side in pixels; None: the lens's default
    query: tuple[int, int] | None = None  # (row, column) of the patch that looks; None: CLS
    rollout: bool = False  # all layers and heads in one map; then layer and head do not matter
    similar: bool = False  # how alike the patch at `query` is to all others; then no head matters
    mode: str = "heat"  # or "masked", "spotlight", "colored" (all heads' masks at once)
    keep: float | None = 0.6  # share of the mass in the mask, 0..1; None: all, and no outline
    opacity: float = 0.6  # 0..1
    colormap: str = "inferno"
    smooth: bool = True  # False: each patch a block
    outline: bool = True  # of the mask
    selection: Polygon = ()  # a polygon on the gallery's map, (x, y) in map coordinates

    def __post_init__(self) -> None:
        for name, (is_right, _) in _CHECKS.items():
            if not is_right(getattr(self, name)):
                raise UserError(_refusal(name, getattr(self, name)))
        if self.similar and self.query is None:
            raise UserError("view: similar is true, but query names no patch to be similar to")

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "View":
        """Read `to_json`'s text back; fields this version does not know are passed over."""
        try:
            values = json.loads(text)
            if isinstance(values.get("query"), list):
                values["query"] = tuple(values["query"])
            if "selection" in values:
                values["selection"] = tuple(tuple(point) for point in values["selection"])
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"view: not a JSON object of a view ({str(error)[:80]})") from None
        return cls._made(values)

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
        for name, read in _READERS.items():
            if name in values:
                try:
                    values[name] = read(values[name])
                except ValueError:
                    raise UserError(_refusal(name, values[name])) from None
        return cls._made(values)

    @classmethod
    def _made(cls, values: Mapping[str, Any]) -> "View":
        known = {
            field.name: values[field.name]
            for field in dataclasses.fields(cls)
            if field.name in values
        }
        missing = [name for name in ("image", "model") if name not in known]
        if missing:
            raise UserError(f"view: {' and '.join(missing)} missing; copy the whole link again")
        return cls(**known)


def read_view(path: str | Path) -> View:
    """The view in a JSON file, in a picture that `export` wrote, or in an export (zip or folder).

    Raises `UserError` when there is none in it.
    """
    try:
        path = Path(path) / ABOUT if Path(path).is_dir() else Path(path)
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if data.startswith(b"PK"):
        data = _about_in_zip(data, path)
    if data.startswith(b"\x89PNG"):
        return View.from_json(_text_in_png(data, path))
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(
            f"{path}: is neither a view's JSON nor a picture that was exported with its view"
        ) from None
    inner = values.get("view") if isinstance(values, dict) else None
    return View.from_json(json.dumps(values if inner is None else inner))


def _about_in_zip(data: bytes, path: Path) -> bytes:
    """The view's JSON of a zipped export."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(ABOUT).file_size <= LARGEST:
                return archive.read(ABOUT)
    except (zipfile.BadZipFile, KeyError, zlib.error, RuntimeError, NotImplementedError):
        pass
    raise UserError(f"{path}: a zip, but not one that was exported here: it has no {ABOUT}")


def render(view: View, image: np.ndarray, model: "Model") -> Image.Image:
    """The picture of `view`, as the browser draws it; long side 1200 to 1400 pixels.

    `image` uint8 [H, W, 3], the one with the hash `view.image`. Raises `UserError` when
    `model` has other weights than the view was made with, or lacks that layer, head or patch.
    """
    return Image.fromarray(_drawn(view, image, _Seen.by(view, image, model)))


def export(view: View, image: np.ndarray, model: "Model", out: str | Path) -> Path:
    """Write `exported`'s files into the new folder `out`, or into one file if it ends in .zip.

    Returns `out`. Raises `UserError` as `render` does, and where the folder is there already.
    """
    out = Path(out)
    if out.suffix.lower() != ".zip" and out.exists():
        raise UserError(f"{out}: is there already; name a new folder, or a .zip")
    files = exported(view, image, model)
    if out.suffix.lower() == ".zip":
        with whole_file(out) as aside:
            aside.write_bytes(zipped(files))
        return out
    with whole_folder(out) as aside:
        for name, data in files.items():
            (aside / name).write_bytes(data)
    return out


def exported(view: View, image: np.ndarray, model: "Model") -> dict[str, bytes]:
    """Everything that `view` shows, as files by name; the same view gives the same bytes.

    `view.png`: `render`'s picture, the view's JSON in it. `attention.npz`: `maps` float32 [heads,
    h, w] of the layer, `shown` float32 [n, h, w] and `mask` bool [n, h, w] as drawn, `view`, its
    JSON. `view.json`: the view, what made it (versions, the model's hash), the image's hash and
    size. Raises `UserError` as `render` does.
    """
    seen = _Seen.by(view, image, model)
    arrays, picture = io.BytesIO(), io.BytesIO()
    np.savez(
        arrays,
        maps=seen.attention.maps[0],
        shown=seen.shown,
        mask=seen.mask,
        view=np.array(view.to_json()),
    )
    Image.fromarray(_drawn(view, image, seen)).save(picture, "PNG", pnginfo=png_text(view))
    about = json.dumps(_about(view, seen.attention, model), indent=2, ensure_ascii=False) + "\n"
    return {PICTURE: picture.getvalue(), ARRAYS: arrays.getvalue(), ABOUT: about.encode()}


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Files by name as one zip; its entries are dated 1980, so that equal files make equal zips."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:  # they are compressed already
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return whole.getvalue()


def png_text(view: View) -> PngImagePlugin.PngInfo:
    """For `Image.save(..., pnginfo=)`: the view's JSON, from which `read_view` replays it."""
    info = PngImagePlugin.PngInfo()
    info.add_text(PNG_KEY, json.dumps(dataclasses.asdict(view)))  # ASCII, as tEXt wants it
    return info


@dataclass(frozen=True)
class _Seen:
    """What a view shows, decoded from a lens payload: what the browser gets, and so draws."""

    attention: "Attention"  # one layer
    shown: np.ndarray  # float32 [n, h, w]: one map, or each head's for "colored"
    mask: np.ndarray  # bool [n, h, w]

    @classmethod
    def by(cls, view: View, image: np.ndarray, model: "Model") -> "_Seen":
        from dino_core.lenses import LensPayload, mass_mask
        from dino_core.lenses.paint import brightest

        attention = _attention(view, image, model)
        if view.similar:
            return cls(attention, *_similar(view, image, model))
        payload = LensPayload.from_attention(attention)
        keep = 1.0 if view.keep is None else view.keep
        maps, masks = payload.maps()[0], payload.mass_mask(keep)[0]
        if view.mode == "colored":
            return cls(attention, maps, masks)
        if view.head is not None and not view.rollout:
            return cls(attention, maps[[view.head]], masks[[view.head]])
        mean = maps.mean(axis=0)
        kept = brightest(mean, int(mass_mask(mean, keep).sum()))
        return cls(attention, mean[None], kept[None])


def _attention(view: View, image: np.ndarray, model: "Model") -> "Attention":
    """The maps that `view` is of, as one layer. Raises `UserError` where `model` has no such."""
    from dino_core.lenses.attention import Attention, look, plan

    if view.model_hash not in ("", model.hash):
        raise UserError(
            f"{model.spec}: has other weights than this view was made with "
            f"({model.hash[:8]}, not {view.model_hash[:8]}); open the model {view.model}"
        )
    if view.rollout and not view.similar:
        from dino_core.lenses.rollout import rollout

        fed = plan(model, image.shape[0], image.shape[1], size=view.size)
        flow = rollout(model, image, size=view.size, query=view.query)
        return Attention(
            maps=flow[None, None],
            image_size=(fed.height, fed.width),
            source_size=(image.shape[0], image.shape[1]),
            patch_size=model.backbone.patch_size,
            model=model.spec,
            model_hash=model.hash,
            query=view.query,
        )
    attention = look(model, image, size=view.size, query=view.query)
    if not -attention.layers <= view.layer < attention.layers:
        raise UserError(f"view: layer {view.layer}, but {model.spec} has {attention.layers} layers")
    if view.head is not None and view.head >= attention.heads:
        raise UserError(f"view: head {view.head}, but {model.spec} has {attention.heads} heads")
    return attention.select([view.layer])


def _similar(view: View, image: np.ndarray, model: "Model") -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the patch at `view.query` with all, float32 [1, h, w], and which are kept."""
    from dino_core.lenses.paint import liking
    from dino_core.lenses.similarity import similarity
    from dino_core.lenses.tokens import read_tokens

    assert view.query is not None  # a view is checked when it is made
    cosines = similarity(read_tokens(model, image, size=view.size), *view.query)
    shown, mask = liking(cosines, 1.0 if view.keep is None else view.keep)
    return shown[None].astype(np.float32), mask[None]


def _drawn(view: View, image: np.ndarray, seen: _Seen) -> np.ndarray:
    """The picture, uint8 [H, W, 3]."""
    from dino_core.lenses.paint import Style, painted, painted_heads, staged, with_patch

    counts = seen.mask.sum(axis=(-2, -1)).tolist()
    by_head = view.mode == "colored" and not view.similar
    style = Style(
        mode="heat" if view.mode == "colored" else view.mode,
        opacity=view.opacity,
        colormap=view.colormap,
        smooth=view.smooth,
        outline=view.outline and view.keep is not None,
    )
    photo = staged(image)
    if by_head:
        picture = painted_heads(photo, seen.shown, style, counts)
    else:
        picture = painted(photo, seen.shown[0], style, counts[0])
    if view.query is not None:
        picture = with_patch(picture, view.query, seen.attention.grid)
    return picture


def _about(view: View, attention: "Attention", model: "Model") -> dict[str, Any]:
    """What `view.json` of an export says."""
    import timm
    import torch

    return {
        "version": EXPORT_VERSION,
        "view": dataclasses.asdict(view),
        "model": {**model.describe(), "hash": model.hash},
        "image": {
            "hash": view.image,
            "size": list(attention.source_size),  # (height, width) in pixels
            "fed": list(attention.image_size),
            "grid": list(attention.grid),
        },
        "versions": {
            "dino_core": dino_core.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
    }


def _text_in_png(data: bytes, path: str | Path) -> str:
    """The view's JSON in a PNG's text."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            text = picture.info.get(PNG_KEY)
    except Exception as error:  # Pillow raises nearly everything on broken files
        raise UserError(f"{path}: cannot be read as a picture ({error})") from None
    if not isinstance(text, str):
        raise UserError(f"{path}: this picture holds no view; give the view's JSON instead")
    return text


# -- fields -----------------------------------------------------------------------------------

Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    """JSON can carry half a character, which no URL can."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Finite, and no flag, which Python takes for a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _whole_from(least: int) -> Check:
    return lambda v: _is_number(v) and isinstance(v, int) and least <= v <= LARGEST


def _pair_of(check: Check) -> Check:
    return lambda v: isinstance(v, tuple) and len(v) == 2 and all(map(check, v))


def _is_polygon(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_pair_of(_is_number), value))


def _or_none(check: Check) -> Check:
    return lambda v: v is None or check(v)


_CHECKS: dict[str, tuple[Check, str]] = {
    "image": (_is_text, "a text"),
    "model": (_is_text, "a text"),
    "model_hash": (_is_text, "a text"),
    "layer": (_whole_from(-LARGEST), "a whole number"),
    "head": (_or_none(_whole_from(0)), "a whole number from 0, or none for the mean"),
    "size": (_or_none(_whole_from(1)), f"a number of pixels from 1 to {LARGEST:,}, or none"),
    "query": (_or_none(_pair_of(_whole_from(0))), "a patch's row and column, or none"),
    "rollout": (_is_flag, "true or false"),
    "similar": (_is_flag, "true or false"),
    "mode": (lambda v: v in MODES, f"one of {', '.join(MODES)}"),
    "keep": (_or_none(_is_share), "between 0 and 1, or none"),
    "opacity": (_is_share, "between 0 and 1"),
    "colormap": (lambda v: v in COLORMAPS, f"one of {', '.join(COLORMAPS)}"),
    "smooth": (_is_flag, "true or false"),
    "outline": (_is_flag, "true or false"),
    "selection": (_is_polygon, "points x, y of finite numbers"),
}


def _refusal(name: str, value: Any) -> str:
    """The sentence about a field; its value shortened, for a link may hold a whole book."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of more than 4,300 digits, or lists in lists in lists
        text = "far too long"
    shown = text if len(text) <= 60 else f"{text[:60]} …"
    return f"view: {name} is {shown}; it must be {_CHECKS[name][1]}"


def _written(value: Any) -> str:
    """A field's value as query text that `_READERS` turn back exactly."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        if value and not isinstance(value[0], tuple):
            return ",".join(map(str, value))
        return ";".join(f"{x!r},{y!r}" for x, y in value)
    return value if isinstance(value, str) else repr(value)


def _number(text: str) -> float | None:
    return None if text == "none" else float(text)


def _whole(text: str) -> int | None:
    return None if text == "none" else int(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _place(text: str) -> tuple[int, ...] | None:
    return None if text == "none" else tuple(map(int, text.split(",")))


def _polygon(text: str) -> Polygon:
    points = [point.split(",") for point in text.split(";") if point]
    return tuple((float(x), float(y)) for x, y in points)


_READERS: dict[str, Callable[[str], Any]] = {
    "layer": int,
    "head": _whole,
    "size": _whole,
    "query": _place,
    "rollout": _flag,
    "similar": _flag,
    "keep": _number,
    "opacity": float,
    "smooth": _flag,
    "outline": _flag,
    "selection": _polygon,
}
