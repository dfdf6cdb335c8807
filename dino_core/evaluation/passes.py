"""Passes over images: what a protocol computes of each, kept as it comes, shared by processes.

    passing = Passing(keep=Path("features"), progress=progress)
    found = features(model, source, cls_look(model), passing)      # .array [M, dim], .rows, .bad
    scores = each("attention", settings, source.ids, compute, passing, "Looking")

A pass lies in a folder of its own, named after a digest of all that it depends on (weights, images,
settings, the code), so it is found again by whoever asks for the same, and never by anyone else:

    features/cls-1f0c3a5e77aa/
        pass.json        all that it depends on, and how model and data were spelled; written last
        features.npy     float32 [M, dim]
        images.jsonl     one line per source image: its facts, or why it is bad
    features/attention-90b1d2c48a01/
        pass.json
        items-0.jsonl    {"item": "a.jpg", "value": ...}, as the first process computed them

Stopped at any moment, the same call goes on with what is there; made twice at the same time, the
second waits for the first. A pass that is whole is only read. Under torchrun every process makes
the same calls: each computes a share, and all get everything, so what follows needs no care.

Shapes: B images a batch, M readable images, S x T pixels, C channels.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_core import __version__, distributed
from dino_core.data import BadImage, Source
from dino_core.data.packed import Packed
from dino_core.errors import UserError
from dino_core.files import held, whole_file, write_json
from dino_core.gallery.extraction import (
    Batch,
    Embedder,
    Prepare,
    Run,
    Tokens,
    batches,
    default_workers,
)
from dino_core.gallery.features import (
    KINDS,
    SourceFeatures,
    feature_dim,
    prepared,
    preprocessing,
    source_features,
)
from dino_core.gallery.images import source_hash
from dino_core.gallery.manifest import BUILDING
from dino_core.gallery.partial import FACTS_PART, FEATURES, PartialFeatures
from dino_core.gallery.progress import Progress, silent
from dino_core.gallery.shares import Agree, Compute, Group, take_part
from dino_core.models import Model

# Raised whenever what a look or a protocol computes of an image changes: a kept pass knows its
# weights, images and settings, but not the code. `test_revision.py` pins what is computed.
REVISION = 1

PLAN = "pass.json"
SPELLED = "spelled"  # of a plan as it is written: for those who read it, not compared
FACTS = "images.jsonl"
LOCK = ".computing.lock"
ITEMS = "items-{}.jsonl"
MET = "met-{}"  # was here: that process
PAUSE = 0.2  # seconds between two looks at what the other processes have done
LOOKED_AT = 16  # images whose content tells that a source is the same
DIGITS = 12  # of a digest, in a folder's name
WHOLE, OURS, BUSY = "whole", "ours", "busy"  # a pass that is asked for
WAITING = "waiting for another process, that computes the same in {}"


@dataclass(frozen=True)
class Passing:
    """How the passes of a protocol are run."""

    keep: Path | None = None  # where they stay and are found again; None: nothing is kept
    batch_size: int = 64
    workers: int | None = None  # decoding processes; None: as many as help on this machine
    progress: Progress = silent
    agree: Agree | None = None  # of several processes: gives all what the first one gave


@dataclass(frozen=True)
class Look:
    """What is made of each image."""

    name: str  # "cls", "4 blocks": for messages, and in the folder's name
    prepare: Prepare  # uint8 [H, W, C] -> uint8 [S, T, C], one shape for all; picklable
    tokens: Tokens  # (backbone, normalized float [B, C, S, T]) -> features [B, dim]
    dim: int
    settings: dict[str, Any] = field(default_factory=dict)  # JSON: all else it depends on
    unit: bool = True  # L2-normalized


@dataclass(frozen=True)
class Task:
    """What a pass runs on each image, whether that is a model or not."""

    name: str  # as of a `Look`
    prepare: Prepare
    run: Run  # a batch of what was prepared -> float32 [B, dim]
    dim: int
    depends: dict[str, Any]  # JSON: all else the features depend on, but for the images
    message: str
    model: Model | None = None  # that runs, if any does


def kind_look(model: Model, kind: str = "cls") -> Look:
    """The features that galleries hold: whole images as the model's preprocessing cuts them."""
    return Look(
        name=kind,
        prepare=partial(prepared, info=model.info),
        tokens=KINDS[kind],
        dim=feature_dim(model, kind),
        settings={"preprocessing": preprocessing(model)},
    )


