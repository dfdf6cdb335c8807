"""Settings from what is known before the first step: images, device, time.

    choice = choose(3_200, 480, device="cuda", memory=24 << 30, seconds=1800)
    choice.recipe, choice.reasons

The rules, each with its source:

- Crops follow the images' size: nothing is learned from pixels that are not there.
- The backbone follows the device (ViT-T on a CPU, ViT-S on a GPU) and, where time is short, gives
  way to a smaller one that sees the images often enough (`Plan.enough`).
- Prototypes by number of images, as lightly-train's: 1,024 up to 20,000 images, ... 65,536 from
  500,000. On a CPU 4,096 at most: in the paper's ablation that costs 0.4 points of k-NN.
- Batch norm in the head up to 100,000 images, and on a CPU: without it a short run does not get
  going (docs/log.md); in the paper's long ones it costs 1.1 points.
- Teacher: momentum from 0.99 at 20,000 images to 0.996 at ImageNet's 1.28 million (lightly-train);
  on a GPU the temperature from 0.04 at 100,000 to 0.07 there (the paper's); on a logarithmic
  scale. lightly-train begins at 0.02; here that used few prototypes (docs/log.md).
- An eighth of the images a step at most, so that an epoch has eight different steps.
- The peak rate falls with the root of the batch below the base recipe's.
- Warm-ups take a tenth of the run at most, that of the temperature three tenths (lightly-train),
  that of the head alone a fifth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from dino_core.training.durations import spoken
from dino_core.training.recipe import Recipe
from dino_core.training.recipes import RECIPES

DeviceKind = Literal["cpu", "cuda", "mps"]
Speed = Callable[[Recipe], float] | float
"""Images per second, of a recipe or of any."""

IMAGENET = 1_281_167
PROTOTYPES = (
    (20_000, 1_024),
    (50_000, 2_048),
    (100_000, 4_096),
    (200_000, 16_384),
    (500_000, 32_768),
)
MOST_PROTOTYPES, MOST_ON_CPU = 65_536, 4_096
FEW = 100_000  # images, for which the head has batch norm and the teacher stays cool
COOL = 0.04  # the teacher's temperature at the start
COOL_EPOCHS = 3  # of its warm-up, at least
MOST_EPOCHS = 800  # the longest published run
MOST_IN_BATCH = {"cpu": 64, "cuda": 512}
BATCHES = 8  # that the collection holds, at least
FROZEN_STEPS = 1250  # of the prototypes, at most
USED = 0.9  # of the time; the rest is for starting, checks and saving


@dataclass(frozen=True)
class Plan:
    """A backbone with crops, as a named recipe has them, and what it takes to be worth it."""

    base: str
    """The recipe it is taken from."""
    pixels: tuple[float, float]
    """Short sides of the images that it is for: from, and below."""
    enough: int
    """Times that each image, and `most_enough` images that all together, should be seen."""
    most_enough: int
    crops: str = ""
    """Another recipe whose crops it has."""

    def recipe(self) -> Recipe:
        base = RECIPES[self.base]
        return replace(base, crops=RECIPES[self.crops].crops) if self.crops else base


# From the best to the quickest, by device.
PLANS: dict[str, tuple[Plan, ...]] = {
    "cuda": (
        Plan("vits16", (192, math.inf), 150, 10_000_000),
        Plan("imagenette", (128, math.inf), 100, 5_000_000),
        Plan("tiny64", (48, 128), 100, 5_000_000),
        Plan("small", (48, math.inf), 0, 0),
        Plan("cifar", (0, 48), 0, 0),
    ),
    "cpu": (
        Plan("small", (48, math.inf), 20, 100_000),
        Plan("small", (48, math.inf), 0, 0, crops="starter"),
        Plan("cifar", (0, 48), 0, 0),
    ),
}
DEVICES = {"cpu": "a CPU", "mps": "an Apple GPU", "cuda": "a GPU"}
# Without a time: (up to that many images, epochs), the fewest steps, the most images in all.
LENGTHS = {
    "cuda": (((20_000, 300), (200_000, 200)), 100, 2_000, 200_000_000),
    "cpu": ((), 20, 500, 1_000_000),
}


@dataclass(frozen=True)
class Choice:
    """Settings, and a sentence on each that was chosen."""

    recipe: Recipe
    reasons: list[str]


def choose(
    images: int,
    size: float,
    *,
    device: DeviceKind = "cpu",
    memory: int | None = None,
    seconds: float | None = None,
    cores: int = 1,
    processes: int = 1,
    images_per_second: Speed | None = None,
) -> Choice:
    """Settings for `images` images (2 at least) whose short side has `size` pixels (their median).

    `memory` is the device's in bytes, `seconds` the time there is, `processes` how many train
    together. The speed is estimated where `images_per_second` does not tell it (see `measured`).
    """
    slow = device != "cuda"
    speed: Speed = lambda recipe: estimated_speed(recipe, device, cores) * processes  # noqa: E731
    speed = speed if images_per_second is None else images_per_second
    plan, reasons = _plan(images, size, device, seconds, speed)
    base = plan.recipe()
    batch = _batch(base, images, processes, slow)
    prototypes = _prototypes(images, slow)
    momentum, temperature = _teacher(images, slow)
    peak = base.optim.lr * base.batch_size / 256 * min(1.0, math.sqrt(batch / base.batch_size))
    n = f"{images:,} images {_amount(images)}"
    reasons += [
        f"K = {prototypes}: {n}",
        f"batch = {batch}: {_why_batch(batch, images, slow)}",
        f"peak learning rate = {peak:.2g}: for a batch of {batch}",
    ]
    recipe = replace(
        base,
        batch_size=batch,
        micro_batch=None,
        steps=None,
        keep=Recipe().keep,
        head=replace(base.head, out_dim=prototypes, batch_norm=slow or images <= FEW),
        teacher=replace(base.teacher, momentum=momentum, teacher_temp=temperature),
        optim=replace(base.optim, lr=float(f"{peak * 256 / batch:.3g}")),
        quality=replace(base.quality, k=min(base.quality.k, images - base.held_out(images))),
    )
    recipe = _fitted_to_memory(recipe, memory, processes, reasons)
    if seconds is None:
        recipe = warmed_up(_usual_length(recipe, images, slow, reasons), images)
    else:
        timed = fit_to_time(recipe, images, seconds, speed(recipe) if callable(speed) else speed)
        recipe = timed.recipe
        reasons += timed.reasons
    teacher = recipe.teacher
    reasons.append(f"teacher momentum = {momentum:g}, temperature = {teacher.teacher_temp:g}: {n}")
    return Choice(recipe, reasons)


def fit_to_time(recipe: Recipe, images: int, seconds: float, images_per_second: float) -> Choice:
    """The same settings with as many steps as `seconds` are enough for, 800 epochs at most."""
    per_epoch = _steps_per_epoch(recipe, images)
    affordable = USED * seconds * images_per_second / recipe.batch_size
    most = max(MOST_EPOCHS * per_epoch, LENGTHS["cuda"][2])
    steps = int(max(1, min(affordable, most)))
    reason = (
        f"steps = {steps}, {steps / per_epoch:.3g} epochs: in {spoken(seconds)} at "
        f"{images_per_second:.3g} images per second"
    )
    return Choice(warmed_up(replace(recipe, steps=steps), images), [reason])


# -- the rules ------------------------------------------------------------------------------------


def _plan(
    images: int, size: float, device: DeviceKind, seconds: float | None, speed: Speed
) -> tuple[Plan, list[str]]:
    """The best plan that the images' size and the time allow."""
    plans = PLANS["cuda" if device == "cuda" else "cpu"]
    fitting = [plan for plan in plans if plan.pixels[0] <= size < plan.pixels[1]]
    chosen = next(plan for plan in fitting if _affordable(plan, images, seconds, speed))
    crops, backbone = chosen.recipe().crops, chosen.recipe().backbone
    why = f"what {DEVICES[device]} manages"
    if seconds is not None and chosen is not fitting[0]:
        why = f"{spoken(seconds)} are too short for a larger one"
    elif fitting[0] is not plans[0]:
        why = f"the images are small ({size:.0f} px)"
    name = backbone.architecture.split("_")[1]
    return chosen, [
        f"backbone = ViT-{name[0].upper()}/{backbone.patch_size} on crops of "
        f"{crops.global_size} and {crops.local_size} px: {why}"
    ]


