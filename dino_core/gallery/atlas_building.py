"""Computing the head atlas of a gallery (see `atlas`): batches of images, one forward each.

    seconds = seconds_per_image(gallery, model)     # what it will take, from a few images
    atlas = build_atlas(gallery, model, images=512)

Queries and keys are read as the model runs, and of the softmax only the rows that are needed are
made: that of CLS, and those of the patches on the lattice. In memory are one batch, what is counted
of each head, and the 16 maps that are kept of it.

Shapes: B images, C channels, S x S pixels, L layers, A heads, N tokens, h x w = P patches, Q of
them that ask, D head width, K images kept a head, T bins.
"""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core.data import BadImage, decode_image
from dino_core.distributed import cores
from dino_core.errors import UserError, at_least
from dino_core.gallery.atlas import BINS, KEEP_STEPS, KEPT, STATISTICS, Atlas, AtlasInfo
from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.lenses.attention import DEFAULT_PATCHES, kept_counts
from dino_core.models import Model, ModelInfo
from dino_core.models.attention import (
    attention_modules,
    queries_and_keys,
    recorded_rows,
    self_attention_modules,
    unshared,
)
from dino_core.models.preprocess import cropped, normalized, resize_side
from dino_core.rng import permutation

IMAGES = 512
LATTICE = 8  # patches a side that ask, at most
TENTH = 0.1  # of the patches, for excitement
BATCH = 16
BATCH_BYTES = 256 << 20  # of queries and keys, which bound the batch of a large model
SOFTMAX_FLOATS = 1 << 24  # made at a time
TRIED = 3  # images, to tell how long all will take
MESSAGE = "Looking through every head"


@dataclass(frozen=True)
class Measured:
    """What a batch of images showed."""

    values: np.ndarray  # float64 [statistics, B, L, A], NaN where not known
    maps: np.ndarray  # float32 [B, L, A, h, w], attention of CLS


def build_atlas(
    gallery: Gallery,
    model: Model,
    *,
    images: int | None = IMAGES,
    progress: Progress = silent,
) -> Atlas:
    """Compute the atlas and keep it with the gallery, in place of what was there.

    `images`: how many, at random but always the same ones; None: all. Images that cannot be read
    are left out. Raises `UserError` for another model than the gallery's, one without heads, and
    where no image can be read.
    """
    at_least(1, images=images)
    refuse(gallery, model)
    rows = _sampled(gallery, images)
    eye = _Eye(gallery, model)
    tally = _Tally(eye)
    done = 0
    progress(0, len(rows), MESSAGE)
    for read in _batches(eye, rows):
        tally.add(read)
        done += read.asked
        progress(done, len(rows), MESSAGE)
    atlas = tally.atlas(len(rows))
    atlas.write(gallery)
    return atlas


def seconds_per_image(gallery: Gallery, model: Model) -> float:
    """How long one image takes here and now, from a few. Raises `UserError` as `build_atlas`."""
    refuse(gallery, model)
    eye, rows = _Eye(gallery, model), _sampled(gallery, TRIED)
    for some in (rows[:1], rows):  # the first time, all is slow
        start, seen = time.perf_counter(), 0
        for read in _batches(eye, some):
            _Tally(eye).add(read)
            seen += read.asked
    return (time.perf_counter() - start) / max(seen, 1)


def there(gallery: Gallery) -> int:
    """How many images an atlas of all would be asked for."""
    return int((~gallery.images["gone"].to_numpy(bool)).sum())


def refuse(gallery: Gallery, model: Model) -> None:
    """Raise `UserError` unless `model` has heads, and is what the gallery's features are of."""
    attention_modules(model.backbone.vit)
    if model.hash != gallery.info.model_hash:
        raise UserError(
            f"{gallery.path}: is of {gallery.info.model} ({gallery.info.model_hash[:8]}), and "
            f"{model.spec} has other weights ({model.hash[:8]}); choose the gallery's model, or "
            "build a gallery with this one"
        )


