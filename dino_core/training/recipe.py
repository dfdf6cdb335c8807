"""A recipe: every setting of a training run, as typed dataclasses with the paper's defaults.

The command line is derived from these fields (`scripts/train.py --help`), and a resolved recipe is
what a run writes to its `recipe.json`.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dino_core import distributed
from dino_core.augment import MultiCrop
from dino_core.errors import UserError, at_least
from dino_core.models import ModelInfo, has_patches
from dino_core.models.info import IMAGENET_MEAN, IMAGENET_STD
from dino_core.training.optim import OptimizerName

Precision = Literal["fp32", "bf16", "fp16"]

MOST_HELD_OUT = 2_000  # features of all of them are kept at every check: 1.5 MB at 384 dimensions
FEWEST_HELD_OUT = 10  # below this a check says nothing


@dataclass(frozen=True)
class BackboneConfig:
    """Which backbone is trained."""

    architecture: str = "vit_small_patch16_224"
    """Any plain ViT, XCiT, ResNet or ConvNeXt that timm knows by name."""
    patch_size: int = 16
    """Pixels per side of a patch, 4 to 16; convolutional networks have none."""
    image_size: int = 224
    """Native size in pixels: the grid of the position embedding."""
    drop_path: float = 0.1
    """Stochastic depth of the student, growing linearly to this rate at the last block."""
    channels: int = 3
    """Channels of an image; other than 3 for multi-spectral or microscopy data."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, of values in [0, 1]; for other than 3 channels give one number for each."""
    std: tuple[float, ...] = IMAGENET_STD

    def info(self) -> ModelInfo:
        return ModelInfo(
            architecture=self.architecture,
            patch_size=self.patch_size if has_patches(self.architecture) else 1,
            image_size=self.image_size,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            pos_embed="dino",
        )


@dataclass(frozen=True)
class HeadConfig:
    """The projection head and its prototypes."""

    out_dim: int = 65536
    """Number of prototypes K. A few thousand for a few thousand images."""
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    layers: int = 3
    norm_last_layer: bool = True
    """Fix the prototypes' norm at 1; steadier, a little worse in long runs."""
    batch_norm: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """What moves the student."""

    optimizer: OptimizerName = "adamw"
    lr: float = 0.0005
    """Peak learning rate per 256 images of the global batch (scaled linearly)."""
    min_lr: float = 1e-6
    """Where the cosine ends; not scaled."""
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_grad: float = 3.0
    """Largest L2 norm of each gradient tensor; 0 clips nothing."""
    freeze_last_layer: float = 1
    """Epochs in which the prototypes do not move."""
    head_warmup_epochs: float = 0
    """Epochs in which only the head and the center move: for a backbone that knows something."""


@dataclass(frozen=True)
class TeacherConfig:
    """How the teacher follows the student, and how its targets are made."""

    momentum: float = 0.996
    """Start of the EMA momentum, which rises to 1 along a cosine."""
    teacher_temp: float = 0.04
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: int = 0
    student_temp: float = 0.1
    center_momentum: float = 0.9


@dataclass(frozen=True)
class QualityConfig:
    """How a run looks at what it has learned so far, on images that it does not train on."""

    checks: int = 10
    """Checks in all, evenly spaced, the last at the end; 0 makes none."""
    hold_out: float = 0.05
    """Share of the images that is held out of training for the checks, 2,000 at most."""
    k: int = 20
    """Neighbors that vote, where there are labels."""
    probes: int = 4
    """Held-out images whose attention is kept at every check."""


@dataclass(frozen=True)
class FeedConfig:
    """How images come from the disk to the device.

    `stored_size` and `draft` change what is seen, a little; the others only where it waits.
    """

    resident: Literal["auto", "always", "never"] = "auto"
    """Decode all images once and keep them in the device's memory: auto does so on a GPU where they
    take less than two fifths of what is free; always on a CPU too (in its memory)."""
    stored_size: int = 0
    """Short side in pixels that larger images are reduced to once, before any crop; 0 for none.
    For global crops of 224 px, 288 changes a crop by 5 steps of 255 on average."""
    cache: bool = False
    """Keep the reduced images on disk, too, for other runs: for slow disks and big photos."""
    draft: bool = False
    """Decode JPEGs at a half, a quarter or an eighth where every crop stays large enough."""


