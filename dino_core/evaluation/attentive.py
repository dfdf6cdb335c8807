"""Attentive accuracy: a linear layer that may look where it wants, on frozen patch tokens.

Beside the linear protocol this asks how well classes can be read off patches rather than off the
class token, which some models never train. One learned query attends over the patch tokens of the
last block, after the final norm; what it gathers goes to a linear layer:

    a = softmax_n(<q, x_n> / sqrt(D)),   logits = W sum_n a_n x_n + b

Keys and values need no matrices of their own here: <q, K x> is <K^T q, x>, and W V is a W. The
query starts at 0, so the probe starts as average pooling. Trained as linear heads are, a sweep of
rates at once, chosen on a tenth of the training images, on tokens taken from their mean.

    result = evaluate(load_model("starter"), open_source("train"), open_source("val"))

Memory: all patch tokens are held, 4 bytes * images * patches * width. That is 300 kB an image for
ViT-S/16 at 224 px and 1.2 MB at patch 8: 10,000 images need 3 GB or 12 GB, in memory or, where
passes are kept, on the disk. More than `most_gigabytes` are refused.

Shapes: B images a batch, N patches, D width, C classes, R probes (one per rate).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import (
    ClassesResult,
    labels_as_in,
    names_of,
    require_labeled,
    require_two_classes,
    told,
)
from dino_core.evaluation.heads import INIT_STD, MOMENTUM, TOP, Held, chunks, cosine, near
from dino_core.evaluation.linear import HELD_OUT, RATE_BATCH, default_batch, pick, stratified
from dino_core.evaluation.passes import Look, Passing, features
from dino_core.evaluation.results import unreadable
from dino_core.gallery.features import prepared, preprocessing
from dino_core.gallery.images import source_hash
from dino_core.measures.knn import UNLABELED
from dino_core.models import Backbone, Model, has_patches, untrained
from dino_core.rng import permutation, torch_seed

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
EPOCHS = 30
MOST_GIGABYTES = 16.0
EVALUATED_AT_ONCE = 256  # images


class Probes:
    """Attentive probes of the same tokens, alike but for their rates; all start from one W."""

    def __init__(
        self, rates: Sequence[float], dim: int, classes: int, mean_D: Tensor, seed: int = 0
    ) -> None:
        self.rates, self.mean_D = list(rates), mean_D
        device = mean_D.device
        draw = torch.Generator().manual_seed(torch_seed(seed, "attentive probe", dim, classes))
        weight_CD = torch.randn(classes, dim, generator=draw) * INIT_STD
        self.query_RD = torch.zeros(len(self.rates), dim, device=device)
        self.weight_RCD = weight_CD.repeat(len(self.rates), 1, 1).to(device)
        self.bias_RC = torch.zeros(len(self.rates), classes, device=device)
        self.parameters = [self.query_RD, self.weight_RCD, self.bias_RC]
        self._moving = [torch.zeros_like(one) for one in self.parameters]

    def attention(self, x_BND: Tensor) -> Tensor:
        """Where each probe looks, [B, R, N], sums of 1."""
        scores_BNR = (x_BND - self.mean_D) @ self.query_RD.T / math.sqrt(x_BND.shape[2])
        return scores_BNR.softmax(1).transpose(1, 2)

    def logits(self, x_BND: Tensor) -> Tensor:
        """[B, R, C]."""
        seen_BRD = self.attention(x_BND) @ x_BND - self.mean_D
        return torch.einsum("brd,rcd->brc", seen_BRD, self.weight_RCD) + self.bias_RC

    def step(self, x_BND: Tensor, labels_B: Tensor, factor: float = 1.0) -> None:
        """One step of SGD with momentum for each probe, at `factor` times its rate."""
        with torch.enable_grad():
            for one in self.parameters:
                one.requires_grad_(True)
            logits_BRC = self.logits(x_BND)
            labels_BR = labels_B[:, None].expand(-1, len(self.rates))
            # A sum over probes: each one's gradient is that of its own mean over the batch.
            loss = cross_entropy(logits_BRC.transpose(1, 2), labels_BR, reduction="sum")
            grads = torch.autograd.grad(loss / len(x_BND), self.parameters)
        for one, moving, grad in zip(self.parameters, self._moving, grads, strict=True):
            one.requires_grad_(False)
            moving.mul_(MOMENTUM).add_(grad)
            rates = torch.tensor(self.rates, device=one.device).view(-1, *[1] * (one.ndim - 1))
            one.addcmul_(rates, moving, value=-factor)


@dataclass(frozen=True, kw_only=True)
class AttentiveResult(ClassesResult):
    """Shares of test images in percent."""

    lr: float  # for a batch of 256
    epoch: int  # from 1
    held_out: float | None  # top-1 on the tenth of train that rate and epoch were chosen on
    gigabytes: float  # of patch tokens that were held, train and test together
    classes: int
    epochs: int
    batch: int

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(len("attentive, %"), *map(len, rows))
        lines = [f"{'attentive, %':{width}}     top-1    top-5"]
        for name, row in rows.items():
            how = f"lr {row.lr:g}, epoch {row.epoch} of {row.epochs}"
            lines.append(f"{name:{width}} {row.top1:9.2f}{row.top5:9.2f}  {how}")
        lines.append(f"{self.test_images:,} test images, {self.train_images:,} to learn from")
        lines.append(f"{self.gigabytes:.2g} GB of patch tokens were held")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    train: Source,
    test: Source,
    *,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    batch: int | None = None,
    most_gigabytes: float = MOST_GIGABYTES,
    seed: int = 0,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> AttentiveResult:
    """The accuracy on `test` of an attentive probe that learned from patch tokens of `train`.

    Raises `UserError` when the model has no patches, the tokens are more than `most_gigabytes`, for
    settings that mean nothing, and as the linear protocol does for sources that cannot be judged.
    """
    if not rates or not all(0 < rate < float("inf") for rate in rates) or epochs < 1:
        raise UserError(f"rates {tuple(rates)}, epochs {epochs}: each has to be above 0")
    if not has_patches(model.info.architecture):
        raise UserError(f"{model.spec}: has no patches to attend to; use the linear protocol")
    labels, notes = labels_as_in(train, test, "an attentive probe")
    needed = gigabytes(model, len(train) + len(test))
    if needed > most_gigabytes:
        raise UserError(
            f"{train.spec} and {test.spec}: their patch tokens need {needed:.3g} GB, more than "
            f"{most_gigabytes:g}; allow more, or take fewer images"
        )
    setting = {"rates": tuple(rates), "epochs": epochs, "batch": batch, "seed": seed}
    judge = partial(_judge, train, test, labels, setting, passing)
    result = judge(model)
    if random_init:
        result = replace(result, random_init=judge(untrained(model)))
    return replace(result, notes=notes + result.notes)


def gigabytes(model: Model, images: int) -> float:
    """What the patch tokens of so many images take, at 4 bytes a number."""
    return 4e-9 * images * math.prod(_grid(model)) * model.backbone.embed_dim


def patch_look(model: Model) -> Look:
    """All patch tokens of the last block, after the final norm, by row; raw."""
    return Look(
        name="patch tokens",
        prepare=partial(prepared, info=model.info),
        tokens=patch_tokens,
        dim=math.prod(_grid(model)) * model.backbone.embed_dim,
        settings={"preprocessing": preprocessing(model)},
        unit=False,
    )


def patch_tokens(backbone: Backbone, x_BCHW: Tensor) -> Tensor:
    """[B, N * D]."""
    return backbone.tokens(x_BCHW)[:, backbone.num_prefix_tokens :].flatten(1)


def train_probes(
    probes: Probes,
    held: Held,
    rows_N: np.ndarray,
    labels_M: np.ndarray,
    *,
    epochs: int,
    batch: int,
    until: int,
    seed: int,
    after: Any = lambda epoch: None,
) -> None:
    """As `heads.train`; `held` are tokens [M, N * D]."""
    dim, device = probes.query_RD.shape[1], probes.query_RD.device
    for epoch in range(until):
        order_N = rows_N[permutation(len(rows_N), seed, "attentive order", epoch)]
        for x_BF, some in chunks(held, order_N, device, batch):
            labels_B = torch.as_tensor(labels_M[some], device=device)
            probes.step(x_BF.unflatten(1, (-1, dim)), labels_B, cosine(epoch, epochs))
        after(epoch)


def _judge(
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    setting: dict[str, Any],
    passing: Passing,
    model: Model,
) -> AttentiveResult:
    """The protocol for one model."""
    look, width, device = patch_look(model), model.backbone.embed_dim, model.device
    learned, asked = (features(model, source, look, passing) for source in (train, test))
    assert train.labels is not None
    labels, truth = train.labels[learned.rows], test_labels[asked.rows]
    labeled = np.flatnonzero(labels != UNLABELED)
    require_two_classes(train, labels)
    require_labeled(test, truth)
    held = near(learned.array, device)
    mean_D = _mean(held, labeled, width, device)
    epochs, batch = setting["epochs"], setting["batch"] or default_batch(len(labeled))

    def fit(rates: Sequence[float], rows: np.ndarray, until: int, after: Any, what: str) -> Probes:
        scaled = [rate * batch / RATE_BATCH for rate in rates]
        probes = Probes(scaled, width, len(train.classes), mean_D, setting["seed"])

        def say(epoch: int) -> None:
            after(probes)
            passing.progress(epoch + 1, until, what)

        passing.progress(0, until, what)
        train_probes(
            probes, held, rows, labels,
            epochs=epochs, batch=batch, until=until, seed=setting["seed"], after=say,
        )  # fmt: skip
        return probes

    out_M = stratified(labels, HELD_OUT, setting["seed"], "attentive held out")
    out, figures = np.flatnonzero(out_M), []
    lr, epoch, held_out = sorted(setting["rates"])[len(setting["rates"]) // 2], epochs, None
    notes = ["no class has two images, so rate and epoch were not chosen"]
    if len(out):

        def look_at_out(probes: Probes) -> None:
            figures.append(_scores(probes, held, out, labels))

        rows = labeled[~out_M[labeled]]
        count = len(setting["rates"])
        fit(setting["rates"], rows, epochs, look_at_out, f"Training {count} attentive probes")
        top1_K, loss_K = (np.concatenate(one) for one in zip(*figures, strict=True))
        best = pick(top1_K, loss_K, len(out))
        epoch, place = divmod(best, count)
        lr, epoch, held_out, notes = setting["rates"][place], epoch + 1, float(top1_K[best]), []
    probes = fit([lr], labeled, epoch, lambda probes: None, "Training the chosen probe")
    ranked = _ranking(probes, asked.array)
    return AttentiveResult(
        **told(ranked, truth, names_of(train, test), test, asked.rows),
        lr=lr,
        epoch=epoch,
        held_out=held_out,
        gigabytes=(learned.array.nbytes + asked.array.nbytes) / 1e9,
        classes=len(train.classes),
        train_images=len(labeled),
        epochs=epochs,
        batch=batch,
        model=model.spec,
        model_hash=model.hash,
        train=train.spec,
        train_hash=source_hash(train),
        test=test.spec,
        test_hash=source_hash(test),
        notes=notes + unreadable([*learned.bad, *asked.bad]),
    )


def _mean(held: Held, rows: np.ndarray, width: int, device: torch.device) -> Tensor:
    """The mean token, [D], on the device."""
    parts = chunks(held, rows, device, EVALUATED_AT_ONCE)
    total = sum(x_BF.unflatten(1, (-1, width)).mean(1).sum(0).cpu().double() for x_BF, _ in parts)
    return torch.as_tensor(total / len(rows), dtype=torch.float32).to(device)


def _scores(
    probes: Probes, held: Held, rows: np.ndarray, labels_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 in percent and mean cross entropy of each probe, float64 [R]."""
    device, width = probes.query_RD.device, probes.query_RD.shape[1]
    right_R, loss_R = np.zeros(len(probes.rates)), np.zeros(len(probes.rates))
    for x_BF, some in chunks(held, rows, device, EVALUATED_AT_ONCE):
        logits_BRC = probes.logits(x_BF.unflatten(1, (-1, width)))
        labels_B = torch.as_tensor(labels_M[some], device=device)
        labels_BR = labels_B[:, None].expand(-1, len(right_R))
        right_R += (logits_BRC.argmax(2) == labels_BR).sum(0).cpu().numpy()
        loss_BR = cross_entropy(logits_BRC.transpose(1, 2), labels_BR, reduction="none")
        loss_R += loss_BR.sum(0).cpu().numpy()
    fine_R = np.isfinite(loss_R)
    top1_R = np.where(fine_R, 100 * right_R / len(rows), 0.0)
    return top1_R, np.where(fine_R, loss_R / len(rows), np.inf)


def _ranking(probes: Probes, held: Held) -> Tensor:
    """The likeliest classes of all rows by the first probe, int64 [M, min(5, C)]."""
    device, width = probes.query_RD.device, probes.query_RD.shape[1]
    most = min(TOP, probes.bias_RC.shape[1])
    parts = [
        probes.logits(x_BF.unflatten(1, (-1, width)))[:, 0].topk(most, dim=1).indices.cpu()
        for x_BF, _ in chunks(held, np.arange(len(held)), device, EVALUATED_AT_ONCE)
    ]
    return torch.cat([torch.empty(0, most, dtype=torch.int64), *parts])


def _grid(model: Model) -> tuple[int, int]:
    return model.backbone.grid(model.info.image_size, model.info.image_size)
