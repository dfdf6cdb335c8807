"""What a run's quality checks saw, check by check, read from its `probes/` (docs/formats.md).

    history = History.read(Run("runs/mine"))
    history.steps                        # [0, 100, 200, ...], those of the whole checks
    history.heads(picture=0, layer=-1)   # a lens payload of one layer at each check
    history.colors(picture=0)            # uint8 [h, w, 3] at each check
    history.neighbors()                  # of every held-out image, at each check
    history.maps()                       # of all held-out images, drawn together, kept on the disk

A check that is damaged is left out and named in `notes`. Shape legend: T checks, n held-out images,
D width of the model, K neighbors, h x w patches, C kept directions.
"""

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.errors import UserError
from dino_core.files import read_json, whole_file
from dino_core.gallery.aligned import aligned_maps, common_sample, procrustes_chain
from dino_core.gallery.maps import pca_map
from dino_core.gallery.progress import Progress, silent
from dino_core.runs import ALIVE, Run

MOST_CHECKS = 120  # that are shown: a slider of 1,000 pixels has no room for more
MOST_MAPS = 24  # that are drawn together
SHOWN = 12  # neighbors that a page shows
COLORS = 3
STRETCH = (1, 99)  # percentiles of a direction that become darkest and brightest
MAPS = "maps.npz"
FEWEST_HELD_OUT = 10  # fewer are not held out: `Recipe.held_out`

_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Check:
    """One quality check: after how many optimizer steps, where it lies, what was measured."""

    step: int
    path: Path
    knn: float | None  # percent
    rankme: float | None
    consistency: float | None  # share of neighbors kept under augmentation, 0 to 1

    def features(self) -> np.ndarray:
        """Of the held-out images, float32 [n, D], each of length 1."""
        features_ND = _load(self.path / "features.npy").astype(np.float32)
        norms_N = np.linalg.norm(features_ND, axis=1, keepdims=True)
        return features_ND / np.maximum(norms_N, 1e-12)

    def sentence(self) -> str:
        """`step 300: k-NN 31.2 %, RankMe 20.1`, of what was measured."""
        told = [
            f"k-NN {self.knn:.1f} %" if self.knn is not None else "",
            f"RankMe {self.rankme:.1f}" if self.rankme is not None else "",
            f"neighbors kept {self.consistency:.2f}" if self.consistency is not None else "",
        ]
        return f"step {self.step:,}: " + ", ".join(filter(None, told))


@dataclass(frozen=True)
class Neighbors:
    """Every held-out image's nearest others at every check, best first."""

    rows: np.ndarray  # uint16 [T, n, K]
    cosines: np.ndarray  # int8 [T, n, K], hundredths

    def sharing(self, labels: np.ndarray) -> np.ndarray:
        """How many of them have the image's own label, int64 [T, n]; -1 is no label."""
        theirs, own = labels[self.rows], labels[None, :, None]
        return ((theirs == own) & (own >= 0)).sum(axis=-1)


@dataclass(frozen=True)
class Maps:
    """The held-out images at some checks, placed so that what stays alike stays in place."""

    steps: list[int]
    points: np.ndarray  # float32 [T', n, 2]; NaN for images that no map shows


