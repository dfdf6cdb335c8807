"""Masks of images: read from files, matched to a source, and a pass over all images that have one.

    masks = find_masks(source, Path("masks"))        # or None: the source's own, as `scenes` have
    truth = masks.truth(i, image.shape[:2])          # .labels, .valid, .objects(), .foreground
    found = each_masked("attention", settings, model, source, masks, compute, passing, "Looking")

Mask files: grayscale, everything not zero is one object; palette (VOC), every index is an object
and 255 is void (not scored). They are matched by the image's relative path without its ending.
Gray is never taken for indices here (as `davis.py` takes small values): masks of single photos come
as 0 and 1 as well as 0 and 255, and soft edges would be objects of their own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from dino_core.data import BadImage, Source
from dino_core.data.decode import looks_like_image, read_file
from dino_core.errors import UserError
from dino_core.evaluation.mask_files import MASK_SUFFIXES, MAX_ASPECT_ERROR, VOID, mask_values
from dino_core.evaluation.passes import Passing, each, images_of, weights_and_shape
from dino_core.evaluation.results import Result, left_out, unreadable
from dino_core.gallery.features import preprocessing
from dino_core.gallery.images import source_hash
from dino_core.models import Model


class DamagedMask(Exception):
    """A mask file that is an image, but no mask can be read from it; its message says why."""


class Truth(NamedTuple):
    """What the mask of one image says."""

    labels: np.ndarray  # int64 [H, W], the number of the object at each pixel, 0 = background
    valid: np.ndarray  # bool [H, W], the pixels that count

    @property
    def foreground(self) -> np.ndarray:
        """All objects together, bool [H, W]."""
        return (self.labels != 0) & self.valid

    def objects(self) -> Iterator[np.ndarray]:
        """The pixels of each object, bool [H, W], in order of their numbers; made one by one."""
        for number in np.unique(self.labels[self.valid]):
            if number:
                yield (self.labels == number) & self.valid


class Masks:
    """Which images of a source have masks, and what these say."""

    def __init__(
        self, source: Source, spec: str, files: dict[int, Path] | None, notes: list[str]
    ) -> None:
        self.source = source
        self.spec = spec  # the folder as it was named; the source's own spelling for its own masks
        self.files = files
        self.notes = notes  # sentences: what has no mask
        self.indices = sorted(files) if files is not None else list(range(len(source)))

    @cached_property
    def hash(self) -> str:
        """sha256 over the images' names and the bytes of their mask files."""
        if self.files is None:
            return source_hash(self.source)
        total = hashlib.sha256()
        for i, path in sorted(self.files.items()):
            try:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{path}: cannot be read as a mask ({reason})") from None
            total.update(f"{self.source.ids[i]}\0{content}\n".encode())
        return total.hexdigest()

    def truth(self, i: int, shape: tuple[int, int]) -> Truth:
        """The mask of image `i`, which has `shape` (height, width), at the mask's own size.

        Raises `DamagedMask`, and `UserError` for a mask that belongs to another image.
        """
        if self.files is None:
            own = self.source.mask(i)
            if own is None:
                own = np.zeros(shape, dtype=bool)
            return Truth(own.astype(np.int64), np.ones(own.shape, dtype=bool))
        path = self.files[i]
        truth = read_mask(path)
        height, width = truth.labels.shape
        aspect = (width / height) / (shape[1] / shape[0])
        if abs(aspect - 1) > MAX_ASPECT_ERROR:
            raise UserError(
                f"{path}: {width} x {height} px does not have the shape of {self.source.ids[i]} "
                f"({shape[1]} x {shape[0]} px); is it another image's mask?"
            )
        return truth


