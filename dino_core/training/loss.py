"""The DINO loss and its center (Caron et al. 2021, section 3.1 and algorithm 1).

The student sees all V views, the teacher the 2 global ones; each pair of different views gives one
cross-entropy H(teacher, student), and the loss is the mean over the 2 (V - 1) pairs.

Shapes: B images, V views (the first two global), K prototypes. Logits are view-major: rows
v*B .. (v+1)*B - 1 belong to view v.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def teacher_targets(teacher_NK: Tensor, center_1K: Tensor, temperature: float | Tensor) -> Tensor:
    """Centered, sharpened teacher probabilities, float32 [2B, K], without gradient."""
    return F.softmax((teacher_NK.detach().float() - center_1K) / temperature, dim=-1)


def dino_loss(student_NK: Tensor, targets_NK: Tensor, student_temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher view and a different student view.

    `student_NK` [V*B, K] are raw logits, `targets_NK` [2*B, K] from `teacher_targets`. All targets
    of one student view are summed first, since cross-entropy is linear in its target:
    sum_q H(q, s) = w logsumexp(s) - <sum_q q, s>, w the number of targets. One log-sum-exp per view
    takes the place of 2 (V - 1) log-softmaxes. View by view, in both directions, so that logits of
    half precision never stand in memory as float32. Returns a float32 scalar.
    """
    loss: Tensor = _DinoLoss.apply(student_NK, targets_NK, student_temperature)
    return loss


class _DinoLoss(torch.autograd.Function):
    """The loss and its gradient, d/ds = (w softmax(s / T) - sum_q q) / T, per pair."""

    @staticmethod
    def forward(context: Any, student_NK: Tensor, targets_NK: Tensor, temperature: float) -> Tensor:
        batch = len(targets_NK) // 2
        views = len(student_NK) // batch
        pairs = batch * 2 * (views - 1)
        total = student_NK.new_zeros((), dtype=torch.float32)
        logsumexps = []
        for v, logits_BK in enumerate(student_NK.split(batch)):
            target_BK, weight = _target(targets_NK, v)
            scaled_BK = logits_BK.float() / temperature
            logsumexp_B1 = torch.logsumexp(scaled_BK, dim=-1, keepdim=True)
            total += weight * logsumexp_B1.sum() - torch.dot(
                target_BK.flatten(), scaled_BK.flatten()
            )
            logsumexps.append(logsumexp_B1)
        context.save_for_backward(student_NK, targets_NK, *logsumexps)
        context.temperature, context.pairs = temperature, pairs
        return total / pairs

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        student_NK, targets_NK, *logsumexps = context.saved_tensors
        gradient_NK = torch.empty_like(student_NK)
        batch = len(targets_NK) // 2
        share = gradient / (context.pairs * context.temperature)
        parts = zip(student_NK.split(batch), gradient_NK.split(batch), logsumexps, strict=True)
        for v, (logits_BK, into_BK, logsumexp_B1) in enumerate(parts):
            target_BK, weight = _target(targets_NK, v)
            change_BK = (logits_BK.float() / context.temperature).sub_(logsumexp_B1).exp_()
            into_BK.copy_(change_BK.mul_(weight).sub_(target_BK).mul_(share))
        return gradient_NK, None, None


def _target(targets_NK: Tensor, view: int) -> tuple[Tensor, int]:
    """The sum of the targets [B, K] that teach a student's view, and their number.

    View 0 is taught by the teacher's view 1 and the other way round; local views by both.
    """
    q0_BK, q1_BK = targets_NK.chunk(2)
    if view < 2:
        return (q1_BK, q0_BK)[view], 1
    return q0_BK + q1_BK, 2


def dino_loss_plain(
    student_NK: Tensor, targets_NK: Tensor, student_temperature: float = 0.1
) -> Tensor:
    """The plain twin of `dino_loss`: pair by pair, as in the paper's algorithm 1."""
    targets = targets_NK.chunk(2)
    students = student_NK.float().split(len(targets[0]))
    terms = [
        -(q_BK * F.log_softmax(s_BK / student_temperature, dim=-1)).sum(dim=-1).mean()
        for iq, q_BK in enumerate(targets)
        for v, s_BK in enumerate(students)
        if v != iq
    ]
    return torch.stack(terms).mean()


def updated_center(
    center_1K: Tensor, teacher_sum_1K: Tensor, rows: int | Tensor, momentum: float = 0.9
) -> Tensor:
    """The center after a step: an average of raw teacher logits that forgets (eq. 4).

    `teacher_sum_1K` is the float32 sum over the step's `rows` teacher rows, both global views of
    every micro-batch included. Called AFTER the loss, which used the old center.
    """
    return center_1K * momentum + (teacher_sum_1K / rows) * (1 - momentum)
