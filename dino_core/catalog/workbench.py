"""One place that keeps models and galleries open and answers what a page asks about a picture.

    bench = Workbench(root, model="starter", gallery="galleries/pets")
    bench.start()                            # imports torch and loads the model in the background
    sight = bench.look(picture, "starter")   # waits for that, then: maps and photo as bytes
    near = bench.neighbors(picture, "starter", bench.galleries()[0][0])

Importing this module imports no torch. Computing is done one request at a time, under one lock.
"""

import contextlib
import math
import re
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_core.catalog.entries import (
    ModelEntry,
    check_model,
    examples,
    galleries,
    gallery_key,
    gallery_title,
    model_stamp,
    model_title,
    models,
)
from dino_core.catalog.pictures import (
    Picture,
    from_example,
    from_gallery,
    jpeg,
    load,
    uploaded,
)
from dino_core.catalog.questions import Job, Question, Scene, Withdrawn
from dino_core.errors import UserError
from dino_core.gallery.listing import GalleryEntry, entry
from dino_core.serving import is_inside

if TYPE_CHECKING:
    import numpy as np

    from dino_core.gallery import Gallery
    from dino_core.lenses import Attention
    from dino_core.lenses.tokens import Tokens
    from dino_core.models import Model

SHOWN_SIDE = 1400  # pixels on the long side of the photo that is sent back
MODELS_KEPT = 3
SIGHTS_KEPT = 24
# Building networks in two threads at once, of two workbenches, has ended a process without a word.
_BUILDING = threading.Lock()
CANCELLED_KEPT = 256  # numbers of questions that were cancelled before they came
TOKENS_KEPT = 2**28  # bytes of patch tokens: of a ViT-L at the largest usual size one picture's
TEMPERATURE = 0.07  # of the neighbors' vote, as in dino_core.measures.knn


@dataclass(frozen=True)
class Sight:
    """What a model sees in a picture, ready for a browser."""

    payload: bytes  # a LensPayload
    photo: bytes  # JPEG, long side at most 1400 px
    sentence: str
    content: str  # hash of the picture's content, as views name it
    model_hash: str
    fed: tuple[int, int]  # (height, width) in pixels at which the model looked
    sizes: list[tuple[int, int, int, int, int, float]]  # on offer: see `_sizes`


@dataclass(frozen=True)
class Neighbor:
    row: int
    id: str
    label: str | None
    score: float  # cosine, -1..1


@dataclass(frozen=True)
class Neighborhood:
    """The nearest images of a gallery, and the labels they vote for (shares that sum to 1)."""

    gallery: str
    key: str  # what `gallery_at` opens the gallery by
    count: int
    generated: bool
    neighbors: list[Neighbor]
    vote: list[tuple[str, float]]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return vars(self) | {"neighbors": [dict(vars(one)) for one in self.neighbors]}


@dataclass(frozen=True)
class Status:
    """How far the start has come: "loading", "ready" or "failed", and a sentence."""

    state: str
    sentence: str


