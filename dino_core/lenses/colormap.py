"""Scalar maps to colors: viridis, inferno, magma and turbo from 26 anchors each, and gray.

Between anchors colors are interpolated linearly, which stays within 3 of 255 of the 256-entry
originals: matplotlib's (CC0), and for turbo Mikhailov's ("Turbo, An Improved Rainbow Colormap for
Visualization", 2019; as in matplotlib, Apache 2.0). The browser has the same anchors
(apps/assets/overlay.js).
"""

import numpy as np

from dino_core.errors import UserError

ANCHORS: dict[str, str] = {  # evenly spaced from 0 to 1
    "inferno": "000004 050417 100a2e 1f0c47 300a5c 420a68 530e6d 63146e 731a6e 83206b 932667 "
    "a42c61 b33359 c23b50 d04545 dd513a e75f2d f06e21 f67f13 fa9207 fca50a fbb81d f8cc36 f4e055 "
    "f2f27c fcffa4",
    "magma": "000004 050416 0f0b2c 1b1043 2a115c 3b0f70 4c117a 5c177f 6c1d81 7c2382 8c2981 9d2e7f "
    "ad347c be3977 ce4070 de4968 ea5661 f3665c f9795d fc8c63 fe9f6d feb27a fec589 fed89a fdeaac "
    "fcfdbf",
    "viridis": "440154 471063 481e70 472b7a 453882 414487 3c4f8b 375a8c 32648e 2e6e8e 2a788e "
    "26828e 228b8d 1f958b 1f9e88 22a884 2cb17e 3aba76 4dc36c 62ca5f 7ad151 93d741 aedc30 c9e01f "
    "e4e419 fde725",
    "turbo": "30123b 3b3081 434cb7 4668df 4682f8 3e9bfe 2db5f1 1dccd9 18dfbe 27eda5 46f884 6efe62 "
    "94fe46 b0f937 caed34 e1dd37 f3c93a fcb236 fe972c fa781e f05b12 e24209 cf2e04 b81d02 9c0f01 "
    "7a0403",
    "gray": "000000 111111 222222 333333 444444 555555 666666 777777 888888 999999 aaaaaa bbbbbb "
    "cccccc dddddd eeeeee ffffff",
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
