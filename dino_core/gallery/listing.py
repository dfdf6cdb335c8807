"""Which galleries there are under a root, without torch, FAISS or pandas."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dino_core import rng
from dino_core.errors import UserError
from dino_core.gallery.jobs import build_status
from dino_core.gallery.manifest import BUILDING, MANIFEST, STATUS, UPDATE, GalleryInfo


@dataclass(frozen=True)
class GalleryEntry:
    """One folder under `galleries/`, whole or not."""

    path: Path
    info: GalleryInfo | None  # None while it is half made, or when its manifest cannot be read
    state: str  # "whole", "running", "half made" or "damaged"
    message: str = ""  # a sentence on what the state means for the user

    @property
    def name(self) -> str:
        return self.path.name


def list_galleries(root: str | Path) -> list[GalleryEntry]:
    """The galleries in `root/galleries`, by name; half-made ones are listed as such."""
    folder = Path(root) / "galleries"
    if not folder.is_dir():
        return []
    found = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [entry(path) for path in found if is_gallery(path)]


def gallery_name(model: str, data: str) -> str:
    """A readable name for this model and this data, e.g. `pets-starter-1f0c3a`.

    The same pair has the same name, so what is half made is found again.
    """
    model_name = Path(model).stem if Path(model).is_file() else model
    return _name(f"{Path(data).stem}-{model_name}", model, data)


def data_name(data: str) -> str:
    """Likewise for what is made of this data alone, e.g. a run."""
    return _name(Path(data).stem, data)


def _name(title: str, *specs: str) -> str:
    words = re.sub(r"\W+", "-", title.lower()).strip("-")[:60]
    places = [str(Path(spec).resolve()) for spec in specs if Path(spec).exists()]
    # Folders of one name in two places are two things; the starter and `scenes` are everywhere.
    return f"{words}-{rng.digest(*places):032x}"[: len(words) + 7] if places else words


def is_gallery(path: Path) -> bool:
    """Whether a gallery was ever begun in this folder."""
    return any((path / name).is_file() for name in (MANIFEST, BUILDING, STATUS))


def update_waiting(path: Path) -> str:
    """A sentence where an update of a whole gallery was begun and not finished, else ""."""
    if not (path / UPDATE).is_dir() or build_status(path)["state"] == "running":
        return ""
    return (
        f"{path.name}: an update of it was stopped; the gallery works as it was, and updating it "
        "again goes on from there"
    )


def entry(path: Path) -> GalleryEntry:
    """What `path` is, as far as its JSON files tell."""
    status = build_status(path)
    if (path / MANIFEST).is_file():
        try:
            return GalleryEntry(path, GalleryInfo.read(path), "whole")
        except UserError as error:
            return GalleryEntry(path, None, "damaged", str(error))
    if status["state"] == "running":
        return GalleryEntry(path, None, "running", status["message"])
    return GalleryEntry(path, None, "half made", status["message"])


def asked_for(path: Path) -> tuple[str, str] | None:
    """The model and data that a gallery was begun with, so that it can be gone on with."""
    asked = build_status(path)["asked"]
    if "model" in asked and "data" in asked:
        return asked["model"], asked["data"]
    for name, inside in ((BUILDING, "plan"), (MANIFEST, None)):
        try:
            value = json.loads((path / name).read_text(encoding="utf-8"))
            value = value[inside] if inside else value
            return str(value["model"]), str(value["data"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
