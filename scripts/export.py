"""Give a model to other programs: timm, the published DINO code, or anything that runs ONNX.

    python scripts/export.py --model runs/mine --to timm --out mine-timm/
    python scripts/export.py --model runs/mine --to dino --out mine.pth
    python scripts/export.py --model runs/mine --to onnx --out mine.onnx

`timm` is a folder for timm.create_model("local-dir:mine-timm", pretrained=True); `dino` the full
checkpoint of a run (of other models the backbone) as DINO published it; `onnx` is compared with the
model before it is kept (pip install '.[export]').
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.errors import UserError, command
from dino_core.models import load_model
from dino_core.models.export import export_dino, export_onnx, export_timm


@dataclass
class Export:
    """Give a model to other programs: timm, the published DINO code, or anything that runs ONNX."""

    out: Path
    """A folder for timm, a .pth file for dino, an .onnx file for onnx."""
    to: Literal["timm", "dino", "onnx"]
    """The layout."""
    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    size: int | None = None
    """For onnx: the one side in pixels that it takes; by default it takes every size."""


@command
def main() -> None:
    args = tyro.cli(Export, description=__doc__)
    if args.size is not None and args.to != "onnx":
        raise UserError(f"--size is for --to onnx; the {args.to} layout has no fixed size")
    if args.to == "dino":
        print(f"{args.out}: {', '.join(export_dino(args.model, args.out)[:5])}")
        return
    model = load_model(args.model, device="cpu")
    if args.to == "timm":
        export_timm(model, args.out)
        print(f'{args.out}: open with timm.create_model("local-dir:{args.out}", pretrained=True)')
        if model.info.pos_embed == "dino" and model.info.patch_size > 1:
            print("note: at other sizes than its own, timm resamples positions otherwise than DINO")
        return
    exported = export_onnx(model, args.out, args.size)
    sizes = " and ".join(f"{height} x {width}" for height, width in exported.sizes)
    print(
        f"{args.out}: {', '.join(exported.outputs)}; within {exported.difference:.0e} of the model "
        f"at {sizes} px"
    )


if __name__ == "__main__":
    main()
