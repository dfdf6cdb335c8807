"""Many models under many protocols: one table for a terminal, and one HTML page with pictures.

    print(table(files))                        # of what `scripts/evaluate.py ... --json FILE` wrote
    build(files, Path("report.html"))

Figures share a column only where they were measured on the same data with the same settings
(`board.py`); what was published too, else it stands in a section of its own (`orientation.py`).

The page asks nothing of any other file or machine. Its pictures are made anew, from the data and
the models that the files name (`opening.py`, `pictures.py`); where these are gone or have changed,
a note says so. Files that lack a figure, or come from a protocol not known here, are shown as far
as they go (`values.py`). What a card shows of each protocol is in `cards.py` and `mask_cards.py`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from dino_core.errors import UserError
from dino_core.evaluation.report.board import board_of, found_in
from dino_core.evaluation.report.page import whole_page
from dino_core.evaluation.report.terminal import written
from dino_core.files import check_writable, whole_file
from dino_core.gallery.progress import Progress, silent


def table(files: Sequence[Path]) -> str:
    """For a terminal: a line a figure, a column a model. Raises `UserError` as `build` does."""
    return written(board_of(files))


def on_stderr(sentence: str) -> None:
    """A line that leaves a bar of progress whole."""
    tqdm.write(sentence, file=sys.stderr)


def build(
    files: Sequence[Path],
    out: Path,
    *,
    device: str = "auto",
    progress: Progress = silent,
    tell: Callable[[str], None] = on_stderr,
) -> Path:
    """Write the page of all `files` to `out`, whole or not at all, and return `out`.

    A folder stands for the .json files in it. `device`: where models run for pictures of masks.
    `tell` gets a sentence for what pictures could not be made of. Raises `UserError` for no files,
    for one that is missing or holds no figures, where `out` is one of them, and, before any picture
    is made, where `out` cannot be written.
    """
    files = found_in(files)
    if Path(out).resolve() in {path.resolve() for path in files}:
        raise UserError(f"{out}: holds figures that the report is made of; name another file")
    board = board_of(files)
    check_writable(Path(out))
    text = whole_page(board, device, progress, tell)
    with whole_file(Path(out)) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(out)