def features(model: Model, source: Source, look: Look, passing: Passing) -> SourceFeatures:
    """What `look` makes of every readable image, in the source's order.

    The array is memory-mapped where the pass is kept. Raises `UserError` when the disk is full, a
    feature is not finite, or a kept pass is damaged.
    """
    task = Task(
        look.name,
        look.prepare,
        Embedder(model, look.tokens, unit=look.unit),
        look.dim,
        {**weights_and_shape(model), "settings": look.settings, "unit": look.unit},
        f"Features ({look.name}) of {source.spec} by {model.spec}",
        model,
    )
    return features_by(task, source, passing)


def features_by(task: Task, source: Source, passing: Passing) -> SourceFeatures:
    """`features` for anything that makes numbers of an image."""
    device = task.model.device if task.model else torch.device("cpu")
    workers = default_workers(device) if passing.workers is None else passing.workers
    how: dict[str, Any] = {
        "dim": task.dim,
        "batch_size": passing.batch_size,
        "workers": workers,
        "pin": device.type == "cuda",
    }
    if passing.keep is None and passing.agree is None:
        progress, message = passing.progress, task.message
        return source_features(
            source, task.prepare, task.run, progress=progress, message=message, **how
        )

    def compute(images: range) -> Generator[Batch, None, None]:
        return batches(source, images, task.prepare, task.run, **how)

    return _kept(task, source, passing, compute)


def _kept(task: Task, source: Source, passing: Passing, compute: Compute) -> SourceFeatures:
    """The pass as it lies in its folder, and before that what is missing of it."""
    plan = plan_of(task.name, **task.depends, **images_of(source), dim=task.dim)
    spelled = ({"model": task.model.spec} if task.model else {}) | {"data": source.spec}

    def say(done: int, total: int, _: str = "") -> None:
        passing.progress(done, total, task.message)

    with folder_of(plan, passing) as folder:
        with turn(folder, _whole(folder, plan), passing, task.message) as missing:
            if not missing:
                say(len(source), len(source))
            elif distributed.is_main():
                _compute(folder, plan, len(source), compute, passing.agree, say)
                _finish(folder, plan, **spelled)
            elif passing.agree is not None:
                take_part(folder, plan, task.dim, passing.agree, compute)
        return _opened(folder, source, task.dim, in_memory=passing.keep is None)


def _compute(
    folder: Path,
    plan: dict[str, Any],
    total: int,
    compute: Compute,
    agree: Agree | None,
    say: Progress,
) -> None:
    """Compute what is missing of `total` images."""
    with closing(PartialFeatures(folder, plan, plan["dim"], redo=True)) as part:
        Group(part, total, agree).compute(compute, say)
        facts = part.facts()
        part.finish()
    with whole_file(folder / FACTS) as aside:
        aside.write_text("".join(json.dumps(one) + "\n" for one in facts), encoding="utf-8")


