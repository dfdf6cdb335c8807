"""The process that builds a gallery on its own: what `start_build` and `start_map` start.

    python -m dino_core.gallery --model SPEC --data SPEC --out galleries/NAME
    python -m dino_core.gallery --out galleries/NAME --n-neighbors 30 --min-dist 0.5

It says how far it is in `status.json` of the folder, from before torch is loaded, and ends in
order on SIGTERM. On a terminal `scripts/embed.py` is the one with the progress bars.
"""

import signal
from pathlib import Path

import tyro

from dino_core.errors import UserError, command
from dino_core.gallery.jobs import reported


@command
def main(
    out: Path,
    model: str | None = None,
    data: str | None = None,
    redo: bool = False,
    update: bool = False,
    patches: int | None = None,
    n_neighbors: int | None = None,
    min_dist: float = 0.1,
) -> None:
    """Build the gallery `out` of what `model` sees in `data`, or draw a map of the one there."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if n_neighbors is not None:
        _draw(out, n_neighbors, min_dist, redo)
        return
    if model is None or data is None:
        raise UserError("--model and --data: name both, or --n-neighbors for one more map")
    with reported(out, None, {"model": model, "data": data}) as say:
        say(0, 0, "Starting: loading torch")
        from dino_core.data import open_source
        from dino_core.gallery.building import build_here
        from dino_core.models import load_model

        say(0, 0, "Loading the model")
        seen_by = load_model(model)
        build_here(seen_by, open_source(data), out, say, redo=redo, update=update)
        if patches is not None:
            from dino_core.gallery.patch_building import build_patches_here

            build_patches_here(out, seen_by, say, per_image=patches, redo=redo)


def _draw(out: Path, n_neighbors: int, min_dist: float, redo: bool) -> None:
    with reported(out, None) as say:
        say(0, 0, "Starting")
        from dino_core.gallery.building import draw_map_here
        from dino_core.gallery.maps import UmapSettings

        draw_map_here(out, UmapSettings(n_neighbors, min_dist), say, redo=redo)


if __name__ == "__main__":
    tyro.cli(main)
