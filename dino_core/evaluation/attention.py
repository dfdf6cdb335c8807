"""Attention as segmentation: how well heads that nobody trained on masks cover objects.

Published protocol (DINO, section 4.2.2): of each head of the last layer the patches that hold 60 %
of its mass; for every object the head with the largest intersection over union; the mean over
objects. Masks are scored at the mask file's own size, attention is enlarged to nearest neighbors.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

Mask files: grayscale, everything not zero is one object; palette (VOC), every index is an object
and 255 is void (not scored). They are matched by the image's relative path without its ending.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.lenses.attention import look, mass_mask
from dino_core.lenses.render import nearest
from dino_core.measures.overlap import iou
from dino_core.models import Model, untrained

VOID = 255
MASK_SUFFIXES = {".png", ".bmp", ".gif", ".tif", ".tiff"}
MASK_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF")  # Pillow tries no other of its many readers
MAX_ASPECT_ERROR = 0.05  # a mask that differs more in shape belongs to another image


@dataclass(frozen=True)
class AttentionResult:
    """Mean intersection over union (0..1) of attention masks with objects."""

    jaccard: float  # best head per object, mean over objects: the published figure
    per_head: list[float]  # one head for all objects, mean over objects
    images: int
    objects: int
    model: str
    model_hash: str
    data: str
    keep: float
    layer: int
    size: int | None
    notes: list[str]  # sentences: what was left out and why
    random_init: "AttentionResult | None" = None  # the same for the untrained backbone

    @property
    def best(self) -> int:
        """The head that does best alone."""
        return int(np.argmax(self.per_head))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = [self] + ([self.random_init] if self.random_init else [])
        names = [self.model, "untrained"]
        width = max(len(name) for name in [*names, "model"])
        lines = [f"{'model':{width}}  best head per object  one head for all"]
        for name, row in zip(names, rows, strict=False):
            alone = f"{row.per_head[row.best]:.1%} (head {row.best})"
            lines.append(f"{name:{width}}  {row.jaccard:>20.1%}  {alone:>16}")
        lines.append(f"mean IoU over {self.objects:,} objects in {self.images:,} images")
        return "\n".join(lines + self.notes)


@dataclass(frozen=True)
class _Object:
    """One thing to be covered: its pixels, and the pixels that count."""

    target: np.ndarray  # bool [H, W]
    valid: np.ndarray  # bool [H, W]


def evaluate(
    model: Model,
    source: Source,
    masks: Path | None = None,
    *,
    keep: float = 0.6,
    layer: int = -1,
    size: int | None = None,
    random_init: bool = True,
    progress: bool = True,
) -> AttentionResult:
    """Score `model`'s attention on every image of `source` that has a mask.

    `masks`: a folder (None: the source's own masks, as `scenes` have); `size`: short side in pixels
    (None: the lens's default); `random_init`: score the untrained backbone as well. Raises
    `UserError` if nothing can be scored, or masks do not belong to the images.
    """
    depth = model.backbone.depth
    if not -depth <= layer < depth:
        raise UserError(f"layer {layer}: {model.spec} has layers 0 to {depth - 1}")
    found = _own_masks(source) if masks is None else _mask_files(source, Path(masks))
    result = _score(model, source, found, keep, layer, size, progress)
    if not random_init:
        return result
    baseline = _score(untrained(model), source, found, keep, layer, size, progress)
    return AttentionResult(**{**vars(result), "random_init": baseline})


def _score(
    model: Model,
    source: Source,
    found: "_Masks",
    keep: float,
    layer: int,
    size: int | None,
    progress: bool,
) -> AttentionResult:
    """The protocol for one model."""
    overlaps, images, bad = [], 0, []
    rounds = tqdm(
        found.indices, desc=f"attention of {model.spec}", unit="img", disable=not progress
    )
    for i in rounds:
        try:
            image = source.image(i)
        except BadImage as error:
            bad.append(f"{source.ids[i]} ({error.reason})")
            continue
        objects = list(found.objects(i, image.shape[:2]))
        if objects:
            images += 1
            attention = look(model, image, size=size)
            overlaps += _head_overlaps(mass_mask(attention.maps[layer], keep), objects)
            rounds.set_postfix_str(f"IoU {np.mean(np.max(overlaps, axis=1)):.3f}")
    if not overlaps:
        raise UserError(f"{source.spec}: its masks hold no object, so there is nothing to score")
    table = np.array(overlaps)
    return AttentionResult(
        jaccard=float(table.max(axis=1).mean()),
        per_head=[float(value) for value in table.mean(axis=0)],
        images=images,
        objects=len(table),
        model=model.spec,
        model_hash=model.hash,
        data=source.spec,
        keep=keep,
        layer=layer,
        size=size,
        notes=found.notes + _left_out(bad, "cannot be read", "cannot be read"),
    )


def _head_overlaps(heads: np.ndarray, objects: Iterable[_Object]) -> list[np.ndarray]:
    """Intersection over union of each head's mask, bool [A, h, w], with each object."""
    return [iou(nearest(heads, *o.target.shape), o.target, o.valid) for o in objects]


class _Masks:
    """Which images have masks, and the objects in them."""

    def __init__(self, source: Source, files: dict[int, Path] | None, notes: list[str]) -> None:
        self.source = source
        self.files = files
        self.notes = notes
        self.indices = sorted(files) if files is not None else list(range(len(source)))

    def objects(self, i: int, shape: tuple[int, int]) -> Iterator[_Object]:
        """The objects of image `i`, which has `shape` (height, width)."""
        if self.files is None:
            own = self.source.mask(i)
            if own is not None and own.any():
                yield _Object(own, np.ones_like(own))
            return
        path = self.files[i]
        labels, valid = read_mask(path)
        aspect = (labels.shape[1] / labels.shape[0]) / (shape[1] / shape[0])
        if abs(aspect - 1) > MAX_ASPECT_ERROR:
            raise UserError(
                f"{path}: {labels.shape[1]} x {labels.shape[0]} px does not have the shape of "
                f"{self.source.ids[i]} ({shape[1]} x {shape[0]} px); is it another image's mask?"
            )
        for label in np.unique(labels[valid]):
            if label:
                yield _Object(labels == label, valid)


def read_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Object numbers (int [H, W], 0 = background) and the pixels that count (bool [H, W]).

    Raises `UserError` for a file that is no image.
    """
    try:
        with Image.open(path, formats=MASK_FORMATS) as file:
            file.load()
            indexed = file.mode == "P" and not _is_gray_ramp(file)
            plain = indexed or file.mode in ("1", "L", "I", "I;16", "F")
            values = np.asarray(file if plain else file.convert("L"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a mask ({error})") from None
    if indexed:
        return values.astype(np.int64), values != VOID
    return (values != 0).astype(np.int64), np.ones(values.shape, dtype=bool)


def _is_gray_ramp(file: Image.Image) -> bool:
    """Whether a palette image is a grayscale one that was saved with few colors."""
    palette = np.array(file.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _own_masks(source: Source) -> _Masks:
    if not len(source) or source.mask(0) is None:
        raise UserError(f"{source.spec}: has no masks of its own; name their folder with --masks")
    return _Masks(source, None, [])


def _mask_files(source: Source, folder: Path) -> _Masks:
    """Match images to mask files by relative path without ending, leading folders optional."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of masks")
    stems = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in MASK_SUFFIXES and path.is_file()
    }
    files: dict[int, Path] = {}
    taken: dict[Path, str] = {}
    missing = []
    for i, name in enumerate(source.ids):
        if _inside(source.path(i), folder):
            continue  # the masks lie within the data folder and were listed as images
        path = _matching(PurePosixPath(name), stems)
        if path is None:
            missing.append(name)
        elif path in taken:
            raise UserError(f"{path}: fits {taken[path]} and {name}; lay masks out like the images")
        else:
            files[i], taken[path] = path, name
    if not files:
        example = f" (looked for {PurePosixPath(missing[0]).stem}.png)" if missing else ""
        raise UserError(f"{folder}: no mask there has the name of an image{example}")
    return _Masks(source, files, _left_out(missing, "has no mask", "have no mask"))


def _matching(name: PurePosixPath, stems: dict[str, Path]) -> Path | None:
    """The mask for `a/b/c.jpg`: `a/b/c`, else `b/c`, else `c`."""
    parts = name.with_suffix("").parts
    for start in range(len(parts)):
        path = stems.get("/".join(parts[start:]))
        if path is not None:
            return path
    return None


def _inside(path: Path | None, folder: Path) -> bool:
    return path is not None and folder.resolve() in path.resolve().parents


def _left_out(names: list[str], one: str, many: str) -> list[str]:
    """`3 images have no mask and are left out: a.jpg, b.jpg, c.jpg`; no sentence without names."""
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    what = f"1 image {one} and is" if len(names) == 1 else f"{len(names):,} images {many} and are"
    return [f"{what} left out: {shown}"]
