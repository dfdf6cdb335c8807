"""Judge a model by the published protocols.

    python scripts/evaluate.py knn --model runs/mine --train data/train --test data/val
    python scripts/evaluate.py attention --model starter --data photos/ --masks masks/
    torchrun --nproc-per-node=8 scripts/evaluate.py knn --train imagenet/train --test imagenet/val

Every figure stands beside the same for the untrained backbone; --json FILE saves them all. What was
computed of images stays in --features and is found again: a stopped command goes on where it was,
another protocol on the same features takes seconds. Delete the folder whenever you like.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core import distributed
from dino_core.data import open_source
from dino_core.errors import command
from dino_core.evaluation import attention, knn
from dino_core.evaluation.passes import Passing
from dino_core.files import write_json
from dino_core.gallery.progress import bars, silent
from dino_core.models import Model, device_of, load_model
from dino_core.training.parallel import agreed, own_device, process_group


@dataclass
class Common:
    """What all protocols take."""

    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    json: Path | None = None
    """Where to save the figures."""
    random_init: bool = True
    """Judge the untrained backbone as well."""
    features: Path | None = Path("features")
    """Folder in which features and figures stay and are found again; None keeps nothing."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Decoding processes; by default as many as help on this machine."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


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

    def run(self, model: Model, passing: Passing) -> knn.KnnResult:
        return knn.evaluate(
            model, open_source(self.train), open_source(self.test), ks=self.ks,
            temperature=self.temperature, random_init=self.random_init, pixels=self.pixels,
            passing=passing,
        )  # fmt: skip


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

    def run(self, model: Model, passing: Passing) -> attention.AttentionResult:
        return attention.evaluate(
            model, open_source(self.data), self.masks, keep=self.keep, layer=self.layer,
            size=self.size, random_init=self.random_init, passing=passing,
        )  # fmt: skip


PROTOCOLS: dict[str, Callable[..., Any]] = {"knn": Knn, "attention": Attention}


@command
def main() -> None:
    args = tyro.extras.subcommand_cli_from_dict(
        PROTOCOLS, description=__doc__, console_outputs=distributed.is_main()
    )
    model = load_model(args.model, device=str(own_device(device_of(args.device))))
    cpu = device_of("cpu")  # what the processes tell each other is small
    with process_group(cpu, "evaluation"), bars() as progress:
        several = distributed.world_size() > 1
        passing = Passing(
            keep=args.features,
            batch_size=args.batch_size,
            workers=args.workers,
            progress=progress if distributed.is_main() else silent,
            agree=partial(agreed, device=cpu) if several else None,
        )
        result = args.run(model, passing)
    if distributed.is_main():
        print(result.table())
        if args.json is not None:
            name = next(name for name, kind in PROTOCOLS.items() if type(args) is kind)
            write_json(args.json, {"protocol": name} | result.as_dict())


if __name__ == "__main__":
    main()
