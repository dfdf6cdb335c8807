"""The lens payload: every head's map of one image in a few hundred kB, for a browser to blend.

Head, layer, opacity, color map and mass threshold then change without a request. A map is stored
as uint8 codes of `sqrt(a / max)` with the head's `max`: attention has a long tail, and linear codes
lose it (mean IoU of the 60 % mass mask with the exact one 0.82, with square roots 0.98). The exact
number of kept patches at each 5 % step rides along, so that the mask of a step is "the so many
brightest codes".

Layout of the bytes: uint32 little-endian n · n bytes of UTF-8 JSON (the header) · codes, uint8,
C order [L, heads, h, w].
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_core.errors import UserError
from dino_core.lenses.attention import Attention, kept_counts

VERSION = 1
KEEP_STEPS = np.arange(21) / 20  # shares of the mass: 0, 5, .. 100 %
_FIELDS = (
    "version",
    "layers",
    "heads",
    "grid",
    "image",
    "max",
    "kept",
    "model",
    "model_hash",
    "patch",
)


@dataclass(frozen=True)
class LensPayload:
    """CLS maps of one image, coded. Arrays are read-only views where they come from bytes."""

    codes: np.ndarray  # uint8 [L, heads, h, w], round(255 * sqrt(a / max))
    peak: np.ndarray  # float64 [L, heads], each head's largest attention
    kept: np.ndarray  # int64 [L, heads, 21], patches in the mass mask at keep = 0, 5, .. 100 %
    image_size: tuple[int, int]  # (height, width) in pixels as fed to the model
    patch_size: int
    model: str
    model_hash: str

    @classmethod
    def from_attention(cls, attention: Attention) -> "LensPayload":
        """Code the maps of `attention`. Raises `UserError` where they are not finite."""
        maps = attention.maps.astype(np.float64)
        if not np.isfinite(maps).all():
            raise UserError(
                f"{attention.model}: its attention is not a number; the weights are damaged"
            )
        peak = maps.max(axis=(-2, -1))
        relative = maps / np.where(peak > 0, peak, 1)[..., None, None]
        return cls(
            codes=np.rint(255 * np.sqrt(relative)).astype(np.uint8),
            peak=peak,
            kept=kept_counts(attention.maps, KEEP_STEPS),
            image_size=attention.image_size,
            patch_size=attention.patch_size,
            model=attention.model,
            model_hash=attention.model_hash,
        )

    def to_bytes(self) -> bytes:
        """One blob in the layout above."""
        layers, heads, height, width = self.codes.shape
        header = {
            "version": VERSION,
            "layers": layers,
            "heads": heads,
            "grid": [height, width],
            "image": list(self.image_size),
            "max": self.peak.tolist(),
            "kept": self.kept.tolist(),
            "model": self.model,
            "model_hash": self.model_hash,
            "patch": self.patch_size,
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<I", len(text)) + text + self.codes.tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> "LensPayload":
        """Read a blob back; one that is cut off or of another kind is a `UserError`."""
        header, start = _header(blob)
        shape = (header["layers"], header["heads"], *header["grid"])
        if len(blob) - start != int(np.prod(shape)):
            raise UserError(
                f"lens payload: {len(blob) - start:,} bytes of maps where {int(np.prod(shape)):,} "
                "belong; it is cut off, make it again"
            )
        return cls(
            codes=np.frombuffer(blob, np.uint8, offset=start).reshape(shape),
            peak=np.asarray(header["max"], dtype=np.float64),
            kept=np.asarray(header["kept"], dtype=np.int64),
            image_size=(header["image"][0], header["image"][1]),
            patch_size=header["patch"],
            model=header["model"],
            model_hash=header["model_hash"],
        )

    def maps(self) -> np.ndarray:
        """The maps decoded, float32 [L, heads, h, w], each within 1/255 of sqrt of the original."""
        relative = (self.codes.astype(np.float64) / 255) ** 2
        return (relative * self.peak[..., None, None]).astype(np.float32)

    def mass_mask(self, keep: float = 0.6) -> np.ndarray:
        """The mass mask, bool [L, heads, h, w], as the browser draws it.

        `keep` (0..1) between two 5 % steps takes a number of patches between theirs. Among patches
        of one code the first in reading order win.
        """
        layers, heads, height, width = self.codes.shape
        flat = self.codes.reshape(layers, heads, -1)
        order = np.argsort(255 - flat, axis=-1, kind="stable")  # brightest first
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(height * width)[None, None], axis=-1)
        position = float(np.clip(keep, 0, 1)) * (len(KEEP_STEPS) - 1)
        below = int(position + 1e-9)
        above = min(below + 1, len(KEEP_STEPS) - 1)
        share = max(position - below, 0)
        count = np.rint(self.kept[..., below] * (1 - share) + self.kept[..., above] * share)
        return (ranks < count[..., None]).reshape(self.codes.shape)


def _header(blob: bytes) -> tuple[dict[str, Any], int]:
    """The header and where the codes start."""
    try:
        (length,) = struct.unpack_from("<I", blob)
        header = json.loads(blob[4 : 4 + length])
        if header["version"] != VERSION:
            raise UserError(
                f"lens payload: version {header['version']}, this program reads {VERSION}; "
                "make it again"
            )
        missing = [name for name in _FIELDS if name not in header]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"lens payload: not one, or cut off ({error}); make it again") from None
    if missing:
        raise UserError(f"lens payload: header lacks {', '.join(missing)}; make it again")
    return header, 4 + length
