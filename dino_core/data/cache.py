"""Where downloads and lists of files are kept between runs: never in the user's own folders.

`DINO_CACHE` names the folder, else it is `~/.cache/dino-core`. All of it can be deleted at any
time; it is then made again.
"""

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A place in the cache; it need not exist yet."""
    root = os.environ.get("DINO_CACHE") or os.path.join("~", ".cache", "dino-core")
    return Path(root).expanduser().joinpath(*parts)
