"""The ground truth of revisited Oxford and Paris: which images show what a query shows.

    truth = read_ground_truth(Path("roxford5k/gnd_roxford5k.pkl"))
    truth.queries[0].easy, truth.queries[0].box

The published files are pickles, and whoever unpickles a file runs what is in it. Here the file is
read as data: its instructions are taken one by one, those that put numbers, texts, lists, tuples,
dicts and NumPy arrays together are followed, and nothing is imported or called. The same as JSON:

    {"imlist": ["a", ...], "qimlist": ["q", ...],
     "gnd": [{"bbx": [x1, y1, x2, y2], "easy": [0], "hard": [7, 9], "junk": []}, ...]}

`imlist` names the images that are searched, `qimlist` the queries, with or without ending; `gnd`
has one entry per query, whose numbers are places in `imlist`; `bbx` is optional.
"""

import hashlib
import json
import pickletools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dino_core.errors import UserError

LARGEST = 64 * 2**20  # bytes; the published files have a hundredth of that
DIFFICULTIES = ("easy", "hard", "junk")

_ARRAY = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_SCALAR = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_ENCODE = "_codecs.encode"
_BYTES = {"__builtin__.bytes", "builtins.bytes"}
_DTYPE = "numpy.dtype"
_KNOWN = {*_ARRAY, *_SCALAR, *_BUFFER, *_BYTES, _ENCODE, _DTYPE, "numpy.ndarray"}
_KINDS = "biufUS"  # NumPy's booleans, integers, floats and texts; never objects
_ENDIANS = "<>=|"


@dataclass(frozen=True)
class Query:
    """One question, and what answers it: places in `GroundTruth.images`, int64."""

    name: str
    box: tuple[float, float, float, float] | None  # left, top, right, bottom in pixels
    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclass(frozen=True)
class GroundTruth:
    """What a file of ground truth says."""

    name: str  # "roxford5k"
    images: list[str]
    queries: list[Query]
    digest: str  # sha256 of the file


def read_ground_truth(path: Path) -> GroundTruth:
    """Read `gnd_NAME.pkl` or `.json`; a `UserError` for whatever is no ground truth."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: is too large for a ground truth; name gnd_NAME.pkl or .json")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name gnd_NAME.pkl or .json"
        ) from None
    is_json = data.lstrip()[:1] == b"{"
    content = _from_json(data, path) if is_json else read_pickled_data(data, str(path))
    try:
        images, queries = _names(content, "imlist"), _names(content, "qimlist")
        entries = content["gnd"]
        if not isinstance(entries, list) or len(entries) != len(queries):
            raise ValueError(f"gnd must list one entry for each of the {len(queries)} queries")
        asked = [
            _query(name, entry, len(images)) for name, entry in zip(queries, entries, strict=True)
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path}: is no ground truth of the revisited benchmarks ({reason})"
        ) from None
    name = path.stem.removeprefix("gnd_")
    return GroundTruth(name, images, asked, hashlib.sha256(data).hexdigest())


def find_ground_truth(folder: Path | None) -> Path:
    """The one `gnd_*` file in a folder of images, or in the one above it."""
    for place in [] if folder is None else [folder, folder.absolute().parent]:
        found = sorted(path for end in (".pkl", ".json") for path in place.glob(f"gnd_*{end}"))
        if len(found) > 1:
            raise UserError(
                f"{place}: has {found[0].name} and {found[1].name}; name the one meant with "
                "--ground-truth"
            )
        if found:
            return found[0]
    raise UserError(
        f"{folder or 'these images'}: no ground truth there or in the folder above "
        "(gnd_NAME.pkl or .json, which says what each query shows); name the file with "
        "--ground-truth"
    )


def by_tail(names: Iterable[str]) -> dict[str, list[int]]:
    """The places of names by all that one may be called: `a/b.jpg`, `b.jpg`, `a/b`, `b`."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        path = PurePosixPath(name)
        for parts in (path.parts, path.with_suffix("").parts):
            for start in range(len(parts)):
                listed = places.setdefault("/".join(parts[start:]), [])
                if place not in listed[-1:]:
                    listed.append(place)
    return places