def _opened(folder: Path, source: Source, dim: int, *, in_memory: bool) -> SourceFeatures:
    """A whole pass as it lies on the disk; one that a hand has damaged is a `UserError`."""
    try:
        lines = (folder / FACTS).read_text(encoding="utf-8").splitlines()
        facts = [json.loads(line) for line in lines]
        mode: Any = None if in_memory else "c"  # torch warns of arrays that are not writable
        array = np.load(folder / FEATURES, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is damaged ({error}); delete it to compute it again") from None
    rows = np.array([one["index"] for one in facts if "bad" not in one], np.int64)
    if array.shape != (len(rows), dim) or len(facts) != len(source):
        raise UserError(f"{folder}: is damaged (it is too short); delete it to compute it again")
    bad = tuple((source.ids[one["index"]], one["bad"]) for one in facts if "bad" in one)
    return SourceFeatures(array, folder.name, rows=rows, bad=bad)


def each(
    name: str,
    settings: dict[str, Any],
    items: Sequence[str],
    compute: Callable[[int], Any],
    passing: Passing,
    message: str,
) -> list[Any]:
    """What `compute` gives of every item, JSON values in the order of `items`.

    `settings`: JSON values, all that the values depend on, model and data hashes among them. An
    item that was computed is not computed again; one that was being computed when the process was
    killed is. Raises `UserError` as `features` does, and whatever `compute` raises.
    """
    if passing.keep is None and passing.agree is None:
        found = []
        for i in range(len(items)):
            passing.progress(i, len(items), message)
            found.append(compute(i))
        passing.progress(len(items), len(items), message)
        return found
    plan = plan_of(name, settings=settings, items=digest(list(items)))
    with folder_of(plan, passing) as folder:
        with turn(folder, _whole(folder, plan), passing, message) as missing:
            if missing:
                _compute_each(folder, items, compute, passing, message)
                if distributed.is_main():
                    _finish(folder, plan)
        values = _values(folder)
    if not values.keys() >= set(items):
        raise UserError(f"{folder}: is damaged (it is too short); delete it to compute it again")
    passing.progress(len(items), len(items), message)
    return [values[name] for name in items]


def _compute_each(
    folder: Path,
    items: Sequence[str],
    compute: Callable[[int], Any],
    passing: Passing,
    message: str,
) -> None:
    """This process's share of the items that are missing; the first one waits for the others'."""
    agree = passing.agree or _alone
    found = _values(folder).keys() if distributed.is_main() else ()
    left = agree([i for i, name in enumerate(items) if name not in found])
    own = left[distributed.rank() :: distributed.world_size()]
    done = len(items) - len(left)
    for place, i in enumerate(own):
        passing.progress(done + place * distributed.world_size(), len(items), message)
        value = {"item": items[i], "value": compute(i)}
        _append(folder / ITEMS.format(distributed.rank()), value)
    if distributed.is_main() and distributed.world_size() > 1:
        while not _values(folder).keys() >= set(items):
            time.sleep(PAUSE)


def _values(folder: Path) -> dict[str, Any]:
    """What all processes have written so far; a line that was cut off counts as not written."""
    found = {}
    for path in sorted(folder.glob(ITEMS.format("*"))):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
                found[one["item"]] = one["value"]
            except (ValueError, KeyError, TypeError):
                continue
    return found


def _append(path: Path, value: Any) -> None:
    """Append a JSON value as a line of its own; the one before may have been cut off."""
    line = json.dumps(value).encode() + b"\n"
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room and start again, "
            "what is done so far is kept"
        ) from error


@contextmanager
def turn(
    folder: Path, is_whole: Callable[[], bool], passing: Passing, message: str
) -> Iterator[bool]:
    """Whether what lies in `folder` is to be computed, for as long as it is ours to do so.

    What is whole is only read, and may lie on a disk that cannot be written. Of several processes
    the first one looks, and alone holds the lock; they all leave when it is whole. Where another
    start computes the same, they wait until it has ended, however it did: what it left is found
    whole, or gone on with.
    """
    agree = passing.agree or _alone
    with ExitStack() as lock:
        state = agree(_state(folder, is_whole, lock))
        if state == BUSY:
            passing.progress(0, 1, f"{message}: {WAITING.format(folder)}")
        while state == BUSY:
            time.sleep(PAUSE)
            state = agree(_state(folder, is_whole, lock))
        yield state == OURS
        agree(WHOLE)  # the others wait here for the first one


def _state(folder: Path, is_whole: Callable[[], bool], lock: ExitStack) -> str:
    """`WHOLE`, `BUSY`, or `OURS`, with `lock` held; only the first process knows."""
    if not distributed.is_main():
        return ""
    if is_whole():
        return WHOLE
    try:
        lock.enter_context(held(folder / LOCK, BUSY))
    except UserError as error:
        if str(error) != BUSY:
            raise
        return BUSY
    return WHOLE if is_whole() else OURS  # it may have become so just now