@dataclass(frozen=True)
class History:
    """All whole checks of a run, oldest first: there is at least one."""

    run: Run
    checks: list[Check]
    notes: list[str]  # what was left out, a sentence each
    ids: list[str]  # of the held-out images
    labels: np.ndarray  # int64 [n] into `classes`, -1 without
    classes: list[str]
    pictures: list[int]  # numbers of the fixed images that were kept

    @classmethod
    def read(cls, run: Run) -> "History":
        """Read what there is. Raises `UserError`, a sentence, where there is nothing to see yet."""
        if not run.exists():
            raise UserError(f"{run.path}: no such run; train one with scripts/train.py")
        probes = run.path / "probes"
        named = [(_FOLDER.fullmatch(path.name), path) for path in _listed(probes)]
        folders = sorted((int(match[1]), path) for match, path in named if match)
        if not folders:
            raise UserError(why_none(run))
        ids, labels, classes = _held_out(probes / "held_out.json")
        notes, checks = [], []
        for step, folder in folders:
            try:
                changed = folder.stat().st_mtime_ns
                checks.append(_check(step, folder, len(ids), changed))
            except UserError as error:
                notes.append(f"The check at step {step:,} is left out: {error}.")
        if not checks:
            raise UserError(f"{probes}: no check is whole. {notes[0]} Train the run again")
        if len(checks) > MOST_CHECKS:
            notes.append(f"Of {len(checks):,} checks, {MOST_CHECKS} are shown, evenly chosen.")
            checks = evenly(checks, MOST_CHECKS)
        images = [path.stem for path in _listed(probes / "images") if path.suffix == ".png"]
        pictures = sorted(int(stem) for stem in images if stem.isdecimal())
        return cls(run, checks, notes, ids, labels, classes, pictures)

    @property
    def steps(self) -> list[int]:
        """After how many optimizer steps each check was."""
        return [check.step for check in self.checks]

    def awaited(self) -> int | None:
        """The step of the next check of a run that goes on; None where none is to come."""
        if self.run.status().get("state") not in ALIVE:
            return None
        later = [step for step in planned(self.run.recipe()) if step > self.steps[-1]]
        return later[0] if later else None

    # -- the fixed images -------------------------------------------------------------------

    def picture(self, number: int) -> bytes:
        """The PNG of a fixed image."""
        if number not in self.pictures:
            raise UserError(f"{self.run.path}: no picture {number} among its probes")
        return (self.run.path / "probes" / "images" / f"{number}.png").read_bytes()

    @cached_property
    def depth(self) -> tuple[int, int]:
        """(layers, heads) of the newest attention that was kept; (0, 0) without any."""
        for check in reversed(self.checks):
            for path in sorted(check.path.glob("attention-*.bin")):
                header = _payload_header(path)
                return header["layers"], header["heads"]
        return 0, 0

    def heads(self, picture: int, layer: int = -1) -> list[bytes | None]:
        """A lens payload of one layer of `picture` at each check, None where none was kept."""
        return [_one_layer(check.path / f"attention-{picture}.bin", layer) for check in self.checks]

    def colors(self, picture: int) -> list[np.ndarray | None]:
        """The patches of `picture` colored by their features, uint8 [h, w, 3] at each check.

        Alike color is alike feature, in all pictures. At the last check red, green and blue are the
        three directions of most variance; at those before, the three orthogonal directions among
        the kept that come nearest to the colors one check later, so that none jumps. None at checks
        that kept no patches.
        """
        return self._colored.get(picture, [None] * len(self.checks))

    @cached_property
    def _colored(self) -> dict[int, list[np.ndarray | None]]:
        kept = [self._patches(check) for check in self.checks]
        numbers = [n for n in self.pictures if any(n in one for one in kept)]
        whole = [t for t, one in enumerate(kept) if one and all(n in one for n in numbers)]
        turned = steady([_flat(kept[t], numbers) for t in whole])
        colored: dict[int, list[np.ndarray | None]] = {n: [None] * len(kept) for n in numbers}
        for t, scores_N3 in zip(whole, turned, strict=True):
            start, codes_N3 = 0, stretched(scores_N3)
            for n in numbers:
                h, w = kept[t][n].shape[:2]
                colored[n][t] = codes_N3[start : start + h * w].reshape(h, w, COLORS)
                start += h * w
        return colored

    def _patches(self, check: Check) -> dict[int, np.ndarray]:
        paths = {n: check.path / f"patches-{n}.npy" for n in self.pictures}
        return {n: _load(path) for n, path in paths.items() if path.is_file()}

    # -- the held-out images ----------------------------------------------------------------

    def neighbors(self, k: int = SHOWN, progress: Progress = silent) -> Neighbors:
        """The `k` nearest others (fewer of fewer images) of every image at every check."""
        found = []
        for done, check in enumerate(self.checks):
            progress(done, len(self.checks), "Finding neighbors at each check")
            found.append(nearest(check.features(), k))
        rows, cosines = (np.stack(parts) for parts in zip(*found, strict=True))
        return Neighbors(rows.astype(np.uint16), np.rint(100 * cosines).astype(np.int8))

    def components(self) -> Maps:
        """A quick map: two principal components at each check, turned onto those before."""
        chosen = evenly(self.checks, MOST_MAPS)
        points = procrustes_chain([pca_map(check.features()) for check in chosen])
        return Maps([check.step for check in chosen], np.stack(points))

    def drawn_maps(self) -> tuple[Maps, bool] | None:
        """The aligned maps on the disk, and whether they are of all that are to be drawn now.

        A run that goes on has newer checks; None where there are no maps of these images.
        """
        try:
            with np.load(self._maps_file, allow_pickle=False) as kept:
                maps = Maps(kept["steps"].tolist(), kept["points"].astype(np.float32))
                of = str(kept["of"])
        except Exception:  # missing, damaged, of another version: it is made again
            return None
        drawn = [check for check in self.checks if check.step in maps.steps]
        if maps.points.shape != (len(drawn), len(self.ids), 2) or of != _digest(drawn):
            return None
        return maps, drawn == evenly(self.checks, MOST_MAPS)

    def maps(self, progress: Progress = silent) -> Maps:
        """The aligned maps of up to 24 checks, evenly chosen: from the disk, or drawn and kept."""
        kept = self.drawn_maps()
        if kept is not None and kept[1]:
            return kept[0]
        chosen = evenly(self.checks, MOST_MAPS)
        rows = common_sample(len(self.ids))
        drawn = aligned_maps([check.features()[rows] for check in chosen], progress)
        points = np.full((len(chosen), len(self.ids), 2), np.nan, np.float32)
        points[:, rows] = drawn
        maps = Maps([check.step for check in chosen], points)
        self._keep(maps, _digest(chosen))
        return maps

    @property
    def _maps_file(self) -> Path:
        return self.run.path / "probes" / MAPS

    def _keep(self, maps: Maps, of: str) -> None:
        try:
            with whole_file(self._maps_file) as aside, open(aside, "wb") as file:
                np.savez(file, steps=np.asarray(maps.steps), points=maps.points, of=np.asarray(of))
        except UserError:
            return  # a run shared read-only: the maps are drawn again another time


