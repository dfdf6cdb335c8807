"""Feeding, from JPEG files to normalized views: images a second for each core, and where time goes.

    for result in measure("photos/"):
        print(result.name, result.images_per_second, result.ratio_to_plain)

The plain twin is the published pipeline: every image decoded by Pillow, its ten views cut and
colored by Pillow one after the other, in the published order. All run in turns, on one thread.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_core.augment import (
    MultiCrop,
    PhotometricBatch,
    crop_into,
    photometric,
    pil_view,
    plan_batch,
    plan_views,
)
from dino_core.augment.pil import to_normalized
from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured, Phases, in_alternation, ratio, wait_for
from dino_core.data import BadImage, Source, open_source
from dino_core.data.store import fill
from dino_core.errors import UserError, at_least
from dino_core.models import device_of
from dino_core.models.info import IMAGENET_MEAN, IMAGENET_STD, ModelInfo
from dino_core.training.feed import (
    Batch,
    FromSource,
    FromStore,
    PlanDataset,
    ViewDataset,
    groups_of,
)
from dino_core.training.recipe import check_stored_size

GENERATED = 32  # pictures that are made where no data is given
SIZE = (500, 375)  # of these, in pixels: as ImageNet's median photo
INFO = ModelInfo("", 1, 224, 3, IMAGENET_MEAN, IMAGENET_STD, "dino")


def measure(
    data: str | None = None,
    *,
    images: int = 32,
    crops: MultiCrop = MultiCrop(),  # noqa: B008  # frozen
    device: str = "auto",
    rounds: int = 3,
    stored_size: int = 0,
) -> list[Measured]:
    """Measure the feeds on `images` images of `data` (default: generated pictures).

    `stored_size` is the recipe's. Raises `UserError` where that is smaller than a crop, and where
    none of the images can be read.
    """
    at_least(1, images=images, rounds=rounds)
    check_stored_size(stored_size, crops)
    where, threads = device_of(device), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _opened(data) as source:
            chosen = readable(source, images)
            notes = _notes(source, len(chosen), images, crops, stored_size, where)
            return _measured(source, chosen, crops, where, rounds, stored_size, notes)
    finally:
        torch.set_num_threads(threads)


def _measured(
    source: Source,
    chosen: Sequence[int],
    crops: MultiCrop,
    device: torch.device,
    rounds: int,
    stored_size: int,
    notes: tuple[str, ...],
) -> list[Measured]:
    store = fill(source, np.array(chosen), stored_size)
    keys = [(0, i) for i in chosen]

    def made(batch: Batch | UserError) -> list[Tensor]:
        if isinstance(batch, UserError):
            raise batch
        return batch.views(INFO, device)

    files = ViewDataset(FromSource(source, stored_size), crops, seed=0)
    memory = ViewDataset(FromStore(store), crops, seed=0)
    contenders: dict[str, Callable[[], object]] = {
        "worker": lambda: files.__getitems__(keys),
        "plain": lambda: plain_views(source, chosen, crops),
        "files": lambda: made(files.__getitems__(keys)),
        "memory": lambda: made(memory.__getitems__(keys)),
        "decoding": lambda: [source.image(i) for i in chosen],
    }
    if device.type == "cuda":
        there = store.to(device)
        plans = PlanDataset(there, crops, seed=0)

        def cut_there() -> list[Tensor]:
            batch = plans.__getitems__(keys).pin_memory()
            batch.pixels = there.pixels
            return made(batch)

        contenders["resident"] = cut_there
    seconds = in_alternation(contenders, rounds, device=device)
    results = []
    for name in NAMES:
        if name in seconds:
            spent, decodes = median(seconds[name]), name in ("worker", "files")
            results.append(
                Measured(
                    name=NAMES[name],
                    hardware=hardware(device),
                    images_per_second=len(chosen) / spent,
                    ratio_to_plain=ratio(seconds["plain"], seconds[name]),
                    share_of_limit=ratio(seconds["decoding"], seconds[name]) if decodes else None,
                    limit="decoding the files and nothing else" if decodes else "",
                    phases=phases(source, chosen, crops, device) if name == "files" else {},
                    notes=notes,
                )
            )
    return results


NAMES = {
    "worker": "feed: JPEG files to crops, all that a GPU leaves to one core",
    "files": "feed: JPEG files to views, one core",
    "memory": "feed: decoded images in memory to views, one core",
    "resident": "feed: images on the GPU to views, planned on one core",
}


def plain_views(source: Source, chosen: Sequence[int], crops: MultiCrop) -> list[Tensor]:
    """All views of each image as published: Pillow, one view after the other; float32 [3, S, S]."""
    views = []
    for i in chosen:
        image = Image.fromarray(source.image(i))
        plans = plan_views(crops, 0, 0, i, height=image.height, width=image.width)
        views += [to_normalized(pil_view(image, plan), INFO.mean, INFO.std) for plan in plans]
    return views


def phases(
    source: Source, chosen: Sequence[int], crops: MultiCrop, device: torch.device
) -> dict[str, float]:
    """Milliseconds of each part for one image: the feed from files, taken apart."""
    clock, count = Phases(device), len(chosen)
    with clock("read"):
        files = [source.read(i) for i in chosen]
    with clock("decode"):
        images = [source.decode(file) for file in files]
    heights, widths = np.array([image.shape[:2] for image in images]).T
    for views in groups_of(crops):
        size = crops.size(views[0])
        with clock("plan"):
            plans = plan_batch(crops, 0, 0, chosen, heights, widths, views)
            colors = PhotometricBatch.of(plans)
        with clock("crop"):
            out_VBCSS = torch.empty((len(views), count, 3, size, size), dtype=torch.uint8)
            for place, image in enumerate(images):
                rows = slice(place, None, count)
                crop_into(out_VBCSS[:, place], image, plans.boxes[rows], plans.flip[rows])
        with clock("copy"):
            there, on_device = out_VBCSS.flatten(0, 1).to(device), colors.to(device)
        with clock("photometric"):
            photometric(there, on_device, INFO.mean, INFO.std)
    wait_for(device)
    return clock.per(count)


def _notes(
    source: Source,
    images: int,
    asked: int,
    crops: MultiCrop,
    stored_size: int,
    device: torch.device,
) -> tuple[str, ...]:
    views = f"2 x {crops.global_size} px and {crops.local_count} x {crops.local_size} px"
    reduced = f", reduced to {stored_size} px first" if stored_size else ""
    notes = [
        f"{images:,} images of {source.spec}{reduced}; {views}",
        "the plain twin is Pillow's pipeline, view by view; every phase is per image",
    ]
    if images < asked:
        notes.append(f"{asked:,} images were asked for, and {images:,} are all that can be read")
    if device.type == "cuda":
        notes.append("colors are changed on the GPU; the plain twin never leaves the core")
    return tuple(notes)


def readable(source: Source, images: int) -> list[int]:
    """Up to `images` images, evenly spread, that can be read; a `UserError` where there is none."""
    good = []
    for i in np.unique(np.linspace(0, len(source) - 1, min(images, len(source))).astype(int)):
        try:
            source.image(int(i))
        except BadImage:
            continue
        good.append(int(i))
    if not good:
        raise UserError(f"{source.spec}: none of the images looked at can be read; give others")
    return good


@contextmanager
def _opened(data: str | None) -> Iterator[Source]:
    if data is not None:
        yield open_source(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), GENERATED)
        source = open_source(folder)
        source.spec = f"{GENERATED} generated JPEGs of {SIZE[0]} x {SIZE[1]} px"
        yield source


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = SIZE) -> None:
    """Generated pictures as JPEG files, `size` (width, height) each, with texture as a photo has.

    Smooth pictures would be smaller files than photos are, and faster to decode.
    """
    scenes = open_source(f"scenes:{count}")
    grain = np.random.Generator(np.random.PCG64(0)).normal(0, 12, (size[1], size[0], 1))
    for i in range(count):
        picture = np.asarray(Image.fromarray(scenes.image(i)).resize(size), dtype=np.float64)
        textured = np.clip(picture + grain, 0, 255).astype(np.uint8)
        Image.fromarray(textured).save(folder / f"{i:0{len(str(count))}d}.jpg", quality=90)
