"""Which folders of images a page may make galleries of, and what lies in them.

    path = place_of("photos", Path("/data"), roots, open_to_network=True)  # or a UserError
    for one in subfolders(path, roots): ...

Roots are what an operator allows (`--data-root`). Without any, a page on this machine alone may
name any folder, and one that is open to the network none.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_core.data.naming import IMAGE_ENDINGS, is_hidden
from dino_core.errors import UserError

COUNTED = 2_000  # entries that are looked at for a count
SHOWN = 200  # subfolders
LONGEST_SHOWN = 200  # letters of a path in a sentence
OUTSIDE = "is not there, or lies outside of what this page may read"


@dataclass(frozen=True)
class Subfolder:
    """A folder to be picked."""

    path: Path
    images: int  # in it and below, as far as was counted
    more: bool  # whether there may be more

    @property
    def label(self) -> str:
        """`cats (120 images)`."""
        count = f"{self.images:,}{'+' if self.more else ''}"
        return f"{self.path.name} ({count} image{'' if count == '1' else 's'})"


def place_of(typed: str, base: Path, roots: Sequence[Path], *, open_to_network: bool) -> Path:
    """Where the folder or file that someone typed lies, resolved; a relative one is in `base`.

    Links and dots are resolved: what counts is where the files lie. Raises `UserError` where there
    is nothing, and where a page may not read it; with roots, both in the same words, so that nobody
    learns what lies outside of them.
    """
    shown = typed if len(typed) <= LONGEST_SHOWN else f"{typed[:LONGEST_SHOWN]}…"
    if not roots and open_to_network:
        raise UserError(
            f"{shown}: on a page that other machines can reach, only folders that it was started "
            "with may be read; start it with --data-root FOLDER"
        )
    try:
        path = (base / Path(typed).expanduser()).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # nothing there, too long a name, no such user
        path = None
    if roots and (path is None or not is_within(path, roots)):
        allowed = ", ".join(str(root) for root in roots)
        raise UserError(f"{shown}: {OUTSIDE}; choose inside {allowed}")
    if path is None:
        raise UserError(f"{shown}: no such folder or file on the computer that runs this page")
    return path


def is_within(path: Path, roots: Sequence[Path]) -> bool:
    """Whether `path`, links and dots resolved, is there and is one of the roots or below one."""
    try:
        found = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return False
    return any(found.is_relative_to(root.resolve()) for root in roots)


def subfolders(folder: Path, roots: Sequence[Path]) -> list[Subfolder]:
    """The folders in one that is allowed, by name, with how many images lie in each.

    Hidden ones, and those that a link leads out of the roots, are left out. Raises `UserError` for
    a folder outside of the roots, or one that cannot be listed.
    """
    if not is_within(folder, roots):
        raise UserError(f"{folder}: {OUTSIDE}")
    try:
        with os.scandir(folder) as entries:
            names = sorted(one.name for one in entries if one.is_dir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error})") from None
    inside = (folder / name for name in [n for n in names if not is_hidden(n)][:SHOWN])
    return [counted(path) for path in inside if is_within(path, roots)]


def counted(folder: Path) -> Subfolder:
    """A folder and how many images lie in it and below; counting ends after 2,000 entries."""
    images = looked_at = 0
    for _, names, files in os.walk(folder):  # links to folders are not followed
        names[:] = sorted(name for name in names if not is_hidden(name))
        images += sum(os.path.splitext(name)[1].lower() in IMAGE_ENDINGS for name in files)
        looked_at += len(files) + len(names)
        if looked_at > COUNTED:
            return Subfolder(folder, images, True)
    return Subfolder(folder, images, False)