@dataclass(frozen=True, kw_only=True)
class MasksResult(Result):
    """Shares (0..1) of how well the objects of masks are found."""

    size: int | None  # short side fed, in pixels; None: each image's own
    data: str
    data_hash: str
    masks: str
    masks_hash: str
    images_scored: list[tuple[str, float]] = field(repr=False)  # id, share

    @property
    def fed_at(self) -> str:
        """At which size images were fed, for a table."""
        return "each at its own size" if self.size is None else f"fed at {self.size} px"

    def best_and_worst(self, n: int = 6) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(id, share) of the `n` images whose objects are found best, and of the `n` worst."""
        return best_and_worst(self.images_scored, n)


@dataclass(frozen=True)
class Scored:
    """What a pass found of each image with an object, and what was left out."""

    ids: list[str]
    values: list[Any]
    notes: list[str]


def each_masked(
    name: str,
    settings: dict[str, Any],
    model: Model,
    source: Source,
    masks: Masks,
    compute: Callable[[np.ndarray, Truth], Any],
    passing: Passing,
    message: str,
) -> Scored:
    """`compute(image, truth)`, a JSON value, of every image that has an object.

    `settings`: what the values depend on beside model, images and masks. Left out, with a note:
    images without a mask or an object, and what cannot be read. Raises `UserError` when nothing
    is left.
    """
    depends = {
        **weights_and_shape(model),
        "preprocessing": preprocessing(model),
        **images_of(source),
        "masks_hash": masks.hash,
        **settings,
    }

    def one(place: int) -> dict[str, Any]:
        i = masks.indices[place]
        try:
            image = source.image(i)
            truth = masks.truth(i, (image.shape[0], image.shape[1]))
        except BadImage as error:
            return {"bad": error.reason}
        except DamagedMask as error:
            return {"damaged": str(error)}
        if not truth.foreground.any():
            return {"empty": True}
        try:
            return {"value": compute(image, truth)}
        except UserError as error:
            raise UserError(f"{source.ids[i]}: {error}") from None

    names = [source.ids[i] for i in masks.indices]
    found = each(name, depends, names, one, passing, message)
    notes = masks.notes + _what_was_left_out(names, found)
    whole = [(id, one["value"]) for id, one in zip(names, found, strict=True) if "value" in one]
    if not whole:
        raise UserError(_nothing_left(source, found))
    return Scored([id for id, _ in whole], [value for _, value in whole], notes)


def common(
    model: Model,
    source: Source,
    masks: Masks,
    scored: Scored,
    shares: Sequence[float],
    fed: Sequence[int | None],
) -> dict[str, Any]:
    """The fields that every `MasksResult` has; `shares` and `fed` [images] as in it."""
    sizes = [one for one in fed if one is not None]
    size = max(sizes, default=None)
    less = sum(one != size for one in sizes)
    smaller = f"{less:,} of {len(fed):,} images are long, and were fed smaller than {size} px"
    return {
        "model": model.spec,
        "model_hash": model.hash,
        "data": source.spec,
        "data_hash": source_hash(source),
        "masks": masks.spec,
        "masks_hash": masks.hash,
        "size": size,
        "images_scored": list(zip(scored.ids, map(float, shares), strict=True)),
        "notes": scored.notes + ([smaller] if less else []),
    }


def best_and_worst(
    scores: Sequence[tuple[str, float]], n: int
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The `n` highest (highest first) and the `n` lowest (lowest first) of (id, score) pairs.

    Fewer where there are not 2 n images, so that none is in both.
    """
    ordered = sorted(scores, key=lambda one: one[1], reverse=True)
    n = max(0, min(n, len(ordered) // 2 if len(ordered) > 1 else 1))
    return ordered[:n], ordered[::-1][:n] if len(ordered) > 1 else []


def read_mask(path: Path) -> Truth:
    """Object numbers (int64 [H, W], 0 = background) and the pixels that count (bool [H, W]).

    Palette: each index an object, 255 void. Gray: one object, whatever the values; the top of this
    file says why. Raises `UserError` for a file that is no image, `DamagedMask` for one that is cut
    off, or in color without a palette.
    """
    try:
        data = read_file(path)
        if data and not looks_like_image(data[:32]):
            raise BadImage("not an image")
    except BadImage as error:
        raise UserError(f"{path}: cannot be read as a mask ({error.reason})") from None
    try:
        values, indexed = mask_values(data)
    except BadImage as error:
        raise DamagedMask(error.reason) from None
    if indexed:
        return Truth(values.astype(np.int64), values != VOID)
    return Truth((values != 0).astype(np.int64), np.ones(values.shape, dtype=bool))


def find_masks(source: Source, folder: Path | None) -> Masks:
    """The masks in `folder`, or the source's own for None.

    Raises `UserError` when there are none, or a file fits two images.
    """
    if folder is not None:
        return _mask_files(source, Path(folder))
    if not len(source) or source.mask(0) is None:
        raise UserError(f"{source.spec}: has no masks of its own; name their folder with --masks")
    return Masks(source, source.spec, None, [])


def _mask_files(source: Source, folder: Path) -> Masks:
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
    return Masks(source, str(folder), files, left_out(missing, "has no mask", "have no mask"))


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


def _what_was_left_out(names: Sequence[str], found: Sequence[dict[str, Any]]) -> list[str]:
    both = list(zip(names, found, strict=True))
    bad = [(name, one["bad"]) for name, one in both if "bad" in one]
    damaged = [f"{name} ({one['damaged']})" for name, one in both if "damaged" in one]
    empty = [name for name, one in both if "empty" in one]
    return (
        unreadable(bad)
        + left_out(damaged, "has a mask that cannot be read", "have masks that cannot be read")
        + left_out(empty, "has a mask without an object", "have masks without an object")
    )


def _nothing_left(source: Source, found: Sequence[dict[str, Any]]) -> str:
    if all("empty" in one for one in found):
        return f"{source.spec}: its masks hold no object, so there is nothing to score"
    one = next(one for one in found if "empty" not in one)
    reason = one.get("bad") or one["damaged"]
    what = "image" if "bad" in one else "mask"
    return (
        f"{source.spec}: none of its images can be scored (the first {what} that cannot be read: "
        f"{reason}); mend the files, or name another folder"
    )