def _alone(value: Any) -> Any:
    """What one process agrees on with itself."""
    return value


@contextmanager
def folder_of(plan: dict[str, Any], passing: Passing) -> Iterator[Path]:
    """The folder of a pass, the same one in all processes; where none is kept one that goes."""
    root, ours = passing.keep, False
    if root is None and passing.agree is not None:
        ours = distributed.is_main()
        root = Path(passing.agree(tempfile.mkdtemp(prefix="dino-pass-") if ours else ""))
    assert root is not None
    words = re.sub(r"\W+", "-", str(plan["what"]).lower()).strip("-")
    folder = root / f"{words}-{digest(plan)}"
    try:
        if distributed.is_main() and not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        if passing.agree is not None and not passing.agree(folder.is_dir()):
            raise UserError(f"{folder}: cannot be made")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror or error}); name another folder to keep "
            "features in"
        ) from None
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is not there for process {distributed.rank()}; name a folder to keep "
            "features in, on a disk that all machines share"
        )
    try:
        yield folder
        if passing.keep is None and passing.agree is not None:
            meet(folder, passing)  # not from under those that still read
    finally:
        if ours:
            shutil.rmtree(root, ignore_errors=True)


def meet(folder: Path, passing: Passing) -> None:
    """The first process goes on when all others have been here; once in a folder."""
    if passing.agree is None:
        return
    if not distributed.is_main():
        (folder / MET.format(distributed.rank())).touch()
        return
    while len(met := list(folder.glob(MET.format("*")))) < distributed.world_size() - 1:
        time.sleep(PAUSE)
    for mark in met:
        mark.unlink()


def weights_and_shape(model: Model) -> dict[str, Any]:
    """What tells one network from another: the same weights may be used with other heads, or with
    another way to resample position embeddings."""
    info = {name: value for name, value in model.info.to_metadata().items() if name != "license"}
    return {"model_hash": model.hash, "model_info": info}


def images_of(source: Source) -> dict[str, Any]:
    """What tells that the images are the same, however their place is spelled."""
    return {
        "source_hash": source_hash(source),
        "looked_at": _looked_at(source),
        "container": _container(source),
    }


def _looked_at(source: Source) -> str:
    """The content of a few images: not all are files, with sizes and times of change."""
    spread = {i * len(source) // LOOKED_AT for i in range(LOOKED_AT)} if len(source) else set()
    found = []
    for i in sorted(spread):
        try:
            found.append(source.fingerprint(i))
        except BadImage:
            found.append("")
    return digest(found)


def _container(source: Source) -> list[float] | None:
    """Size and time of change of the one file that holds all images, such as a .tar."""
    while isinstance(inner := getattr(source, "source", None), Source):
        source = inner  # what shows crops of another's images
    if not isinstance(source, Packed):
        return None
    found = source.file.stat()
    return [found.st_size, found.st_mtime]


def plan_of(what: str, **depends: Any) -> dict[str, Any]:
    """All that a pass depends on, the code included, as it is read again from JSON."""
    code = {"version": __version__, "revision": REVISION}
    plan: dict[str, Any] = json.loads(json.dumps({"what": what, **code, **depends}))
    return plan


def _finish(folder: Path, plan: dict[str, Any], **spelled: str) -> None:
    """From now on the pass is found whole."""
    write_json(folder / PLAN, plan | {SPELLED: spelled} if spelled else plan)
    for name in (BUILDING, FACTS_PART):
        (folder / name).unlink(missing_ok=True)


def _whole(folder: Path, plan: dict[str, Any]) -> Callable[[], bool]:
    """Whether the pass was finished, to be asked as often as needed."""

    def is_whole() -> bool:
        try:
            found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if isinstance(found, dict):
            found.pop(SPELLED, None)
        return bool(found == plan)

    return is_whole


def digest(value: Any) -> str:
    """A short name for a JSON value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
