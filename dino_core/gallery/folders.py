"""Which folders of images a page may make galleries of, and what lies in them.

    check_data("/data/photos", roots)               # raises UserError outside of them
    for one in subfolders(Path("/data"), roots): ...

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


def check_data(data: str, roots: Sequence[Path], *, open_to_network: bool) -> None:
    """Refuse a folder or file of images that a page may not read, with a `UserError`.

    Generated scenes are allowed everywhere. Links and dots are resolved: what counts is where the
    files lie.
    """
    if data == "scenes" or data.startswith("scenes:"):
        return
    if not roots and not open_to_network:
        return
    if not roots:
        raise UserError(
            f"{data}: on a page that other machines can reach, only folders that it was started "
            "with may be read; start it with --data-root FOLDER"
        )
    if not is_within(Path(data), roots):
        allowed = ", ".join(str(root) for root in roots)
        raise UserError(f"{data}: lies outside of what this page may read; choose inside {allowed}")


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
        raise UserError(f"{folder}: lies outside of what this page may read")
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
