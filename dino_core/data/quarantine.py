"""Bad images: replaced deterministically, reported, never in the way of a run."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dino_core.data.decode import BadImage, Shrink
from dino_core.data.source import Source, checked
from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.rng import generator, permutation

ATTEMPTS = 100  # with every second image bad, all of them fail once in 10^30 draws


@dataclass(frozen=True)
class Quarantined:
    """One image that could not be used, and why."""

    id: str
    reason: str


def safe_image(
    source: Source, i: int, shrink: Shrink | None = None
) -> tuple[np.ndarray, int, list[Quarantined]]:
    """Image `i`, or its replacement if it is bad: (uint8 [H, W, 3], its true index, what was bad).

    `shrink` is as in `Source.shrunk`.

    The replacement depends on `i` and the length of the source alone: not on the epoch, the worker,
    or what was read before. Raises `UserError` when replacement after replacement is bad too.
    """

    def read(i: int) -> np.ndarray:
        return source.image(i) if shrink is None else source.shrunk(i, shrink)

    bad: list[Quarantined] = []
    i = checked(i, len(source))
    try:
        return read(i), i, bad
    except BadImage as error:
        bad.append(Quarantined(source.ids[i], error.reason))
    for candidate in _replacements(i, len(source)):
        try:
            return read(candidate), candidate, bad
        except BadImage as error:
            bad.append(Quarantined(source.ids[candidate], error.reason))
    raise UserError(
        f"{source.spec}: none of {len(bad)} images tried can be read "
        f"({bad[0].id}: {bad[0].reason}); check that these are images"
    )


def require_readable(source: Source) -> None:
    """Raise `UserError` where no image of the source can be read; reads until one can."""
    first = None
    for i in range(len(source)):
        try:
            source.image(i)
            return
        except BadImage as error:
            first = first or Quarantined(source.ids[i], error.reason)
    why = f" ({len(source):,} tried; {first.id}: {first.reason})" if first else ""
    raise UserError(f"{source.spec}: no image in it can be read{why}; give others")


def _replacements(i: int, n: int) -> list[int]:
    """Which images to try in place of `i`, in order; all others where there are few."""
    if n <= ATTEMPTS:
        order = permutation(n, "replacement", i)
    else:
        order = generator("replacement", i).integers(n, size=ATTEMPTS)
    return [int(j) for j in order if j != i]


class Quarantine:
    """Collects what was bad, each image once."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, items: Iterable[Quarantined]) -> None:
        """Note bad images; one noted already keeps its first reason."""
        for item in items:
            self._reasons.setdefault(item.id, item.reason)

    def items(self) -> list[Quarantined]:
        """All bad images, by id."""
        return [Quarantined(*pair) for pair in sorted(self._reasons.items())]

    @classmethod
    def read(cls, path: Path) -> "Quarantine":
        """Take up a report that `write` made; an empty quarantine where there is none."""
        quarantine = cls()
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            quarantine.add(Quarantined(**json.loads(line)) for line in lines)
        return quarantine

    def write(self, path: Path) -> None:
        """Write the report: one JSON object a line, {"id": ..., "reason": ...}, by id."""
        lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in self.items()]
        with whole_file(path) as aside:
            aside.write_text("".join(lines), encoding="utf-8")

    def sentence(self) -> str:
        """What to tell the user, "" when nothing was bad."""
        items = self.items()
        if not items:
            return ""
        images = "image was" if len(items) == 1 else "images were"
        example = f"{items[0].id}: {items[0].reason}"
        return f"{len(items):,} {images} left out as unreadable (e.g. {example})"
