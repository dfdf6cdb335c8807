"""The lens for other programs: what `dino_core.api` answers, as five named endpoints of the page.

    from gradio_client import Client, handle_file
    Client("http://127.0.0.1:7860/").predict(handle_file("photo.jpg"), api_name="/attention")

    /embed      vector (a list of D numbers), kind, feature_hash
    /attention  maps (float32 [heads, h, w]), layer, query, image_size, source_size
    /similar    rows, ids, labels, scores (lists, best first), gallery
    /pca        colors (uint8 [h, w, 3]), foreground (bool [h, w]), basis (.npz in base64)
    /mask       patches (bool [h, w]), image ([height, width]), polygons (as `lenses.outlines` has)

Each names its `model`, all but /embed and /similar the `model_hash`, too. An array of more than one
dimension is an .npy file in base64: np.load(io.BytesIO(base64.b64decode(text))). Layers, heads,
rows and columns count from 0, and -1 is the last layer or head. Models and galleries are named as
the page lists them; "" is the page's own. On a page that is open to a network a program shows the
page's token T by Client(address, headers={"authorization": "Bearer T"}).

Programs wait in the same line as the page. Files are read only if they were uploaded.
"""

import base64
import binascii
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute

from dino_core import catalog
from dino_core.catalog import Question
from dino_core.data import decode_image
from dino_core.errors import UserError
from dino_core.serving import is_inside, may_change

if TYPE_CHECKING:
    from dino_core.api import Box, Result
    from dino_core.gallery import Gallery
    from dino_core.models import Model

MOST_BYTES = 8 * 2**20  # of an answer
MOST_BASIS = 400_000  # characters: width 4,096 in three directions, and more
MOST_FOUND = 1_000
MOST_VALUES = 1_000  # of a column, to be searched for
MOST = 100_000  # a bound of numbers whose own bound the model or the picture tells


class Page(gr.Blocks):
    """A page whose server opens no file but uploads, and fetches nothing for anyone.

    Gradio itself would download the address that a visitor names in place of an uploaded file.
    """

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if not all_uploaded(inputs, os.environ["GRADIO_TEMP_DIR"]):
            sentence = "the file did not arrive; send it itself, addresses are not fetched here."
            raise gr.Error(sentence, print_exception=False)
        super().validate_inputs(block_fn, inputs)


def all_uploaded(value: Any, folder: str) -> bool:
    """Whether each file that these JSON values name, as Gradio writes files, lies in `folder`."""
    if isinstance(value, Mapping):
        if "meta" in value and isinstance(path := value.get("path"), str):
            return is_inside(folder, path)
        value = value.values()
    elif not isinstance(value, list | tuple):
        return True
    return all(all_uploaded(one, folder) for one in value)


def not_fetched(rest: str) -> PlainTextResponse:
    """Gradio would hand on what lies at an address, as if it came from this machine."""
    return PlainTextResponse("addresses are not fetched here", status_code=403)


ROUTES = [
    APIRoute(f"/gradio_api/file={scheme}:{{rest:path}}", not_fetched, methods=["GET", "HEAD"])
    for scheme in ("http", "https")
]