def places_of(wanted: Sequence[str], ids: Sequence[str], where: str) -> list[int | None]:
    """The place in `ids` of each name, None for one not there; `UserError` where two fit."""
    places = by_tail(ids)
    found: list[int | None] = []
    for name in wanted:
        fits = places.get(name, [])
        if len(fits) > 1:
            raise UserError(
                f"{where}: {name} may be {ids[fits[0]]} or {ids[fits[1]]}; name the folder that "
                "holds the images of this benchmark only"
            )
        found.append(fits[0] if fits else None)
    return found


def _from_json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def _names(content: Any, key: str) -> list[str]:
    if not isinstance(content, dict):
        raise TypeError("it is no dict with imlist, qimlist and gnd")
    names = content[key]
    names = names.tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"{key} is no list of names")
    told = [name.decode("utf-8") if isinstance(name, bytes) else name for name in names]
    if not all(isinstance(name, str) and name for name in told):
        raise ValueError(f"{key} holds something that is no name")
    return told


def _query(name: str, entry: Any, images: int) -> Query:
    if not isinstance(entry, dict):
        raise TypeError(f"the entry of {name} is no dict")
    easy, hard, junk = (_places(entry[key], images, f"{key} of {name}") for key in DIFFICULTIES)
    return Query(name, _box(entry.get("bbx"), name), easy, hard, junk)


def _places(values: Any, images: int, what: str) -> np.ndarray:
    array = np.array(values).reshape(-1)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{what} are no numbers of images")
    places = np.unique(array.astype(np.int64))
    if len(places) and not 0 <= places[0] <= places[-1] < images:
        raise ValueError(f"{what} are not all between 0 and {images - 1}")
    return places


def _box(values: Any, name: str) -> tuple[float, float, float, float] | None:
    if values is None:
        return None
    numbers = np.array(values, np.float64).reshape(-1)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise ValueError(f"bbx of {name} is not left, top, right, bottom")
    left, top, right, bottom = (float(value) for value in numbers)
    if right <= left or bottom <= top:
        raise ValueError(f"bbx of {name} is empty")
    return left, top, right, bottom


def read_pickled_data(data: bytes, name: str = "pickle") -> Any:
    """What a pickle of plain data holds, without unpickling it: nothing is imported or called.

    Known are None, booleans, numbers, texts, bytes, lists, tuples, dicts, and NumPy arrays and
    scalars of numbers (never of objects). Raises `UserError` for everything else.
    """
    try:
        return _Reader().read(data)
    except _Refused as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # a damaged file can make `pickletools` and NumPy fail in many ways
        kind = type(error).__name__
        raise UserError(f"{name}: is damaged, or no pickle ({kind}: {error})") from None


class _Refused(Exception):
    """Something that is no plain data; the message follows the file's name."""


@dataclass(frozen=True)
class _Name:
    """What a pickle would import; here it stays a name."""

    name: str


