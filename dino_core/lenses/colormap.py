"""Scalar maps to colors: viridis, inferno and magma from eleven anchors each.

Between anchors colors are interpolated linearly, which stays within 3 of 255 of the 256-entry
originals (matplotlib's, CC0). Apps hand the same anchors to the browser.
"""

import numpy as np

from dino_core.errors import UserError

ANCHORS: dict[str, str] = {  # evenly spaced from 0 to 1
    "viridis": "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725",
    "inferno": "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4",
    "magma": "000004 140e36 3b0f70 641a80 8c2981 b73779 de4968 f7705c fe9f6d fecf92 fcfdbf",
}


def table(name: str) -> np.ndarray:
    """The 256 colors of `name`, uint8 [256, 3]. Raises `UserError` for an unknown name."""
    if name not in ANCHORS:
        raise UserError(f"color map '{name}': unknown; use one of {', '.join(ANCHORS)}")
    anchors = np.array([list(bytes.fromhex(code)) for code in ANCHORS[name].split()], dtype=float)
    places = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def colored(values: np.ndarray, name: str) -> np.ndarray:
    """`values` in 0..1, float [...], as colors: uint8 [..., 3]."""
    return table(name)[codes(values)]


def codes(values: np.ndarray) -> np.ndarray:
    """`values` in 0..1 (clipped) as indices into a table: uint8 of the same shape."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
