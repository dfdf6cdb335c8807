"""Small images kept as one array on disk, as an image source."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_core.data.source import Names, Source, checked
from dino_core.errors import UserError
from dino_core.files import read_json, whole_folder, write_json


class ArrayImages(Source):
    """Images of one size in `images.npy`, uint8 [N, H, W, C], mapped into memory, not read.

    Forked workers share the map; pickling leaves it behind, and the copy makes its own.
    """

    def __init__(self, spec: str, folder: Path, channels: int = 3) -> None:
        info = read_json(folder / "images.json")
        self.spec, self.folder, self.channels, self.notes = spec, folder, channels, []
        self.classes = info["classes"]
        self.labels = None if info["labels"] is None else np.array(info["labels"], np.int64)
        self._images: np.ndarray | None = np.load(folder / "images.npy", mmap_mode="r")
        count, stored = len(self._images), self._images.shape[3]
        if channels != stored and not (channels == 3 and stored == 1):
            raise UserError(f"{spec}: its images have {stored} channels, not {channels}")
        self.ids = Names(f"{info['name']}/{i:06d}" for i in range(count))

    def image(self, i: int) -> np.ndarray:
        """Image `i`, uint8 [H, W, channels]; gray is repeated where RGB was asked for."""
        pixels = self._row(i)
        if pixels.shape[2] != self.channels:
            return np.repeat(pixels, self.channels, axis=2)
        return pixels.copy()

    def read(self, i: int) -> bytes:
        """Image `i` as a PNG file, or as an .npy file where PNG has no such channels."""
        file, pixels = io.BytesIO(), self.image(i)
        if pixels.shape[2] == 3:
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        else:
            np.save(file, pixels, allow_pickle=False)
        return file.getvalue()

    def fingerprint(self, i: int) -> str:
        """A hash of image `i`'s shape and pixels."""
        pixels = self._row(i)
        return hashlib.blake2b(
            f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16
        ).hexdigest()

    def _row(self, i: int) -> np.ndarray:
        if self._images is None:
            self._images = np.load(self.folder / "images.npy", mmap_mode="r")
        return np.asarray(self._images[checked(i, len(self))])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": None}


def write_arrays(
    folder: Path, name: str, images: np.ndarray, labels: list[int] | None, classes: list[str]
) -> None:
    """Keep `images` (uint8 [N, H, W], [N, H, W, C] or [N, 3, H, W]) for `ArrayImages`."""
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    with whole_folder(folder) as aside:
        np.save(aside / "images.npy", np.ascontiguousarray(images), allow_pickle=False)
        write_json(aside / "images.json", {"name": name, "labels": labels, "classes": classes})
