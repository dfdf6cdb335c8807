"""The lens: attention heads of a model on a picture, and its nearest neighbors in a gallery.

    python apps/lens.py [--model SPEC] [--gallery PATH] [--root DIR] [--host H] [--port 7860]

The page answers at once; PyTorch is loaded behind it. Everything is drawn in the browser by
assets/overlay.js; state and computing live in `dino_core.catalog`.
"""

import atexit
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

for folder in Path(__file__).resolve().parents[:2]:  # what lies beside this file, and dino_core
    sys.path.insert(0, str(folder))
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"  # else newer Gradio keeps every look in the browser
if "GRADIO_TEMP_DIR" not in os.environ:  # uploads go there: ours alone, and gone at the end
    os.environ["GRADIO_TEMP_DIR"] = OWN_UPLOADS = tempfile.mkdtemp(prefix="dino-lens-")
    atexit.register(shutil.rmtree, OWN_UPLOADS, ignore_errors=True)
else:
    OWN_UPLOADS = ""

import base64

import endpoints
import gradio as gr
import tyro
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.routing import APIRoute

from dino_core import catalog
from dino_core.errors import INTERRUPTED, UserError, command
from dino_core.gallery.thumbnails import is_placeholder
from dino_core.memory import share_heaps
from dino_core.serving import addresses, choose_port, may_change

ASSETS = Path(__file__).parent / "assets"
EXAMPLE_SIDE = 176  # pixels, twice what a tile shows
NEIGHBORS = 20
UPLOAD_SECONDS = 86_400  # so long an uploaded file is kept while the page runs


