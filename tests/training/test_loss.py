"""The loss against the published implementation, and its two twins against each other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_core.training.loss import dino_loss, dino_loss_plain, teacher_targets, updated_center
from dino_core.training.schedules import teacher_temperature

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize("loss_function", [dino_loss, dino_loss_plain])
def test_four_steps_agree_with_the_published_loss(loss_function):
    golden = np.load(GOLDEN / "loss.npz")
    center = torch.zeros(1, golden["student"].shape[-1])
    for i, epoch in enumerate(golden["epochs"]):
        student = torch.from_numpy(golden["student"][i]).requires_grad_()
        teacher = torch.from_numpy(golden["teacher"][i])
        temperature = teacher_temperature(
            int(epoch),
            float(golden["warmup_teacher_temp"]),
            float(golden["teacher_temp"]),
            int(golden["warmup_teacher_temp_epochs"]),
        )
        targets = teacher_targets(teacher, center, temperature)
        loss = loss_function(student, targets, float(golden["student_temp"]))
        loss.backward()
        center = updated_center(
            center, teacher.sum(0, keepdim=True), len(teacher), float(golden["center_momentum"])
        )
        assert student.grad is not None
        np.testing.assert_allclose(loss.item(), golden["loss"][i], rtol=1e-6)
        np.testing.assert_allclose(student.grad, golden["student_grad"][i], atol=1e-6)
        np.testing.assert_allclose(center, golden["center_after"][i], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 4),
    views=st.integers(2, 6),
    prototypes=st.integers(2, 9),
    seed=st.integers(0),
)
def test_the_fast_loss_is_the_plain_loss(batch, views, prototypes, seed):
    random = torch.Generator().manual_seed(seed % 2**63)
    student = torch.randn(views * batch, prototypes, generator=random, dtype=torch.float32)
    teacher = torch.randn(2 * batch, prototypes, generator=random)
    targets = teacher_targets(teacher, torch.zeros(1, prototypes), 0.04)
    torch.testing.assert_close(
        dino_loss(student, targets), dino_loss_plain(student, targets), rtol=1e-5, atol=1e-5
    )


def test_a_uniform_student_costs_ln_k():
    targets = teacher_targets(torch.randn(4, 1024), torch.zeros(1, 1024), 0.04)
    assert dino_loss(torch.zeros(10, 1024), targets).item() == pytest.approx(np.log(1024), abs=1e-4)


def test_views_are_never_compared_with_themselves():
    """With two views, each student view is taught by the teacher's OTHER view only."""
    logits = torch.randn(2, 8)
    targets = teacher_targets(logits, torch.zeros(1, 8), 0.1)
    swapped = teacher_targets(logits.flip(0), torch.zeros(1, 8), 0.1)
    matched = dino_loss(logits, swapped)
    crossed = dino_loss(logits, targets)
    assert matched < crossed
