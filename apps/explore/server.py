"""The explorer's own routes, beside Streamlit's: points, color codes, thumbnails, names.

A page of Streamlit would send a million points anew with every click; here the browser fetches them
once, as bytes, and keeps them. Every address names an open gallery by its key (see `opened`).
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from dino_core.errors import UserError
from dino_core.gallery.columns import stamp
from dino_core.gallery.thumbnails import is_placeholder
from explore import emerging, loading
from explore.components import ASSETS, ASSETS_URL
from explore.opened import Opened, by_key
from explore.options import options

THUMBNAIL_SIDE = 192  # pixels; shown at up to 96 CSS pixels on screens of twice the density
FOR_GOOD = {"Cache-Control": "private, max-age=31536000, immutable"}  # the key changes instead
NOT_AT_ALL = {"Cache-Control": "no-store"}
AS_IT_IS = {"Content-Encoding": "identity"}  # floats hardly shrink, and packing takes seconds
MOST_PUBLISHED = 256 << 20  # bytes

_published: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
_publishing = threading.Lock()


@asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    """Check the command line, then start importing torch while the first page is served."""
    options()
    loading.begin()
    yield


def points(opened: Opened, map_name: str) -> Response:
    """float32 [2, n]: all x, then all y."""
    if map_name not in opened.gallery.info.maps:
        return PlainTextResponse("no such map", 404)
    return _binary(np.concatenate(opened.xy(map_name)))


def codes(opened: Opened, what: str) -> Response:
    """uint8 or uint16 [n]: one color code per point. `what`: STAMP/COLUMN, as `codes_url` says."""
    try:
        return _binary(opened.coloring(what.partition("/")[2]).codes)
    except UserError as error:
        return PlainTextResponse(str(error), 404)


def codes_url(opened: Opened, column: str) -> str:
    """Where the browser finds a column's codes: another address when they change."""
    changed = stamp(opened.gallery, column)
    return f"explorer/codes/{opened.key}/{changed}/{quote(column, safe='')}"


def published(request: Request) -> Response:
    """What a page published under the hash of its content."""
    found = _published.get(request.path_params["name"])
    if found is None:
        return PlainTextResponse("this is not kept any more; reload the page", 404)
    content, media_type = found
    return Response(content, media_type=media_type, headers=FOR_GOOD | AS_IT_IS)


def publish(content: bytes | np.ndarray, media_type: str = "application/octet-stream") -> str:
    """Where the browser can fetch this; arrays go as little-endian bytes.

    Kept in memory while it is among the newest `MOST_PUBLISHED` bytes; who draws publishes again.
    """
    data = content if isinstance(content, bytes) else _little(content)
    name = hashlib.blake2b(data + media_type.encode(), digest_size=12).hexdigest()
    with _publishing:
        _published[name] = data, media_type
        _published.move_to_end(name)
        total = sum(len(one) for one, _ in _published.values())
        while total > MOST_PUBLISHED and len(_published) > 1:
            total -= len(_published.popitem(last=False)[1][0])
    return f"explorer/published/{name}"


def image(opened: Opened, row: int) -> Response:
    """A small JPEG of one image; a gray tile, not to be kept, while its file is gone."""
    if not 0 <= row < len(opened.labels):
        return PlainTextResponse("no such image", 404)
    try:
        thumbnail = opened.gallery.thumbnail(row, THUMBNAIL_SIDE)
    except (UserError, OSError, ValueError) as error:
        return PlainTextResponse(str(error), 404)
    keep = NOT_AT_ALL if is_placeholder(thumbnail) else FOR_GOOD
    return FileResponse(thumbnail, media_type="image/jpeg", headers=keep)


def info(opened: Opened, row: int) -> Response:
    """The name and label of one image, for the tooltip."""
    if not 0 <= row < len(opened.labels):
        return PlainTextResponse("no such image", 404)
    label = opened.labels.iloc[row]
    name = str(opened.gallery.images["id"].iloc[row])
    return JSONResponse(
        {"id": name, "label": None if label is None or label != label else str(label)},
        headers=FOR_GOOD,
    )


def _binary(values: np.ndarray) -> Response:
    return Response(
        _little(values), media_type="application/octet-stream", headers=FOR_GOOD | AS_IT_IS
    )


def _little(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _of_gallery(answer: Callable[[Opened, Any], Response]) -> Callable[[Request], Response]:
    """A handler that finds the gallery; not async, so that it runs in a thread of the server."""

    def handle(request: Request) -> Response:
        opened = by_key(request.path_params["key"])
        if opened is None:
            return PlainTextResponse("this gallery is not open; reload the page", 404)
        return answer(opened, request.path_params["what"])

    return handle


ROUTES: list[BaseRoute] = [
    Mount(f"/{ASSETS_URL}", StaticFiles(directory=ASSETS)),
    Route("/explorer/points/{key}/{what}", _of_gallery(points)),
    Route("/explorer/codes/{key}/{what:path}", _of_gallery(codes)),
    Route("/explorer/image/{key}/{what:int}", _of_gallery(image)),
    Route("/explorer/published/{name}", published),
    Route("/explorer/info/{key}/{what:int}", _of_gallery(info)),
    *emerging.ROUTES,
]
