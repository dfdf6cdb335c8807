"""What there is to open under a root: models, galleries, example photos.

Both apps' pickers are filled from here, and a model that a visitor names is opened only if it is
listed here, or was named when the app was started.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from dino_core.errors import UserError
from dino_core.gallery.listing import GalleryEntry, is_gallery, list_galleries
from dino_core.gallery.manifest import MANIFEST
from dino_core.runs import Run, list_runs

STARTER = Path(__file__).parents[1] / "models" / "starter" / "starter.safetensors"
NEWEST_CHECKPOINTS = 20  # listed per run, besides the newest


@dataclass(frozen=True)
class ModelEntry:
    """A model to pick: how `load_model` spells it, and how a person reads it."""

    spec: str
    title: str


@dataclass(frozen=True)
class Example:
    """A picture to try the lens on: a photo that came with an installed package, or a scene."""

    title: str
    credit: str
    path: Path | None  # None for a scene
    scene: int = -1  # index into `scenes`


# Photos that installed packages carry: package, path inside it, title, credit.
_PHOTOS = (
    ("sklearn", "datasets/images/china.jpg", "Pagoda", "scikit-learn · danielbuechele, CC BY 2.0"),
    ("sklearn", "datasets/images/flower.jpg", "Dahlia", "scikit-learn · vultilion, CC BY 2.0"),
    ("gradio", "media_assets/images/lion.jpg", "Lion", "from the gradio package"),
    ("gradio", "media_assets/images/cheetah.jpg", "Running cheetah", "from the gradio package"),
    ("gradio", "media_assets/images/tower.jpg", "Tower", "from the gradio package"),
    ("gradio", "media_assets/images/cheetah1.jpg", "Cheetah", "from the gradio package"),
)
_SCENES = (3, 4, 7, 9)


def models(root: str | Path) -> list[ModelEntry]:
    """The starter (where its weights are there) and every run that has a checkpoint.

    A run is listed as its newest teacher, its newest student, and its latest checkpoints.
    """
    found = [ModelEntry("starter", "Starter")] if STARTER.is_file() else []
    for run in list_runs(Path(root)):
        found.extend(_run_models(run))
    return found


def galleries(root: str | Path) -> list[GalleryEntry]:
    """The galleries under `root` that can be opened."""
    return [entry for entry in list_galleries(root) if entry.state == "whole"]


def gallery_title(entry: GalleryEntry) -> str:
    """A gallery in a picker's line: name, size, whether it is generated, and by which model."""
    if entry.info is None:
        return f"{entry.name} ({entry.state})"
    images = "generated images" if entry.info.generated else "images"
    return f"{entry.name} · {entry.info.count:,} {images} · {model_title(entry.info.model)}"


def gallery_key(path: Path) -> str:
    """A short public name for a gallery, which tells a browser nothing of this machine."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]


def model_title(spec: str) -> str:
    """A model for a sentence: a weights file by its name, the rest as it is spelled."""
    is_file = spec.endswith((".safetensors", ".pth", ".pt", ".bin"))
    return Path(spec).name if is_file else spec


def model_stamp(root: str | Path, spec: str) -> str:
    """What changes when `spec` comes to mean other weights: the newest step of a running run.

    Raises `UserError` for a run without a checkpoint.
    """
    name, _, step = spec.partition("@")
    if not name.startswith("runs/") or step:
        return ""
    return str(Run(Path(root) / name.removesuffix(":student")).checkpoint().step)


def check_model(root: str | Path, spec: str, *, names_allowed: bool) -> None:
    """Refuse a model that a visitor may not open; raises `UserError`.

    Allowed is what the catalog lists and, where `names_allowed`, a published name (`timm:...`). A
    path typed into a page is never opened.
    """
    if any(entry.spec == spec for entry in models(root)):
        return
    if not spec:
        raise UserError(no_model(root))
    if not spec.startswith("timm:"):
        raise UserError(
            f"{spec}: not in the list; pick one, type a published name such as "
            "timm:vit_small_patch16_224.dino, or start the page with --model to open a file"
        )
    if not names_allowed:
        raise UserError(
            f"{spec}: published names are off on this page, because it can be reached from other "
            "machines; pick a listed model, or open the page with its token"
        )


def check_named(root: str | Path, model: str | None, gallery: Path | None) -> None:
    """Refuse what an app was started with where it is plainly not there; torch-free.

    Raises `UserError`. What is in a weights file shows only when it is loaded.
    """
    if gallery is not None and not (gallery / MANIFEST).is_file():
        there = "is half made" if is_gallery(gallery) else "is not there"
        raise UserError(f"{gallery}: this gallery {there}; make it with scripts/embed.py")
    if model is None or model == "starter" or model.startswith("timm:"):
        return
    path = Path(root) / model.rpartition("@")[0] if "@" in model else Path(root) / model
    path = path.with_name(path.name.removesuffix(":student").removesuffix(":teacher"))
    if not path.exists():
        raise UserError(
            f"{model}: no such model in {Path(root).resolve()}; use starter, runs/NAME, a weights "
            "file or timm:NAME"
        )


def no_model(root: str | Path) -> str:
    """The sentence for a root without any model."""
    return (
        f"no model yet: {STARTER.name} did not come with this installation and {Path(root)} has "
        "no runs; train one with scripts/train.py, or name one with --model"
    )


def examples() -> list[Example]:
    """Photos found in installed packages (which are not imported for it), then a few scenes."""
    photos = []
    for package, inside, title, credit in _PHOTOS:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / inside if spec and spec.origin else None
        if path is not None and path.is_file():
            photos.append(Example(title, credit, path))
    scenes = [Example(f"Scene {i}", "generated by this project", None, i) for i in _SCENES]
    return [*photos, *scenes]


def _run_models(run: Run) -> list[ModelEntry]:
    steps = [checkpoint.step for checkpoint in run.checkpoints()]
    if not steps:
        return []
    spec = f"runs/{run.name}"
    newest = [
        ModelEntry(spec, f"{run.name} · newest (step {steps[-1]:,})"),
        ModelEntry(f"{spec}:student", f"{run.name} · student (step {steps[-1]:,})"),
    ]
    earlier = reversed(steps[-1 - NEWEST_CHECKPOINTS : -1])
    return newest + [ModelEntry(f"{spec}@{s}", f"{run.name} · step {s:,}") for s in earlier]
