"""Where a page is drawn: the root, the gallery that is open, the model in the bar."""

from dataclasses import dataclass
from pathlib import Path

from streamlit.delta_generator import DeltaGenerator

from dino_core.gallery import Gallery
from explore.opened import Opened


@dataclass(frozen=True)
class Here:
    """What every page is given."""

    root: Path
    model: str  # the spelling picked in the bar
    bar: DeltaGenerator  # a row for the page's own pickers
    opened: Opened | None = None  # None where there is none, on pages that need none

    @property
    def gallery(self) -> Gallery:
        """The gallery that is open; to be asked on pages that have one."""
        assert self.opened is not None
        return self.opened.gallery
