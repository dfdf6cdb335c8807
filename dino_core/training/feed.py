"""From a source of images to batches of views, the same whatever the number of workers.

The order is a function of (seed, epoch), each view of (seed, epoch, image, view): a batch is named
by its step alone, so a run can start at any step. Two ways lead to the same views:

- `feed`: workers decode once (or take pixels from a store) and crop to uint8; color, blur and
  normalization happen in one batch on the device.
- `resident_feed`: all pixels lie on the device; workers only make the plans, and the crops are
  matrix products there. Within 2/255 of the other.
"""

import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dino_core import distributed
from dino_core.augment import (
    GLOBAL_VIEWS,
    CropBatch,
    MultiCrop,
    PhotometricBatch,
    Plans,
    crop_into,
    crop_products,
    photometric,
    plan_batch,
)
from dino_core.augment.plan import reduction
from dino_core.data import Quarantined, Source, batch_indices, epoch_order
from dino_core.data.decode import Shrink
from dino_core.data.store import PixelStore, down_to, stored_image
from dino_core.errors import UserError
from dino_core.models import ModelInfo
from dino_core.training.recipe import Recipe

Key = tuple[int, int]  # (epoch, image index)
Made = TypeVar("Made")

TOGETHER = 16  # decoded images that a worker holds at once; their plans are made in one go


@dataclass
class Batch:
    """Views of B images, grouped by size and view-major inside a group."""

    indices: np.ndarray
    """int64 [B], which images these are."""
    crops: Sequence[Tensor | CropBatch]
    """uint8 [n_i * B, C, S_i, S_i] per group, the global views first; or where to cut them."""
    photometrics: list[PhotometricBatch]
    quarantined: list[Quarantined] = field(default_factory=list)
    pixels: Tensor | None = None
    """The store that crops are cut out of, uint8 [bytes] on the device."""

    def pin_memory(self) -> "Batch":
        """Called by the loader for CUDA, so that copies overlap with compute."""
        self.crops = [crops.pin_memory() for crops in self.crops]
        self.photometrics = [batch.pin_memory() for batch in self.photometrics]
        return self

    def views(self, info: ModelInfo, device: torch.device) -> list[Tensor]:
        """Normalized float32 views per group, made on the device."""
        views = []
        for crops, batch in zip(self.crops, self.photometrics, strict=True):
            there = crops.to(device, non_blocking=True)
            if isinstance(there, CropBatch):
                assert self.pixels is not None
                there = crop_products(self.pixels, there)
            colors = batch.to(device, non_blocking=True)
            views.append(photometric(there, colors, info.mean, info.std))
        return views


class Pictures(Protocol):
    """Decoded images by their number: uint8 [H, W, C], and what was bad."""

    @property
    def channels(self) -> int: ...

    def __len__(self) -> int: ...

    def load(self, i: int) -> tuple[np.ndarray, list[Quarantined]]: ...


@dataclass(frozen=True)
class FromSource:
    """Decoded each time, by `shrink` smaller, and reduced to `stored_size` where that is given."""

    source: Source
    stored_size: int = 0
    shrink: Shrink | None = None

    @property
    def channels(self) -> int:
        return self.source.channels

    def __len__(self) -> int:
        return len(self.source)

    def load(self, i: int) -> tuple[np.ndarray, list[Quarantined]]:
        return stored_image(self.source, i, self.stored_size, self.shrink)


@dataclass(frozen=True)
class FromStore:
    """Taken from pixels that were decoded before."""

    store: PixelStore

    @property
    def channels(self) -> int:
        return self.store.channels

    def __len__(self) -> int:
        return len(self.store.images)

    def load(self, i: int) -> tuple[np.ndarray, list[Quarantined]]:
        return self.store.image(i), []