class Workbench:
    """See the top of this file. `model` and `gallery` are what the app was started with, `uploads`
    the one folder where files of visitors arrive.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        model: str | None = None,
        gallery: str | Path | None = None,
        device: str = "auto",
        uploads: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        self.uploads = uploads
        self.examples = examples()
        self.named_model = model
        self.named_gallery = Path(gallery) if gallery else None
        self._device = device
        self._status = Status("loading", "Loading PyTorch …")
        self._started = threading.Event()
        self._compute = threading.RLock()
        self._models: OrderedDict[tuple[str, str], Model] = OrderedDict()
        self._galleries: dict[str, tuple[float, Gallery]] = {}
        self._sights: OrderedDict[tuple[str, str, int | None, str], Sight] = OrderedDict()
        self._jobs: dict[str, Job] = {}
        self._cancelled: OrderedDict[str, bool] = OrderedDict()
        self._tokens: OrderedDict[tuple[str, str, int | None], Tokens] = OrderedDict()

    # -- starting ---------------------------------------------------------------------------

    def start(self) -> None:
        """Import what is slow to import, and load the model, in the background."""
        threading.Thread(target=self._start, name="workbench", daemon=True).start()

    def status(self) -> Status:
        return self._status

    def wait(self) -> None:
        """Until imports are done. Raises `UserError` if they failed."""
        self._started.wait()
        if self._status.state == "failed":
            raise UserError(self._status.sentence)

    def _start(self) -> None:
        try:
            import torch  # noqa: F401

            self._status = Status("loading", "Loading vision transformers …")
            import dino_core.gallery
            import dino_core.lenses
            import dino_core.models  # noqa: F401
        except Exception as error:  # a page must say it, whatever it was
            self._status = Status("failed", f"PyTorch could not be loaded ({error})")
            self._started.set()
            return
        try:
            if self.named_model:
                self._status = Status("loading", f"Loading {model_title(self.named_model)} …")
                with self._compute:
                    self._started.set()
                    _warm_up(self._model(self.named_model))
            self._status = Status("ready", "Ready")
        except UserError as error:  # of the model alone: others can still be picked
            self._status = Status("ready", str(error))
        except Exception as error:
            traceback.print_exc()
            self._status = Status("ready", f"The model could not be loaded ({error})")
        finally:
            self._started.set()

    # -- answers ----------------------------------------------------------------------------

    def look(
        self, picture: Picture, spec: str, *, size: int | None = None, names_allowed: bool = True
    ) -> Sight:
        """Every head's map of `picture`. Raises `UserError` for a bad picture or model."""
        self.wait()
        spec = self._spec(spec, names_allowed)
        from dino_core.catalog.finding import content_hash
        from dino_core.lenses import LensPayload, look

        with self.computing():
            model = self._model(spec)
            key = (picture.key, model.hash, size, model_title(spec))
            if key in self._sights:
                self._sights.move_to_end(key)
                return self._sights[key]
            image = load(picture)
            begun = time.perf_counter()
            attention = look(model, image, size=size)
            took = time.perf_counter() - begun
            sight = Sight(
                payload=LensPayload.from_attention(attention).to_bytes(),
                photo=jpeg(image, SHOWN_SIDE),
                sentence=f"{_seen(attention)} by {model_title(spec)} in {took:.1f} s "
                f"on {model.device.type}",
                content=content_hash(picture),
                model_hash=model.hash,
                fed=attention.image_size,
                sizes=_sizes(model, attention, took),
            )
            _keep(self._sights, key, sight, SIGHTS_KEPT)
            return sight

    def ask(self, scene: Scene, about: str, question: Question, number: str = "") -> dict[str, Any]:
        """The answer to what a page asks about its picture; see `catalog.answers`.

        Meanwhile `job(number)` tells how far it is. Raises `UserError` with the sentence to show.
        """
        self.wait()
        from dino_core.catalog.answers import Desk, answer

        job = self._jobs.setdefault(number, Job())
        try:
            with self.computing():
                if job.cancelled or self._cancelled.pop(number, False):  # while it waited in line
                    raise Withdrawn
                return answer(Desk(self, scene, job), about, question)
        finally:
            self._jobs.pop(number, None)

    def job(self, number: str) -> Job | None:
        """The question that is being answered under this number; None when none is."""
        return self._jobs.get(number)

    def cancel(self, number: str) -> None:
        """Let the answer under this number be, also where it still waits to be begun."""
        if job := self._jobs.get(number):
            job.cancelled = True
        else:
            _keep(self._cancelled, number, True, CANCELLED_KEPT)

    def tokens(self, picture: Picture, model: "Model", size: int | None) -> "Tokens":
        """The patch tokens of a picture; those of the last few are kept, 256 MB of them."""
        from dino_core.lenses.tokens import read_tokens

        key = (picture.key, model.hash, size)
        if key not in self._tokens:
            self._tokens[key] = read_tokens(model, load(picture), size=size)
        self._tokens.move_to_end(key)
        found = self._tokens[key]
        while sum(_bytes(tokens) for tokens in self._tokens.values()) > TOKENS_KEPT:
            self._tokens.popitem(last=False)
        return found

    def neighbors(
        self,
        picture: Picture,
        spec: str,
        key: str,
        *,
        k: int = 20,
        box: tuple[float, float, float, float] | None = None,
        where: "np.ndarray | None" = None,
        names_allowed: bool = True,
    ) -> Neighborhood:
        """The `k` nearest images of a gallery, by its public name, and their vote.

        Of the part in `box` (left, top, right, bottom in pixels) where one is given, among the
        images in `where` (bool, one an image). Raises `UserError` when the gallery was made by
        another model, or cannot be opened.
        """
        self.wait()
        from dino_core.gallery import region_features

        spec = self._spec(spec, names_allowed)
        with self.computing():
            opened, model = self.gallery_at(key), self._model(spec)
            if model.hash != opened.info.model_hash:
                raise UserError(
                    f"{opened.name} was made by {model_title(opened.info.model)}, whose features "
                    f"cannot be compared with those of {model_title(spec)}; pick the model that "
                    "made it"
                )
            itself = picture.row if picture.gallery == key and box is None else None
            image = load(picture)
            query = image if box is None else region_features(model, image, box, opened.info.kind)
            hits = opened.search(query, k=k + (itself is not None), where=where, model=model)
        found = zip(hits.rows, hits.ids, hits.labels, hits.scores, strict=True)
        return self.neighborhood(
            key,
            [
                Neighbor(int(row), id, label, float(score))
                for row, id, label, score in found
                if row != itself
            ][:k],
        )

    def neighborhood(self, key: str, neighbors: list[Neighbor]) -> Neighborhood:
        """Neighbors that were found in a gallery, and what they vote for."""
        opened = self.gallery_at(key)
        return Neighborhood(
            gallery=opened.name,
            key=key,
            count=opened.info.count,
            generated=opened.info.generated,
            neighbors=neighbors,
            vote=label_vote([n.label for n in neighbors], [n.score for n in neighbors]),
        )

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The one place where anything is computed: one visitor after the other.

        Whatever goes wrong in the block is told as a sentence, the traceback in this program's
        own output.
        """
        try:
            with self._compute:
                yield
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            raise UserError(
                f"this could not be computed ({type(error).__name__}); the output of the program "
                "that serves this page says more"
            ) from None

    def sentence(self, error: UserError) -> str:
        """An error as a page may show it: each file and folder by its last name, no path."""
        said = str(error)
        named = [path for path in (self.named_gallery, self.named_model) if path]
        folders = [self.root.resolve(), *(Path(path).resolve().parent for path in named)]
        for folder in folders:  # they may have spaces in them
            said = said.replace(f"{folder}/", "")
        return re.sub(r"(?<![\w.~])/(?:[^\s/]+/)+", "", said)

    # -- what is open -----------------------------------------------------------------------

    def models(self) -> list[ModelEntry]:
        """What a picker offers. A weights file named at the start is offered by its name alone."""
        found = models(self.root)
        named = self.named_model
        if named and named not in [model.spec for model in found]:
            found.insert(0, ModelEntry(model_title(named), model_title(named)))
        return found

    def galleries(self) -> list[tuple[str, str]]:
        """What a picker offers: a public name for `gallery_at`, and a title.

        The gallery named at the start stands first, then those made by the model named there.
        """
        found = [entry(path) for path in self._gallery_paths()]
        found.sort(key=self._place)  # stable: else by name
        return [(gallery_key(one.path), gallery_title(one)) for one in found]

    def _place(self, one: GalleryEntry) -> int:
        if self.named_gallery and one.path.resolve() == self.named_gallery.resolve():
            return 0
        return 1 if one.info and one.info.model == self.named_model else 2

    def _gallery_paths(self) -> list[Path]:
        """The galleries that may be opened: the one named at the start, then the root's."""
        named = [self.named_gallery] if self.named_gallery else []
        paths = [*named, *(found.path for found in galleries(self.root))]
        return list({path.resolve(): path for path in paths}.values())

    def gallery_at(self, key: str) -> "Gallery":
        """The gallery behind a public name, opened again when it was rebuilt."""
        from dino_core.gallery import Gallery

        for path in self._gallery_paths():
            if gallery_key(path) == key:
                manifest = path / "gallery.json"
                stamp = manifest.stat().st_mtime if manifest.is_file() else 0.0
                if key not in self._galleries or self._galleries[key][0] != stamp:
                    self._galleries[key] = (stamp, Gallery.open(path))
                return self._galleries[key][1]
        raise UserError("this gallery is gone; press refresh, or pick another")

    def picture(self, key: str, row: int) -> Picture:
        """One image of a gallery, by the gallery's public name and row. Raises `UserError`."""
        self.wait()
        return from_gallery(self.gallery_at(key), key, row)

    def picture_named(self, named: Question) -> Picture:
        """The picture a browser names: an example, one of a gallery, or a file it just sent.

        Raises `UserError` for anything else: no path typed by a visitor is ever opened.
        """
        if "example" in named:
            return from_example(self.examples[named.whole("example", 0, len(self.examples) - 1)])
        if "key" in named:
            return self.picture(named.text("key"), named.whole("row"))
        return uploaded(*self.upload_named(named))

    def find(self, content: str, upload: Question | None = None) -> Picture:
        """The picture with this content hash: of a gallery, an example, or the visitor's `upload`.

        Raises `UserError` when it is none of them.
        """
        from dino_core.catalog.finding import find

        self.wait()
        own = []
        if upload is not None:
            with contextlib.suppress(UserError):  # gone since, as uploads are
                own.append(self.picture_named(upload))
        opened = []
        for path in self._gallery_paths():
            with contextlib.suppress(UserError):  # a damaged one has no pictures to give
                opened.append(self.gallery_at(gallery_key(path)))
        picture = find(content, opened, self.examples, own)
        if picture is None:
            raise UserError(
                "the picture of this link is neither in a gallery here nor among the examples; "
                "add it, and it will be shown as the link says"
            )
        return picture

    def upload_named(self, named: Question) -> tuple[Path, str]:
        """The file of a visitor that a browser names, and what it was called there."""
        path, name = Path(named.text("path", 4_096)), named.text("name", 4_096)[:120]
        if self.uploads is None or not is_inside(self.uploads, path):
            raise UserError(f"{name}: did not arrive; choose it again")
        return path, name

    def thumbnail(self, key: str, row: int) -> Path:
        """A small JPEG of one image of a gallery, as a file. Raises `UserError`."""
        gallery = self.gallery_at(key)
        if not 0 <= row < len(gallery):
            raise UserError(f"{gallery.name}: has no image {row}")
        return gallery.thumbnail(row)

    def open_model(self, picked: str, names_allowed: bool = True) -> "Model":
        """The model behind what was picked, kept open. Raises `UserError` where it may not be."""
        return self._model(self._spec(picked, names_allowed))

    def is_open(self, spec: str) -> bool:
        """Whether this model is kept open, so that a link to it downloads nothing."""
        return any(kept == spec for kept, _ in self._models)

    def _spec(self, picked: str, names_allowed: bool) -> str:
        """The spelling for `load_model` of what was picked. Raises `UserError` where it may not."""
        if self.named_model and picked in (self.named_model, model_title(self.named_model)):
            return self.named_model
        check_model(self.root, picked, names_allowed=names_allowed)
        return picked

    def _model(self, spec: str) -> "Model":
        from dino_core.models import load_model

        key = (spec, model_stamp(self.root, spec))
        if key not in self._models:
            with _BUILDING:
                model = load_model(spec, device=self._device, root=self.root)
            _keep(self._models, key, model, MODELS_KEPT)
        self._models.move_to_end(key)
        return self._models[key]


