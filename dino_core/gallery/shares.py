"""Several processes compute one gallery's features: each its share, the first puts them together.

    parts/500/     images from number 500 on, as another process computes them (see `partial.py`)
        whole.json     written last: nobody writes here any more

The first process computes from the front, into the gallery's own folder, and takes in each part as
soon as it follows on. Killed at any moment, the same command goes on with what is there, with as
many processes as it then has: parts are known by their images, not by who made them.
"""

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dino_core import distributed
from dino_core.errors import UserError
from dino_core.files import held, write_json
from dino_core.gallery.extraction import Batch
from dino_core.gallery.manifest import BUILDING
from dino_core.gallery.partial import FEATURES_PART, HEADER_BYTES, PartialFeatures
from dino_core.gallery.progress import Progress

PARTS = "parts"
WHOLE = "whole.json"
LOCK = ".computing.lock"
PAUSE = 0.1  # seconds between two looks at what the others do
SECONDS_BETWEEN_LOOKS = 1.0  # while this process computes itself
TAKEN_AT_ONCE = 16_384  # images

Range = tuple[int, int]  # images from the first to before the second
Agree = Callable[[Any], Any]  # gives every process what the first one gave: any JSON value
Compute = Callable[[range], Generator[Batch, None, None]]


def missing(done: int, total: int, there: Sequence[Range]) -> list[Range]:
    """What is neither among the first `done` images of `total` nor in one of the ranges."""
    left, at = [], done
    for start, stop in [*sorted(there), (total, total)]:
        if start > at:
            left.append((at, start))
        at = max(at, stop)
    return left


