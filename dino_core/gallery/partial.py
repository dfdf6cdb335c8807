"""Features while they are being computed: two files that only grow, and a cursor.

    features.npy.part   a .npy file in the making: 128 bytes of header, then float32 rows
    images.jsonl.part   one JSON object per source image: its facts, or why it is bad
    building.json       the plan, and how far the two files can be trusted

The cursor is written after the two files were flushed, so a build that was killed at any moment
goes on from the last cursor: whatever lies behind it is cut off. Rows are appended rather than
written to a memory map, for a full disk is then an error with a sentence, not a crash.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.errors import UserError
from dino_core.files import flush_to_disk, write_json
from dino_core.gallery.manifest import BUILDING

FEATURES = "features.npy"
FEATURES_PART = "features.npy.part"
FACTS_PART = "images.jsonl.part"
SECONDS_BETWEEN_COMMITS = 3.0
BINDING = ("model", "data", "feature_hash")  # of a plan: where these differ, it is another gallery

HEADER_BYTES = 128  # before the rows


class PartialFeatures:
    """Features on their way into `folder`; begun, or taken up where an earlier build left off.

    `plan` is a JSON object that says what is being computed. What was done for another model or
    other data is thrown away with `redo` only, and refused with a `UserError` otherwise; where only
    the images of the same data changed, it is started over. `done` counts source images handled,
    `rows` those that gave a feature.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], dim: int, *, redo: bool = False) -> None:
        self.folder, self.plan, self.dim = folder, plan, dim
        self.done = self.rows = self.fact_bytes = 0
        self.resumed = self._take_up()
        if not self.resumed and not redo:
            self._refuse_another()
        self.committed = time.monotonic()
        mode = "r+b" if self.resumed else "w+b"
        self._features = open(folder / FEATURES_PART, mode)  # noqa: SIM115 (`close` closes it)
        self._facts = open(folder / FACTS_PART, mode)  # noqa: SIM115
        self._features.truncate(HEADER_BYTES + self.rows * dim * 4)
        self._facts.truncate(self.fact_bytes)
        self._features.seek(0, os.SEEK_END)
        self._facts.seek(0, os.SEEK_END)

    def append(self, features_BD: np.ndarray, facts: list[dict[str, Any]]) -> None:
        """Add a batch: float32 features of its good images, and facts of ALL its images in order.

        Facts of a bad image hold the key `bad`. Raises `UserError` when the disk is full.
        """
        good = sum("bad" not in one for one in facts)
        if features_BD.shape != (good, self.dim) or features_BD.dtype != np.float32:
            raise ValueError(f"{features_BD.shape} {features_BD.dtype} for {good} x {self.dim}")
        lines = "".join(json.dumps(one) + "\n" for one in facts).encode()
        with self._disk_errors():
            self._features.write(features_BD.tobytes())
            self._facts.write(lines)
        self.done += len(facts)
        self.rows += good
        self.fact_bytes += len(lines)
        if time.monotonic() - self.committed > SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self) -> None:
        """Make all that was appended survive a kill or a power cut."""
        with self._disk_errors():
            for file in (self._features, self._facts):
                file.flush()
                os.fsync(file.fileno())
        cursor = {"done": self.done, "rows": self.rows, "fact_bytes": self.fact_bytes}
        write_json(self.folder / BUILDING, {"plan": self.plan, "dim": self.dim, "cursor": cursor})
        self.committed = time.monotonic()

    def facts(self) -> list[dict[str, Any]]:
        """The facts of all images handled so far, in the order of the source."""
        self._facts.flush()
        lines = (self.folder / FACTS_PART).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def finish(self) -> None:
        """Turn the part into `features.npy`, whole."""
        with self._disk_errors():
            self._features.seek(0)
            self._features.write(npy_header(self.rows, self.dim))
            self._features.flush()
            os.fsync(self._features.fileno())
            self._features.seek(0, os.SEEK_END)
            os.replace(self.folder / FEATURES_PART, self.folder / FEATURES)
            flush_to_disk(self.folder)

    def close(self) -> None:
        """Keep what there is. What a full disk does not take is computed again next time."""
        with contextlib.suppress(UserError):
            if not self._features.closed:
                self.commit()
        for file in (self._features, self._facts):
            with contextlib.suppress(OSError):
                file.close()

    def _take_up(self) -> bool:
        """Read the cursor; False when there is nothing that this plan can go on from."""
        self._step_back()
        try:
            building = json.loads((self.folder / BUILDING).read_text(encoding="utf-8"))
            cursor = building["cursor"]
            done, rows, fact_bytes = (cursor[key] for key in ("done", "rows", "fact_bytes"))
            feature_bytes = (self.folder / FEATURES_PART).stat().st_size
            long_enough = (
                feature_bytes >= HEADER_BYTES + rows * self.dim * 4
                and (self.folder / FACTS_PART).stat().st_size >= fact_bytes
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if building.get("plan") != self.plan or building.get("dim") != self.dim or not long_enough:
            return False
        self.done, self.rows, self.fact_bytes = done, rows, fact_bytes
        return True

    def _refuse_another(self) -> None:
        """Never throw hours of somebody's computing away unasked."""
        try:
            building = json.loads((self.folder / BUILDING).read_text(encoding="utf-8"))
            there, done = dict(building["plan"]), int(building["cursor"]["done"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        differs = [name for name in BINDING if there.get(name) != self.plan.get(name)]
        if not (differs and done):
            return
        what = f"of {there.get('data')} seen by {there.get('model')}"
        if differs == ["feature_hash"]:
            what = f"made with other weights of {there.get('model')} than are there now"
        raise UserError(
            f"{self.folder}: holds a half-made gallery {what} ({done:,} images done); "
            "give another --out, or --redo to throw it away"
        )

    def _step_back(self) -> None:
        """Undo `finish` where a build was killed after it: the part is the truth until the end."""
        finished, part = self.folder / FEATURES, self.folder / FEATURES_PART
        if finished.is_file() and not part.exists():
            os.replace(finished, part)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror or error}); make room and "
                "start again, what is done so far is kept"
            ) from error


def npy_header(rows: int, dim: int) -> bytes:
    """The 128 bytes before C-ordered float32 [rows, dim] in a .npy file, format version 1.0."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    prefix = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return prefix + text.ljust(HEADER_BYTES - 11).encode() + b"\n"
