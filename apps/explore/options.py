"""What the explorer was started with: the words after `--` on the command line."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from streamlit import config


@dataclass(frozen=True)
class Options:
    """Look at a gallery: its map, its images, their nearest neighbors."""

    gallery: str | None = None
    """Gallery to open first: a folder, or the name of one in ROOT/galleries."""
    model: str | None = None
    """Model to offer first: starter, runs/NAME, runs/NAME@STEP, a weights file, timm:NAME."""
    root: Path = Path()
    """Folder that holds runs/ and galleries/."""
    token: str | None = None
    """When the server is open to a network, what has to be typed before the page starts a build."""
    data_root: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Folder of images that galleries may be made of; may be given several times. Without it: any
    folder on a page of this machine alone, none on one that is open to a network."""


@functools.cache
def options() -> Options:
    """The options of this process, read once."""
    return tyro.cli(Options, prog="streamlit run apps/explorer.py --", args=sys.argv[1:])


def host() -> str:
    """The address that the server is bound to; "" for all of this machine's."""
    return config.get_option("server.address") or ""
