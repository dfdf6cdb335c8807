"""The DINO loss and its center (Caron et al. 2021, section 3.1 and algorithm 1).

The student sees all V views, the teacher the 2 global ones; each pair of different views gives one
cross-entropy H(teacher, student), and the loss is the mean over the 2 (V - 1) pairs.

Shapes: B images, V views (the first two global), K prototypes. Logits are view-major: rows
v*B .. (v+1)*B - 1 belong to view v.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def teacher_targets(teacher_NK: Tensor, center_1K: Tensor, temperature: float | Tensor) -> Tensor:
    """Centered, sharpened teacher probabilities, float32 [2B, K], without gradient."""
    return F.softmax((teacher_NK.detach().float() - center_1K) / temperature, dim=-1)


def dino_loss(student_NK: Tensor, targets_NK: Tensor, student_temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher view and a different student view.

    `student_NK` [V*B, K] are raw logits, `targets_NK` [2*B, K] from `teacher_targets`. All targets
    of one student view are summed first, since cross-entropy is linear in its target:
    sum_q H(q, s) = w logsumexp(s) - <sum_q q, s>, w the number of targets. One log-sum-exp per view
    takes the place of 2 (V - 1) log-softmaxes. Returns a float32 scalar.
    """
    q0_BK, q1_BK = targets_NK.chunk(2)
    student_NK = student_NK.float() / student_temperature
    batch = len(q0_BK)
    views = len(student_NK) // batch
    logsumexp_VB = torch.logsumexp(student_NK, dim=-1).view(views, batch)
    student_VBK = student_NK.view(views, batch, -1)

    # View 0 is taught by the teacher's view 1 and the other way round; local views by both.
    total = (logsumexp_VB[0] + logsumexp_VB[1]).sum() + 2 * logsumexp_VB[2:].sum()
    total = total - (q1_BK * student_VBK[0]).sum() - (q0_BK * student_VBK[1]).sum()
    if views > 2:
        total = total - ((q0_BK + q1_BK) * student_VBK[2:].sum(dim=0)).sum()
    return total / (batch * 2 * (views - 1))


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
