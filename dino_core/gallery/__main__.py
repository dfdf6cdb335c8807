"""The process that builds a gallery on its own: what `start_build` starts.

    python -m dino_core.gallery --model SPEC --data SPEC --out galleries/NAME

It says how far it is in `status.json` of the folder, from before torch is loaded, and ends in
order on SIGTERM. On a terminal `scripts/embed.py` is the one with the progress bars.
"""

import signal
from pathlib import Path

import tyro

from dino_core.errors import command
from dino_core.gallery.jobs import reported


@command
def main(model: str, data: str, out: Path, redo: bool = False) -> None:
    """Build the gallery `out` of what `model` sees in `data`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with reported(out, None) as say:
        say(0, 0, "Starting: loading torch")
        from dino_core.data import open_source
        from dino_core.gallery.building import build_here
        from dino_core.models import load_model

        say(0, 0, "Loading the model")
        build_here(load_model(model), open_source(data), out, say, redo=redo)


if __name__ == "__main__":
    tyro.cli(main)
