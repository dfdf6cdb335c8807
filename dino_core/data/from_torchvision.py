"""`torchvision:NAME[:SPLIT]`: a data set that torchvision knows how to download, by its name.

torchvision's own class downloads and reads the data set's lists; the images are then read from
where it put them, by our own decoding. They are kept in the cache (`DINO_CACHE`, else
`~/.cache/dino-core`), in `torchvision/NAME/`; what is there already, in the layout that
torchvision uses, needs no network. Sets that exist only as one binary file (STL10, MNIST) are kept
as an array beside it.
"""

import inspect
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data.arrays import ArrayImages, write_arrays
from dino_core.data.cache import alone, cache_folder
from dino_core.data.folder import Folder
from dino_core.data.naming import by_name
from dino_core.data.source import Source
from dino_core.errors import UserError

# Published as pickles, which can run anything when they are read.
PICKLED = {
    "CIFAR10": "hf:uoft-cs/cifar10",
    "CIFAR100": "hf:uoft-cs/cifar100",
    "PhotoTour": "",
    "LSUN": "",
}
PAIRS = ("samples", "_samples", "imgs")  # where torchvision's classes keep (path, label)
PATHS = ("_image_files", "_images")
LABELS = ("_labels", "labels", "targets")


class TorchvisionFiles(Folder):
    """Image files that a torchvision data set lists, in order of their names."""

    def __init__(
        self, spec: str, root: Path, files: list[tuple[str, int]], classes: list[str], channels: int
    ) -> None:
        names = sorted((Path(file).relative_to(root).as_posix(), label) for file, label in files)
        super().__init__(spec, root, [name for name, _ in names], [], channels)
        labels = np.array([label for _, label in names], np.int64)
        self.labels, self.classes = _known(labels), classes
        self.splits = None


def open_torchvision(spec: str, channels: int = 3) -> Source:
    """Open `torchvision:NAME[:SPLIT]`, downloaded if need be; `UserError` where it cannot be."""
    name, _, split = spec.removeprefix("torchvision:").partition(":")
    kind = _class(spec, name)
    options = _options(spec, kind, split)
    title = "-".join(filter(None, [kind.__name__.lower(), split]))
    arrays = cache_folder("torchvision", f"{title}.arrays")
    if arrays.is_dir():
        return ArrayImages(spec, arrays, channels)
    with alone(cache_folder("torchvision", f".{kind.__name__.lower()}.lock")):
        dataset = _obtain(spec, kind, split, options)
        if files := _files(dataset):
            return TorchvisionFiles(spec, Path(dataset.root), files, _classes(dataset), channels)
        if not arrays.is_dir():
            _keep(spec, arrays, title, dataset)
    return ArrayImages(spec, arrays, channels)


def _keep(spec: str, folder: Path, title: str, dataset: Any) -> None:
    """Write the images of a data set that is one binary file as an array."""
    images = _images(dataset)
    if images is None:
        raise UserError(
            f"{spec}: torchvision's {type(dataset).__name__} is not a list of labeled images; "
            "unpack it yourself and name the folder"
        )
    labels = _known(np.array([int(label) for label in _first(dataset, LABELS)], np.int64))
    if labels is None:
        write_arrays(folder, title, images, None, [])
    else:
        write_arrays(folder, title, images, labels.tolist(), _classes(dataset))


def _class(spec: str, name: str) -> Any:
    """torchvision's class of that name, in any case."""
    from torchvision import datasets  # takes seconds

    known = {kind.lower(): kind for kind in datasets.__all__}
    found = known.get(name.lower().replace("-", "").replace("_", ""))
    if found is None:
        raise UserError(
            f"{spec}: torchvision has no data set of that name; it has imagenette, stl10, "
            "flowers102, oxfordiiitpet, food101, dtd and more"
        )
    if found in PICKLED:
        instead = PICKLED[found]
        raise UserError(
            f"{spec}: is published as Python pickles, which are not read here because they can "
            f"run any code; {f'use {instead}' if instead else 'unpack it and name the folder'}"
        )
    kind = getattr(datasets, found)
    if not {"root", "download"} <= _parameters(kind).keys():
        raise UserError(f"{spec}: torchvision cannot download it; unpack it and name the folder")
    return kind


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What the class takes, its parents' parameters included where it hands them on."""
    found: dict[str, inspect.Parameter] = {}
    for parent in kind.__mro__:
        if "__init__" in vars(parent):
            parameters = dict(inspect.signature(parent.__init__).parameters)
            found = parameters | found
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return found