# -- what there is to come ----------------------------------------------------------------------


def planned(recipe: dict[str, Any]) -> list[int]:
    """The steps at which a run checks its quality (as `training.quality` does); [] if unknown."""
    steps, checks = recipe.get("steps"), recipe.get("quality", {}).get("checks", 0)
    if not steps or not checks:
        return []
    return sorted({round(steps * i / checks) for i in range(checks + 1)})


def why_none(run: Run) -> str:
    """Why a run has no check: a sentence with what to do."""
    recipe = run.recipe()
    quality, images = recipe.get("quality", {}), recipe.get("images")
    if not quality.get("checks"):
        return f"{run.path}: this run makes no quality checks; train one with --checks 10"
    if images is not None and round(images * quality.get("hold_out", 1)) < FEWEST_HELD_OUT:
        return (
            f"{run.path}: too few of its {images:,} images are held out for quality checks "
            f"({FEWEST_HELD_OUT} at least); train one with more images, or with a larger --hold-out"
        )
    if run.status().get("state") in ALIVE:
        return f"{run.path}: too early; the first check is made before the first step, wait for it"
    return f"{run.path}: it ended before its first quality check; resume it, or train another"


# -- arithmetic ---------------------------------------------------------------------------------


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.rint(np.linspace(0, len(values) - 1, most)).astype(int)]


