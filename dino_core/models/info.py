"""What it takes to build a backbone again: written beside its weights, read before them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from dino_core.errors import UserError

PosEmbedMode = Literal["dino", "timm"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_LAYOUT = {"dino_core": "1", "format": "pt"}  # `format` is what other safetensors readers ask for


@dataclass(frozen=True)
class ModelInfo:
    """A backbone's architecture, the images it was made for, and where its weights may be used."""

    architecture: str
    """timm's name without a weight tag; the sizes in it are only a name, those below count."""
    patch_size: int
    """Side of a patch, in pixels."""
    image_size: int
    """Native side in pixels: the size its position embedding is stored for."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, of values in [0, 1]; subtracted before `std` divides."""
    std: tuple[float, ...] = IMAGENET_STD
    pos_embed: PosEmbedMode = "dino"
    """How the position embedding is resampled at other sizes (see `pos_embed.py`)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model, JSON values only, e.g. `{"depth": 2}`."""
    license: str = ""
    """The license of the weights where it is known, as an SPDX identifier or a name."""

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise UserError(
                f"{self.architecture}: an image side of {self.image_size} px is not made of whole "
                f"patches of {self.patch_size} px; choose a multiple"
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(
                f"{self.architecture}: {self.channels} channels need as many means and deviations, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if self.pos_embed not in get_args(PosEmbedMode):
            raise UserError(
                f"{self.architecture}: pos_embed is `dino` or `timm`, not {self.pos_embed!r}"
            )

    def to_metadata(self) -> dict[str, str]:
        """As safetensors keeps it: string to string, each value JSON."""
        return _LAYOUT | {f.name: json.dumps(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ModelInfo":
        """Read `to_metadata` back. Raises `ValueError` when a field is missing or not JSON."""
        values = {f.name: json.loads(metadata[f.name]) for f in fields(cls) if f.name in metadata}
        for name in ("mean", "std"):
            if name in values:
                values[name] = tuple(map(float, values[name]))
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from None

    @staticmethod
    def described_by(metadata: Mapping[str, str] | None) -> bool:
        """Whether a file's metadata was written by `to_metadata`."""
        return metadata is not None and "dino_core" in metadata
