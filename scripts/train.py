"""Train DINO on your own images.

    python scripts/train.py --data photos/ --out runs/mine
    python scripts/train.py --data photos/ --out runs/mine --max-time 30m
    python scripts/train.py --data photos/ --out runs/mine --resume
    torchrun --nproc-per-node=8 scripts/train.py --recipe vits16 --data imagenet/train --out runs/s

Ctrl-C saves and stops; --resume goes on. Without --recipe the settings are chosen from your images
and this machine, and it says which and why. Every field of the recipe is a flag, and has the last
word (--help).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import end_if_known, quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()
    end_if_known()

from dino_core import distributed
from dino_core.data import open_source
from dino_core.errors import command
from dino_core.runs import Run
from dino_core.training import RECIPES, Recipe, planned, seconds_of, train


@dataclass
class Train:
    """Train DINO on your own images."""

    data: str
    """A folder, a .csv or .parquet with a path column, a .tar, `torchvision:NAME`,
    `hf:owner/name`, or `scenes`."""
    out: Path
    """Folder of the run, e.g. runs/mine."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    recipe: str = "auto"
    """Named settings to start from; every other flag changes one of them."""
    resume: bool = False
    """Go on with the run in --out where it stopped (under its own recipe), or start it."""
    max_time: str | None = None
    """Wall time, e.g. 30m: as many steps as fit are chosen before the first one, and when it is up
    the run saves and stops."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard (pip install tensorboard)."""
    wandb: str | None = None
    """Also send metrics to this project at Weights & Biases (pip install wandb)."""


def parse(defaults: Recipe) -> Train:
    """The command line, with the fields of a recipe as the defaults of their flags."""
    return tyro.cli(
        Train,
        default=Train(data=tyro.MISSING, out=tyro.MISSING, settings=defaults),
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
        console_outputs=distributed.is_main(),
    )


def tell(sentence: str) -> None:
    if distributed.is_main():
        print(sentence, file=sys.stderr, flush=True)


@command
def main() -> None:
    args = parse(RECIPES["small"])
    seconds = None if args.max_time is None else seconds_of(args.max_time)
    recipe, run = args.settings, Run(args.out)
    source = open_source(args.data, channels=run.channels() or recipe.backbone.channels)
    if not run.exists():  # else it is refused, or goes on under its own recipe
        recipe = planned(
            args.recipe,
            source,
            run=run,
            flags=lambda defaults: parse(defaults).settings,
            max_seconds=seconds,
            tell=tell,
        )
    train(
        recipe,
        source,
        run,
        resume=args.resume,
        max_seconds=seconds,
        tensorboard=args.tensorboard,
        wandb=args.wandb,
    )


if __name__ == "__main__":
    main()
