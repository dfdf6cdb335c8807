"""The three main directions of patch features as red, green and blue.

    basis = fit([tokens])                           # of one image
    basis = fit(many, foreground=True)              # of a set: one part, one color in all images
    colors(basis, tokens)                           # uint8 [h, w, 3]
    foreground(basis, tokens)                       # bool [h, w]
    basis.save(path); PcaBasis.load(path)           # .npz

As shown for DINOv2 (arXiv:2304.07193, figure 1): the first principal component of all patches,
thresholded, tells foreground from background; with `foreground=True` a second PCA is made of the
foreground alone, and the background is black.

Which side is the foreground a PCA cannot tell, and zero is an arbitrary place to cut. Here the cut
is Otsu's (1979), between the two groups that spread least, and the foreground is the side that has
less of the pictures' border than of the pictures: what a photo is of rarely fills its border.
Measured with `starter` on 12 photos of people and 8 of DAVIS, each fitted alone: mean IoU with the
true masks 0.41 and 0.14 (cut at zero: 0.36 and 0.13; had the better side always been taken: 0.41
and 0.14; all patches: 0.24 and 0.09). So the foreground is a proposal, as good as the model is.

Shape legend: N patches, D width of the model.
"""

import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.lenses.tokens import Tokens
from dino_core.rng import permutation

COMPONENTS = 3
SAMPLE = 65_536  # patches that a basis is made of: 100 MB at width 384
RANGE = (1, 99)  # percentiles of a component that become darkest and brightest
VERSION = 1  # of the file
LARGEST = 2**20  # bytes of a file, unpacked: twenty times one of width 2,560

# Of vectors of length 1: far below what differs between patches, above what fp32 rounds off.
_LEAST_VARIANCE = 1e-10


