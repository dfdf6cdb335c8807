"""What this machine can do, what holds it up, and what to change.

    python scripts/doctor.py
    python scripts/doctor.py --data photos/ --recipe small

Takes under a minute: decodes images, and takes a few real training steps.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import command, quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.benchmarks.doctor import diagnosis, look_around, time_recipe


@dataclass
class Doctor:
    """What this machine can do, what holds it up, and what to change."""

    data: str | None = None
    """Your images: a folder, a table with a path column, a .tar; by default generated JPEGs."""
    recipe: str = "auto"
    """auto, or a recipe's name."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@command
def main() -> None:
    args = tyro.cli(Doctor, description=__doc__)
    machine = look_around(Path.cwd(), args.device)
    for line in diagnosis(machine, time_recipe(args.recipe, args.data, args.device)):
        print(line)


if __name__ == "__main__":
    main()