def measured(model: Model, pixels_BCSS: Tensor, foreground_BP: np.ndarray) -> Measured:
    """Look at a batch. `foreground_BP`: share of each patch inside the mask, NaN without one."""
    twin = unshared(model.backbone)  # others may look through this model meanwhile
    grid, prefix = twin.grid(*pixels_BCSS.shape[-2:]), twin.num_prefix_tokens
    with torch.no_grad():
        rows_BLAN, distance_BLA = _rows(twin, pixels_BCSS.to(model.device), grid)
    if not np.isfinite(rows_BLAN).all():
        raise UserError(f"{model.spec}: its attention is not a number; the weights are damaged")
    maps_BLAP = rows_BLAN[..., prefix:]
    mass_BLA = maps_BLAP.sum(axis=-1, dtype=np.float64)
    share_BLAP = maps_BLAP / np.maximum(mass_BLA, 1e-30)[..., None]
    logs = np.log(share_BLAP, out=np.zeros_like(share_BLAP), where=share_BLAP > 0)
    tenth = tenth_of(maps_BLAP.shape[-1])
    found = {
        "entropy": -(share_BLAP * logs).sum(axis=-1),
        "distance": distance_BLA,
        "foreground": np.einsum("blap,bp->bla", share_BLAP, foreground_BP),
        "outside": np.clip(1 - mass_BLA, 0, 1),
        "excitement": -np.partition(-maps_BLAP, tenth - 1)[..., :tenth].sum(axis=-1),
    }
    values = np.stack([found[name] for name in STATISTICS]).astype(np.float64)
    return Measured(values, maps_BLAP.reshape(*maps_BLAP.shape[:3], *grid))


def lattice(grid: tuple[int, int]) -> np.ndarray:
    """The patches that ask for distances, int64 [Q], ascending: at most 8 x 8, spread evenly."""
    rows, columns = (
        ((np.arange(min(side, LATTICE)) + 0.5) * side / min(side, LATTICE)).astype(np.int64)
        for side in grid
    )
    return (rows[:, None] * grid[1] + columns).ravel()


def distances(grid: tuple[int, int]) -> np.ndarray:
    """From each patch of the lattice to each patch, in patches: float32 [Q, P]."""
    places = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)
    apart = places[lattice(grid)][:, None] - places
    return np.hypot(apart[..., 0], apart[..., 1]).astype(np.float32)


def tenth_of(patches: int) -> int:
    """How many patches a tenth of them is, at least one."""
    return max(1, round(TENTH * patches))