@dataclass(frozen=True)
class PcaBasis:
    """What turns patches of one model into colors; made by `fit`.

    Directions have length 1 and their largest entry (by magnitude) positive, so that a fit always
    has the same colors. A direction in which nothing varied is all zeros.
    """

    mean: np.ndarray  # float32 [D], of the patches that the colors are made of
    components: np.ndarray  # float32 [3, D], red first
    low: np.ndarray  # float32 [3], the projection that becomes 0
    high: np.ndarray  # float32 [3], the projection that becomes 255
    axis: np.ndarray  # float32 [D], the first component of ALL patches, towards the foreground
    threshold: float  # a patch is foreground where its product with `axis` exceeds this
    foreground_only: bool  # whether colors are those of the foreground, and the rest is black
    model: str  # spec
    model_hash: str

    def save(self, path: Path) -> None:
        """Write all fields as .npz, whole or not at all. Raises `UserError` as `whole_file`."""
        with whole_file(path) as aside:
            aside.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The same .npz in memory."""
        arrays = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        stream = io.BytesIO()
        np.savez(stream, version=np.asarray(VERSION), **arrays)  # type: ignore[arg-type]
        return stream.getvalue()

    @classmethod
    def load(cls, path: Path) -> "PcaBasis":
        """Read a saved basis. Raises `UserError` for a missing, damaged or other file."""
        return cls.from_bytes(_file(path), str(path))

    @classmethod
    def from_bytes(cls, blob: bytes, name: str) -> "PcaBasis":
        """Read `to_bytes` back; `name` is for the sentence of the `UserError`. Safe for bytes of
        anyone: nothing is unpickled, and what would unfold to more than 1 MB is refused."""
        arrays = _read(blob, name)
        if wrong := _wrong(arrays):
            raise UserError(f"{name}: not a whole PCA basis ({wrong}); fit it again")
        scalars = ("threshold", "foreground_only", "model", "model_hash")
        values: dict[str, Any] = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**values | {name: arrays[name].item() for name in scalars})


def fit(tokens: Iterable[Tokens], *, foreground: bool = False) -> PcaBasis:
    """The basis of one image, or of a set that shall share its colors.

    `foreground`: make the colors of foreground patches alone. Of more than 65,536 patches every
    image gives the same share (1/2, 1/4, ...; at least one), drawn by a fixed rule; `tokens` may be
    a generator, of which no more than that is kept. Raises `UserError` for no image, or for images
    read with different models.
    """
    sample = _sample(tokens)
    mean_D, components_3D = _principal(sample.patches)
    axis_D, threshold = _separation(sample, components_3D[0])
    colored_ND = sample.patches
    if foreground:
        colored_ND = colored_ND[_inside(colored_ND, axis_D, threshold)]
        mean_D, components_3D = _principal(colored_ND)
    low, high = np.percentile(_projected(colored_ND, mean_D, components_3D), RANGE, axis=0)
    return PcaBasis(
        mean=mean_D,
        components=components_3D,
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        axis=axis_D,
        threshold=threshold,
        foreground_only=foreground,
        model=sample.model,
        model_hash=sample.model_hash,
    )


def colors(basis: PcaBasis, tokens: Tokens) -> np.ndarray:
    """The patches of an image in the basis' colors: uint8 [h, w, 3].

    A direction in which nothing varied is at half. Background is black where the basis is of the
    foreground. Raises `UserError` for tokens of another model.
    """
    _require_model_of(basis, tokens)
    projected_N3 = _projected(_flat(tokens), basis.mean, basis.components)
    span_3 = basis.high.astype(np.float64) - basis.low
    level_N3 = (projected_N3 - basis.low) / np.where(span_3 > 0, span_3, 1)
    level_N3[:, span_3 <= 0] = 0.5
    painted = np.rint(np.clip(level_N3, 0, 1) * 255).astype(np.uint8).reshape(*tokens.grid, 3)
    if basis.foreground_only:
        painted[~foreground(basis, tokens)] = 0
    return painted


def foreground(basis: PcaBasis, tokens: Tokens) -> np.ndarray:
    """Which patches are foreground by the first component: bool [h, w].

    Where the fitted patches were all alike everything is. Raises `UserError` for tokens of another
    model.
    """
    _require_model_of(basis, tokens)
    return _inside(_flat(tokens), basis.axis, basis.threshold).reshape(tokens.grid)


# -- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    patches: np.ndarray  # float32 [N, D]
    border: np.ndarray  # bool [N], whether a patch touches its image's border
    model: str
    model_hash: str


def _sample(several: Iterable[Tokens]) -> _Sample:
    """Up to `SAMPLE` patches, or one of each image: the same ones in whatever order images come."""
    parts: list[tuple[int, np.ndarray, np.ndarray]] = []  # patches there were, kept, border
    share, kept, first = 1.0, 0, None
    for tokens in several:
        first = tokens if first is None else first
        if tokens.model_hash != first.model_hash:
            raise UserError(
                f"images read with {tokens.model} and with {first.model} cannot share colors: "
                "the models differ; read all images with one model"
            )
        parts.append(_shuffled(tokens, share))
        kept += len(parts[-1][1])
        while kept > max(SAMPLE, len(parts)):
            share /= 2
            parts = [(n, p[: _part(n, share)], b[: _part(n, share)]) for n, p, b in parts]
            kept = sum(len(patches) for _, patches, _ in parts)
            parts = [(n, p.copy(), b.copy()) for n, p, b in parts]  # let go of what is cut off
    if first is None:
        raise UserError("colors need at least one image to be fitted on; give one")
    return _Sample(
        patches=np.concatenate([patches for _, patches, _ in parts]),
        border=np.concatenate([border for _, _, border in parts]),
        model=first.model,
        model_hash=first.model_hash,
    )


def _shuffled(tokens: Tokens, share: float) -> tuple[int, np.ndarray, np.ndarray]:
    """The first `share` of an image's patches in an order that only its grid decides.

    Not every so-manieth in reading order: on some grids those are a few columns.
    """
    height, width = tokens.grid
    order = permutation(height * width, "pca", height, width)[: _part(height * width, share)]
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    return height * width, _flat(tokens)[order], border.reshape(-1)[order]


def _part(count: int, share: float) -> int:
    return int(np.ceil(count * share))


def _principal(patches_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and the three directions [3, D] of most variance, largest first, both float32."""
    width = patches_ND.shape[1]
    mean_D = patches_ND.mean(axis=0, dtype=np.float64)
    covariance_DD = np.zeros((width, width))
    for start in range(0, len(patches_ND), 8192):  # float64 copies are twice as large
        centered = patches_ND[start : start + 8192] - mean_D
        covariance_DD += centered.T @ centered
    variances, vectors_DD = np.linalg.eigh(covariance_DD / len(patches_ND))
    components_3D = np.zeros((COMPONENTS, width))
    for i in range(min(COMPONENTS, width)):  # `eigh` has the largest last
        if variances[-1 - i] > _LEAST_VARIANCE:
            direction = vectors_DD[:, -1 - i]
            components_3D[i] = direction * np.sign(direction[np.abs(direction).argmax()])
    return mean_D.astype(np.float32), components_3D.astype(np.float32)


