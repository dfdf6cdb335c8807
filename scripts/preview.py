"""Draw what a recipe's augmentation does to your images: every row one image and its views.

python scripts/preview.py --data photos/ --out sheet.png
python scripts/preview.py --data photos/ --out sheet.png --recipe vits16 --images 4 --rows 2

Without --recipe it is the one that training would choose for these images on this machine.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.augment.sheet import sheet, stacked
from dino_core.data import open_source, safe_image
from dino_core.data.order import epoch_order
from dino_core.errors import UserError, command
from dino_core.files import whole_file
from dino_core.training import planned


@dataclass
class Preview:
    """Draw what a recipe's augmentation does to your images."""

    data: str
    """A folder, a .csv or .parquet with a path column, a .tar, torchvision:NAME, hf:OWNER/NAME,
    or `scenes`."""
    out: Path
    """The picture to write: .png or .jpg."""
    recipe: str = "auto"
    """Whose augmentation."""
    images: int = 4
    """How many images, chosen by the seed."""
    rows: int = 1
    """Epochs, each with new views, of every image."""
    seed: int = 0
    channels: int = 3
    """Channels of an image; of more than three the first three are shown."""


@command
def main() -> None:
    args = tyro.cli(Preview, description=__doc__)
    if min(args.images, args.rows) < 1:
        raise UserError("--images and --rows must be 1 or more")
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {args.out}: name a .png or .jpg file")
    source = open_source(args.data, channels=args.channels)
    crops = planned(args.recipe, source).crops
    pages = []
    for i in epoch_order(len(source), args.seed, 0)[: args.images].tolist():
        image, _, bad = safe_image(source, i)
        pages.append(sheet(image, crops, seed=args.seed, rows=args.rows, index=i))
        for item in bad:
            print(f"{item.id}: {item.reason}; another image is shown")
    with whole_file(args.out) as aside:
        stacked(pages).save(aside, "PNG" if args.out.suffix.lower() == ".png" else "JPEG")
    local = f" and {crops.local_count} of {crops.local_size} px" if crops.local_count else ""
    print(
        f"{args.out}: {len(pages)} of {len(source):,} images, as recipe {args.recipe} sees them: "
        f"2 crops of {crops.global_size} px{local}"
    )


if __name__ == "__main__":
    main()