@dataclass
class _DType:
    """A NumPy type in the making; its byte order comes after its name."""

    code: str
    order: str = "="

    def made(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """A NumPy array in the making; its content comes after it."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS_AND_TEXTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_GATHERED = {"LIST": list, "TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    """Follows the instructions of a pickle that make data; the stack is a list of values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return _plain(self.stack.pop())
            self._follow(opcode.name, argument)
        raise ValueError("it ends too early")

    def _follow(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _NUMBERS_AND_TEXTS:
            stack.append(argument)
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code == "MARK":
            stack.append(_MARK)
        elif code in ("LIST", "TUPLE", "DICT"):
            items = self._marked()
            stack.append(_pairs(items) if code == "DICT" else _GATHERED[code](items))
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(self._last(_TUPLES[code]))]
        elif code in ("APPEND", "APPENDS"):
            items = self._marked() if code == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self._marked() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(_pairs(items))
        elif code == "POP":
            stack.pop()
        elif code == "POP_MARK":
            self._marked()
        elif code == "DUP":
            stack.append(stack[-1])
        else:
            self._follow_reference(code, argument)

    def _follow_reference(self, code: str, argument: Any) -> None:
        """What was said before, and what stands for NumPy's values."""
        stack = self.stack
        if code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "GLOBAL":
            stack.append(_known(argument.replace(" ", ".", 1)))
        elif code == "STACK_GLOBAL":
            module, attribute = self._last(2)
            stack[-2:] = [_known(f"{_expect(module, str)}.{_expect(attribute, str)}")]
        elif code == "REDUCE":
            what, arguments = self._last(2)
            stack[-2:] = [_stand_in(_expect(what, _Name).name, _expect(arguments, tuple))]
        elif code == "BUILD":
            state = stack.pop()
            _fill(stack[-1], _expect(state, tuple))
        elif code not in ("PROTO", "FRAME"):
            raise _Refused(f"holds more than plain data (instruction {code}), so it is not read")

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("too few values")
        return self.stack[-count:]

    def _marked(self) -> list[Any]:
        """The values since the last mark, which go with it."""
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _known(name: str) -> _Name:
    if name not in _KNOWN:
        raise _Refused(f"would import {name}, which is more than plain data, so it is not read")
    return _Name(name)


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(
            f"a {type(value).__name__} where {getattr(kind, '__name__', 'bytes')} belongs"
        )
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Key, value, key, value ... as a dict."""
    return dict(zip(items[::2], items[1::2], strict=True))


def _stand_in(name: str, arguments: tuple[Any, ...]) -> Any:
    """What calling `name` would give, for the few names that are known."""
    if name == _ENCODE:  # how protocol 2 writes bytes
        text, coding = arguments
        if coding != "latin1":
            raise _Refused(f"holds bytes as {coding}, which is not read")
        return _expect(text, str).encode("latin-1")
    if name in _BYTES and not arguments:  # and those of no length
        return b""
    if name == _DTYPE:
        code = _expect(arguments[0], str)
        plain = code.lstrip(_ENDIANS)
        if plain[:1] not in _KINDS or not plain[1:].isdecimal():
            raise _Refused(f"holds a NumPy array of type {code}, which is not read")
        return _DType(plain)
    if name in _ARRAY:
        return _Array()
    if name in _BUFFER:
        raw, dtype, shape, order = arguments
        array = _Array()
        _fill(array, (1, shape, dtype, order == "F", raw))
        return array
    if name in _SCALAR:
        dtype, raw = arguments
        return np.frombuffer(_raw(raw), _expect(dtype, _DType).made(), count=1)[0].item()
    raise _Refused(f"calls {name}, so it is not read")


def _fill(value: Any, state: tuple[Any, ...]) -> None:
    """The state of a NumPy type (its byte order) or array (shape, type, order, bytes)."""
    if isinstance(value, _DType):
        order = state[1]
        value.order = order if order in ("<", ">") else "="
        return
    _, shape, dtype, by_column, raw = state
    flat = np.frombuffer(_raw(raw), _expect(dtype, _DType).made())
    order = "F" if by_column else "C"
    _expect(value, _Array).values = flat.reshape(shape, order=order)  # type: ignore[call-overload]


def _raw(value: Any) -> bytes:
    """Bytes, which Python 2 wrote as text."""
    return (
        value.encode("latin-1")
        if isinstance(value, str)
        else bytes(_expect(value, (bytes, bytearray)))
    )


def _plain(value: Any, known: dict[int, Any] | None = None) -> Any:
    """The value with arrays in the place of what stood for them; what is shared stays shared.

    So a small file whose lists hold each other over and over makes no large value.
    """
    known = {} if known is None else known
    if isinstance(value, _Name | _DType) or value is _MARK:
        raise _Refused("holds names instead of data, so it is not read")
    if not isinstance(value, dict | list | tuple | _Array):
        return value
    if id(value) in known:
        if known[id(value)] is _MARK:
            raise _Refused("holds a list that holds itself, so it is not read")
        return known[id(value)]
    known[id(value)] = _MARK  # under way
    made: Any
    if isinstance(value, _Array):
        made = value.values
        if made is None:
            raise ValueError("an array without content")
    elif isinstance(value, dict):
        made = {key: _plain(one, known) for key, one in value.items()}
    else:
        made = type(value)(_plain(one, known) for one in value)
    known[id(value)] = made
    return made