def _affordable(plan: Plan, images: int, seconds: float | None, speed: Speed) -> bool:
    if seconds is None or not plan.enough:
        return True
    rate = speed(plan.recipe()) if callable(speed) else speed
    return USED * seconds * rate >= min(plan.enough * images, plan.most_enough)


def _batch(recipe: Recipe, images: int, processes: int, slow: bool) -> int:
    """A power of two, shared evenly; the held-out images do not count."""
    most = MOST_IN_BATCH["cpu" if slow else "cuda"]
    fit = max(2, (images - recipe.held_out(images)) // BATCHES)
    batch = min(most, 1 << (fit.bit_length() - 1))
    return max(1, batch // processes) * processes


def _prototypes(images: int, slow: bool) -> int:
    count = next((k for most, k in PROTOTYPES if images <= most), MOST_PROTOTYPES)
    return min(count, MOST_ON_CPU) if slow else count


def _teacher(images: int, slow: bool) -> tuple[float, float]:
    """Momentum and temperature."""
    momentum = _between(images, 20_000, 0.99, IMAGENET, 0.996)
    temperature = COOL if slow else _between(images, FEW, COOL, IMAGENET, 0.07)
    return round(momentum, 4), round(temperature, 3)


def _between(images: int, few: int, low: float, many: int, high: float) -> float:
    """`low` up to `few` images, `high` from `many`, in between on a logarithmic scale."""
    share = math.log(images / few) / math.log(many / few)
    return low + (high - low) * min(1.0, max(0.0, share))


def _usual_length(recipe: Recipe, images: int, slow: bool, reasons: list[str]) -> Recipe:
    """Epochs without a time to keep: more for fewer images, a fewest number of steps."""
    longer, epochs, fewest_steps, most_images = LENGTHS["cpu" if slow else "cuda"]
    epochs = next((e for most, e in longer if images <= most), epochs)
    per_epoch = _steps_per_epoch(recipe, images)
    if epochs * per_epoch < fewest_steps:
        epochs = math.ceil(fewest_steps / per_epoch)
        reasons.append(f"epochs = {epochs}: {fewest_steps} steps, fewer teach nothing")
    elif epochs * images > most_images:
        steps = most_images // recipe.batch_size
        reasons.append(f"steps = {steps}: {most_images:,} images seen; no time was given")
        return replace(recipe, epochs=epochs, steps=steps)
    else:
        reasons.append(f"epochs = {epochs}: {images:,} images {_amount(images)}; no time was given")
    return replace(recipe, epochs=epochs)


def warmed_up(recipe: Recipe, images: int) -> Recipe:
    """Warm-ups no longer than the length of the run bears; a short one keeps a cool teacher."""
    per_epoch = _steps_per_epoch(recipe, images)
    epochs = recipe.epochs if recipe.steps is None else recipe.steps / per_epoch
    optim, teacher = recipe.optim, recipe.teacher
    optim = replace(
        optim,
        warmup_epochs=min(optim.warmup_epochs, epochs / 10),
        freeze_last_layer=min(optim.freeze_last_layer, epochs / 10, FROZEN_STEPS / per_epoch),
        head_warmup_epochs=min(optim.head_warmup_epochs, epochs / 5),
    )
    warming = min(30, int(0.3 * epochs))
    if teacher.teacher_temp <= COOL or warming < COOL_EPOCHS:
        warming = 0
        teacher = replace(teacher, teacher_temp=min(COOL, teacher.teacher_temp))
    teacher = replace(teacher, warmup_teacher_temp_epochs=warming)
    return replace(recipe, optim=optim, teacher=teacher)


def _steps_per_epoch(recipe: Recipe, images: int) -> int:
    return max(1, recipe.steps_per_epoch(images - recipe.held_out(images)))


# -- what it costs ------------------------------------------------------------------------------

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
DEPTH = 12
# Floating point operations per second, of which about a fifth to a third is reached.
REACHED: dict[DeviceKind, float] = {"cpu": 60e9, "mps": 1.5e12, "cuda": 60e12}
ACTIVATION_BYTES = 40  # kept for the backward pass, per token, channel and block
LOGIT_BYTES = 16  # per logit of a view: bf16, and fp32 copies in loss and gradient


def _fitted_to_memory(
    recipe: Recipe, memory: int | None, processes: int, reasons: list[str]
) -> Recipe:
    """The same batch in as few forward passes as the device's memory allows."""
    if memory is None:
        return recipe
    share = recipe.batch_size // processes
    images = max(1, int((0.8 * memory - fixed_bytes(recipe)) / image_bytes(recipe)))
    if images >= share:
        return recipe
    reasons.append(
        f"forward passes of {images} images at most: what {memory / 2**30:.3g} GiB of memory hold"
    )
    return replace(recipe, micro_batch=images)


def estimated_speed(recipe: Recipe, device: DeviceKind, cores: int = 1) -> float:
    """Images per second of one device, to within a factor of three; measured speeds are better."""
    return REACHED[device] * (cores if device == "cpu" else 1) / image_flops(recipe)


def measured(recipe: Recipe, images_per_second: float) -> Callable[[Recipe], float]:
    """The speed of any recipe, from that of one on the same machine."""
    return lambda other: images_per_second * image_flops(recipe) / image_flops(other)


def image_flops(recipe: Recipe) -> float:
    """Floating point operations of one image's training step (a multiplication and an addition are
    two), for plain ViTs: the teacher's forward of the global crops, the student's forward and
    backward of all."""
    width, patch = _width(recipe), recipe.backbone.patch_size

    def forward(size: int) -> float:
        n = (size // patch) ** 2 + 1
        block = 24 * n * width**2 + 4 * n**2 * width
        return DEPTH * block + 2 * (n - 1) * recipe.backbone.channels * patch**2 * width

    head, crops = recipe.head, recipe.crops
    hidden, bottleneck = head.hidden_dim, head.bottleneck_dim
    layers = width * hidden + (head.layers - 2) * hidden**2 + hidden * bottleneck
    row = 2 * (layers + bottleneck * head.out_dim)
    globals_ = 2 * forward(crops.global_size)
    locals_ = crops.local_count * forward(crops.local_size)
    return 4 * globals_ + 3 * locals_ + (3 * crops.views + 2) * row


def image_bytes(recipe: Recipe) -> float:
    """Memory that each image of a forward pass takes."""
    crops, patch = recipe.crops, recipe.backbone.patch_size
    tokens = 2 * ((crops.global_size // patch) ** 2 + 1)
    tokens += crops.local_count * ((crops.local_size // patch) ** 2 + 1)
    logits = (crops.views + 2) * recipe.head.out_dim * LOGIT_BYTES
    return tokens * DEPTH * _width(recipe) * ACTIVATION_BYTES + logits


def fixed_bytes(recipe: Recipe) -> float:
    """Memory of weights, gradients, moments, and the teacher: 20 bytes a parameter."""
    width, head = _width(recipe), recipe.head
    backbone = 12 * DEPTH * width**2
    layers = width * head.hidden_dim + head.hidden_dim**2 + head.hidden_dim * head.bottleneck_dim
    return 20 * (backbone + layers + head.bottleneck_dim * head.out_dim) + 2**29


def _width(recipe: Recipe) -> int:
    """Of a plain ViT; what is not one is taken for a ViT-S."""
    parts = recipe.backbone.architecture.split("_")
    return next((WIDTHS[part] for part in parts if part in WIDTHS), WIDTHS["small"])


# -- words --------------------------------------------------------------------------------------


def _amount(images: int) -> str:
    if images <= PROTOTYPES[0][0]:
        return "are few"
    return "are many" if images > PROTOTYPES[-1][0] else "are neither few nor many"


def _why_batch(batch: int, images: int, slow: bool) -> str:
    if batch < (MOST_IN_BATCH["cpu" if slow else "cuda"]):
        return f"an eighth of {images:,} images at most"
    return "as many as `small` has" if slow else "as many as the paper has"
