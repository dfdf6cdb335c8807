"""Train DINO on your own images.

    python scripts/train.py --data photos/ --out runs/mine
    python scripts/train.py --data photos/ --out runs/mine --resume
    python scripts/train.py --recipe vits16 --data imagenet/train --out runs/vits16 --lr 0.001

Ctrl-C saves and stops; --resume goes on. Every field of the recipe is a flag (--help).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.data import open_source
from dino_core.errors import UserError, command
from dino_core.runs import Run
from dino_core.training import RECIPES, Recipe, train


@dataclass
class Train:
    """Train DINO on your own images."""

    data: str
    """A folder, a .csv or .parquet with a path column, a .tar, or `scenes`."""
    out: Path
    """Folder of the run, e.g. runs/mine."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    recipe: str = "small"
    """Named settings to start from; every other flag changes one of them."""
    resume: bool = False
    """Go on with the run in --out where it stopped (under its own recipe), or start it."""


def named_recipe(arguments: list[str]) -> tuple[str, Recipe]:
    """The recipe that the command line names: its fields are the defaults of all other flags."""
    name = "small"
    for i, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            name = argument.partition("=")[2]
        elif argument == "--recipe" and i + 1 < len(arguments):
            name = arguments[i + 1]
    if name not in RECIPES:
        raise UserError(f"--recipe {name}: no such recipe (there are: {', '.join(RECIPES)})")
    return name, RECIPES[name]


@command
def main() -> None:
    name, recipe = named_recipe(sys.argv[1:])
    defaults = Train(data=tyro.MISSING, out=tyro.MISSING, settings=recipe, recipe=name)
    args = tyro.cli(
        Train,
        default=defaults,
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    train(args.settings, open_source(args.data), Run(args.out), resume=args.resume)


if __name__ == "__main__":
    main()