def nearest(unit_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 [n, k] and cosines float32 [n, k] of the nearest others of each image.

    Best first, the lower row among equals; k is n - 1 at most.
    """
    k = min(k, len(unit_ND) - 1)
    cosines_NN = np.clip(unit_ND @ unit_ND.T, -1, 1)
    np.fill_diagonal(cosines_NN, -2)
    rows_NK = np.sort(np.argpartition(-cosines_NN, max(k - 1, 0), axis=1)[:, :k], axis=1)
    cosines_NK = np.take_along_axis(cosines_NN, rows_NK, axis=1)
    order_NK = np.argsort(-cosines_NK, axis=1, kind="stable")
    rows_NK = np.take_along_axis(rows_NK, order_NK, axis=1)
    return rows_NK, np.take_along_axis(cosines_NK, order_NK, axis=1)


def steady(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores [N, C] of each check, last known best, turned to three columns [N, 3] that move least.

    From the last check, whose first three columns are taken, back: R with orthonormal columns that
    maximizes trace(R' S_t' Z_(t+1)), which is U V' of the singular value decomposition of
    S_t' Z_(t+1) (Gower and Dijksterhuis, "Procrustes problems", 2004, chapter 5).
    """
    turned: list[np.ndarray] = []
    for scores_NC in reversed(scores):
        wide_NC = scores_NC.astype(np.float64)
        if not turned:
            turned.append(_three(wide_NC))
            continue
        u, _, vt = np.linalg.svd(wide_NC.T @ turned[-1], full_matrices=False)
        turned.append(wide_NC @ (u @ vt))
    return turned[::-1]


def _three(scores_NC: np.ndarray) -> np.ndarray:
    """The first three columns, zeros where there are fewer, each with its longer tail upwards."""
    three_N3 = np.zeros((len(scores_NC), COLORS))
    three_N3[:, : scores_NC.shape[1]] = scores_NC[:, :COLORS]
    return three_N3 * np.where((three_N3**3).sum(axis=0) < 0, -1, 1)


def stretched(scores_N3: np.ndarray) -> np.ndarray:
    """Each column from its 1st to its 99th percentile as 0..255: uint8 [N, 3]."""
    low, high = np.percentile(scores_N3, STRETCH, axis=0)
    shares = (scores_N3 - low) / np.where(high > low, high - low, 1)
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def _flat(patches: dict[int, np.ndarray], numbers: Sequence[int]) -> np.ndarray:
    return np.concatenate([patches[n].reshape(-1, patches[n].shape[-1]) for n in numbers])


# -- files --------------------------------------------------------------------------------------


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _held_out(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Ids, labels int64 [n] and classes; images without a label have -1."""
    kept = read_json(path)
    try:
        ids = [str(id) for id in kept["ids"]]
        labels = np.asarray([-1] * len(ids) if kept["labels"] is None else kept["labels"], np.int64)
        classes = [str(name) for name in kept["classes"] or []]
        if labels.shape != (len(ids),) or labels.max(initial=-1) >= len(classes):
            raise ValueError("labels do not fit")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); resume the run to write it again") from None
    return ids, labels, classes


@lru_cache(maxsize=4096)  # a run that goes on adds one; reading all of them again takes seconds
def _check(step: int, folder: Path, count: int, changed: int) -> Check:
    """The check in `folder`, which changed then (ns). Raises `UserError`: which file is missing or
    damaged.
    """
    try:
        row = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
        measured = {name: _number(row, name) for name in ("knn", "rankme", "neighbor_consistency")}
    except (OSError, ValueError, AttributeError):
        raise UserError("quality.json is missing or damaged") from None
    features = _load(folder / "features.npy")
    if features.ndim != 2 or len(features) != count or not np.isfinite(features).all():
        raise UserError("features.npy is not what was measured of the held-out images")
    for path in sorted(folder.glob("attention-*.bin")):
        _payload_header(path)
    for path in sorted(folder.glob("patches-*.npy")):
        scores = _load(path)
        if scores.ndim != 3 or not np.isfinite(scores).all():
            raise UserError(f"{path.name} is not of patches")
    return Check(
        step, folder, measured["knn"], measured["rankme"], measured["neighbor_consistency"]
    )


def _number(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def _load(path: Path) -> np.ndarray:
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
        return values
    except (OSError, ValueError, EOFError):
        raise UserError(f"{path.name} is missing or cut short") from None


def _payload_header(path: Path) -> dict[str, Any]:
    """The header of a lens payload whose maps are all there, without reading these."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<I", file.read(4))
            header: dict[str, Any] = json.loads(file.read(length))
        maps = header["layers"] * header["heads"] * header["grid"][0] * header["grid"][1]
        if path.stat().st_size != 4 + length + maps:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error):
        raise UserError(f"{path.name} is missing or cut short") from None
    return header


def _one_layer(path: Path, layer: int) -> bytes | None:
    """The part of a lens payload that is of one layer: a payload itself. None for no file."""
    if not path.is_file():
        return None
    header = _payload_header(path)
    layer = range(header["layers"])[max(min(layer, header["layers"] - 1), -header["layers"])]
    size = header["heads"] * header["grid"][0] * header["grid"][1]
    with open(path, "rb") as file:
        file.seek(layer * size - header["layers"] * size, 2)
        codes = file.read(size)
    part = {name: [header[name][layer]] for name in ("max", "kept")}
    text = json.dumps(header | part | {"layers": 1}, separators=(",", ":")).encode()
    return struct.pack("<I", len(text)) + text + codes


def _digest(checks: Sequence[Check]) -> str:
    """Names what maps are drawn of: the features' bytes, 32 hexadecimal digits."""
    content = hashlib.blake2b(digest_size=16)
    for check in checks:
        content.update((check.path / "features.npy").read_bytes())
    return content.hexdigest()
