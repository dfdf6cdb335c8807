"""How fast this machine does what this program does, beside plain code measured in turns with it.

    python scripts/bench.py train                     # from image files, beside DINO as published
    python scripts/bench.py data --data photos/
    python scripts/bench.py embed --architecture vit_tiny_patch16_224 --json embed.json
    python scripts/bench.py search | map | lens | apps | million

Each prints images/s or ms, the ratio to its plain twin, the share of what the hardware allows and
where the time goes. Without --data the images are generated. --json FILE saves a list with one
object for each thing measured.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import command, quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()


@dataclass
class Common:
    """What all benchmarks take."""

    json: Path | None = None
    """Where to save what was measured; a folder that is not there is made."""


@dataclass
class Train(Common):
    """Training steps, end to end from image files, beside the algorithm as published."""

    data: str | None = None
    """A folder, a table with a path column, a .tar or `scenes`; by default generated JPEGs."""
    only: tuple[str, ...] = ()
    """Recipes by name, such as "ViT-T/8 64+32"; by default those that suit the device."""
    batch_size: int | None = None
    """Images a step; by default what suits the recipe and the device."""
    steps: int | None = None
    """Steps a turn."""
    rounds: int = 3
    """Turns of each side."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int = 0
    """Compute threads on a CPU; 0: one a core."""
    workers: int | None = None
    """Decoding processes; by default as many as help on this machine."""
    resident: bool = False
    """Keep the decoded images on the device."""
    residual: Literal["fp32", "bf16"] = "fp32"
    """What the stream between blocks is kept in."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether blocks are compiled."""
    plain: bool = True
    """Measure the plain twin as well."""


@dataclass
class Data(Common):
    """The feed: from image files to normalized views, beside Pillow's pipeline."""

    data: str | None = None
    """Images; by default generated JPEGs."""
    images: int = 32
    """Images a turn."""
    rounds: int = 3
    """Turns of each side."""
    stored_size: int = 0
    """Short side that images are reduced to first; 0: not."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class Embed(Common):
    """Features from image files, beside the bare forward."""

    data: str | None = None
    """Images; by default generated JPEGs."""
    architecture: str = "vit_small_patch16_224"
    """timm's name of the backbone, with untrained weights."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    image_size: int = 224
    """Side of the images that the model sees."""
    images: int = 64
    """Images a turn."""
    batch_size: int = 16
    """Images a forward pass."""
    workers: int | None = None
    """Decoding processes; by default as many as help on this machine."""
    threads: int = 0
    """Compute threads on a CPU; 0: one a core."""
    rounds: int = 3
    """Turns of each side."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class Search(Common):
    """Exact search among a gallery's features, beside a product and a sort in numpy."""

    images: int = 50_000
    """Features to search among."""
    dim: int = 384
    """Numbers a feature."""
    queries: int = 10
    """Queries a turn, one after the other."""
    rounds: int = 5
    """Turns of each side."""


@dataclass
class Map(Common):
    """A gallery's map, beside umap-learn by itself: two minutes a round."""

    images: int = 50_000
    """Features to lay out."""
    dim: int = 384
    """Numbers a feature."""
    rounds: int = 1
    """Turns of each side."""


@dataclass
class Lens(Common):
    """CLS attention of all layers and heads, beside one forward and full maps; and drawing them."""

    architecture: str = "vit_small_patch16_224"
    """timm's name of the backbone, with untrained weights."""
    patch_sizes: tuple[int, ...] = (16, 8)
    """Sides of a patch in pixels."""
    image_sizes: tuple[int, ...] = (224, 480)
    """Sides of the image in pixels."""
    threads: int = 0
    """Compute threads on a CPU; 0: one a core."""
    rounds: int = 5
    """Turns of each side."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    moves: int = 40
    """Moves of each control of the page in a headless browser; 0: leave drawing out."""


@dataclass
class Apps(Common):
    """The apps, from the start of the process to the first page."""

    names: tuple[str, ...] = ("lens", "explorer")
    """Which of them."""
    rounds: int = 3
    """Starts of each."""


@dataclass
class Million(Common):
    """A generated gallery of a million images: opened, searched, and its page in the explorer."""

    images: int = 1_000_000
    """Rows of the gallery."""
    dim: int = 384
    """Numbers a feature."""
    browser: bool = True
    """Measure the page as well, in a headless browser."""
    keep: Path | None = None
    """A folder to leave the gallery in, below galleries/, and to find it in."""


BENCHMARKS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "data": Data,
    "embed": Embed,
    "search": Search,
    "map": Map,
    "lens": Lens,
    "apps": Apps,
    "million": Million,
}


@command
def main() -> None:
    args = tyro.extras.subcommand_cli_from_dict(BENCHMARKS, description=__doc__)
    # Only now: each benchmark loads what it measures, and --help answers at once.
    from dino_core.benchmarks.measuring import report
    from dino_core.files import write_json

    benchmark = import_module(f"dino_core.benchmarks.{type(args).__name__.lower()}")
    options = {field.name: getattr(args, field.name) for field in fields(args)}
    save_to = options.pop("json")
    results = benchmark.measure(**options)
    print(report(results))
    if save_to is not None:
        write_json(save_to, [result.as_dict() for result in results])
        print(f"\nsaved in {save_to}")


if __name__ == "__main__":
    main()