class ViewDataset(Dataset[Batch | UserError]):
    """Keys (epoch, image index) of one batch -> the cropped views of these images in that epoch.

    A `UserError` is returned, not raised: torch would wrap it in a worker's traceback.
    """

    def __init__(self, pictures: Pictures, config: MultiCrop, seed: int) -> None:
        self.pictures = pictures
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | UserError:
        """Called by torch for a whole batch, whose keys are of one epoch."""
        (epoch,) = {epoch for epoch, _ in keys}
        indices = [index for _, index in keys]
        groups = groups_of(self.config)
        channels, count = self.pictures.channels, len(keys)
        crops = [_empty(len(g), count, channels, self.config.size(g[0])) for g in groups]
        parts: list[list[Plans]] = []
        quarantined: list[Quarantined] = []
        for start in range(0, count, TOGETHER):
            try:
                loaded = [self.pictures.load(i) for i in indices[start : start + TOGETHER]]
            except UserError as error:
                return error
            quarantined += [item for _, bad in loaded for item in bad]
            images = [image for image, _ in loaded]
            parts.append(self._cut(images, epoch, indices, start, crops))
        plans = [Plans.joined(of_group) for of_group in zip(*parts, strict=True)]
        return Batch(
            indices=np.array(indices),
            crops=[crops_VBCSS.flatten(0, 1) for crops_VBCSS in crops],
            photometrics=[PhotometricBatch.of(of_group) for of_group in plans],
            quarantined=quarantined,
        )

    def _cut(
        self,
        images: Sequence[np.ndarray],
        epoch: int,
        indices: Sequence[int],
        start: int,
        crops: Sequence[Tensor],
    ) -> list[Plans]:
        """Plan the views of some images and put their crops in place; the plans by group."""
        heights, widths = np.array([image.shape[:2] for image in images]).T
        part = indices[start : start + len(images)]
        plans = [
            plan_batch(self.config, self.seed, epoch, part, heights, widths, views)
            for views in groups_of(self.config)
        ]
        for place, image in enumerate(images):
            for crops_VBCSS, of_group in zip(crops, plans, strict=True):
                rows = slice(place, None, len(images))  # this image's views
                out_VCSS = crops_VBCSS[:, start + place]
                crop_into(out_VCSS, image, of_group.boxes[rows], of_group.flip[rows])
        return plans


class PlanDataset(Dataset[Batch]):
    """Keys (epoch, image index) of one batch -> where to cut its views out of a store, and how."""

    def __init__(self, store: PixelStore, config: MultiCrop, seed: int) -> None:
        # Without its pixels: they stay on the device, and workers never touch that.
        self.store = replace(store, pixels=torch.empty(0, dtype=torch.uint8), file=None)
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return len(self.store.images)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Called by torch for a whole batch, whose keys are of one epoch."""
        (epoch,) = {epoch for epoch, _ in keys}
        indices, store = [index for _, index in keys], self.store
        rows = store.rows(indices)
        sizes = store.heights[rows], store.widths[rows]
        plans = [
            plan_batch(self.config, self.seed, epoch, indices, *sizes, views)
            for views in groups_of(self.config)
        ]
        places = store.offsets[rows], store.widths[rows], store.channels
        return Batch(
            indices=np.array(indices),
            crops=[CropBatch.of(of_group, *places) for of_group in plans],
            photometrics=[PhotometricBatch.of(of_group) for of_group in plans],
        )


def groups_of(config: MultiCrop) -> list[range]:
    """The views of each size: the global ones, then the local ones where there are any."""
    local = range(GLOBAL_VIEWS, config.views)
    return [range(GLOBAL_VIEWS), local] if local else [range(GLOBAL_VIEWS)]


def _empty(views: int, images: int, channels: int, size: int) -> Tensor:
    return torch.empty((views, images, channels, size, size), dtype=torch.uint8)


class StepSampler(Sampler[list[Key]]):
    """The keys of every micro-batch of some steps: of this process's part of them.

    `images` int64 [n] are the images that are trained on; `steps` the steps to feed, in order.
    """

    def __init__(self, images: np.ndarray, recipe: Recipe, steps: Sequence[int]) -> None:
        self.images = images
        self.recipe = recipe
        self.steps = steps
        self.rank, self.world_size = distributed.rank(), distributed.world_size()

    def __len__(self) -> int:
        return len(self.steps) * self.recipe.accumulate(self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        passes = self.recipe.accumulate(self.world_size)
        for epoch, chosen in step_images(
            self.images, self.recipe, self.steps, self.rank, self.world_size
        ):
            for part in np.split(chosen, passes):
                yield [(epoch, int(index)) for index in part]


def step_images(
    images: np.ndarray, recipe: Recipe, steps: Iterable[int], rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Epoch and images (int64) of each step; of one process's part of it, where there are more."""
    steps_per_epoch = recipe.steps_per_epoch(len(images))
    order, order_epoch = np.empty(0, dtype=np.int64), -1
    for step in steps:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(len(images), recipe.seed, epoch), epoch
        yield (
            epoch,
            images[batch_indices(order, step_in_epoch, recipe.batch_size, rank, world_size)],
        )