def _separation(sample: _Sample, first_D: np.ndarray) -> tuple[np.ndarray, float]:
    """The first component turned towards the foreground, and where on it the foreground begins."""
    if not first_D.any():
        return first_D, -1.0  # nothing to tell apart: all products are 0, all is foreground
    along_N = _along(sample.patches, first_D)
    threshold = otsu(along_N)
    above = along_N > threshold
    if above[sample.border].mean() > above.mean():
        return -first_D, -threshold
    return first_D, threshold


def otsu(values: np.ndarray) -> float:
    """The cut of values [N] into two groups with the least variance within them, N >= 2.

    N. Otsu, "A threshold selection method from gray-level histograms", 1979, on the values
    themselves: the largest product of the groups' sizes with the squared distance of their means.
    Halfway between the two values it falls between.
    """
    ordered = np.sort(values.astype(np.float64))
    below = np.arange(1, len(ordered))
    above = len(ordered) - below
    sums = np.cumsum(ordered - ordered.mean())[:-1]  # centered, both groups have the same sum
    best = int((sums**2 * (1 / below + 1 / above)).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


# -- using --------------------------------------------------------------------------------------


def _flat(tokens: Tokens) -> np.ndarray:
    """All patches in reading order, [N, D]."""
    return tokens.patches.reshape(-1, tokens.patches.shape[-1])


def _along(patches_ND: np.ndarray, axis_D: np.ndarray) -> np.ndarray:
    """Products with one direction, float64 [N]: equal for equal patches, wherever they lie."""
    return patches_ND.astype(np.float64) @ axis_D.astype(np.float64)


def _inside(patches_ND: np.ndarray, axis_D: np.ndarray, threshold: float) -> np.ndarray:
    return _along(patches_ND, axis_D) > threshold


def _projected(patches_ND: np.ndarray, mean_D: np.ndarray, components_3D: np.ndarray) -> np.ndarray:
    """Projections on the components, float64 [N, 3]."""
    return (patches_ND - mean_D.astype(np.float64)) @ components_3D.T.astype(np.float64)


def _require_model_of(basis: PcaBasis, tokens: Tokens) -> None:
    if tokens.model_hash != basis.model_hash:
        raise UserError(
            f"these colors are of {basis.model}, the patches of {tokens.model}: the models differ; "
            "fit colors on images read with the same model"
        )


# -- the file -----------------------------------------------------------------------------------

_UNREADABLE = (  # what numpy and zipfile raise about bytes that are not what they should be
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, SyntaxError, RuntimeError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)


def _file(path: Path) -> bytes:
    """The bytes of a saved basis; no more than one can have."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; fit colors and save them there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read(blob: bytes, name: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz; each has its checksum in the zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise UserError(f"{name}: too large for a PCA basis; fit it again")
        with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
            return {each: arrays[each] for each in arrays.files}
    except _UNREADABLE:
        raise UserError(f"{name}: not a PCA basis, or damaged; fit it again") from None


def _wrong(arrays: dict[str, np.ndarray]) -> str:
    """What keeps these arrays from being a basis; "" if nothing does."""
    names = {"version", *(field.name for field in fields(PcaBasis))}
    if missing := names - arrays.keys():
        return f"it lacks {', '.join(sorted(missing))}"
    if (version := arrays["version"].tolist()) != VERSION:
        return f"its version is {version}, this program reads {VERSION}"
    width = arrays["mean"].size
    vectors = {"mean": (width,), "axis": (width,), "components": (COMPONENTS, width)}
    shapes = vectors | {"low": (COMPONENTS,), "high": (COMPONENTS,)}  # the others are single values
    kinds = {"version": "i", "foreground_only": "b", "model": "U", "model_hash": "U"}
    for name in sorted(names):
        array = arrays[name]
        if array.shape != shapes.get(name, ()) or array.dtype.kind != kinds.get(name, "f"):
            return f"{name} is {array.dtype} of shape {array.shape}"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} is not finite"
    return ""
