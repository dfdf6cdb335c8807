"""Runs whose history is open in this server, and the routes by which the browser fetches it.

The browser gets all checks of a picture at once and then moves through them by itself. A history is
known to it by a key that changes with every new check, never by a path: what a route sends may be
kept for good, and no address reaches a folder that no page has opened.
"""

import hashlib
import io
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dino_core.emergence import HeldOut, History
from dino_core.errors import UserError
from dino_core.gallery.thumbnails import placeholder_jpeg, thumbnail_jpeg
from dino_core.runs import Run

KEPT = 4
PICTURE_SIDE, TILE_SIDE = 720, 160  # pixels
FOR_GOOD = {"Cache-Control": "private, max-age=31536000, immutable"}  # the key changes instead
NOT_AT_ALL = {"Cache-Control": "no-store"}

_watched: OrderedDict[str, "Watched"] = OrderedDict()
_lock = threading.Lock()


@dataclass
class Watched:
    """A history that a page has opened."""

    key: str
    history: History
    held_out: HeldOut | None = None  # once the run's data is open


def key_of(run: Run) -> str:
    """Another one whenever the run has another check, or other data."""
    probes = run.path.resolve() / "probes"
    folders = [*sorted(probes.glob("step-*")), run.path / "recipe.json"]
    stamps = [f"{path.name} {path.stat().st_mtime_ns}" for path in folders if path.exists()]
    return hashlib.blake2b("\n".join([str(probes), *stamps]).encode(), digest_size=9).hexdigest()


def watch(run: Run) -> Watched:
    """The history of a run, read when it has changed. Raises `UserError` as `History.read`."""
    key = key_of(run)
    history = None if key in _watched else History.read(run)  # may take long: others go on
    with _lock:
        if key not in _watched:
            _watched[key] = Watched(key, history or History.read(run))
            while len(_watched) > KEPT:
                _watched.popitem(last=False)
        _watched.move_to_end(key)
        return _watched[key]


# -- routes -------------------------------------------------------------------------------------


def picture(watched: Watched, number: int) -> Response:
    """A fixed image, as a JPEG of at most 720 pixels."""
    with Image.open(io.BytesIO(watched.history.picture(number))) as kept:
        pixels = np.asarray(kept.convert("RGB"))
    return Response(thumbnail_jpeg(pixels, PICTURE_SIDE), media_type="image/jpeg", headers=FOR_GOOD)


def heads(watched: Watched, number: int, layer: int) -> Response:
    """One layer's lens payloads of a picture, one for each check."""
    return _bundle(watched.history.heads(number, layer))


def colors(watched: Watched, number: int) -> Response:
    """The patch colors of a picture at each check: h and w, uint16 each, then RGB."""
    found = watched.history.colors(number)
    return _bundle(
        [
            None if one is None else struct.pack("<HH", *one.shape[:2]) + one.tobytes()
            for one in found
        ]
    )


def tile(watched: Watched, row: int) -> Response:
    """A held-out image as a small JPEG; a gray tile while it cannot be had."""
    if not 0 <= row < len(watched.history.ids):
        return PlainTextResponse("no such image", 404)
    there = watched.held_out
    if there is None or not there.has(row):
        content, headers = placeholder_jpeg(TILE_SIDE), NOT_AT_ALL
    else:
        content, headers = there.thumbnail(row, TILE_SIDE), FOR_GOOD
    return Response(content, media_type="image/jpeg", headers=headers)


def bundled(parts: Sequence[bytes | None]) -> bytes:
    """Their number and lengths, uint32 little-endian (0 for None), then their bytes."""
    lengths = [len(part or b"") for part in parts]
    return struct.pack(f"<{1 + len(parts)}I", len(parts), *lengths) + b"".join(filter(None, parts))


def _bundle(parts: Sequence[bytes | None]) -> Response:
    return Response(bundled(parts), media_type="application/octet-stream", headers=FOR_GOOD)


def _of_run(answer: Callable[..., Response]) -> Callable[[Request], Response]:
    """A handler that finds the history; not async, so that it runs in a thread of the server."""

    def handle(request: Request) -> Response:
        given: dict[str, Any] = dict(request.path_params)
        watched = _watched.get(given.pop("key"))
        if watched is None:
            return PlainTextResponse("this run is not open; reload the page", 404)
        try:
            return answer(watched, *given.values())
        except (UserError, OSError, ValueError) as error:
            return PlainTextResponse(str(error), 404)

    return handle


AT = "/explorer/emergence/{key}"
ROUTES = [
    Route(f"{AT}/picture/{{number:int}}", _of_run(picture)),
    Route(f"{AT}/heads/{{number:int}}/{{layer:int}}", _of_run(heads)),
    Route(f"{AT}/colors/{{number:int}}", _of_run(colors)),
    Route(f"{AT}/image/{{row:int}}", _of_run(tile)),
]
