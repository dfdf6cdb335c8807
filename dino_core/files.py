"""Whole-or-nothing writes: a reader sees the old file or the new one, never half of one.

A file or folder is written aside, flushed to the disk (fsync) and renamed into place; rename is
atomic on one file system.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dino_core.errors import UserError

LONGEST_NAME = 80  # of a folder that someone names on a page


@contextmanager
def whole_file(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path`, on failure it is gone.

    `new`: nothing is replaced, whoever else writes there at the same time. Raises `UserError` when
    there is a file then, the disk is full, or the folder cannot be written.
    """
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        aside = Path(name)
        try:
            yield aside
            flush_to_disk(aside)
            aside.chmod(0o666 & ~_umask())  # mkstemp makes 0600 files; these are to be shared
            if new:
                _claim(path, aside)
            os.replace(aside, path)
            flush_to_disk(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; on success it becomes `path`, else it is gone.

    `path` must not exist. Raises `UserError` when the disk is full or cannot be written.
    """
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield aside
            for file in aside.rglob("*"):
                flush_to_disk(file)
            flush_to_disk(aside)
            aside.chmod(0o777 & ~_umask())
            os.replace(aside, path)
            flush_to_disk(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path, prefix: str = ".") -> None:
    """Remove what killed processes have left half written in `folder`; only its one writer may.

    `prefix`: where there are several writers, what the names of this one's begin with.
    """
    for path in folder.glob(f"{prefix}*.tmp"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


_HELD: set[IO[str]] = set()


def _let_go_in_child() -> None:
    """A forked child must not hold its parent's locks: it may outlive it."""
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def held(lock: Path, sentence: str) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when this process ends, however it ends.

    Raises `UserError(sentence)` when another process holds it. Without locks on the system
    (Windows), it holds nothing.
    """
    with _disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115  # open for as long as the lock is held
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError:
            raise UserError(sentence) from None
        _HELD.add(file)
        try:
            yield
        finally:
            _HELD.discard(file)


def check_writable(path: Path) -> None:
    """Raise `UserError` where no file can be written at `path`; its folder is made."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        Path(name).unlink()


def check_name(what: str, name: str) -> None:
    """Raise `UserError` for a typed name of a folder that would lead elsewhere, or be hidden."""
    if not re.fullmatch(rf"\w[\w.-]{{0,{LONGEST_NAME - 1}}}", name):
        raise UserError(
            f"{name or f'The {what}'}: give it a name of letters, digits and hyphens, e.g. mine"
        )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def _claim(path: Path, content: Path) -> None:
    """Make the file `path` of what is in `content`, unless there is one: one step, one winner."""
    try:
        try:
            os.link(content, path)
        except FileExistsError:
            raise
        except OSError:  # a disk without links: only the name, until it is replaced
            path.open("x").close()
    except FileExistsError:
        raise UserError(
            f"{path}: is there already, and nothing is written over; choose a new name"
        ) from None


def flush_to_disk(path: Path) -> None:
    """fsync a file or folder, so that a power cut after this call cannot lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says into a sentence about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
