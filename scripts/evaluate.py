"""Judge a model by the published protocols.

    python scripts/evaluate.py knn --model runs/mine --train data/train --test data/val
    python scripts/evaluate.py attention --model starter --data photos/ --masks masks/

Every figure stands beside the same for the untrained backbone; --json FILE saves them all.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.data import open_source
from dino_core.errors import command
from dino_core.evaluation import attention, knn
from dino_core.files import write_json
from dino_core.gallery.progress import bars
from dino_core.models import load_model


@dataclass
class Common:
    """What all protocols take."""

    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    json: Path | None = None
    """Where to save the figures."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    random_init: bool = True
    """Judge the untrained backbone as well."""


@dataclass
class Knn(Common):
    """k-NN accuracy: how well classes can be read off an image's neighbors."""

    train: str = tyro.MISSING
    """Labeled images that vote: class folders, a table with a column `label`, a .tar, `scenes`."""
    test: str = tyro.MISSING
    """Labeled images to be told."""
    ks: tuple[int, ...] = knn.KS
    """Numbers of neighbors to try; the best is reported."""
    temperature: float = knn.TEMPERATURE
    """Votes weigh exp(similarity / temperature)."""
    pixels: bool = False
    """Judge raw pixels (32 x 32) as well."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Decoding processes; by default as many as help on this machine."""


@dataclass
class Attention(Common):
    """Attention as segmentation: mean IoU of the best head per object, 60 % of the mass kept."""

    data: str = tyro.MISSING
    """Images: a folder, a table with a path column, a .tar, or `scenes`."""
    masks: Path | None = None
    """Folder of mask files, named as the images; without, the data's own (as `scenes` have)."""
    keep: float = 0.6
    """Share of a head's attention that makes its mask."""
    layer: int = -1
    """Which block's heads; -1 is the last."""
    size: int | None = None
    """Short side in pixels; by default the lens's."""


def evaluate(args: Knn | Attention) -> knn.KnnResult | attention.AttentionResult:
    """Run the protocol that the command line names."""
    if isinstance(args, Attention):
        return attention.evaluate(
            load_model(args.model, device=args.device), open_source(args.data), args.masks,
            keep=args.keep, layer=args.layer, size=args.size, random_init=args.random_init,
        )  # fmt: skip
    train, test = open_source(args.train), open_source(args.test)
    with bars() as progress:
        return knn.evaluate(
            load_model(args.model, device=args.device), train, test, ks=args.ks,
            temperature=args.temperature, random_init=args.random_init, pixels=args.pixels,
            batch_size=args.batch_size, workers=args.workers, progress=progress,
        )  # fmt: skip


@command
def main() -> None:
    protocols: dict[str, Callable[..., Any]] = {"knn": Knn, "attention": Attention}
    args = tyro.extras.subcommand_cli_from_dict(protocols, description=__doc__)
    result = evaluate(args)
    print(result.table())
    if args.json is not None:
        write_json(args.json, result.as_dict())


if __name__ == "__main__":
    main()
