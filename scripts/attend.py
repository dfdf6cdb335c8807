"""See where each attention head of a model looks, for one image or a whole folder.

    python scripts/attend.py --model starter --data photo.jpg --out attention
    python scripts/attend.py --model runs/mine --data photos/ --out attention --layer all

Open OUT/index.html: every image with its heads, with sliders for opacity and attention kept.
Beside it lie heat maps, overlays, masks and arrays, one folder per image.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.data import open_source
from dino_core.errors import command
from dino_core.lenses.export import Settings, export
from dino_core.models import load_model


@dataclass
class Attend:
    """See where each attention head of a model looks, for one image or a whole folder."""

    data: str
    """An image, a folder, a .csv or .parquet with a path column, a .tar, or `scenes`."""
    out: Path
    """Folder for the results; a second run goes on where the first stopped."""
    settings: Annotated[Settings, tyro.conf.arg(name="")]
    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@command
def main() -> None:
    args = tyro.cli(Attend, description=__doc__)
    source = open_source(args.data)
    model = load_model(args.model, device=args.device)
    result = export(model, source, args.out, args.settings, progress=sys.stderr.isatty())
    for sentence in filter(None, [*source.notes, result.sentence]):
        print(f"note: {sentence}", file=sys.stderr)
    again = f" ({result.kept:,} were there already)" if result.kept else ""
    print(f"{result.made + result.kept:,} image(s){again}: open {result.sheet}")


if __name__ == "__main__":
    main()
