"""The plain twin of training: the algorithm as published, in the same words as the paper.

Ten views with Pillow, one pass of the backbone per image size, one cross-entropy per pair of
views, loops over the parameters for clipping and the EMA, and a look at the loss in every step.
What `scripts/bench.py train` holds the fast path against; training does not use it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image
from timm.layers import Attention
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_core.augment import pil_view, plan_views
from dino_core.augment.pil import to_normalized
from dino_core.data import Source, safe_image
from dino_core.errors import UserError
from dino_core.training.loss import dino_loss_plain, teacher_targets, updated_center
from dino_core.training.optim import clip_per_tensor_plain, ema_update_plain, parameter_groups
from dino_core.training.recipe import Recipe
from dino_core.training.state import create_state
from dino_core.training.step import StepSettings, TrainState


class PublishedViews(Dataset[list[Tensor]]):
    """Every view of an image, each float32 [3, S, S], made with Pillow in the published order."""

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self.source = source
        self.recipe = recipe
        self.info = recipe.backbone.info()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Tensor]:
        pixels, _, _ = safe_image(self.source, index)
        image = Image.fromarray(pixels)
        plans = plan_views(
            self.recipe.crops, self.recipe.seed, 0, index, height=image.height, width=image.width
        )
        return [to_normalized(pil_view(image, p), self.info.mean, self.info.std) for p in plans]


def published_batches(
    source: Source, recipe: Recipe, indices: Sequence[int], workers: int, pin: bool
) -> Iterator[list[Tensor]]:
    """Views float32 [B, 3, S, S] of batch after batch, made in worker processes."""
    return iter(
        DataLoader(
            torch.utils.data.Subset(PublishedViews(source, recipe), list(indices)),
            batch_size=recipe.batch_size,
            num_workers=workers,
            pin_memory=pin,
            drop_last=True,
        )
    )


def published_state(recipe: Recipe, device: torch.device) -> TrainState:
    """The fast path's start, with the optimizer that the published code makes."""
    state = create_state(replace(recipe, compile="off"), device)
    for network in (state.student, state.teacher):
        network.packed = False  # a pass for each size of views
        for module in network.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # type: ignore[misc]  # softmax(q k^T) v in full
    state.optimizer = torch.optim.AdamW(parameter_groups(state.student), lr=0.0)
    state.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    return state


def published_step(state: TrainState, views: list[Tensor], settings: StepSettings) -> float:
    """One step as published, in place: fp16 on a GPU, fp32 elsewhere. Returns the loss."""
    for i, group in enumerate(state.optimizer.param_groups):
        group["lr"] = settings.lr
        if i == 0:
            group["weight_decay"] = settings.weight_decay
    device = state.center.device
    views = [view.to(device, non_blocking=True) for view in views]
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
        teacher_NK = state.teacher([torch.cat(views[:2])])
        student_NK = state.student([torch.cat(views[:2]), torch.cat(views[2:])])
    targets_NK = teacher_targets(teacher_NK, state.center, settings.teacher_temp)
    loss = dino_loss_plain(student_NK, targets_NK, settings.student_temp)
    if not math.isfinite(loss.item()):
        raise UserError("the plain twin's loss is not finite: it cannot be compared")

    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    clip_per_tensor_plain(state.student.parameters(), settings.clip_grad)
    if settings.freeze_last_layer:
        for parameter in state.student.head.last_layer.parameters():
            parameter.grad = None
    state.scaler.step(state.optimizer)
    state.scaler.update()
    ema_update_plain(state.teacher, state.student, settings.momentum)
    state.center = updated_center(
        state.center,
        teacher_NK.float().sum(dim=0, keepdim=True),
        len(teacher_NK),
        settings.center_momentum,
    )
    state.step += 1
    return loss.item()
