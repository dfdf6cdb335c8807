"""The step on a CUDA GPU: no host syncs, compiled blocks, the loss and the twins there."""

import copy
from dataclasses import replace

import pytest
import torch

from dino_core.augment import MultiCrop
from dino_core.models import ModelInfo, create_backbone
from dino_core.models.packed import class_tokens, compiled_block
from dino_core.training.loss import dino_loss, dino_loss_plain, teacher_targets
from dino_core.training.readings import Reading
from dino_core.training.recipe import BackboneConfig, HeadConfig, Recipe
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, train_step

pytestmark = pytest.mark.gpu

RECIPE = Recipe(
    backbone=BackboneConfig("vit_tiny_patch16_224", 8, 32, drop_path=0.1),
    crops=MultiCrop(global_size=32, local_size=16, local_count=2),
    head=HeadConfig(512, hidden_dim=64, bottleneck_dim=32),
    batch_size=8,
    steps=20,
    compile="off",
)


def gpu() -> torch.device:
    return torch.device("cuda")


def views_on(device: torch.device) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, 3, size, size, generator=random).to(device)
        for n, size in ((16, 32), (16, 16))
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("watch", [False, True])
def test_a_steady_step_never_waits_for_the_gpu(precision, compile, watch):
    recipe = replace(RECIPE, precision=precision, compile=compile)
    state = create_state(recipe, gpu())
    schedules = Schedules(recipe, steps_per_epoch=5)
    views = views_on(gpu())
    for step in range(3):
        train_step(state, [views], replace(schedules.settings(step), watch=watch))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        settings = replace(schedules.settings(6), watch=watch)
        metrics = train_step(state, [views], settings)
        Reading.of(6, settings, metrics, stop=False, late=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 4


def test_twenty_steps_lose_what_they_lose_on_a_cpu():
    recipe = replace(RECIPE, precision="fp32", backbone=replace(RECIPE.backbone, drop_path=0.0))
    losses = {}
    for device in (torch.device("cpu"), gpu()):
        state, schedules = create_state(recipe, device), Schedules(recipe, steps_per_epoch=5)
        losses[device.type] = [
            float(train_step(state, [views_on(device)], schedules.settings(step)).loss)
            for step in range(20)
        ]
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_give_the_features_and_gradients_of_plain_ones(dtype):
    torch.manual_seed(0)
    info = ModelInfo("vit_tiny_patch16_224", 8, 32)
    plain = create_backbone(info, drop_path_rate=0.2).to(gpu())
    compiled = copy.deepcopy(plain)
    found = []
    for backbone, run in ((plain, None), (compiled, compiled_block())):
        torch.manual_seed(1)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            features = class_tokens(backbone, views_on(gpu()), block_function=run)
        features.square().sum().backward()
        found.append((features, [p.grad for p in backbone.parameters()]))
    limit = 1e-3 if dtype == torch.float32 else 5e-2
    (ours, our_grads), (theirs, their_grads) = found
    assert (ours - theirs).norm() <= limit * theirs.norm()
    for a, b in zip(our_grads, their_grads, strict=True):
        assert (a - b).norm() <= 4 * limit * b.norm() + 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_and_its_gradient_agree_with_the_plain_twin(dtype):
    student = torch.randn(40, 4096, device=gpu(), dtype=dtype).requires_grad_()
    targets = teacher_targets(torch.randn(8, 4096, device=gpu()), torch.zeros(1, 4096).cuda(), 0.04)
    grads = []
    for function in (dino_loss, dino_loss_plain):
        loss = function(student, targets)
        (gradient,) = torch.autograd.grad(loss, student)
        grads.append((loss, gradient.float()))
    (ours, our_grad), (theirs, their_grad) = grads
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (our_grad - their_grad).norm() <= 1e-2 * their_grad.norm()
