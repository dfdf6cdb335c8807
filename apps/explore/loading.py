"""Torch, timm and models, loaded behind the page's back so that it answers at once.

One thread does it all, in order: first the imports (seconds, and they slow down everything else in
this process, so they wait until a first page is out), then whatever model is asked for.
"""

import gc
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.catalog.entries import model_stamp
from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.models import Model

MODELS_KEPT = 2
FIRST_PAGE_WITHIN = 3.0  # seconds; when nobody looks by then, the imports start anyway
LEFT_ALONE = 2.0  # seconds in which a browser fetches what its first page shows

_page_is_out = threading.Event()
_asked = threading.Event()  # for a model
_thread = ThreadPoolExecutor(1, thread_name_prefix="loading")
_libraries: Future[None] | None = None
_models: dict[tuple[str, Path, str], "Future[Model]"] = {}


@dataclass(frozen=True)
class Loading:
    """How a load stands: exactly one of `waiting`, `error` (a sentence) and `model`."""

    waiting: str = ""
    error: str = ""
    model: "Model | None" = None


def begin() -> None:
    """Start importing, unless that was done before."""
    global _libraries
    if _libraries is None:
        _libraries = _thread.submit(_import_libraries)


def page_is_out() -> None:
    """Say that a page was drawn: what is slow may begin."""
    _page_is_out.set()


def libraries_ready() -> bool:
    """Whether torch and timm are imported."""
    return _libraries is not None and _libraries.done()


def load(spec: str, root: Path) -> Loading:
    """The model, or why it is not there yet; never waits. A failure stays until `forget`."""
    begin()
    _asked.set()
    try:
        key = (spec, root, model_stamp(root, spec))
    except UserError as error:
        return Loading(error=str(error))
    if key not in _models:
        while len(_models) >= MODELS_KEPT:
            _models.pop(next(iter(_models))).cancel()
        _models[key] = _thread.submit(_load_model, spec, root)
    future = _models[key]
    if not future.done():
        what = f"the model {spec}" if libraries_ready() else "torch and timm"
        return Loading(waiting=f"Loading {what}; the map works meanwhile.")
    failure = future.exception()
    if failure is None:
        return Loading(model=future.result())
    known = isinstance(failure, UserError)
    return Loading(error=str(failure) if known else f"{spec}: cannot be loaded ({failure})")


def forget(spec: str) -> None:
    """Let the next `load` of a model that failed try again."""
    for key in [key for key in _models if key[0] == spec]:
        del _models[key]


def _import_libraries() -> None:
    _page_is_out.wait(FIRST_PAGE_WITHIN)
    _asked.wait(LEFT_ALONE)
    # First: it asks whether arrays are torch's, and fails where a page imports it amid torch's own
    # import, when `torch` is there and `torch.Tensor` is not.
    import scipy.stats  # noqa: F401  # isort: skip
    import timm  # noqa: F401
    import torch  # noqa: F401

    # Streamlit collects garbage after every run of a page. Without this it goes through half a
    # million objects of these libraries each time: a third of a second in which nothing else runs.
    gc.collect()
    gc.freeze()


def _load_model(spec: str, root: Path) -> "Model":
    from dino_core.models import load_model

    return load_model(spec, root=root)
