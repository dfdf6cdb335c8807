"""The pictures of the images that a run's checks look at, from the data it was trained on.

held_out = HeldOut.open(history)
held_out.note                        # a sentence where pictures are missing, else ""
held_out.thumbnail(3, side=96)       # JPEG of the fourth image; a crossed-out tile if it is gone
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_core.data import BadImage, Source, open_source
from dino_core.emergence.history import History
from dino_core.errors import UserError
from dino_core.gallery.thumbnails import placeholder_jpeg, thumbnail_jpeg
from dino_core.runs import Run


@dataclass(frozen=True)
class HeldOut:
    """Where each held-out image lies in the run's data."""

    source: Source | None
    places: np.ndarray  # int64 [n], -1 for an image that is gone
    note: str

    @classmethod
    def open(cls, history: History) -> "HeldOut":
        """Open the run's data, if it is still where it was. Raises nothing: `note` says it."""
        count = len(history.ids)
        try:
            source = data_of(history.run)
        except (UserError, OSError) as error:
            note = (
                f"The run's data cannot be opened, so its images are shown as tiles: {error}. "
                "Bring it back to where it was to see them."
            )
            return cls(None, np.full(count, -1), note)
        wanted = {id: row for row, id in enumerate(history.ids)}
        places = np.full(count, -1)
        for place, id in enumerate(source.ids):
            if (row := wanted.get(id)) is not None:
                places[row] = place
        gone = int((places < 0).sum())
        told = f"{gone:,} of {count:,} held-out images are no longer in {source.spec}."
        return cls(source, places, told if gone else "")

    def thumbnail(self, row: int, side: int) -> bytes:
        """A JPEG of one image, its longer side at most `side` pixels; a tile for one that is gone.

        Raises `IndexError` for a row there is not.
        """
        place = int(self.places[row])
        if self.source is None or place < 0:
            return placeholder_jpeg(side)
        try:
            return thumbnail_jpeg(_rgb(self.source.image(place)), side)
        except (BadImage, OSError):
            return placeholder_jpeg(side)

    def has(self, row: int) -> bool:
        """Whether the image is where it was."""
        return self.source is not None and bool(self.places[row] >= 0)


def data_of(run: Run) -> Source:
    """The data that a run was started on, opened again; a relative path also beside `runs/`.

    Raises `UserError` as `open_source` does.
    """
    recipe = run.recipe()
    spec, channels = str(recipe.get("data", "")), run.channels() or 3
    beside = run.path.resolve().parent.parent / spec
    if not Path(spec).exists() and beside.exists():
        spec = str(beside)
    return open_source(spec, channels)


def _rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] as RGB: gray from one channel, else the first three."""
    channels = image.shape[2]
    chosen = [0, 0, 0] if channels == 1 else [0, 1, min(2, channels - 1)]
    return image if channels == 3 else np.ascontiguousarray(image[:, :, chosen])
