"""Look at a collection before training on it: sizes, classes, exact copies, what cannot be read.

python scripts/data.py --data photos/
python scripts/data.py --data list.csv --json report.json
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.data import open_source
from dino_core.data.report import report
from dino_core.errors import command
from dino_core.files import write_json


@dataclass
class Data:
    """Look at a collection before training on it."""

    data: str
    """A folder, a .csv or .parquet with a path column, a .tar, torchvision:NAME, hf:OWNER/NAME,
    or `scenes`."""
    channels: int = 3
    """Channels of an image."""
    workers: int | None = None
    """Processes that read; by default one for each core."""
    json: Path | None = None
    """Also write the whole report, every copy and every bad image, to this file; a folder that is
    not there is made."""


def counter() -> Callable[[int, int], None]:
    """A line on the terminal that counts along, four times a second."""
    last = 0.0

    def show(done: int, images: int) -> None:
        nonlocal last
        if not sys.stderr.isatty() or (time.monotonic() - last < 0.25 and done < images):
            return
        last = time.monotonic()
        end = "\n" if done == images else ""
        print(f"\r{done:,} of {images:,} images", end=end, file=sys.stderr, flush=True)

    return show


@command
def main() -> None:
    args = tyro.cli(Data, description=__doc__)
    source = open_source(args.data, channels=args.channels)
    found = report(source, args.workers, counter())
    for sentence in found.sentences():
        print(sentence)
    if args.json is not None:
        write_json(args.json, found.json())
        print(f"saved in {args.json}")


if __name__ == "__main__":
    main()
