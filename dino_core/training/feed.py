"""From a source of images to batches of views, the same whatever the number of workers.

The order is a function of (seed, epoch), each view of (seed, epoch, image, view): a batch is named
by its step alone, so a run can start at any step. Workers decode once and crop to uint8; color,
blur and normalization happen in one batch on the device.
"""

import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dino_core import distributed
from dino_core.augment import MultiCrop, PhotometricBatch, crop_views, photometric, plan_views
from dino_core.data import Quarantined, Source, batch_indices, epoch_order, safe_image
from dino_core.errors import UserError
from dino_core.models import ModelInfo
from dino_core.training.recipe import Recipe

Key = tuple[int, int]  # (epoch, image index)


@dataclass
class Sample:
    """The views of one image: uint8 [C, S, S] each, and what the device has still to do to them."""

    index: int
    crops: list[Tensor]
    plans: list  # type: ignore[type-arg]
    quarantined: list[Quarantined]


@dataclass
class Batch:
    """Views of B images, grouped by size and view-major inside a group."""

    indices: np.ndarray
    """int64 [B], which images these are."""
    crops: list[Tensor]
    """uint8 [n_i * B, C, S_i, S_i] per group, the global views first."""
    photometrics: list[PhotometricBatch]
    quarantined: list[Quarantined]

    def pin_memory(self) -> "Batch":
        """Called by the loader for CUDA, so that copies overlap with compute."""
        self.crops = [crops.pin_memory() for crops in self.crops]
        self.photometrics = [batch.pin_memory() for batch in self.photometrics]
        return self

    def views(self, info: ModelInfo, device: torch.device) -> list[Tensor]:
        """Normalized float32 views per group, made on the device."""
        return [
            photometric(
                crops.to(device, non_blocking=True),
                batch.to(device, non_blocking=True),
                info.mean,
                info.std,
            )
            for crops, batch in zip(self.crops, self.photometrics, strict=True)
        ]


class ViewDataset(Dataset[Sample | UserError]):
    """(epoch, image index) -> the cropped views of that image in that epoch.

    A `UserError` is returned, not raised: torch would wrap it in a worker's traceback.
    """

    def __init__(self, source: Source, crops: MultiCrop, seed: int) -> None:
        self.source = source
        self.config = crops
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample | UserError:
        epoch, index = key
        try:
            image, _, quarantined = safe_image(self.source, index)
        except UserError as error:
            return error
        height, width = image.shape[:2]
        plans = plan_views(self.config, self.seed, epoch, index, height=height, width=width)
        return Sample(index, crop_views(image, plans), plans, quarantined)


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


def collate(results: list[Sample | UserError]) -> Batch | UserError:
    """Stack samples by view size, view-major; the first error takes their place."""
    for result in results:
        if isinstance(result, UserError):
            return result
    samples = [result for result in results if isinstance(result, Sample)]
    views = range(len(samples[0].crops))
    groups = [views[:2], views[2:]] if len(views) > 2 else [views]
    return Batch(
        indices=np.array([sample.index for sample in samples]),
        crops=[torch.stack([s.crops[v] for v in group for s in samples]) for group in groups],
        photometrics=[
            PhotometricBatch.collate([s.plans[v] for v in group for s in samples])
            for group in groups
        ],
        quarantined=[bad for sample in samples for bad in sample.quarantined],
    )


def feed(
    source: Source,
    images: np.ndarray,
    recipe: Recipe,
    steps: Sequence[int],
    workers: int,
    pin: bool,
) -> Generator[Batch | UserError]:
    """The micro-batches of `steps`, drawn from the `images` (int64 [n]) of the source.

    Close it (`contextlib.closing`) when leaving early: its workers end with it, and a worker that
    is left behind holds every pipe and file that the process had open when it was forked.
    """
    yield from DataLoader(
        ViewDataset(source, recipe.crops, recipe.seed),  # type: ignore[arg-type]
        batch_sampler=StepSampler(images, recipe, steps),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=settle_worker,
        # Its own: by default the loader draws a seed from the generator that drop path draws from.
        generator=torch.Generator(),
    )


def settle_worker(_worker: int) -> None:
    """A worker takes no core that the training computes on, and outlives a Ctrl-C.

    A terminal sends Ctrl-C to every process; only the loop decides when to stop, and then ends its
    workers itself.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Processes that decode and crop: one where the CPU computes too, else up to eight."""
    if asked is not None:
        return asked
    mine = distributed.cores() // distributed.local_world_size()
    return 1 if device.type == "cpu" else max(1, min(8, mine - 1))
