"""Draw a view again without a browser: from its JSON, or from a picture that was exported with it.

    python scripts/view.py view.json --out head.png
    python scripts/view.py head.png --image photo.jpg --out again.png
    python scripts/view.py view.json --out look.zip     # picture, arrays and settings

The image is found by its hash among the galleries under --root and the examples; else name it.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core import catalog
from dino_core.catalog.finding import file_hash, find
from dino_core.data import BadImage, decode_image
from dino_core.errors import UserError, command
from dino_core.files import whole_file
from dino_core.gallery import Gallery
from dino_core.models import load_model
from dino_core.views import View, export, png_text, read_view, render


@dataclass
class Replay:
    """Draw a view again without a browser."""

    view: Annotated[Path, tyro.conf.Positional]
    """The view: a JSON file, or a .png that holds one."""
    image: Path | None = None
    """The image it is of; else it is found by its hash."""
    out: Path = Path("view.png")
    """Where to draw it: a .png; or a .zip or new folder for picture, arrays and settings."""
    root: Path = Path()
    """The folder that holds runs/ and galleries/."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@command
def main() -> None:
    args = tyro.cli(Replay, description=__doc__)
    view = read_view(args.view)
    picture = named(view, args.image) if args.image else found(view, args.root)
    image = catalog.load(picture)
    model = load_model(view.model, device=args.device, root=args.root)
    if args.out.suffix.lower() != ".png":
        export(view, image, model, args.out)
    else:
        drawn = render(view, image, model)
        with whole_file(args.out) as aside:
            drawn.save(aside, "PNG", pnginfo=png_text(view))
    print(f"{picture.title}, seen by {view.model}: {args.out}")


def named(view: View, path: Path) -> catalog.Picture:
    """The image that was given, if it is the view's."""
    try:
        content = file_hash(path)
    except BadImage as error:
        raise UserError(f"{path}: {error.reason}") from None
    if content != view.image:
        raise UserError(
            f"{path}: is another image ({content[:8]}) than the view is of ({view.image[:8]}); "
            "give that one"
        )
    return catalog.Picture(path.name, "", f"upload:{path}", lambda: decode_image(path))


def found(view: View, root: Path) -> catalog.Picture:
    """The image by its hash, among galleries and examples."""
    picture = find(view.image, opened(root), catalog.examples())
    if picture is None:
        raise UserError(
            f"the view's image ({view.image[:8]}) is neither in the galleries under {root} nor "
            "among the examples; name its file with --image"
        )
    return picture


def opened(root: Path) -> Iterator[Gallery]:
    """The galleries under `root`, but for damaged ones."""
    for entry in catalog.galleries(root):
        with suppress(UserError):
            yield Gallery.open(entry.path)


if __name__ == "__main__":
    main()