@dataclass(frozen=True)
class Options:
    """Look at attention heads and nearest neighbors in a browser: python apps/lens.py"""

    model: str | None = None
    """Model to begin with: starter, runs/NAME, a weights file, or timm:NAME."""
    gallery: Path | None = None
    """Gallery to begin with, a folder made by scripts/embed.py."""
    root: Path = Path()
    """The folder that holds runs/ and galleries/."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the page to the network."""
    port: int = 7860
    """Port to listen on; the next free one is taken if it is in use."""
    token: str | None = None
    """With another host: ?token=T in the page's address allows typed model names."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


class LensPage:
    """Layout and wiring of the page; what it shows comes from the workbench."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.bench = catalog.Workbench(
            options.root,
            model=options.model or next((m.spec for m in catalog.models(options.root)), None),
            gallery=options.gallery,
            device=options.device,
            uploads=os.environ["GRADIO_TEMP_DIR"],
        )
        self.examples = self.bench.examples

    # -- layout -----------------------------------------------------------------------------

    def blocks(self) -> gr.Blocks:
        with endpoints.Page(
            title="DINO Lens",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(600, UPLOAD_SECONDS),
        ) as blocks:
            self.shown = gr.State(None)  # the scene that is drawn, whatever is picked by now
            self.address = gr.Textbox(visible=False)  # what the browser was opened with
            with gr.Row(elem_id="lens-bar"):
                mounted("brand", elem_id="lens-brand", value=(ASSETS / "mark.svg").read_text())
                self.model = gr.Dropdown(
                    **self._model_choices(),
                    label="Model",
                    allow_custom_value=True,
                    elem_id="lens-model",
                )
                self.gallery = gr.Dropdown(
                    **self._gallery_choices(), label="Gallery", elem_id="lens-gallery"
                )
                self.refresh = gr.Button("Refresh", elem_id="lens-refresh", min_width=40)
                mounted("colors", elem_id="lens-colors")
            self.status = mounted("status", elem_id="lens-status", value=self._told())
            self.picker = mounted("picker", elem_id="lens-picker", value=self._example_tiles())
            self.stage = mounted("stage", elem_id="lens-stage")
            self.answers = mounted("answers", elem_id="lens-answers")
            self.neighbors = mounted("neighbors", elem_id="lens-neighbors")
            self._wire(blocks)
            endpoints.Endpoints(self.bench, self.options.host, self.options.token).add()
        return blocks

    def _wire(self, blocks: gr.Blocks) -> None:
        pickers = [self.model, self.gallery]
        outputs = [self.shown, self.stage, self.neighbors, self.status]
        scene = [self.shown, self.gallery]
        compute: dict[str, Any] = {
            "outputs": outputs,
            "show_progress": "minimal",  # the place in line, beside the status
            "show_progress_on": [self.status],
            "trigger_mode": "always_last",
            "concurrency_id": "compute",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        light: dict[str, Any] = {
            "show_progress": "hidden",
            "queue": False,
            "api_visibility": "private",
        }
        timer = gr.Timer(0.7)
        timer.tick(self.tell_start, None, [self.status, timer], **light)
        blocks.load(self.list_again, pickers, pickers, **light)
        opening = {**compute, "outputs": [*outputs, *pickers]}
        blocks.load(self.first, [*pickers, self.address], js=ADDRESS, **opening)
        self.refresh.click(self.list_again, pickers, pickers, **light)
        again = {**compute, "trigger_mode": "multiple"}  # lens.js asks again for what got lost
        self.picker.upload(self.upload, pickers, **again)
        self.picker.select(self.example, pickers, **again)
        self.neighbors.select(self.neighbor, pickers, **compute)
        self.model.input(self.again, [self.shown, *pickers], js=BUSY, **compute)
        self.gallery.input(self.beside, scene, js=BUSY, **compute)
        self.stage.submit(self.resize, scene, **compute)
        asking = {**compute, "outputs": [self.answers, self.status], "trigger_mode": "multiple"}
        self.stage.select(self.ask, scene, **asking)
        self.stage.tick(self.how_far, None, self.answers, **light)
        self.stage.stop(self.cancel, None, None, **light)

    # -- events -----------------------------------------------------------------------------

    def first(self, model: str, gallery: str, address: str, request: gr.Request) -> Iterator[Any]:
        """Begin with what the address says, or an example: nobody meets an empty page."""
        picture, problem = None, None
        try:
            link = catalog.Link.read(address)
            if link.view:
                picture = self.bench.find(link.view.image, link.upload)
                names = self._names(request) and self.bench.is_open(link.view.model)
                self.bench.look(picture, link.view.model, size=link.view.size, names_allowed=names)
        except UserError as error:
            link, picture, problem = catalog.Link(), None, self._problem(error)
        keys = [key for key, _ in self.bench.galleries()]
        gallery = link.gallery if link.gallery in keys else gallery
        model, size = (link.view.model, link.view.size) if link.view else (model, None)
        picture = picture or catalog.from_example(self.examples[0])
        for shown in self._show(picture, size, model, gallery, request):
            pickers = self._model_choices(model), self._gallery_choices(gallery)
            *shown, status = shown
            yield *shown, problem or status, *(gr.Dropdown(**choices) for choices in pickers)

    def again(
        self, shown: catalog.Scene | None, model: str, gallery: str, request: gr.Request
    ) -> Iterator[Any]:
        """The same picture, seen by another model."""
        picture = shown.picture if shown else catalog.from_example(self.examples[0])
        yield from self._show(picture, shown.size if shown else None, model, gallery, request)

    def beside(
        self, shown: catalog.Scene | None, gallery: str, request: gr.Request
    ) -> tuple[Any, ...]:
        """The same scene beside another gallery."""
        if shown is None:
            return gr.skip(), gr.skip(), gr.skip(), self._told()
        near = self._near(shown.picture, shown.model, gallery, self._names(request))
        return gr.skip(), gr.skip(), near, self._told()

    def resize(
        self, shown: catalog.Scene | None, gallery: str, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        """The same picture at another size."""
        try:
            if shown is None:
                raise UserError("there is no picture yet; choose one")
            size = catalog.Question(event._data or {}).whole("size", 1)
        except UserError as error:
            yield self._unchanged(error)
        else:
            yield from self._show(shown.picture, size, shown.model, gallery, request)

    def ask(
        self, shown: catalog.Scene | None, gallery: str, event: gr.EventData, request: gr.Request
    ) -> tuple[Any, Any]:
        """A question about the picture; the answer goes back under the question's number."""
        asked = catalog.Question(event._data or {})
        number = "?"
        try:
            number = asked.text("number")
            if shown is None:
                raise UserError("there is no picture yet; choose one")
            scene = replace(shown, gallery=gallery, names_allowed=self._names(request))
            answer = self.bench.ask(scene, asked.text("about"), asked.part("details"), number)
        except UserError as error:
            problem = {"number": number, "problem": self.bench.sentence(error)}
            wanted = not isinstance(error, catalog.Withdrawn)
            return problem, self._problem(error) if wanted else gr.skip()
        return {"number": number, "answer": answer}, gr.skip()

    def upload(
        self, model: str, gallery: str, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        try:
            picture = self.bench.picture_named(catalog.Question(event._data or {}))
        except UserError as error:
            yield self._unchanged(error)
        else:
            yield from self._show(picture, None, model, gallery, request)

    def example(
        self, model: str, gallery: str, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        example = self.examples[int(event.index) % len(self.examples)]
        yield from self._show(catalog.from_example(example), None, model, gallery, request)

    def neighbor(
        self, model: str, gallery: str, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        try:
            picture = self.bench.picture(str(event.key), int(event.row))
        except UserError as error:
            yield self._unchanged(error)
        else:
            yield from self._show(picture, None, model, gallery, request)

    def how_far(self, event: gr.EventData) -> Any:
        """How far the answer is that the browser waits for under a number."""
        number = catalog.Question(event._data or {}).text("number")
        return {"number": number, "job": vars(self.bench.job(number) or catalog.Job())}

    def cancel(self, event: gr.EventData) -> None:
        """Let the answer under a number be; whoever asked it is told so."""
        self.bench.cancel(catalog.Question(event._data or {}).text("number"))

    def list_again(self, model: str | None, gallery: str | None) -> list[Any]:
        """What there is by now; what was picked stays picked while it is there."""
        return [
            gr.Dropdown(**self._model_choices(model)),
            gr.Dropdown(**self._gallery_choices(gallery)),
        ]

    def tell_start(self) -> tuple[Any, Any]:
        """How far loading has come, until it is done."""
        loading = self.bench.status().state == "loading"
        return (self._told() if loading else gr.skip()), gr.Timer(active=loading)

    def _show(
        self,
        picture: catalog.Picture,
        size: int | None,
        model: str | None,
        gallery: str | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """First what the model sees, then the neighbors. A mistake leaves what was there."""
        names = self._names(request)
        try:
            sight = self.bench.look(picture, model or "", size=size, names_allowed=names)
        except UserError as error:
            yield self._unchanged(error)
            return
        scene = catalog.Scene(picture, model or "", gallery, size, sight.model_hash)
        drawing = drawn(scene, sight) | self._tab_choices()
        yield scene, drawing, gr.skip(), told("ready", sight.sentence)
        yield gr.skip(), gr.skip(), self._near(picture, scene.model, gallery, names), gr.skip()

    def _names(self, request: gr.Request) -> bool:
        """Whether this visitor may type the names of published models."""
        token = request.query_params.get("token")
        return may_change(self.options.host, self.options.token, token)

    def _near(
        self, picture: catalog.Picture, model: str, gallery: str | None, names: bool
    ) -> dict[str, Any]:
        command = EMBED.format(model)
        if not gallery:
            return {"sentence": "No gallery yet. Make one of your own images:", "command": command}
        try:
            near = self.bench.neighbors(picture, model, gallery, k=NEIGHBORS, names_allowed=names)
        except UserError as error:
            said = self.bench.sentence(error)
            return {"sentence": f"{said}, or make one with this model:", "command": command}
        return near.to_json() | {"command": command}

    def _problem(self, error: UserError) -> dict[str, Any]:
        return told("problem", f"{self.bench.sentence(error)}.")

    def _unchanged(self, error: UserError) -> tuple[Any, ...]:
        """Say what was wrong; picture, heads and neighbors stay as they were."""
        return gr.skip(), gr.skip(), gr.skip(), self._problem(error)

    # -- values -----------------------------------------------------------------------------

    def _told(self) -> dict[str, Any]:
        status = self.bench.status()
        return told(status.state, status.sentence)

    def _model_choices(self, picked: str | None = None) -> dict[str, Any]:
        choices = [(entry.title, entry.spec) for entry in self.bench.models()]
        if picked and picked not in [spec for _, spec in choices]:
            choices.append((picked, picked))  # typed by the visitor
        first = catalog.model_title(self.bench.named_model) if self.bench.named_model else None
        return {"choices": choices, "value": picked or first}

    def _tab_choices(self) -> dict[str, Any]:
        """What the tabs offer: models to compare with, and how large a second picture may be."""
        models = [(entry.title, entry.spec) for entry in self.bench.models()]
        return {"models": models, "limit": catalog.MAX_UPLOAD}

    def _gallery_choices(self, picked: str | None = None) -> dict[str, Any]:
        choices = [(title, key) for key, title in self.bench.galleries()]
        keys = [key for _, key in choices]  # the one named at the start stands first
        return {"choices": choices, "value": picked if picked in keys else next(iter(keys), None)}

    def _example_tiles(self) -> dict[str, Any]:
        tiles = []
        for example in self.examples:
            image = catalog.load(catalog.from_example(example))
            small = catalog.jpeg_url(catalog.jpeg(image, EXAMPLE_SIDE, quality=80))
            tiles.append({"title": example.title, "credit": example.credit, "image": small})
        return {"examples": tiles, "limit": catalog.MAX_UPLOAD}

    def thumbnail(self, key: str, row: int) -> Any:
        """A neighbor's thumbnail from the gallery's cache; a gray tile while its image is gone."""
        try:
            path = self.bench.thumbnail(key, row)
        except UserError as error:
            return PlainTextResponse(f"{error}", status_code=404)
        keep = "no-store" if is_placeholder(path) else "private, max-age=600"
        return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": keep})


SCRIPTS = {  # what a part of the page loads before lens.js
    "picker": ("webcam.js",),
    "stage": (
        *("overlay.js", "pieces.js", "second.js"),
        *("colors.js", "object.js", "pairs.js", "compare.js", "clips.js", "health.js"),  # the tabs
    ),
}
EMBED = "python scripts/embed.py --model {} --data FOLDER --out galleries/NAME"
_numbers = itertools.count()
ADDRESS = "(model, gallery) => [model, gallery, lensAddress()]"
BUSY = "(...values) => { globalThis.lensBusy?.(true); return values; }"


def mounted(part: str, value: Any = None, elem_id: str = "") -> gr.HTML:
    """An element of the page that assets/lens.js fills: `part` names the function that does."""
    names = (*SCRIPTS.get(part, ()), "lens.js")
    code = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)
    start = f"lensParts['{part}']({{element, props, trigger, upload, watch}});"
    return gr.HTML(
        value,
        html_template="<div class='lens-mount'></div>",
        js_on_load=f"{code}\n{start}",
        apply_default_css=False,
        elem_id=elem_id,
    )


def told(state: str, sentence: str) -> dict[str, Any]:
    """A line for the status; numbered, as the browser is only told of values that differ."""
    return {"state": state, "sentence": sentence, "number": next(_numbers)}


def drawn(scene: catalog.Scene, sight: catalog.Sight) -> dict[str, Any]:
    """What overlay.js draws, and the sizes at which the picture could be looked at."""
    picture = scene.picture
    kind, _, path = picture.key.partition(":")
    return {
        "model": scene.model,
        "size": scene.size,
        "upload": {"path": path, "name": picture.title} if kind == "upload" else None,
        "key": picture.key.split(":")[0],
        "content": sight.content,
        "model_hash": sight.model_hash,
        "fed": sight.fed,
        "sizes": sight.sizes,
        "title": picture.title,
        "credit": picture.credit,
        "image": catalog.jpeg_url(sight.photo),
        "payload": base64.b64encode(sight.payload).decode(),
    }


def theme() -> gr.themes.Base:
    """Gradio's own widgets in the colors of theme.css; system fonts, so nothing is fetched."""
    font = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "monospace"]
    return gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=font, font_mono=mono)


def style() -> str:
    """The style sheets as they are: Gradio's own `css` would drop the container queries in them."""
    names = ("theme.css", "overlay.css", "lens.css", "pairs.css", "compare.css")
    return "".join(
        f"<style>{(ASSETS / name).read_text(encoding='utf-8')}</style>" for name in names
    )


def end(number: int, _: Any) -> None:
    """End at once, uploads removed. Gradio would wait ten seconds for its threads; none of them
    has anything to save."""
    if OWN_UPLOADS:
        shutil.rmtree(OWN_UPLOADS, ignore_errors=True)
    os._exit(INTERRUPTED if number == signal.SIGINT else 0)


def serve(options: Options) -> None:
    """Start the page and block until it is ended."""
    share_heaps()  # before there are threads
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, end)
    catalog.check_named(options.root, options.model, options.gallery)
    page = LensPage(options)
    port = choose_port(options.port, options.host)
    if port.sentence:
        print(port.sentence, flush=True)
    blocks = page.blocks()
    blocks.queue(max_size=32, default_concurrency_limit=1)
    blocks.launch(
        server_name=options.host,
        server_port=port.number,
        share=False,
        quiet=True,
        ssr_mode=False,
        strict_cors=True,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=catalog.MAX_UPLOAD,
        state_session_capacity=200,
        favicon_path=ASSETS / "mark.svg",
        theme=theme(),
        head=f"<script>{(ASSETS / 'stream.js').read_text(encoding='utf-8')}</script>{style()}",
        app_kwargs={"routes": [APIRoute("/thumbs/{key}/{row}", page.thumbnail), *endpoints.ROUTES]},
        prevent_thread_lock=True,
    )
    page.bench.start()  # only now: importing torch would slow the first answer down
    print(f"DINO Lens is at {' and '.join(addresses(options.host, port.number))}", flush=True)
    blocks.block_thread()


@command
def main() -> None:
    serve(tyro.cli(Options))


if __name__ == "__main__":
    main()
