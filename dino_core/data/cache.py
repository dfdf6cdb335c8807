"""Where downloads and lists of files are kept between runs: never in the user's own folders.

`DINO_CACHE` names the folder, else it is `~/.cache/dino-core`. All of it can be deleted at any
time; it is then made again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_core.errors import UserError
from dino_core.files import held

BUSY = "held by another process"


def cache_folder(*parts: str) -> Path:
    """A place in the cache; it need not exist yet."""
    root = os.environ.get("DINO_CACHE") or os.path.join("~", ".cache", "dino-core")
    return Path(root).expanduser().joinpath(*parts)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process fills this place of the cache: all but the first find it full."""
    while True:
        try:
            with held(lock, BUSY):
                yield
                return
        except UserError as error:
            if str(error) != BUSY:
                raise
            time.sleep(0.5)