def _rows(backbone: Any, x_BCSS: Tensor, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Attention of CLS, float32 [B, L, A, N], and mean distances, float32 [B, L, A] (or NaN)."""
    vit, prefix = backbone.vit, backbone.num_prefix_tokens
    try:
        self_attention_modules(vit)
    except UserError:  # class attention: patches ask nothing
        with recorded_rows(vit) as seen:
            backbone(x_BCSS)
        rows_BLAN = torch.stack(seen, dim=1).cpu().numpy()
        return rows_BLAN, np.full(rows_BLAN.shape[:3], np.nan, np.float32)
    apart_QP = torch.from_numpy(distances(grid)).to(x_BCSS.device)
    asking = torch.from_numpy(lattice(grid) + prefix).to(x_BCSS.device)
    with queries_and_keys(vit) as layers:
        backbone(x_BCSS)
        rows = [
            torch.einsum("bad,band->ban", q_BAND[:, :, 0], k_BAND).softmax(dim=-1)
            for q_BAND, k_BAND in layers
        ]
        far = [
            _distance(q_BAND[:, :, asking], k_BAND[:, :, prefix:], apart_QP)
            for q_BAND, k_BAND in layers
        ]
    return torch.stack(rows, dim=1).cpu().numpy(), torch.stack(far, dim=1).cpu().numpy()


def _distance(q_BAQD: Tensor, k_BAPD: Tensor, apart_QP: Tensor) -> Tensor:
    """Mean distance of what is attended to, over the queries: [B, A].

    The softmax over the patches alone is the attention on patches, scaled to sum 1.
    """
    a_image = q_BAQD.shape[1] * apart_QP.numel()
    parts = zip(
        *(x.split(max(1, SOFTMAX_FLOATS // a_image)) for x in (q_BAQD, k_BAPD)), strict=True
    )
    means = [
        ((q @ k.transpose(-1, -2)).softmax(dim=-1) * apart_QP).sum(dim=-1).mean(dim=-1)
        for q, k in parts
    ]
    return torch.cat(means)


@dataclass(frozen=True)
class _Read:
    """A batch of images as the model gets them."""

    asked: int  # images, of which some may not be there
    ids: list[str]
    pixels_BSSC: np.ndarray | None  # uint8; None where none could be read
    foreground_BP: np.ndarray  # float64, NaN where there is no mask


class _Eye:
    """A gallery's images, read and cut for one model."""

    def __init__(self, gallery: Gallery, model: Model) -> None:
        patch, native = model.info.patch_size, model.info.image_size
        side = max(DEFAULT_PATCHES * patch, native)
        self.gallery, self.model = gallery, model
        self.info: ModelInfo = replace(model.info, image_size=side)
        self.grid = model.backbone.grid(side, side)
        backbone = model.backbone
        tokens = self.grid[0] * self.grid[1] + backbone.num_prefix_tokens
        bytes_each = 8 * tokens * backbone.embed_dim * backbone.depth
        self.batch = int(min(max(BATCH_BYTES // bytes_each, 1), BATCH))

    def image(self, row: int) -> tuple[str, np.ndarray, np.ndarray] | None:
        """Id, pixels uint8 [S, S, C], mask float64 [P]; None when the file is gone or broken."""
        try:
            image = self.gallery.image(row)
        except UserError:
            return None
        mask = self._mask(row)
        fits = mask is not None and mask.shape == image.shape[:2]
        shares = self._shares(mask) if mask is not None and fits else self._without
        return str(self.gallery.images["id"].iat[row]), cropped(image, self.info), shares

    @property
    def _without(self) -> np.ndarray:
        return np.full(self.grid[0] * self.grid[1], np.nan)

    def _mask(self, row: int) -> np.ndarray | None:
        """The foreground of an image, bool [H, W], where the table or the source knows it."""
        path, mask = (self.gallery.images[name].iat[row] for name in ("path", "mask"))
        try:
            if isinstance(mask, str):
                file = Path(self.gallery.info.root or "", mask)
                return np.asarray(decode_image(file).any(axis=-1))
            if isinstance(path, str):
                return None  # photos come without; opening a source only to hear so takes long
            id = str(self.gallery.images["id"].iat[row])
            return self.gallery.source.mask(self.gallery.index_in_source[id])
        except (BadImage, OSError, UserError, KeyError):
            return None

    def _shares(self, mask: np.ndarray) -> np.ndarray:
        """How much of each patch the mask covers, cut as the image is: float64 [P], 0..1.

        A mask without foreground in the cut says nothing of a head: NaN.
        """
        three = np.repeat(mask[..., None].astype(np.uint8) * 255, self.info.channels, axis=-1)
        cut = cropped(three, self.info)[..., 0] / 255
        (h, w), patch = self.grid, self.info.patch_size
        shares = cut.reshape(h, patch, w, patch).mean(axis=(1, 3)).ravel()
        return shares if shares.any() else self._without


def _sampled(gallery: Gallery, images: int | None) -> np.ndarray:
    """Rows in a random order that is always the same, those that are gone left out."""
    order = permutation(len(gallery), "head atlas")
    rows = order[~gallery.images["gone"].to_numpy(bool)[order]]
    return rows if images is None else rows[:images]


def _batches(eye: _Eye, rows: np.ndarray) -> Iterator[_Read]:
    """The images of `rows`; the next batch is decoded while one is looked at."""
    if len(rows) and not isinstance(eye.gallery.images["path"].iat[int(rows[0])], str):
        _ = eye.gallery.source, eye.gallery.index_in_source  # once, before threads ask
    parts = [rows[at : at + eye.batch].tolist() for at in range(0, len(rows), eye.batch)]
    with ThreadPoolExecutor(max(1, min(4, cores())), thread_name_prefix="atlas") as pool:
        waiting = [pool.submit(eye.image, row) for row in parts[0]] if parts else []
        for place in range(len(parts)):
            here = waiting
            if place + 1 < len(parts):
                waiting = [pool.submit(eye.image, row) for row in parts[place + 1]]
            yield _read([one.result() for one in here])


def _read(found: Sequence[tuple[str, np.ndarray, np.ndarray] | None]) -> _Read:
    good = [one for one in found if one is not None]
    return _Read(
        asked=len(found),
        ids=[id for id, _, _ in good],
        pixels_BSSC=np.stack([pixels for _, pixels, _ in good]) if good else None,
        foreground_BP=np.stack([mask for *_, mask in good]) if good else np.empty((0, 0)),
    )


class _Tally:
    """What is counted of every head while images pass by."""

    def __init__(self, eye: _Eye) -> None:
        self.eye, self.images, self.masked, self.area = eye, 0, 0, 0.0
        self.ids: list[str] = []
        self.started = False

    def add(self, read: _Read) -> None:
        """Look at a batch and count it."""
        if read.pixels_BSSC is None:
            return
        pixels = normalized(torch.from_numpy(read.pixels_BSSC), self.eye.info)
        seen = measured(self.eye.model, pixels, read.foreground_BP)
        if not self.started:
            self._begin(seen.maps.shape[1:3])
        known = np.isfinite(seen.values)
        values = np.where(known, seen.values, 0)
        self.seen += known.sum(axis=1)
        self.sums += values.sum(axis=1)
        self.squares += (values**2).sum(axis=1)
        self._count(seen.values)
        has_mask = np.isfinite(read.foreground_BP).all(axis=1)
        self.masked += int(has_mask.sum())
        self.area += float(read.foreground_BP[has_mask].mean(axis=1).sum())
        self._keep(seen)
        self.ids += read.ids
        self.images += len(read.ids)

    def atlas(self, asked: int) -> Atlas:
        """What was counted. Raises `UserError` where no image could be read."""
        gallery, model = self.eye.gallery, self.eye.model
        if not self.images:
            raise UserError(
                f"{gallery.path}: none of its images can be read where they were at building, so "
                "there is nothing to look at; bring them back"
            )
        with np.errstate(invalid="ignore"):
            mean = self.sums / np.where(self.seen > 0, self.seen, np.nan)
            variance = self.squares / np.where(self.seen > 0, self.seen, np.nan) - mean**2
        deviation = np.sqrt(np.maximum(variance, 0))
        used, top = np.unique(self.top, return_inverse=True)
        ids = tuple(self.ids[at] for at in used if at >= 0)
        top = top.reshape(self.top.shape) - (len(used) - len(ids))  # -1 sorts first
        info = AtlasInfo(
            model=model.spec,
            model_hash=model.hash,
            source_hash=gallery.info.source_hash,
            layers=self.top.shape[0],
            heads=self.top.shape[1],
            grid=self.eye.grid,
            patch_size=self.eye.info.patch_size,
            resize=resize_side(self.eye.info.image_size),
            crop=self.eye.info.image_size,
            asked=asked,
            images=self.images,
            masked=self.masked,
            even=self._even(),
            most=dict(zip(STATISTICS, self.most.tolist(), strict=True)),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Atlas(
            info=info,
            mean=dict(zip(STATISTICS, mean.astype(np.float32), strict=True)),
            deviation=dict(zip(STATISTICS, deviation.astype(np.float32), strict=True)),
            counts=dict(zip(STATISTICS, self.counts, strict=True)),
            ids=ids,
            top=top.astype(np.int32),
            scores=np.where(self.top >= 0, self.scores, 0).astype(np.float32),
            codes=self.codes,
            peak=self.peak,
            kept=self.kept,
        )

    def _begin(self, heads: tuple[int, ...]) -> None:
        patches = self.eye.grid[0] * self.eye.grid[1]
        far = float(distances(self.eye.grid).max(axis=1).mean())  # all attention on the farthest
        most = {"entropy": math.log(patches), "distance": far}
        self.most = np.array([max(most.get(name, 1.0), 1e-9) for name in STATISTICS])
        self.seen = np.zeros((len(STATISTICS), *heads), np.int64)
        self.sums, self.squares = (np.zeros(self.seen.shape) for _ in range(2))
        self.counts = np.zeros((*self.seen.shape, BINS), np.int32)
        self.top = np.full((*heads, KEPT), -1, np.int64)
        self.scores = np.full((*heads, KEPT), -np.inf)
        self.peak = np.zeros((*heads, KEPT), np.float32)
        self.kept = np.zeros((*heads, KEPT, KEEP_STEPS), np.int32)
        self.codes = np.zeros((*heads, KEPT, *self.eye.grid), np.uint8)
        self.started = True

    def _count(self, values_SBLA: np.ndarray) -> None:
        """Into bins; the last holds its upper end too."""
        relative = values_SBLA / self.most[:, None, None, None]
        bins = np.clip(np.nan_to_num(relative) * BINS, 0, BINS - 1).astype(np.int64)
        for at in range(BINS):
            self.counts[..., at] += ((bins == at) & np.isfinite(relative)).sum(axis=1)

    def _keep(self, seen: Measured) -> None:
        """The most excited of those kept and of this batch; the earlier among equals."""
        fresh = seen.values[STATISTICS.index("excitement")].transpose(1, 2, 0)
        scores = np.concatenate([self.scores, fresh], axis=-1)
        best = np.argsort(-scores, axis=-1, kind="stable")[..., :KEPT]
        maps = seen.maps.transpose(1, 2, 0, 3, 4)
        peak = maps.max(axis=(-2, -1))
        relative = maps / np.where(peak > 0, peak, 1)[..., None, None]
        codes = np.rint(255 * np.sqrt(relative)).astype(np.uint8)
        places = np.broadcast_to(
            np.arange(len(seen.maps)) + self.images, (*fresh.shape[:2], len(seen.maps))
        )
        kept = kept_counts(maps, np.linspace(0, 1, KEEP_STEPS))
        self.scores = np.take_along_axis(scores, best, axis=-1)
        self.top = _best(self.top, places, best)
        self.peak = _best(self.peak, peak, best)
        self.kept = _best(self.kept, kept.astype(np.int32), best[..., None])
        self.codes = _best(self.codes, codes, best[..., None, None])

    def _even(self) -> dict[str, float]:
        """What a head would show that attends to all tokens alike."""
        patches = self.eye.grid[0] * self.eye.grid[1]
        prefix = self.eye.model.backbone.num_prefix_tokens
        return {
            "entropy": math.log(patches),
            "distance": float(distances(self.eye.grid).mean()),
            "foreground": self.area / self.masked if self.masked else 0.0,
            "outside": prefix / (prefix + patches),
            "excitement": tenth_of(patches) / (prefix + patches),
        }


def _best(kept: np.ndarray, fresh: np.ndarray, best: np.ndarray) -> np.ndarray:
    return np.take_along_axis(np.concatenate([kept, fresh], axis=2), best, axis=2)
