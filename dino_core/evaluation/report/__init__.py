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

from collections.abc import Sequence
from pathlib import Path

from dino_core.errors import UserError
from dino_core.evaluation.report.board import board_of
from dino_core.evaluation.report.page import whole_page
from dino_core.evaluation.report.terminal import written
from dino_core.files import whole_file
from dino_core.gallery.progress import Progress, silent


def table(files: Sequence[Path]) -> str:
    """For a terminal: a line a figure, a column a model. Raises `UserError` as `build` does."""
    return written(board_of(files))


def build(
    files: Sequence[Path], out: Path, *, device: str = "auto", progress: Progress = silent
) -> Path:
    """Write the page of all `files` to `out`, whole or not at all, and return `out`.

    `device`: where models run for pictures of masks. Raises `UserError` for no files, for one that
    is missing or holds no figures, and where `out` is one of them.
    """
    if Path(out).resolve() in {Path(path).resolve() for path in files}:
        raise UserError(f"{out}: holds figures that the report is made of; name another file")
    text = whole_page(board_of(files), device, progress)
    with whole_file(Path(out)) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(out)
