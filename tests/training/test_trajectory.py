"""Twelve steps of the published implementation, through the step function that training uses."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_core.augment import MultiCrop
from dino_core.models import ModelInfo, ProjectionHead, create_backbone
from dino_core.training import HeadConfig, OptimConfig, Recipe, TeacherConfig
from dino_core.training.network import Network, create_teacher
from dino_core.training.optim import create_optimizer, is_regularized
from dino_core.training.step import Schedules, TrainState, train_step

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "trajectory.npz")
HYPER = json.loads(str(GOLDEN["hyper"]))


def wave(shape: tuple[int, ...], k: float) -> torch.Tensor:
    i = np.arange(np.prod(shape), dtype=np.float64)
    values = np.sin(0.37 * i + k) * np.cos(0.011 * i + 2 * k)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def views(step: int) -> list[torch.Tensor]:
    batch, local_views = HYPER["bs"], range(2, 2 + HYPER["nl"])
    return [
        torch.cat([wave((batch, 3, 64, 64), 100 * step + c) for c in (0, 1)]),
        torch.cat([wave((batch, 3, 32, 32), 100 * step + c) for c in local_views]),
    ]


def recipe() -> Recipe:
    return Recipe(
        crops=MultiCrop(global_size=64, local_size=32, local_count=HYPER["nl"]),
        head=HeadConfig(out_dim=HYPER["K"], norm_last_layer=HYPER["norm_last"]),
        optim=OptimConfig(
            lr=HYPER["lr"] * HYPER["lscale"] / HYPER["bs"],
            min_lr=HYPER["min_lr"],
            warmup_epochs=HYPER["warm"],
            weight_decay=HYPER["wd"],
            weight_decay_end=HYPER["wde"],
            clip_grad=HYPER["clip"],
            freeze_last_layer=HYPER["freeze"],
        ),
        teacher=TeacherConfig(
            momentum=HYPER["mom"],
            teacher_temp=HYPER["tt"],
            warmup_teacher_temp=HYPER["wt"],
            warmup_teacher_temp_epochs=HYPER["wte"],
        ),
        epochs=HYPER["epochs"],
        batch_size=HYPER["bs"],
        precision="fp32",
    )


def golden_weights(part: str) -> dict[str, torch.Tensor]:
    prefix = part + "."
    return {
        k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if k.startswith(prefix)
    }


@pytest.fixture
def state() -> TrainState:
    options = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    backbone = create_backbone(ModelInfo("vit_tiny_patch16_224", 16, 64, options=options))
    head = ProjectionHead(48, out_dim=HYPER["K"], hidden_dim=64, bottleneck_dim=32)
    student = Network(backbone, head)
    backbone.vit.load_state_dict(golden_weights("init.backbone"))
    head.load_state_dict(golden_weights("init.head"))
    return TrainState(
        student=student,
        teacher=create_teacher(student),
        optimizer=create_optimizer("adamw", student),
        center=torch.zeros(1, HYPER["K"]),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def test_twelve_published_steps(state):
    schedules = Schedules(recipe(), steps_per_epoch=HYPER["niter"])
    losses, grad_norms = [], []
    for step in range(len(GOLDEN["losses"])):
        metrics = train_step(state, [views(step)], schedules.settings(step))
        losses.append(metrics.loss.item())
        grad_norms.append(metrics.grad_norm.item())

    np.testing.assert_allclose(losses, GOLDEN["losses"], atol=1e-5)
    np.testing.assert_allclose(grad_norms, GOLDEN["grad_norm_sum"], rtol=1e-4)
    np.testing.assert_allclose(state.center, GOLDEN["center"], atol=1e-5)
    for part, network in (("student", state.student), ("teacher", state.teacher)):
        ours = dict(network.published_parameters())
        theirs = golden_weights(part)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            np.testing.assert_allclose(ours[name].detach(), tensor, atol=1e-4, err_msg=name)


def test_published_schedules_per_step():
    schedules = Schedules(recipe(), steps_per_epoch=HYPER["niter"])
    settings = [schedules.settings(step) for step in range(len(GOLDEN["lr"]))]
    np.testing.assert_allclose([s.lr for s in settings], GOLDEN["lr"], rtol=1e-12)
    np.testing.assert_allclose([s.weight_decay for s in settings], GOLDEN["wd"], rtol=1e-12)
    np.testing.assert_allclose([s.momentum for s in settings], GOLDEN["momentum"], rtol=1e-12)


def test_published_weight_decay_group(state):
    decayed = {
        name
        for name, p in state.student.published_parameters()
        if p.requires_grad and is_regularized(name, p)
    }
    assert decayed == set(GOLDEN["regularized"])


def test_two_micro_batches_step_like_one_batch(state):
    """One center and one EMA update per optimizer step: accumulation must not change the result."""
    import copy

    whole, halves = state, copy.deepcopy(state)
    halves.optimizer = create_optimizer("adamw", halves.student)
    settings = Schedules(recipe(), HYPER["niter"]).settings(4)
    crops = views(0)
    train_step(whole, [crops], settings)

    def half(group: torch.Tensor, which: int) -> torch.Tensor:
        batch = HYPER["bs"]
        chosen = slice(which * batch // 2, (which + 1) * batch // 2)
        return torch.cat([view[chosen] for view in group.split(batch)])

    train_step(
        halves,
        [[half(group, which) for group in crops] for which in (0, 1)],
        dataclasses.replace(settings, accumulate=2),
    )
    torch.testing.assert_close(whole.center, halves.center, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(whole.teacher.parameters(), halves.teacher.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
