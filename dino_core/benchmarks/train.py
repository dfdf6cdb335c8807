"""Training, end to end from image files, beside the algorithm as published.

    for result in measure("photos/"):
        print(result.name, result.images_per_second, result.ratio_to_plain)

A turn of either is a number of whole steps, the start of its data workers included; after one turn
each to warm up they alternate. The plain twin is `published.py`, in a process of its own.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_core import distributed
from dino_core.augment import MultiCrop
from dino_core.benchmarks.hardware import flops_limit, hardware
from dino_core.benchmarks.measuring import Elsewhere, Measured, Phases, in_alternation, ratio
from dino_core.benchmarks.published import published_batches, published_state, published_step
from dino_core.data import Source, open_source
from dino_core.errors import UserError, at_least
from dino_core.memory import keep_freed_memory
from dino_core.models import device_of
from dino_core.training.feed import choose_workers, whole
from dino_core.training.prefetch import Prepared, prepared
from dino_core.training.recipe import BackboneConfig, FeedConfig, HeadConfig, Recipe
from dino_core.training.resident import Feed, decided
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, StepSettings, train_step

SMALL_CROPS = MultiCrop(global_size=64, local_size=32, local_count=6)
GENERATED = (500, 375)  # width and height in pixels of the pictures made where no data is given


def _recipe(architecture: str, patch: int, size: int, crops: MultiCrop, out_dim: int) -> Recipe:
    return Recipe(
        backbone=BackboneConfig(architecture, patch, size),
        crops=crops,
        head=HeadConfig(out_dim),
        epochs=1,
    )


RECIPES = {
    "ViT-S/16 224+96": _recipe("vit_small_patch16_224", 16, 224, MultiCrop(), 65536),
    "ViT-B/16 224+96": _recipe("vit_base_patch16_224", 16, 224, MultiCrop(), 65536),
    "ViT-T/16 224+96": _recipe("vit_tiny_patch16_224", 16, 224, MultiCrop(), 65536),
    "ViT-T/8 64+32": _recipe("vit_tiny_patch16_224", 8, 64, SMALL_CROPS, 4096),
}
# What is measured by default, and its images per step.
ON_GPU = {
    "ViT-S/16 224+96": 256,
    "ViT-B/16 224+96": 128,
    "ViT-T/16 224+96": 512,
    "ViT-T/8 64+32": 1024,
}
ON_CPU = {"ViT-T/16 224+96": 8, "ViT-T/8 64+32": 32}


@dataclass(frozen=True)
class Setting:
    """One recipe as it is measured here."""

    name: str
    recipe: Recipe
    source: Source
    device: torch.device
    workers: int
    steps: int
    """Optimizer steps a turn."""

    @property
    def images_a_turn(self) -> int:
        return self.steps * self.recipe.batch_size

    def settings(self) -> StepSettings:
        """Of a step in the middle of a long run: everything moves."""
        schedules = Schedules(replace(self.recipe, steps=2000), steps_per_epoch=100)
        return replace(schedules.settings(1500), watch=False)


def measure(
    data: str | None = None,
    *,
    only: Sequence[str] = (),
    batch_size: int | None = None,
    steps: int | None = None,
    rounds: int = 3,
    device: str = "auto",
    threads: int = 0,
    workers: int | None = None,
    resident: bool = False,
    residual: Literal["fp32", "bf16"] = "fp32",
    compile: Literal["auto", "on", "off"] = "auto",
    plain: bool = True,
) -> list[Measured]:
    """Measure the recipes that suit the device, or `only` those named: minutes each on a CPU.

    `data` is any data spelling (default: generated JPEGs of 500 x 375 px); `steps` are those of one
    turn; `resident` keeps decoded images on the device; without `plain` only the fast path runs.
    Raises `UserError` for a recipe that is not known here, and for data that cannot be used.
    """
    at_least(1, batch_size=batch_size, steps=steps, rounds=rounds)
    at_least(0, workers=workers, threads=threads)
    where = device_of(device)
    usual = ON_GPU if where.type == "cuda" else ON_CPU
    if unknown := [name for name in only if name not in RECIPES]:
        raise UserError(f"no recipe is named {unknown[0]!r}; there are {', '.join(RECIPES)}")
    results, before = [], torch.get_num_threads()
    for name in only or usual:
        recipe = replace(
            RECIPES[name],
            batch_size=batch_size or usual.get(name, 8),
            threads=threads or distributed.cores(),
            residual=residual,
            compile=compile,
            feed=FeedConfig(
                resident="always" if resident else "never", stored_size=288 if resident else 0
            ),
        )
        turn = steps or (20 if where.type == "cuda" else 6)
        with _opened(data, recipe.batch_size * turn) as source:
            recipe = decided(recipe, source, np.arange(len(source)), where)
            torch.set_num_threads(recipe.threads)
            setting = Setting(name, recipe, source, where, choose_workers(workers, where), turn)
            results.append(_measured(setting, rounds, plain))
    torch.set_num_threads(before)
    return results


def flops_per_image(recipe: Recipe, width: int, depth: int) -> float:
    """Floating-point operations of a whole step for one image: matrix products of a plain ViT.

    Forward: 24 N D^2 + 4 N^2 D a block for N tokens of width D, besides patches and head; the
    student counts three times (twice more backward), the teacher once. What the fast path leaves
    out in the last block counts as done.
    """
    crops, head, patch = recipe.crops, recipe.head, recipe.backbone.patch_size
    hidden, bottleneck = head.hidden_dim, head.bottleneck_dim
    of_head = 2 * (width * hidden + hidden**2 + hidden * bottleneck + bottleneck * head.out_dim)

    def view(size: int) -> float:
        patches = (size // patch) ** 2
        tokens = patches + 1
        of_block = 24 * tokens * width**2 + 4 * tokens**2 * width
        return 2 * patches * width * 3 * patch**2 + depth * of_block + of_head

    of_global, of_local = view(crops.global_size), view(crops.local_size)
    return 3 * (2 * of_global + crops.local_count * of_local) + 2 * of_global


def _measured(setting: Setting, rounds: int, plain: bool) -> Measured:
    fast = Fast(setting)
    turns: dict[str, Callable[[], object]] = {"fast": fast.turn}
    with ExitStack() as others:
        if plain:
            turns["plain"] = others.enter_context(closing(Elsewhere(plain_turn, setting)))
        seconds = in_alternation(turns, rounds, device=setting.device)
    rate = setting.images_a_turn / median(seconds["fast"])
    recipe, backbone = setting.recipe, fast.state.student.backbone
    flops = flops_per_image(recipe, backbone.embed_dim, backbone.depth)
    limit, named = flops_limit(setting.device, torch.bfloat16)
    compared = ""
    if plain:
        compared = (
            f"The plain twin: {setting.images_a_turn / median(seconds['plain']):,.1f} images/s. "
        )
    kept = ", resident" if recipe.feed.resident == "always" else ""
    return Measured(
        name=f"train {setting.name}, K {recipe.head.out_dim:,}, batch {recipe.batch_size}{kept}",
        hardware=hardware(setting.device),
        images_per_second=rate,
        ratio_to_plain=ratio(seconds["plain"], seconds["fast"]) if plain else None,
        share_of_limit=rate * flops / limit,
        limit=f"{named}, at {flops / 1e9:.1f} GFLOP an image",
        phases=fast.phases(),
        notes=(
            f"{compared}Data workers: {setting.workers}; the step waited for them "
            f"{100 * fast.share_waited():.0f} % of the time. Phases are of one step, with the "
            "images made in the same process.",
        ),
    )


class Fast:
    """What `scripts/train.py` runs: the feed, the step, and numbers read one step late."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.state = create_state(setting.recipe, setting.device)
        self.settings = setting.settings()
        self.info = setting.recipe.backbone.info()
        self.waited = self.stepped = 0.0
        images = np.arange(len(setting.source))
        self.feed = Feed(setting.source, images, setting.recipe, setting.device, setting.workers)
        if setting.device.type == "cpu":
            keep_freed_memory()  # as training does

    def turn(self) -> None:
        """One turn's steps, from files to new weights."""
        setting = self.setting
        batches = self.feed.batches(range(setting.steps))
        with closing(prepared(batches, self.info, setting.device)) as ready:
            late: Tensor | None = None
            start = time.perf_counter()
            for batch in ready:
                fed = time.perf_counter()
                loss = self._step(batch)
                if late is not None:
                    late.item()
                late = loss
                self.waited += fed - start
                start = time.perf_counter()
                self.stepped += start - fed

    def share_waited(self) -> float:
        return self.waited / (self.waited + self.stepped)

    def phases(self, steps: int = 2) -> dict[str, float]:
        """Milliseconds of a step by part, the images decoded and cropped in this process."""
        phases = Phases(self.setting.device)
        heads = self.state.student.head, self.state.teacher.head
        hooks = [
            hook
            for head in heads
            for hook in (
                head.register_forward_pre_hook(lambda *_: phases.enter("head")),
                head.register_forward_hook(lambda *_: phases.leave()),
            )
        ]
        inline = copy.copy(self.feed)  # with the images it holds
        inline.workers = 0
        with closing(inline.batches(range(steps))) as batches:
            for _ in range(steps):
                with phases("decode and crop"):
                    batch = whole(next(batches))
                with phases("copy and color"):
                    views = batch.views(self.info, self.setting.device)
                with phases("rest of the step"):
                    train_step(self.state, [views], self.settings, phases)
        for hook in hooks:
            hook.remove()
        return phases.per(steps)

    def _step(self, batch: Prepared | UserError) -> Tensor:
        return train_step(self.state, [whole(batch).views], self.settings).loss


