"""`gallery.json`: what a gallery was made of. Written last, so a gallery that has one is whole.

Knows nothing of torch, so that pages which only list galleries answer at once.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from dino_core.errors import UserError
from dino_core.files import read_json, write_json

FORMAT_VERSION = 1
MANIFEST = "gallery.json"
BUILDING = "building.json"  # the plan and cursor of a build that is not finished
STATUS = "status.json"
UPDATE = "update"  # a new set of a whole gallery's files, in the making


@dataclass(frozen=True)
class GalleryInfo:
    """The manifest's fields."""

    model: str  # the model as the user spelled it
    model_hash: str  # sha256 over the backbone's names, shapes and float32 values
    kind: str  # which tokens make the feature: "cls", "cls+gem" or "mean patch"
    preprocessing: dict[str, Any]  # how pixels become the model's input
    feature_hash: str  # sha256 of the three above: features are comparable only where it is equal
    data: str  # the data as the user spelled it, a path made absolute
    source_hash: str  # sha256 over ids, labels and, for files, sizes and times
    root: str | None = None  # the folder that images.parquet's paths are relative to
    classes: list[str] = field(default_factory=list)
    generated: bool = False  # whether the images are drawn by this program, not photographs
    count: int = 0  # images with features
    quarantined: int = 0  # images that could not be read
    dim: int = 0  # numbers a feature
    neighbors: int = 0  # neighbors an image has in neighbors.npz
    graph: dict[str, Any] = field(default_factory=dict)  # how they were found; recall, if nearly
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> how it was made
    created: str = ""  # ISO 8601, UTC
    update: dict[str, Any] = field(default_factory=dict)  # the last one: when, and what it changed
    version: int = FORMAT_VERSION

    @property
    def identity(self) -> tuple[str, str, str, int, str]:
        """What differs when a gallery's rows are others than they were."""
        updated = str(self.update.get("time", ""))
        return self.feature_hash, self.source_hash, self.created, self.count, updated

    def of_features(self) -> dict[str, Any]:
        """What the features follow from, however many images are done."""
        names = ("model", "data", "feature_hash", "source_hash")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "GalleryInfo":
        """The manifest of `folder`. Raises `UserError` when it is missing, broken or newer."""
        value = read_json(folder / MANIFEST)
        version = value.get("version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder}: its gallery.json has format version {version}, and this program reads "
                f"{FORMAT_VERSION}; build the gallery again, or update this program"
            )
        known = {one.name: _kinds(one.type) for one in fields(cls)}
        for name in known.keys() & value.keys():
            if not isinstance(value[name], known[name]):
                raise UserError(
                    f"{folder}: its gallery.json is damaged ({name} is {value[name]!r:.40}); build "
                    "the gallery again"
                )
        try:
            return cls(**{name: value[name] for name in value if name in known})
        except TypeError as error:
            raise UserError(
                f"{folder}: its gallery.json lacks something ({error}); build the gallery again"
            ) from None


def require_there(folder: Path) -> None:
    """To be called before anything is written into a gallery that was opened earlier.

    Raises `UserError` where it was deleted meanwhile: writing would begin a folder that is none.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder.name} is not there any more; reload the page")


def _kinds(annotation: Any) -> tuple[type, ...]:
    """What a field of this annotation may be in JSON, one level deep."""
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return tuple(get_origin(one) or one for one in options)


def how_made(info: GalleryInfo) -> list[str]:
    """What a user should know of neighbors and maps that are not what they would expect."""
    said = []
    if "recall" in info.graph:
        said.append(
            f"neighbors were found approximately: {100 * info.graph['recall']:.1f} % of the true "
            f"ones, judged on {info.graph['judged']:,} images"
        )
    for name, made in info.maps.items():
        if "why" in made:
            said.append(f"the map {name} is a PCA: {made['why']}, too few for UMAP")
        if "placed" in made:
            said.append(
                f"the map {name} is of {made['laid_out']:,} images; the other {made['placed']:,} "
                "were placed by their neighbors"
            )
        if made.get("placed_since"):
            said.append(
                f"{made['placed_since']:,} images were placed on the map {name} by their neighbors "
                "since it was drawn"
            )
    return said


def said_of_update(update: dict[str, Any]) -> str:
    """What the last update changed: `12 added, 3 gone, 1 changed`; "" where there was none."""
    parts = [f"{update[name]:,} {name}" for name in ("added", "gone", "changed") if name in update]
    return ", ".join(parts)


def feature_hash(model_hash: str, preprocessing: dict[str, Any], kind: str) -> str:
    """sha256 over all that a feature depends on besides the image itself."""
    text = json.dumps([model_hash, preprocessing, kind], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def build_command(model: str, data: str, out: Path) -> str:
    """The command line that builds, or finishes, a gallery."""
    words = ["python", "scripts/embed.py", "--model", model, "--data", data, "--out", str(out)]
    return " ".join(f'"{word}"' if " " in word else word for word in words)