def feed(
    source: Source,
    images: np.ndarray,
    recipe: Recipe,
    steps: Sequence[int],
    workers: int,
    pin: bool,
    store: PixelStore | None = None,
) -> Generator[Batch | UserError]:
    """The micro-batches of `steps`, drawn from the `images` (int64 [n]) of the source.

    With a `store` in the CPU's memory or on disk nothing is decoded. Close it when leaving early
    (`contextlib.closing`): its workers end with it, and a worker that is left behind holds every
    pipe and file that the process had open when it was forked.
    """
    pictures: Pictures = FromSource(source, recipe.feed.stored_size, shrink_of(recipe))
    if store is not None:
        pictures = FromStore(store)
    dataset = ViewDataset(pictures, recipe.crops, recipe.seed)
    yield from _loader(dataset, StepSampler(images, recipe, steps), workers, pin)


def resident_feed(
    store: PixelStore,
    images: np.ndarray,
    recipe: Recipe,
    steps: Sequence[int],
    workers: int,
    pin: bool,
) -> Generator[Batch | UserError]:
    """The same out of a `store` whose pixels lie on the device; workers make the plans."""
    dataset = PlanDataset(store, recipe.crops, recipe.seed)
    for batch in _loader(dataset, StepSampler(images, recipe, steps), workers, pin):
        yield replace(batch, pixels=store.pixels)


def shrink_of(recipe: Recipe) -> Shrink | None:
    """How far JPEGs may be reduced while they are decoded: never below what crops need."""
    if not recipe.feed.draft:
        return None
    stored = recipe.feed.stored_size
    return partial(down_to, stored) if stored else partial(reduction, recipe.crops)


def _loader(
    dataset: ViewDataset | PlanDataset, sampler: StepSampler, workers: int, pin: bool
) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=settle_worker,
        # Its own: by default the loader draws a seed from the generator that drop path draws from.
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:
    """The dataset makes whole batches."""
    return batch


def whole(batch: Made | UserError) -> Made:
    """A batch that a feed gave; raises the `UserError` that came in its place."""
    if isinstance(batch, UserError):
        raise batch
    return batch


def settle_worker(_worker: int) -> None:
    """A worker takes no core that the training computes on, and outlives a Ctrl-C.

    A terminal sends Ctrl-C to every process; only the loop decides when to stop, and then ends its
    workers itself.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Processes that decode and crop: one where the CPU computes too, else up to eight.

    Beside few computing threads none is better where images are small (every thread waits for the
    slowest: docs/log.md), and far worse where decoding one takes as long as learning from it.
    """
    if asked is not None:
        return asked
    mine = distributed.cores() // distributed.local_world_size()
    if device.type == "cpu":
        return 1
    return max(1, min(8, mine - 1))