class Endpoints:
    """The five answers, by the workbench of a page that listens on `host`, started with `token`."""

    def __init__(self, bench: catalog.Workbench, host: str, token: str | None) -> None:
        self.bench, self._host, self._token = bench, host, token

    def add(self) -> None:
        """Add them to the `gr.Blocks` that is being laid out."""
        for answer in (self.embed, self.attention, self.similar, self.pca, self.mask):
            name = answer.__name__
            gr.api(answer, api_name=name, concurrency_id="compute", concurrency_limit=1)

    def embed(
        self, image: gr.FileData, request: gr.Request, model: str = "", kind: str = "cls"
    ) -> dict[str, Any]:
        """The image's feature; kind: cls, cls+gem or mean patch."""
        with self._asked(image, model, request) as (opened, pixels):
            from dino_core import api

            return plain(api.embed(opened, pixels, kind=Question({"kind": kind}).text("kind")))

    def attention(
        self,
        image: gr.FileData,
        request: gr.Request,
        model: str = "",
        layer: int = -1,
        head: int | None = None,
        size: int | None = None,
        row: int | None = None,
        column: int | None = None,
    ) -> dict[str, Any]:
        """Where each head of a layer looks, or one of them: from CLS, or from one patch.

        size: short side in pixels at which the model looks.
        """
        with self._asked(image, model, request) as (opened, pixels):
            from dino_core import api

            asked = Question({"layer": layer, "row": row, "column": column})
            query = None
            if "row" in asked or "column" in asked:
                query = asked.whole("row", 0, MOST), asked.whole("column", 0, MOST)
            layer = asked.whole("layer", -MOST, MOST)
            seen = api.attention(opened, pixels, layer=layer, size=side(size), query=query)
            if head is not None:
                count = len(seen.maps)
                at = Question({"head": head}).whole("head", -count, count - 1)
                seen = dataclasses.replace(seen, maps=seen.maps[at][None])
            return plain(seen)

    def similar(
        self,
        image: gr.FileData,
        request: gr.Request,
        model: str = "",
        gallery: str = "",
        k: int = 20,
        box: list[float] | None = None,
        where: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The k images of a gallery most like the image, or like what is in a box of it.

        box: left, top, right, bottom in pixels; where: values by column, one or several.
        """
        with self._asked(image, model, request) as (opened, pixels):
            from dino_core import api

            k = Question({"k": k}).whole("k", 1, MOST_FOUND)
            found = self._gallery(gallery)
            return plain(api.similar(opened, found, pixels, k=k, box=sides(box), where=only(where)))

    def pca(
        self,
        image: gr.FileData,
        request: gr.Request,
        model: str = "",
        basis: str | None = None,
        foreground: bool = False,
        size: int | None = None,
    ) -> dict[str, Any]:
        """The image's patches as colors: its own, or those of the basis of another answer.

        foreground: color the foreground alone; size: short side in pixels.
        """
        with self._asked(image, model, request) as (opened, pixels):
            from dino_core import api
            from dino_core.lenses.pca import PcaBasis

            kept = None if basis is None else PcaBasis.from_bytes(decoded(basis), "this basis")
            only = foreground is True
            return plain(api.pca(opened, pixels, kept, foreground=only, size=side(size)))

    def mask(
        self,
        image: gr.FileData,
        request: gr.Request,
        model: str = "",
        kind: str = "object",
        layer: int = -1,
        head: int | None = None,
        keep: float = 0.6,
        size: int | None = None,
        refine: bool = False,
    ) -> dict[str, Any]:
        """The outlines of the object (kind object), or of what a head looks at (kind head).

        keep: the share of the head's attention, 0 to 1; without a head it is the mean of all.
        refine: draw outlines to the edges of the photo; size: short side in pixels.
        """
        with self._asked(image, model, request) as (opened, pixels):
            from dino_core import api

            asked = Question({"kind": kind, "layer": layer, "head": head, "keep": keep})
            found = api.mask(
                opened,
                pixels,
                kind=asked.text("kind"),
                layer=asked.whole("layer", -MOST, MOST),
                head=asked.whole("head", -MOST, MOST) if "head" in asked else None,
                keep=asked.number("keep", 0, 1),
                size=side(size),
                refine=refine is True,
            )
            outlined = json.loads(found.to_json())
            return plain(found, image=outlined["image"], polygons=outlined["polygons"])

    # -- what is asked about ----------------------------------------------------------------

    @contextmanager
    def _asked(
        self, image: Any, model: str, request: gr.Request
    ) -> Iterator[tuple["Model", np.ndarray]]:
        """The model, and the pixels uint8 [H, W, 3], while nobody else computes.

        A `UserError` in the block reaches whoever asked as a sentence without paths.
        """
        try:
            self.bench.wait()
            pixels = self._pixels(image)
            spec = Question({"model": model}).text("model") or self.bench.named_model or ""
            with self.bench.computing():
                yield self.bench.open_model(spec, self._names_allowed(request)), pixels
        except UserError as error:
            raise gr.Error(f"{self.bench.sentence(error)}.", print_exception=False) from None

    def _names_allowed(self, request: gr.Request) -> bool:
        """Whether this program may name published models, which are downloaded."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        return may_change(self._host, self._token, given if kind.lower() == "bearer" else None)

    def _pixels(self, image: Any) -> np.ndarray:
        """The uploaded file. Raises `UserError` for any other, which is not opened."""
        file = Question({"image": image}).part("image")
        name = file.text("orig_name", 4_096) if "orig_name" in file else "image"
        sent = Question({"path": file.text("path", 4_096), "name": name})
        path, name = self.bench.upload_named(sent)
        return catalog.load(
            catalog.Picture(name, "", str(path), lambda: decode_image(path, catalog.MAX_PIXELS))
        )

    def _gallery(self, name: str) -> "Gallery":
        """By its key, its title, or the name that the title begins with; "": the first."""
        name = Question({"gallery": name}).text("gallery")
        there = self.bench.galleries()
        for key, title in there:
            if name in ("", key, title, title.partition(" · ")[0]):
                return self.bench.gallery_at(key)
        if not there:
            raise UserError("there is no gallery here; make one with scripts/embed.py")
        titles = ", ".join(title for _, title in there)
        raise UserError(f"{name}: no gallery of that name here; there are {titles}")


# -- values -----------------------------------------------------------------------------------


def side(size: Any) -> int | None:
    """The short side in pixels, where one is asked for."""
    return None if size is None else Question({"size": size}).whole("size", 1, MOST)


def sides(box: Any) -> "Box | None":
    """Left, top, right, bottom in pixels. Raises `UserError` for anything but four numbers."""
    if box is None:
        return None
    names = ("left", "top", "right", "bottom")
    if not isinstance(box, list) or len(box) != len(names):
        raise UserError("box: must be a list of left, top, right and bottom in pixels")
    asked = Question(dict(zip(names, box, strict=True)))
    left, top, right, bottom = (asked.number(name, 0, catalog.MAX_PIXELS) for name in names)
    return left, top, right, bottom


def only(where: Any) -> dict[str, list[Any]] | None:
    """Values by column. Raises `UserError` for what no table could hold."""
    if where is None:
        return None
    if not isinstance(where, Mapping):
        raise UserError('where: must be values by column, such as {"label": ["cat", "dog"]}')
    lists = {name: value if isinstance(value, list) else [value] for name, value in where.items()}
    for name, values in lists.items():
        if len(values) > MOST_VALUES or not all(isinstance(v, str | int | float) for v in values):
            raise UserError(f"where: {name} must be texts or numbers, {MOST_VALUES:,} at most")
    return lists


def decoded(basis: Any) -> bytes:
    """The bytes of a basis. Raises `UserError` for what is not base64."""
    try:
        return base64.b64decode(Question({"basis": basis}).text("basis", MOST_BASIS), validate=True)
    except binascii.Error:
        raise UserError("basis: is not the base64 of one; fit it again") from None


def plain(result: "Result", **more: Any) -> dict[str, Any]:
    """An answer as JSON values, as the top of this file says; `more` stands beside its fields.

    Raises `UserError` where it would be too large.
    """
    found = {one.name: getattr(result, one.name) for one in dataclasses.fields(result)}  # type: ignore[arg-type]
    found = {name: text_of(value) for name, value in found.items() if name != "pixels"} | more
    found["model"] = catalog.model_title(found["model"])
    if len(json.dumps(found)) > MOST_BYTES:
        raise UserError(
            f"the answer: is larger than {MOST_BYTES // 2**20} MB; ask at a smaller size, or "
            "without refine"
        )
    return found


def text_of(value: Any) -> Any:
    """A field for JSON."""
    if isinstance(value, np.ndarray):
        if value.ndim == 1:
            return value.tolist()
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return base64.b64encode(file.getvalue()).decode()
    from dino_core.lenses.pca import PcaBasis

    if isinstance(value, PcaBasis):
        named = dataclasses.replace(value, model=catalog.model_title(value.model))
        return base64.b64encode(named.to_bytes()).decode()
    return value