def _bytes(tokens: "Tokens") -> int:
    return tokens.patches.nbytes + tokens.keys.nbytes


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Keep `value`, and of all only those `most` used last."""
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


def _warm_up(model: "Model") -> None:
    """One small look: the first of a process takes seconds longer, and would spoil estimates."""
    import numpy as np

    from dino_core.lenses import look

    side = model.backbone.patch_size * 4
    with contextlib.suppress(UserError):  # a network without attention: whoever looks is told
        look(model, np.zeros((side, side, model.info.channels), np.uint8), size=side)


def _sizes(
    model: "Model", attention: "Attention", seconds: float
) -> list[tuple[int, int, int, int, int, float]]:
    """Sizes on offer: short side, height and width as fed, patches, bytes of memory, seconds."""
    from dino_core.lenses import plan
    from dino_core.lenses.sizes import sizes

    fed = plan(model, *attention.source_size, size=min(attention.image_size))
    offered = sizes(model, *attention.source_size, seconds=seconds, fed=fed)
    return [
        (one.size, one.plan.height, one.plan.width, one.plan.tokens, one.plan.memory, one.seconds)
        for one in offered
    ]


def _seen(attention: "Attention") -> str:
    (source_height, source_width), (height, width) = attention.source_size, attention.image_size
    rows, columns = attention.grid
    return (
        f"{source_width} × {source_height} px, seen as {width} × {height} px "
        f"({columns} × {rows} patches)"
    )


def label_vote(
    labels: Sequence[str | None], scores: Sequence[float], temperature: float = TEMPERATURE
) -> list[tuple[str, float]]:
    """Each label's share of the neighbors' vote, largest first; unlabeled neighbors do not vote.

    Weights exp(score / temperature), as in the weighted k-NN protocol (Wu et al. 2018, sec. 3.4).
    """
    weights: dict[str, float] = {}
    best = max(scores, default=0.0)
    for label, score in zip(labels, scores, strict=True):
        if label is not None:
            weight = math.exp((score - best) / temperature)
            weights[label] = weights.get(label, 0.0) + weight
    total = sum(weights.values())
    shares = [(label, weight / total) for label, weight in weights.items()]
    return sorted(shares, key=lambda pair: (-pair[1], pair[0]))
