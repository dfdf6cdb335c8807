"""`scenes`: the generated collection as an image source."""

import hashlib
import io
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import numpy as np
from PIL import Image

from dino_core.data.scenes.objects import CLASSES
from dino_core.data.scenes.render import render
from dino_core.data.source import Source, checked
from dino_core.errors import UserError
from dino_core.rng import generator, permutation

VERSION = 1  # part of every key: another rendering is another collection
DEFAULT_COUNT = 2000
LIMIT = 1_000_000


class SceneIds(Sequence[str]):
    """ "scenes/000012" for number 12, made when asked for."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"scenes/{number:06d}" for number in self._numbers[index]]
        return f"scenes/{self._numbers[checked(index, len(self))]:06d}"


class Scenes(Source):
    """Generated photographs, 192 x 192, of twelve classes, each with its exact foreground mask.

    Scene number k is the same picture in every range that contains it, on every machine (up to
    the last bit of its floating-point arithmetic). Every block of twelve numbers, 0-11, 12-23, ...
    holds each class once, in an order of its own.
    """

    generated = True

    def __init__(self, spec: str, numbers: range) -> None:
        self.spec = spec
        self.ids = SceneIds(numbers)
        self.classes = [kind.name for kind in CLASSES]
        self.labels = _labels(numbers)
        self.notes = []
        self._numbers = numbers

    def image(self, i: int) -> np.ndarray:
        """Scene `i`, RGB uint8 [192, 192, 3]."""
        return self._render(i)[0].copy()

    def mask(self, i: int) -> np.ndarray:
        """Which pixels are the object's, bool [192, 192]."""
        return self._render(i)[1].copy()

    def read(self, i: int) -> bytes:
        """Scene `i` as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.image(i)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def fingerprint(self, i: int) -> str:
        """A hash of the scene's key: the picture follows from it."""
        key = f"scenes {VERSION} {self._numbers[checked(i, len(self))]}"
        return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def _render(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.labels is not None
        i = checked(i, len(self))
        return _scene(self._numbers[i], int(self.labels[i]))


def open_scenes(spec: str) -> Scenes:
    """`scenes` (the first 2,000), `scenes:500` (the first 500), `scenes:2000-2600` (a range)."""
    match = re.fullmatch(r"scenes(?::(?:(\d+)-)?(\d+))?", spec)
    if not match:
        raise UserError(f"{spec}: write scenes, scenes:500 or scenes:2000-2600")
    start, stop = int(match[1] or 0), int(match[2] or DEFAULT_COUNT)
    if start >= stop:
        raise UserError(f"{spec}: is empty; the second number must be greater than the first")
    if stop > LIMIT:
        raise UserError(f"{spec}: there are {LIMIT:,} scenes, numbered from 0")
    return Scenes(spec, range(start, stop))


@lru_cache(maxsize=2)  # an image and its mask are usually wanted one after the other
def _scene(number: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    return render(label, generator("scenes", VERSION, number))


def _labels(numbers: range) -> np.ndarray:
    """The class of each scene, int64 [n]: a keyed permutation for every block of twelve."""
    count = len(CLASSES)
    first, last = numbers.start // count, (numbers.stop - 1) // count
    blocks = [permutation(count, "scenes", VERSION, "block", b) for b in range(first, last + 1)]
    labels = np.concatenate(blocks).astype(np.int64)
    return labels[numbers.start - first * count :][: len(numbers)]