def _options(spec: str, kind: Any, split: str) -> dict[str, Any]:
    """The arguments that choose a split; the class's own default where none is named."""
    parameters = _parameters(kind)
    if "split" in parameters:
        if split:
            return {"split": split}
        default = parameters["split"].default
        return {"split": "train"} if default is inspect.Parameter.empty else {}
    if "train" in parameters:
        if split not in ("", "train", "test"):
            raise UserError(f"{spec}: its splits are train and test")
        return {"train": split != "test"}
    if split:
        raise UserError(f"{spec}: has no splits; write torchvision:{kind.__name__.lower()}")
    return {}


def _obtain(spec: str, kind: Any, split: str, options: dict[str, Any]) -> Any:
    """The data set, from the cache or downloaded into it, whole or not at all."""
    root = cache_folder("torchvision", kind.__name__.lower())
    beside = root.with_name(f"{root.name}-{split}")  # a split that the first download left out
    for place in (root, beside):
        try:
            return kind(root=str(place), download=False, **options)
        except ValueError as error:
            raise UserError(f"{spec}: {str(error).rstrip('.')}") from None
        except (RuntimeError, OSError):
            continue
    for left in root.parent.glob(f".{root.name}.*.tmp"):  # of a download that was cut off
        shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}.", suffix=".tmp"))
    try:
        kind(root=str(aside), download=True, **options)
        place = beside if root.exists() else root
        aside.replace(place)
        return kind(root=str(place), download=False, **options)
    except Exception as error:  # urllib, tarfile, gdown and torchvision raise many kinds
        reason = " ".join(str(getattr(error, "reason", error)).split())[:160]
        raise UserError(
            f"{spec}: is not in {root} and cannot be downloaded ({reason}); "
            "connect to the internet, or put it there yourself"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _files(dataset: Any) -> list[tuple[str, int]]:
    """(path, label) of every image, [] where the data set keeps no image files."""
    pairs = _first(dataset, PAIRS)
    if pairs is None:
        paths, labels = _first(dataset, PATHS), _first(dataset, LABELS)
        pairs = list(zip(paths, labels, strict=True)) if paths and labels else []
    if not pairs or not isinstance(pairs[0][0], str | Path) or not by_name(str(pairs[0][0])):
        return []
    return [(str(path), -1 if label is None else int(label)) for path, label in pairs]


def _images(dataset: Any) -> np.ndarray | None:
    """The images of a data set that keeps them in one array of bytes."""
    data = getattr(dataset, "data", None)
    images = None if data is None else np.asarray(data)
    labels = _first(dataset, LABELS)
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or labels is None:
        return None
    return images if len(labels) == len(images) else None


def _first(dataset: Any, names: tuple[str, ...]) -> Any:
    return next((found for n in names if (found := getattr(dataset, n, None)) is not None), None)


def _known(labels: np.ndarray) -> np.ndarray | None:
    """The labels, None where all are -1."""
    return labels if (labels >= 0).any() else None


def _classes(dataset: Any) -> list[str]:
    """Names of the classes; of several for one class, the first."""
    names = getattr(dataset, "classes", None)
    if names is None:
        labels = _first(dataset, LABELS)
        pairs = _first(dataset, PAIRS)
        numbers = labels if labels is not None else [label for _, label in pairs or []]
        names = range(max((int(n) for n in numbers), default=-1) + 1)
    return [str(name if isinstance(name, str | int) else next(iter(name))) for name in names]
