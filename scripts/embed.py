"""Make a gallery: what a model sees in a collection of images, to search it and walk its map.

    python scripts/embed.py --model starter --data photos/ --out galleries/photos
    python scripts/embed.py --model runs/mine --data scenes --out galleries/scenes

    python scripts/embed.py --data photos/ --out galleries/photos --umap.min-dist 0.5
    python scripts/embed.py --data photos/ --out galleries/photos --patches 49
    python scripts/embed.py --data moved/photos/ --out galleries/photos --update
    torchrun --nproc-per-node=8 scripts/embed.py --data photos/ --out galleries/photos

Under torchrun each process (each GPU) computes a share of the features. Stopped or killed, the same
command goes on where it was, with as many processes as it then has. Where images came, went or
changed since, it brings the gallery up to date: only what is new is computed. With `--patches` a
gallery, new or there already, also holds parts of its images, to be searched; the first process
alone computes them, and begins again when it was killed. Look at the result with
`streamlit run apps/explorer.py -- --gallery galleries/photos`.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core import distributed
from dino_core.data import open_source, require_readable
from dino_core.errors import command
from dino_core.gallery import (
    Gallery,
    UmapSettings,
    build,
    build_patches,
    help_build,
    plan_patches,
)
from dino_core.gallery.manifest import how_made
from dino_core.gallery.progress import bars
from dino_core.models import Model, device_of, load_model
from dino_core.training.parallel import agreed, own_device, process_group


@dataclass
class Embed:
    """Make a gallery: what a model sees in a collection of images."""

    data: str
    """A folder, a .csv or .parquet with a path column, a .tar, or `scenes`."""
    out: Path
    """Folder of the gallery, e.g. galleries/photos."""
    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    kind: Literal["cls", "cls+gem", "mean patch"] = "cls"
    """Tokens that make the feature: the class token, with a mean of patches for near copies, or
    the mean of the patches alone."""
    maps: tuple[Literal["umap", "pca"], ...] = ("umap",)
    """Maps to draw; `pca`, the quick one, is always there."""
    umap: UmapSettings = field(default_factory=UmapSettings)
    """Settings of the UMAP. With others a gallery that is there gets one more map, drawn from the
    neighbors it holds."""
    patches: int | Literal["all"] | None = None
    """Patches of each image to hold as well, so that a click on an eye finds eyes: a number (49 is
    a good one, chosen at random, always the same), or `all`."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Decoding processes; by default as many as help on this machine."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    redo: bool = False
    """Start over what is there with another model, other images or other patches (what you added
    stays)."""
    update: bool = False
    """Bring up to date what is there of other data, too, as after its folder was moved, or where
    more than half of the images are gone: those whose content is known keep their features."""
    refit: bool = False
    """Draw anew the maps on which earlier updates placed images, however few these are."""


@command
def main() -> None:
    args = tyro.cli(Embed, description=__doc__, console_outputs=distributed.is_main())
    source = open_source(args.data)
    require_readable(source)
    model = load_model(args.model, device=str(own_device(device_of(args.device))))
    cpu = device_of("cpu")  # what the processes tell each other is small
    with process_group(cpu, "gallery"), bars() as progress:
        agree = partial(agreed, device=cpu) if distributed.world_size() > 1 else None
        if agree is not None and not distributed.is_main():
            help_build(
                model, source, args.out, agree,
                kind=args.kind, batch_size=args.batch_size, workers=args.workers,
            )  # fmt: skip
            return
        gallery = build(
            model, source, args.out,
            kind=args.kind, batch_size=args.batch_size, workers=args.workers,
            progress=progress, maps=args.maps, umap=args.umap, redo=args.redo,
            update=args.update, refit=args.refit, shrink=args.update, agree=agree,
        )  # fmt: skip
    print(f"{gallery.path}: {len(gallery):,} images of {args.data}, seen by {model.spec}")
    if gallery.news:
        print(gallery.news)
    if gallery.info.quarantined:
        report = gallery.path / "quarantine.jsonl"
        print(f"{gallery.info.quarantined:,} images could not be read; {report} says why")
    for line in how_made(gallery.info):
        print(line)
    if args.patches is not None:
        _hold_patches(args, gallery, model)


def _hold_patches(args: Embed, gallery: Gallery, model: Model) -> None:
    """`--patches`, in this process alone: what they take is said before, what they are after."""
    per_image = None if args.patches == "all" else args.patches
    print(plan_patches(gallery, model, per_image=per_image).sentence, flush=True)
    with bars() as progress:
        patches = build_patches(
            gallery, model, per_image=per_image, batch_size=args.batch_size, workers=args.workers,
            progress=progress, redo=args.redo,
        )  # fmt: skip
    print(f"{patches.path}: {patches.info.says()}")


if __name__ == "__main__":
    main()