def dealt(ranges: Sequence[Range], processes: int) -> list[list[Range]]:
    """The ranges cut into one share for each process, in order, equal to within one image."""
    total = sum(stop - start for start, stop in ranges)
    ends = [total * (process + 1) // processes for process in range(processes)]
    shares: list[list[Range]] = [[] for _ in range(processes)]
    process = passed = 0
    for start, stop in ranges:
        while start < stop:
            while passed == ends[process]:
                process += 1
            cut = min(stop, start + ends[process] - passed)
            shares[process].append((start, cut))
            passed += cut - start
            start = cut
    return shares


class Group:
    """The first process's side: `part`, the gallery's own, grows to all `total` images.

    Without `agree` it is alone, and finishes what an earlier group left as well.
    """

    def __init__(self, part: PartialFeatures, total: int, agree: Agree | None = None) -> None:
        self.part, self.total = part, total
        processes = 1 if agree is None else distributed.world_size()
        there = self._left_parts()
        while part.done in there:
            there.pop(part.done)
            self._take_in(part.done)
        ranges = [(start, start + done) for start, done in there.items()]
        shares = dealt(missing(part.done, total, ranges), processes)
        self.own, self.others = shares[0], [one for share in shares[1:] for one in share]
        self.there = set(there)  # starts of parts that are done
        self.looked, self.elsewhere = 0.0, sum(there.values())
        if agree is not None:
            agree({"plan": part.plan, "shares": shares})

    def compute(self, compute: Compute, say: Progress) -> None:
        """Compute this process's share, and take in the others' as they come."""
        message = "Computing features"
        say(self.part.done, self.total, message)
        for start, stop in self.own:
            self._take_in_until(start, say, message)
            with closing(compute(range(start, stop))) as batches:
                for batch in batches:
                    self.part.append(batch.features_BD, batch.facts)
                    say(self.part.done + self._elsewhere(), self.total, message)
        self._take_in_until(self.total, say, message)
        self.part.commit()
        shutil.rmtree(self.part.folder / PARTS, ignore_errors=True)

    def _take_in_until(self, image: int, say: Progress, message: str) -> None:
        """Append all parts before `image`, waiting for those that are being computed."""
        while self.part.done < image:
            start = self.part.done
            if start in self.there or (_folder(self.part, start) / WHOLE).exists():
                self._take_in(start)
            else:
                time.sleep(PAUSE)
            say(self.part.done + self._elsewhere(), self.total, message)

    def _elsewhere(self) -> int:
        """How many images lie in parts that were not taken in yet, as of about a second ago."""
        if time.monotonic() - self.looked > SECONDS_BETWEEN_LOOKS:
            starts = {start for start, _ in self.others} | self.there
            waiting = [start for start in starts if start >= self.part.done]
            self.elsewhere = sum(_done(_folder(self.part, start)) for start in waiting)
            self.looked = time.monotonic()
        return min(self.elsewhere, self.total - self.part.done)

    def _left_parts(self) -> dict[int, int]:
        """Images done in each part that an earlier group left; what is of no use is removed."""
        found = {}
        names = [path.name for path in (self.part.folder / PARTS).glob("*")]
        for start in sorted(int(name) for name in names if name.isdecimal()):
            with _opened(self.part, start) as other:
                done = other.done
            if done and start >= self.part.done:
                found[start] = done
            else:
                shutil.rmtree(other.folder, ignore_errors=True)
        return found

    def _take_in(self, start: int) -> None:
        """Append what the part that begins with image `start` holds, and remove it."""
        with _opened(self.part, start) as other:
            facts, row = other.facts(), 0
            place, shape = other.folder / FEATURES_PART, (other.rows, other.dim)
            for at in range(0, len(facts), TAKEN_AT_ONCE):
                some = facts[at : at + TAKEN_AT_ONCE]
                good = sum("bad" not in one for one in some)
                rows_BD = np.empty((0, other.dim), np.float32)
                if good:
                    there = np.memmap(place, np.float32, "r", HEADER_BYTES, shape)
                    rows_BD = np.array(there[row : row + good])
                self.part.append(rows_BD, some)
                row += good
        self.part.commit()
        self.looked = 0.0
        shutil.rmtree(other.folder, ignore_errors=True)


def take_part(out: Path, plan: dict[str, Any], dim: int, agree: Agree, compute: Compute) -> None:
    """Any other process's side: compute the share that the first one gives, if there is any to do.

    Raises `UserError` when this process sees other images or another model than the first.
    """
    order = agree(None)
    if order is None:
        return
    if order["plan"] != plan:
        raise UserError(
            f"{out}: process {distributed.rank()} sees another model or other images than the "
            "first one; let both lie on a disk that all machines share"
        )
    for start, stop in order["shares"][distributed.rank()]:
        folder = out / PARTS / str(start)
        with _computing(folder):
            part = PartialFeatures(folder, _plan_of_part(plan, start), dim, redo=True)
            with closing(part), closing(compute(range(start + part.done, stop))) as batches:
                for batch in batches:
                    part.append(batch.features_BD, batch.facts)
        # Only now: who sees it takes the part, and could not while this process holds its lock.
        write_json(folder / WHOLE, {"images": stop - start})


@contextmanager
def _opened(part: PartialFeatures, start: int) -> Iterator[PartialFeatures]:
    """What there is of the part of the same gallery that begins with image `start`."""
    folder = _folder(part, start)
    with _computing(folder):
        other = PartialFeatures(folder, _plan_of_part(part.plan, start), part.dim, redo=True)
        with closing(other):
            yield other


@contextmanager
def _computing(folder: Path) -> Iterator[None]:
    busy = f"{folder}: is still being computed by a process of an earlier start; wait, or stop it"
    with held(folder / LOCK, busy):
        yield


def _folder(part: PartialFeatures, start: int) -> Path:
    return part.folder / PARTS / str(start)


def _plan_of_part(plan: dict[str, Any], start: int) -> dict[str, Any]:
    return plan | {"first_image": start}


def _done(folder: Path) -> int:
    """How many images a part holds for sure; others may be writing it."""
    try:
        return int(json.loads((folder / BUILDING).read_text(encoding="utf-8"))["cursor"]["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