@dataclass(frozen=True)
class GuardConfig:
    """What a run does when something goes wrong."""

    on_collapse: Literal["warn", "stop"] = "warn"
    """Go on with a warning, or save and stop, when the features collapse."""
    bad_steps: int = 3
    """Steps in a row without finite loss and gradients before going back to a checkpoint."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run learns. Defaults: the paper's vanilla ViT-S/16."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    crops: MultiCrop = field(default_factory=MultiCrop)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    feed: FeedConfig = field(default_factory=FeedConfig)

    epochs: int = 100
    steps: int | None = None
    """Optimizer steps in all; given, it takes the place of `epochs`."""
    batch_size: int = 512
    """Images per optimizer step, over all processes: the same whatever their number."""
    micro_batch: int | None = None
    """Images per forward pass of one process; fewer than its share are accumulated."""
    precision: Precision = "bf16"
    """Of the matrix products, up to the logits; loss, softmax and normalization are fp32."""
    residual: Literal["fp32", "bf16"] = "fp32"
    """Of the stream that a plain ViT's blocks add to, where products are in half precision."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile a plain ViT's blocks: auto does so on a CUDA GPU, where it pays within minutes."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int = 0
    """Compute threads on the CPU; 0 takes every core. Written down and restored on resume."""
    workers: int | None = None
    """Processes that decode and crop; by default chosen from device and cores, on two cores with a
    time to keep by trying."""
    init: str | None = None
    """A model to start the backbone from (any model spelling) instead of fresh weights."""
    save_every: int = 500
    """Optimizer steps between checkpoints."""
    save_minutes: float = 0
    """Minutes after which a checkpoint is due although `save_every` is not; 0 for steps alone."""
    keep: int = 5
    """Newest checkpoints that are kept, the best by k-NN besides; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 for none."""
    log_every: int = 10
    """Optimizer steps between lines of `metrics.jsonl`."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Recipe":
        """The inverse of `to_json`; unknown fields are a `UserError`, missing ones the default."""
        parts: dict[str, type] = {
            "backbone": BackboneConfig,
            "crops": MultiCrop,
            "head": HeadConfig,
            "optim": OptimConfig,
            "teacher": TeacherConfig,
            "quality": QualityConfig,
            "guards": GuardConfig,
            "feed": FeedConfig,
        }
        # Runs from before there was a choice were fed as they came.
        value = {"feed": {"resident": "never"}} | value
        try:
            nested = {name: kind(**_tuples(value[name])) for name, kind in parts.items()}
            return Recipe(**{**value, **nested})
        except (KeyError, TypeError) as error:
            raise UserError(f"recipe.json is of another version of the program: {error}") from None

    def resolved(self, images: int) -> "Recipe":
        """The same recipe with what decides its numbers made definite: steps and threads.

        `images` are those trained on, without the ones held out. Raises `UserError` with one
        sentence for all that cannot work.
        """
        self._check(images)
        return dataclasses.replace(
            self,
            steps=self.epochs * self.steps_per_epoch(images) if self.steps is None else self.steps,
            threads=self.threads or max(1, distributed.cores() // distributed.local_world_size()),
        )

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in one pass over `images`; the rest waits for the next shuffle."""
        return images // self.batch_size

    def held_out(self, images: int) -> int:
        """How many of a collection's images are kept out of training for the quality checks."""
        if not self.quality.checks:
            return 0
        few = min(MOST_HELD_OUT, round(images * self.quality.hold_out))
        return few if few >= FEWEST_HELD_OUT else 0

    def accumulate(self, world_size: int) -> int:
        """Forward passes per step, equal in size, that each of `world_size` processes makes."""
        share = self.batch_size // world_size
        passes = math.ceil(share / min(self.micro_batch or share, share))
        return next(n for n in range(passes, share + 1) if share % n == 0)

    def _check(self, images: int) -> None:
        if images == 0:
            raise UserError("there are no images to train on")
        for name in ("batch_size", "micro_batch", "save_every", "log_every"):
            at_least(1, **{name: getattr(self, name)})
        at_least(0, workers=self.workers, threads=self.threads)
        checks: list[tuple[Any, ...]] = [
            (self._check_batch, images),
            (self._check_quality, images),
            (self._check_sizes,),
            (self._check_feed,),
            # As long as it would be with a batch that fits, where this one does not.
            (self._check_length, max(1, self.steps_per_epoch(images))),
            (self._check_teacher_warmup, max(1, self.steps_per_epoch(images))),
        ]
        wrong = []
        for check, *given in checks:
            try:
                check(*given)
            except UserError as error:
                wrong.append(str(error))
        if wrong:
            raise UserError("; ".join(wrong))

    def _check_batch(self, images: int) -> None:
        if self.batch_size > images:
            raise UserError(
                f"the batch of {self.batch_size} is larger than the data ({images} images to train "
                "on, without those held out for the quality checks): "
                f"use --batch-size {images} or less"
            )
        world_size = distributed.world_size()
        if self.batch_size % world_size:
            raise UserError(
                f"the batch of {self.batch_size} cannot be shared evenly by {world_size} "
                f"processes: use --batch-size {self.batch_size // world_size * world_size}"
            )

    def _check_quality(self, images: int) -> None:
        quality = self.quality
        if not 0 <= quality.hold_out < 1:
            raise UserError("--hold-out is a share of the images: 0 or more, and below 1")
        checked = quality.checks and images * quality.hold_out >= FEWEST_HELD_OUT
        if checked and not 1 <= quality.k <= images:
            raise UserError(
                f"--k {quality.k}: there are {images} images to vote; use one of 1 to {images}"
            )

    def _check_sizes(self) -> None:
        if self.backbone.patch_size < 1:
            raise UserError("--patch-size must be 1 or more")
        patch = self.backbone.info().patch_size
        sizes = {"global": self.crops.global_size}
        if self.crops.local_count:
            sizes["local"] = self.crops.local_size
        for name, size in sizes.items():
            if size % patch:
                raise UserError(
                    f"--{name}-size {size} is not a multiple of the patch size {patch}: "
                    f"use {size // patch * patch or patch}"
                )

    def _check_feed(self) -> None:
        check_stored_size(self.feed.stored_size, self.crops)
        if self.feed.cache and not self.feed.stored_size:
            raise UserError(
                f"--cache keeps reduced images: say how large, e.g. --stored-size "
                f"{_enough(self.crops.global_size)}"
            )

    def _check_length(self, steps_per_epoch: int) -> None:
        steps = self.epochs * steps_per_epoch if self.steps is None else self.steps
        if steps < 1:
            raise UserError("the run has no steps: raise --epochs or --steps")
        if round(self.optim.warmup_epochs * steps_per_epoch) > steps:
            raise UserError(
                f"the learning rate warms up for {self.optim.warmup_epochs:g} epochs, longer than "
                f"the run of {steps / steps_per_epoch:.3g} epochs: use --warmup-epochs "
                f"{steps / steps_per_epoch / 10:.2g}"
            )
        if round(self.optim.head_warmup_epochs * steps_per_epoch) > steps:
            raise UserError(
                f"the head warms up for {self.optim.head_warmup_epochs:g} epochs, longer than "
                f"the run of {steps / steps_per_epoch:.3g} epochs: lower --head-warmup-epochs"
            )

    def _check_teacher_warmup(self, steps_per_epoch: int) -> None:
        steps = self.epochs * steps_per_epoch if self.steps is None else self.steps
        if self.teacher.warmup_teacher_temp_epochs > math.ceil(steps / steps_per_epoch):
            raise UserError(
                f"the teacher temperature warms up for {self.teacher.warmup_teacher_temp_epochs} "
                f"epochs, longer than the run: lower --warmup-teacher-temp-epochs"
            )


def check_stored_size(stored: int, crops: MultiCrop) -> None:
    """Raise a `UserError` for a short side that crops would have to be enlarged from; 0 is none."""
    sizes = [("global", crops.global_size)]
    if crops.local_count:
        sizes.append(("local", crops.local_size))
    kind, largest = max(sizes, key=lambda named: named[1])
    at_least(0, stored_size=stored)
    if stored and stored < largest:
        raise UserError(
            f"--stored-size {stored} is smaller than the {kind} crops of {largest} px: use "
            f"{_enough(largest)} or more, or 0 to reduce nothing"
        )


def _enough(crop: int) -> int:
    """A short side from which crops of this size are cut with little lost."""
    return math.ceil(1.15 * crop)


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the dataclasses have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