class Plain:
    """As many steps as published, from the same files with as many workers."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.state = published_state(setting.recipe, setting.device)
        self.settings = setting.settings()

    def turn(self) -> None:
        """One turn's steps, from files to new weights."""
        setting = self.setting
        for views in published_batches(
            setting.source,
            setting.recipe,
            range(setting.images_a_turn),
            setting.workers,
            pin=setting.device.type == "cuda",
        ):
            published_step(self.state, views, self.settings)


def plain_turn(setting: Setting) -> Callable[[], object]:
    """A turn of the plain twin, for a process of its own: its heap is to be as any program's."""
    torch.set_num_threads(setting.recipe.threads)
    return Plain(setting).turn


@contextmanager
def _opened(data: str | None, images: int) -> Iterator[Source]:
    """The data, or generated JPEG files that are gone afterwards; at least `images` of them."""
    if data is not None:
        source = open_source(data)
        if len(source) < images:
            raise UserError(
                f"{data}: {len(source)} images, and a turn of this benchmark takes {images}: give "
                "more, or lower --steps or --batch-size"
            )
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        scenes = open_source(f"scenes:{min(images, 64)}")
        for i in range(images):
            picture = Image.fromarray(scenes.image(i % len(scenes)))
            picture.resize(GENERATED).save(Path(folder) / f"{i:05}.jpg", quality=90)
        yield open_source(folder)
