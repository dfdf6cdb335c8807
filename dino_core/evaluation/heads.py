"""Many linear classifiers of the same features, trained at once: a sweep for the price of one.

All heads that see the same columns of the features are one batched weight: their logits are one
matrix product, their gradient is another, and one step moves all of them, each by its own rate. The
gradient of the cross entropy is written out (softmax minus one-hot), so nothing is recorded.

    heads = Heads([0.001, 0.1], dim=384, classes=10)
    train([heads], lambda epoch: features, rows, labels, epochs=100, batch=256)
    top1_R, loss_R = heads.scores(features, rows, labels)

The optimizer is that of the published eval_linear script: SGD with momentum as torch defines it
(the first step's momentum is the gradient itself), W ~ N(0, 0.01), b = 0, a rate that falls to 0
along half a cosine, one value per epoch. Its plain twin, one `torch.nn.Linear` and one
`torch.optim.SGD` per rate, is in the tests.

Heads may see features from their mean and in units of their deviation. These are other coordinates
for the same classifiers (`Heads.linear` gives them for raw features), in which SGD gets to the best
of them sooner: raw class tokens are mostly what all images share.

Shapes: B images a batch, F dimensions held, D of them seen, C classes, R heads (one per rate).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dino_core.rng import permutation, torch_seed

Held = np.ndarray | Tensor
"""Features [M, F]: a tensor where the heads are, or an array from which batches are sent there."""

INIT_STD = 0.01
MOMENTUM = 0.9
TOP = 5
EVALUATED_AT_ONCE = 1024  # images whose logits exist at the same time
KEPT_SHARE = 0.5  # of a GPU's free memory that features may fill
SOLVER_STEPS = 1000


class Heads:
    """Linear classifiers of the same columns of the features, alike but for their rates.

    All start from the same weights, those of `seed`. `decay` is torch's weight decay, on weights
    and biases. `coordinates` are mean and deviation of all features, float32 [F] each (see
    `moments`); None leaves them raw.
    """

    def __init__(
        self,
        rates: Sequence[float],
        dim: int,
        classes: int,
        *,
        columns: slice = slice(None),
        coordinates: tuple[Tensor, Tensor] | None = None,
        momentum: float = MOMENTUM,
        decay: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rates, self.classes, self.columns = list(rates), classes, columns
        self.momentum, self.decay = momentum, decay
        draw = torch.Generator().manual_seed(torch_seed(seed, "linear head", dim, classes))
        weight_CD = torch.randn(classes, dim, generator=draw) * INIT_STD
        self.weight_RCD = weight_CD.repeat(len(self.rates), 1, 1).to(device)
        self.bias_RC = torch.zeros(len(self.rates), classes, device=device)
        self._mean_D = self._deviation_D = None
        if coordinates is not None:
            self._mean_D, self._deviation_D = (one[columns].to(device) for one in coordinates)
        self._rates_R11 = torch.tensor(self.rates, device=device)[:, None, None]
        self._moving_weight = torch.zeros_like(self.weight_RCD)
        self._moving_bias = torch.zeros_like(self.bias_RC)

    @classmethod
    def of(cls, weight_CD: Tensor, bias_C: Tensor, device: torch.device | str = "cpu") -> Self:
        """A head that was trained before; copies."""
        classes, dim = weight_CD.shape
        head = cls([0.0], dim, classes, device=device)
        head.weight_RCD.copy_(weight_CD)
        head.bias_RC.copy_(bias_C)
        return head

    @property
    def device(self) -> torch.device:
        return self.weight_RCD.device

    def state(self) -> dict[str, Tensor]:
        """All that changes in training, copies on the CPU; `restore` goes on with it."""
        return {name: tensor.cpu().clone() for name, tensor in self._changing().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._changing().items():
            tensor.copy_(state[name])

    def _changing(self) -> dict[str, Tensor]:
        return {
            "weight": self.weight_RCD,
            "bias": self.bias_RC,
            "moving_weight": self._moving_weight,
            "moving_bias": self._moving_bias,
        }

    def logits(self, x_BF: Tensor) -> Tensor:
        """[B, R, C]."""
        return self._logits(self._seen(x_BF))

    def step(self, x_BF: Tensor, labels_B: Tensor, factor: float = 1.0) -> None:
        """One step of SGD on the mean cross entropy of a batch, at `factor` times each rate."""
        x_BD = self._seen(x_BF)
        grad_BRC = self._logits(x_BD).softmax(dim=2)
        right_BR1 = labels_B[:, None, None].expand(-1, len(self.rates), 1)
        grad_BRC.scatter_add_(2, right_BR1, grad_BRC.new_full(right_BR1.shape, -1.0))
        grad_BRC /= len(x_BD)
        weight_grad = (grad_BRC.flatten(1).T @ x_BD).view_as(self.weight_RCD)
        bias_grad = grad_BRC.sum(0)
        if self.decay:
            weight_grad.add_(self.weight_RCD, alpha=self.decay)
            bias_grad.add_(self.bias_RC, alpha=self.decay)
        self._moving_weight.mul_(self.momentum).add_(weight_grad)
        self._moving_bias.mul_(self.momentum).add_(bias_grad)
        self.weight_RCD.addcmul_(self._rates_R11, self._moving_weight, value=-factor)
        self.bias_RC.addcmul_(self._rates_R11[:, 0], self._moving_bias, value=-factor)

    def linear(self, head: int = 0) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] of a head for raw features, copies on the CPU."""
        weight_CD, bias_C = self.weight_RCD[head], self.bias_RC[head]
        if self._mean_D is not None and self._deviation_D is not None:
            weight_CD = weight_CD / self._deviation_D
            bias_C = bias_C - weight_CD @ self._mean_D
        return weight_CD.cpu().clone(), bias_C.cpu().clone()

    def _seen(self, x_BF: Tensor) -> Tensor:
        x_BD = x_BF[:, self.columns]
        if self._mean_D is None or self._deviation_D is None:
            return x_BD
        return (x_BD - self._mean_D) / self._deviation_D

    def _logits(self, x_BD: Tensor) -> Tensor:
        weight = self.weight_RCD.flatten(0, 1)
        flat = torch.addmm(self.bias_RC.flatten(), x_BD, weight.T)
        return flat.view(len(x_BD), len(self.rates), self.classes)

    def scores(
        self, held: Held, rows_N: np.ndarray, labels_M: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Top-1 in percent and mean cross entropy of each head on some rows, float64 [R] each.

        Labels lie below C. A head that left the numbers has a top-1 of 0 and an infinite loss.
        """
        return scores(self.logits, held, rows_N, labels_M, self.device)

    def ranking(self, held: Held, rows_N: np.ndarray, head: int = 0) -> Tensor:
        """The likeliest classes of some rows by one head, int64 [N, min(5, C)], on the CPU."""
        return ranking(
            lambda x_BF: self.logits(x_BF)[:, head], held, rows_N, self.classes, self.device
        )


def scores(
    logits_of: Callable[[Tensor], Tensor],
    held: Held,
    rows_N: np.ndarray,
    labels_M: np.ndarray,
    device: torch.device,
    size: int = EVALUATED_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
    """`Heads.scores` of whatever makes logits [B, R, C] of features [B, F], `size` at a time."""
    right, losses = [], []
    for x_BF, some in chunks(held, rows_N, device, size):
        logits_BRC = logits_of(x_BF)
        labels_B = torch.as_tensor(labels_M[some], device=device)
        labels_BR = labels_B[:, None].expand(-1, logits_BRC.shape[1])
        right.append((logits_BRC.argmax(2) == labels_BR).sum(0).cpu())
        loss_BR = cross_entropy(logits_BRC.transpose(1, 2), labels_BR, reduction="none")
        losses.append(loss_BR.sum(0).cpu().double())
    right_R, loss_R = (torch.stack(one).sum(0).numpy() for one in (right, losses))
    fine_R = np.isfinite(loss_R)
    top1_R = np.where(fine_R, 100 * right_R / len(rows_N), 0.0)
    return top1_R, np.where(fine_R, loss_R / len(rows_N), np.inf)


def ranking(
    logits_of: Callable[[Tensor], Tensor],
    held: Held,
    rows_N: np.ndarray,
    classes: int,
    device: torch.device,
    size: int = EVALUATED_AT_ONCE,
) -> Tensor:
    """`Heads.ranking` of whatever makes logits [B, C] of features [B, F], `size` at a time."""
    most = min(TOP, classes)
    parts = [
        logits_of(x_BF).topk(most, dim=1).indices.cpu()
        for x_BF, _ in chunks(held, rows_N, device, size)
    ]
    return torch.cat([torch.empty(0, most, dtype=torch.int64), *parts])


def train(
    groups: Sequence[Heads],
    features_of: Callable[[int], Held],
    rows_N: np.ndarray,
    labels_M: np.ndarray,
    *,
    epochs: int,
    batch: int,
    first: int = 0,
    until: int | None = None,
    seed: int = 0,
    after: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train all heads on the same batches; `after(epoch)` is called when an epoch from 0 is done.

    With `until` the schedule of `epochs` is left after so many of them; with `first` that many are
    taken for done.

    `features_of(epoch)` gives the features of that epoch, `rows_N` says which of them to train on,
    `labels_M` int64 below C the labels of all. The order is keyed by `seed` and epoch.
    """
    device = groups[0].device
    for epoch in range(first, epochs if until is None else until):
        held, factor = features_of(epoch), cosine(epoch, epochs)
        order_N = rows_N[permutation(len(rows_N), seed, "linear order", epoch)]
        for x_BF, some in chunks(held, order_N, device, batch):
            labels_B = torch.as_tensor(labels_M[some], device=device)
            for heads in groups:
                heads.step(x_BF, labels_B, factor)
        after(epoch)


def cosine(epoch: int, epochs: int) -> float:
    """The share of the rate in an epoch: 1 in the first, near 0 in the last."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def chunks(
    held: Held, rows_N: np.ndarray, device: torch.device, size: int = EVALUATED_AT_ONCE
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Rows of features on the device, `size` at a time, and which rows these are."""
    for start in range(0, len(rows_N), size):
        some = rows_N[start : start + size]
        if isinstance(held, Tensor):
            yield held[torch.as_tensor(some, device=held.device)].to(device), some
        else:
            yield torch.from_numpy(held[some]).to(device), some


def moments(held: Held, rows_N: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of features over some rows, float32 [F] each; 1 for what is constant."""
    mean_F = sum(x_BF.sum(0).cpu().double() for x_BF, _ in chunks(held, rows_N, device)) / len(
        rows_N
    )
    there = torch.as_tensor(mean_F, dtype=torch.float32, device=device)
    squares = sum(
        (x_BF - there).square().sum(0).cpu().double() for x_BF, _ in chunks(held, rows_N, device)
    )
    deviation_F = torch.as_tensor(squares / len(rows_N)).sqrt()
    deviation_F[deviation_F <= 1e-6 * deviation_F.max()] = 1.0
    return there.cpu(), deviation_F.float()


def near(array: np.ndarray, device: torch.device) -> Held:
    """The features where the heads are, if a GPU has the room; else as they lie."""
    if device.type != "cuda":
        return array
    free, _ = torch.cuda.mem_get_info(device)
    return torch.tensor(array, device=device) if array.nbytes < KEPT_SHARE * free else array


def logistic_regression(
    x_ND: np.ndarray | Tensor,
    labels_N: np.ndarray,
    classes: int,
    strength: float,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The linear classifier that minimizes strength * sum of cross entropies + |W|^2 / 2.

    `strength` is what scikit-learn calls C; biases are free. The problem is convex, so there is one
    answer, whatever the start; L-BFGS goes there with all images in each step. Returns weights
    float32 [C, D] and biases [C], on the device.
    """
    # In double precision, where the line search knows a fall of the loss from rounding; Apple's
    # GPUs have none.
    device = "cpu" if torch.device(device).type == "mps" else device
    x_ND = torch.as_tensor(np.asarray(x_ND)).to(device, torch.float64)
    labels = torch.as_tensor(labels_N, device=device)
    weight_CD = torch.zeros(classes, x_ND.shape[1], dtype=x_ND.dtype, device=device)
    bias_C = torch.zeros(classes, dtype=x_ND.dtype, device=device)
    parameters = [weight_CD.requires_grad_(), bias_C.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters, max_iter=SOLVER_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        misfit = cross_entropy(x_ND @ weight_CD.T + bias_C, labels)
        loss = misfit + weight_CD.square().sum() / (2 * strength * len(labels))
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return weight_CD.detach().float(), bias_C.detach().float()
