"""What files name is opened where it is here, unchanged, and can be read without any risk.

A file of figures may come from elsewhere. So nothing that it names is fetched: a model is the
starter, a run or a weights file; data is a file, a folder, or generated. And nothing is shown but
what was judged: hashes have to be those in the file, and are compared before a picture is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from dino_core.data import Source, open_source
from dino_core.errors import UserError
from dino_core.evaluation.masks import Masks, find_masks
from dino_core.gallery.images import source_hash
from dino_core.gallery.progress import Progress, silent
from dino_core.models import Model, load_model

# What would have to be fetched, or might be.
FROM_AFAR = ("hf:", "torchvision:", "timm:", "http:", "https:")
T = TypeVar("T")


@dataclass(frozen=True)
class Here:
    """A data set on this machine, with what says that it is still the same."""

    source: Source
    hash: str

    @cached_property
    def places(self) -> dict[str, int]:
        """Where the image of each id is."""
        return {name: place for place, name in enumerate(self.source.ids)}


class Opening:
    """Opens the data, masks and models that results name, each once.

    Each method gives None and a sentence for what cannot be had.
    """

    def __init__(self, device: str = "auto", progress: Progress = silent) -> None:
        self.device = device
        self.progress = progress
        self._opened: dict[tuple[str, ...], tuple[object, str]] = {}

    def source(self, spec: str, digest: str) -> tuple[Here | None, str]:
        """The data that `spec` names, if it still has that hash."""
        here, why = self._once(("data", spec), lambda: self._source(spec))
        if here is None:
            return None, why
        if here.hash != digest:
            return None, _unlike(digest, spec)
        return here, ""

    def masks(self, here: Here, folder: str, digest: str) -> tuple[Masks | None, str]:
        """The masks in `folder`, or the data's own, if they still have that hash."""
        spec = here.source.spec
        own = folder in ("", spec)

        def find() -> tuple[Masks, str]:
            if not own and not Path(folder).exists():
                raise UserError(_gone(folder))
            self.progress(0, 1, f"Checking {folder}")
            masks = find_masks(here.source, None if own else Path(folder))
            found = masks, here.hash if masks.files is None else masks.hash
            self.progress(1, 1, f"Checking {folder}")
            return found

        found, why = self._once(("masks", spec, folder), find)
        if found is None:
            return None, why
        if found[1] != digest:
            return None, _unlike(digest, folder or spec)
        return found[0], ""

    def model(self, spec: str, digest: str) -> tuple[Model | None, str]:
        """The model that `spec` names, if it is the one that was judged."""
        model, why = self._once(("model", spec), lambda: self._model(spec))
        if model is None:
            return None, why
        if model.hash != digest:
            return None, f"{spec} is not the model any more that was judged; judge this one, too"
        return model, ""

    def _once(self, key: tuple[str, ...], opened: Callable[[], T]) -> tuple[T | None, str]:
        """What `opened` gives, or why it gives nothing; asked once for each key."""
        if key not in self._opened:
            try:
                self._opened[key] = opened(), ""
            except (UserError, OSError) as error:
                self._opened[key] = None, str(error)
        return self._opened[key]  # type: ignore[return-value]  # one type for each kind of key

    def _source(self, spec: str) -> Here:
        if _from_afar(spec):
            raise UserError(f"{spec}: only data on this machine is opened")
        if ":" not in spec and not Path(spec).exists():
            raise UserError(_gone(spec))
        message = f"Checking {spec}"
        self.progress(0, 1, message)
        source = open_source(spec)
        return Here(source, source_hash(source, self.progress, message))

    def _model(self, spec: str) -> Model:
        if _from_afar(spec):
            raise UserError(f"{spec}: only the starter, runs and weights files are opened")
        if "/" in spec and not Path(spec).exists():
            raise UserError(_gone(spec))
        return load_model(spec, device=self.device)


def _from_afar(spec: str) -> bool:
    return spec.strip().lower().startswith(FROM_AFAR)


def _gone(spec: str) -> str:
    return f"{spec} is not here; put it back and build the page again"


def _unlike(digest: str, spec: str) -> str:
    if not digest:
        return f"the figures do not say by which hash {spec} is known; judge the model again"
    return (  # a hash tells no more than that, and dates alone may differ: of a copy, say
        f"names, sizes or dates of files in {spec} differ from when the figures were made; "
        "put these back (a copy that keeps dates will do), or judge the model again"
    )
