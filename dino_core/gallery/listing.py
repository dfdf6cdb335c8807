"""Which galleries there are under a root, without torch, FAISS or pandas."""

from dataclasses import dataclass
from pathlib import Path

from dino_core.errors import UserError
from dino_core.gallery.jobs import build_status
from dino_core.gallery.manifest import BUILDING, MANIFEST, STATUS, GalleryInfo


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


def is_gallery(path: Path) -> bool:
    """Whether a gallery was ever begun in this folder."""
    return any((path / name).is_file() for name in (MANIFEST, BUILDING, STATUS))


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
