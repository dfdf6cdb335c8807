"""Where a run's images wait for their turn: in files, in the cache on disk, in memory, on the GPU.

    recipe = decided(recipe, source, images, device)    # once, at the start of a run
    batches = Feed(source, images, recipe, device, workers, say).batches(steps)

What waits where changes no plan. Views cut on a GPU differ from those cut on a CPU by 2/255 at
most, so the decision is part of the recipe that a run writes down and goes on with.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from dino_core import distributed
from dino_core.data import Source, epoch_order
from dino_core.data.cache import cache_folder
from dino_core.data.pixel_cache import ABOUT, cached_store, source_digest
from dino_core.data.store import SPARE, PixelStore, Progress, fill, judged_bytes
from dino_core.errors import UserError
from dino_core.training.feed import Batch, feed, resident_feed, shrink_of
from dino_core.training.recipe import Recipe

SHARE = 0.4  # of the GPU's free memory that images may take
SAY_EVERY = 10.0  # seconds
TRIED = 256  # images that are loaded to see how long all take, at least


def decided(recipe: Recipe, source: Source, images: np.ndarray, device: torch.device) -> Recipe:
    """The recipe with `feed.resident` made definite: always or never.

    Raises `UserError` where all `images` are to lie on a GPU that is too small for them.
    """
    wish = recipe.feed.resident
    choice: Literal["always", "never"]
    if wish == "never" or device.type != "cuda":
        choice = "always" if wish == "always" else "never"
    else:
        needed, room = _needed(recipe, source, images), _room(device)
        if wish == "always" and needed > room:
            raise UserError(
                f"--resident always: the decoded images take {needed / 2**30:.1f} GB, and "
                f"{room / 2**30:.1f} GB of {device} may hold images: use --resident auto, or a "
                "smaller --stored-size"
            )
        choice = "always" if needed <= room else "never"
    return replace(recipe, feed=replace(recipe.feed, resident=choice))


def _needed(recipe: Recipe, source: Source, images: np.ndarray) -> int:
    return int(SPARE * judged_bytes(source, images, recipe.feed.stored_size, shrink_of(recipe)))


def _room(device: torch.device) -> int:
    return int(SHARE * _free(device))


def _free(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses; torch keeps freed ones for itself."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass
class Feed:
    """The micro-batches of a run; images are loaded when the first are asked for, and kept."""

    source: Source
    images: np.ndarray
    """int64 [n], those that are trained on."""
    recipe: Recipe
    device: torch.device
    workers: int
    say: Callable[[str], None] = lambda sentence: None
    loads: Progress = lambda done, images: None
    """Hears of every image that is loaded into memory."""
    store: PixelStore | None = field(default=None, init=False)
    loaded: bool = field(default=False, init=False)

    def batches(self, steps: Sequence[int]) -> Generator[Batch | UserError]:
        """As `feed` and `resident_feed` have them. Raises `UserError` while loading."""
        self.load()
        store, pin = self.store, self.device.type == "cuda"
        common = self.images, self.recipe, steps, self.workers, pin
        if store is not None and store.pixels.device.type != "cpu":
            batches = resident_feed(store, *common)
        else:
            batches = feed(self.source, *common, store=store)
        return _with_news(batches, store)

    def load(self) -> None:
        """Put the images where they wait, if that has not been done."""
        if self.loaded:
            return
        self.loaded = True
        settings = self.recipe.feed
        if settings.cache:
            self.store = cached_store(
                self.source,
                settings.stored_size,
                threads=self._threads(),
                draft=settings.draft,
                tell=sentences_of(self.say, "the cache"),
                say=self.say,
            )
        if settings.resident == "always":
            self._load_into_memory()

    def _load_into_memory(self) -> None:
        where = self.device if self.device.type == "cuda" else torch.device("cpu")
        if where.type == "cuda" and _needed(self.recipe, self.source, self.images) > _free(where):
            self.say(
                "the images do not fit into this GPU as they did where the run began: they are "
                "cropped on the CPU, which differs by 2/255 at most"
            )
        elif self.store is not None:
            # What a CPU's memory holds of the cache is the system's to decide.
            if where.type == "cuda":
                self.store = self.store.to(where)
        else:
            self.store = fill(
                self.source,
                self.images,
                self.recipe.feed.stored_size,
                threads=self._threads(),
                device=where,
                shrink=shrink_of(self.recipe),
                tell=self._told(f"the memory of {where}"),
            )

    def _told(self, where: str) -> Progress:
        sentences = sentences_of(self.say, where)

        def tell(done: int, images: int) -> None:
            self.loads(done, images)
            sentences(done, images)

        return tell

    def _threads(self) -> int:
        """All cores of this machine that are this process's: nothing else runs yet."""
        return max(1, distributed.cores() // distributed.local_world_size())


def trial_feed(
    recipe: Recipe,
    source: Source,
    images: np.ndarray,
    device: torch.device,
    say: Callable[[str], None] = lambda sentence: None,
) -> Feed:
    """The feed of a run for a few steps; its own `images` are few where all are to be loaded.

    Memory takes the place of a cache that is still to be made: the system keeps there what was just
    written. Of a definite recipe (`decided`); for no data workers until told otherwise.
    """
    settings = recipe.feed
    if is_cached(recipe, source) if settings.cache else settings.resident == "never":
        return Feed(source, images, recipe, device, 0, say)
    if settings.resident == "never":
        device = torch.device("cpu")
    recipe = replace(recipe, feed=replace(settings, cache=False, resident="always"))
    order = epoch_order(len(images), recipe.seed, 0)
    few = images[np.sort(order[: max(TRIED, 2 * recipe.batch_size)])]
    return Feed(source, few, recipe, device, 0, say)


def is_cached(recipe: Recipe, source: Source) -> bool:
    """Whether the cache that a recipe wants is made already."""
    digest = source_digest(source, recipe.feed.stored_size, recipe.feed.draft)
    return (cache_folder("pixels", digest) / ABOUT).is_file()


def sentences_of(say: Callable[[str], None], where: str) -> Progress:
    """Progress of loading as sentences, one every few seconds."""
    last = time.monotonic()

    def tell(done: int, images: int) -> None:
        nonlocal last
        if time.monotonic() - last > SAY_EVERY and done < images:
            last = time.monotonic()
            say(f"decoding all images into {where}: {done:,} of {images:,}")

    return tell


def _with_news(
    batches: Generator[Batch | UserError], store: PixelStore | None
) -> Generator[Batch | UserError]:
    """The first batch tells what was bad while the store was made."""
    news = [] if store is None else store.quarantined
    try:
        for batch in batches:
            if isinstance(batch, Batch) and news:
                batch, news = replace(batch, quarantined=[*batch.quarantined, *news]), []
            yield batch
    finally:
        batches.close()
