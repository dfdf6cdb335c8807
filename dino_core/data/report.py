"""A report on a collection: how many images, how large, which classes, what is twice or broken.

    for sentence in report(open_source("photos")).sentences():
        print(sentence)

Every image is read and decoded once, in several processes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from dino_core import distributed
from dino_core.data.channels import NUMPY
from dino_core.data.decode import BadImage, open_checked
from dino_core.data.quarantine import Quarantined
from dino_core.data.source import Source
from dino_core.errors import UserError

CHUNK = 32  # images a process is given at once
ALONE = 128  # fewer are looked at sooner than a process starts


@dataclass(frozen=True)
class Spread:
    """Least, middle and greatest of a number."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class DataReport:
    """What a collection holds. Sizes are in pixels, as the images are seen (EXIF applied)."""

    data: str
    images: int
    bytes: int
    """Of all files that could be read."""
    width: Spread | None
    height: Spread | None
    aspect: Spread | None
    """Width / height; None, like the others, where no image is good."""
    formats: dict[str, int]
    """Images of each file format, by content, most frequent first."""
    classes: dict[str, int]
    """Images of each class; {} without labels."""
    unlabeled: int
    splits: dict[str, int]
    copies: list[list[str]]
    """Ids of images whose files are the same, byte for byte, a group each."""
    copies_across_splits: int
    """Groups of which some are in one split and some in another."""
    copies_across_classes: int
    """Groups of which some are of one class and some of another."""
    quarantined: list[Quarantined]
    notes: list[str]

    def json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The report in words."""
        found = [f"{self.data}: {_count(self.images, 'image')}, {_bytes(self.bytes)}"]
        if self.width and self.height and self.aspect:
            width, height, aspect = self.width, self.height, self.aspect
            found.append(
                f"width {width.least:,.0f} to {width.most:,.0f} pixels (median "
                f"{width.median:,.0f}), height {height.least:,.0f} to {height.most:,.0f} "
                f"({height.median:,.0f}), width / height {aspect.least:.2f} to {aspect.most:.2f} "
                f"({aspect.median:.2f})"
            )
        if self.formats:
            found.append("formats: " + _counts(self.formats))
        if self.classes:
            ordered = sorted(self.classes.items(), key=lambda item: (item[1], item[0]))
            (rare, fewest), (common, most) = ordered[0], ordered[-1]
            each = f"from {fewest:,} ({rare}) to {most:,} ({common}) images"
            if fewest == most:
                each = f"{_count(most, 'image')} each"
            unlabeled = f"; {self.unlabeled:,} unlabeled" if self.unlabeled else ""
            found.append(f"{_count(len(ordered), 'class', 'classes')}, {each}{unlabeled}")
        else:
            found.append("no labels")
        if self.splits:
            found.append("splits: " + _counts(self.splits))
        return found + self._warnings() + self.notes

    def _warnings(self) -> list[str]:
        found = []
        if self.copies:
            spare = sum(len(group) - 1 for group in self.copies)
            first = " = ".join(self.copies[0][:2])
            found.append(f"{_count(spare, 'exact copy', 'exact copies')} of others (e.g. {first})")
        if self.copies_across_splits:
            found.append(
                f"{_count(self.copies_across_splits, 'image')} with copies in several splits: "
                "what is measured on one was trained on in the other"
            )
        if self.copies_across_classes:
            contradicting = _count(self.copies_across_classes, "image")
            found.append(f"{contradicting} with copies in several classes")
        if self.quarantined:
            reasons = Counter(item.reason for item in self.quarantined)
            example = self.quarantined[0].id
            found.append(
                f"{_count(len(self.quarantined), 'image')} cannot be used: "
                f"{_counts(dict(reasons.most_common()))} (e.g. {example})"
            )
        return found


@dataclass(frozen=True)
class Look:
    """What one image was found to be."""

    reason: str = ""
    """Why it cannot be used, "" for a good one."""
    size: int = 0
    """Of its file in bytes."""
    format: str = ""
    content: bytes = b""
    """A hash of its file."""
    width: int = 0
    height: int = 0


def report(
    source: Source,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> DataReport:
    """Look at every image of a source, in `workers` processes (by default one a core).

    Where these are started by spawning, as here, a script that calls this has to do so under
    `if __name__ == "__main__":`. `progress` is called with how many images are done, and of how
    many. Raises `UserError` when a process dies.
    """
    looks: list[Look] = []
    for found in _looks(source, workers or distributed.cores()):
        looks += found
        progress(len(looks), len(source))
    good = [look for look in looks if not look.reason]
    copies = _copies(looks)
    labels = None if source.labels is None else np.asarray(source.labels)
    numbers = labels[labels >= 0] if labels is not None else np.empty(0, np.int64)
    counts = np.bincount(numbers, minlength=len(source.classes)).tolist()
    splits = [] if source.splits is None else [split or "none" for split in source.splits.tolist()]
    return DataReport(
        data=source.spec,
        images=len(source),
        bytes=sum(look.size for look in looks),
        width=_spread([look.width for look in good]),
        height=_spread([look.height for look in good]),
        aspect=_spread([look.width / look.height for look in good]),
        formats=dict(Counter(look.format for look in good).most_common()),
        classes=dict(zip(source.classes, counts, strict=True)) if labels is not None else {},
        unlabeled=0 if labels is None else len(labels) - len(numbers),
        splits=dict(Counter(splits)),
        copies=[[source.ids[i] for i in group] for group in copies],
        copies_across_splits=_differ(copies, splits),
        copies_across_classes=_differ(copies, [] if labels is None else labels.tolist()),
        quarantined=[
            Quarantined(source.ids[i], look.reason) for i, look in enumerate(looks) if look.reason
        ],
        notes=list(source.notes),
    )


def look_at(source: Source, i: int) -> Look:
    """Read and decode one image."""
    try:
        data = source.read(i)
    except BadImage as error:
        return Look(error.reason)
    content = hashlib.blake2b(data, digest_size=16).digest()
    try:
        height, width = source.decode(data).shape[:2]
    except BadImage as error:
        return Look(error.reason, len(data), content=content)
    return Look("", len(data), _format(data), content, width, height)


def _format(data: bytes) -> str:
    if data.startswith(NUMPY):
        return "NPY"
    with suppress(BadImage), open_checked(data) as image:
        return image.format or "unknown"
    return "TIFF"  # of more channels than Pillow knows


def _looks(source: Source, workers: int) -> Iterator[list[Look]]:
    """What the images are, in order, a chunk at a time."""
    starts = range(0, len(source), CHUNK)
    look = partial(_look_at_chunk, source)
    if workers < 2 or len(source) < ALONE:
        yield from map(look, starts)
        return
    # Spawned: a forked copy of a process with threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (source,)) as pool:
        done = 0
        try:
            for found in pool.map(_look_at_started, starts):
                yield found
                done += len(found)
        except BrokenProcessPool:
            last = min(done + workers * CHUNK, len(source)) - 1
            raise UserError(
                f"{source.spec}: a process that read images died (out of memory?), at one of "
                f"{source.ids[done]} to {source.ids[last]}; run it again with --workers 1"
            ) from None


_source: Source | None = None  # of a worker process: sent once, not with every chunk


def _start(source: Source) -> None:
    global _source
    _source = source


def _look_at_started(start: int) -> list[Look]:
    assert _source is not None
    return _look_at_chunk(_source, start)


def _look_at_chunk(source: Source, start: int) -> list[Look]:
    return [look_at(source, i) for i in range(start, min(start + CHUNK, len(source)))]


def _copies(looks: list[Look]) -> list[list[int]]:
    """Images of the same content, in groups of two or more; files without content aside."""
    groups: dict[bytes, list[int]] = {}
    for i, look in enumerate(looks):
        if look.size:
            groups.setdefault(look.content, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _differ(groups: list[list[int]], values: list[Any]) -> int:
    """In how many groups not all have the same value."""
    return sum(len({values[i] for i in group}) > 1 for group in groups) if values else 0


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(float(min(values)), float(np.median(values)), float(max(values)))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _counts(counts: dict[str, int], shown: int = 8) -> str:
    """ "JPEG 1,200, PNG 3": the first ones, and how many more there are."""
    words = [f"{name} {number:,}" for name, number in list(counts.items())[:shown]]
    more = len(counts) - shown
    return ", ".join(words) + (f" and {more:,} more" if more > 0 else "")


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
