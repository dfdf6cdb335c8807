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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.classes import (
    ClassesResult,
    classes_fields,
    labels_as_in,
    names_of,
    require_labeled,
    require_two_classes,
)
from dino_core.evaluation.heads import (
    INIT_STD,
    MOMENTUM,
    Held,
    chunks,
    cosine,
    near,
    ranking,
    scores,
)
from dino_core.evaluation.linear_training import (
    CHOSEN,
    HELD_OUT,
    RATE_BATCH,
    default_batch,
    pick,
    stratified,
)
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

    def flat_logits(self, x_BF: Tensor) -> Tensor:
        """`logits` of tokens as they are held, [B, N * D]."""
        return self.logits(x_BF.unflatten(1, (-1, len(self.mean_D))))

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
        if self.held_out is not None:
            lines.append(CHOSEN.format(self.held_out))
        lines.append(f"{self.gigabytes:.2g} GB of patch tokens were held")
        return "\n".join(lines + self.confused() + self.notes)


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
    settings = _Settings(tuple(rates), epochs, batch, seed)
    judge = partial(_judge, train, test, labels, settings, passing)
    result = judge(model)
    if random_init:
        result = replace(result, random_init=judge(untrained(model)))
    return replace(result, notes=notes + result.notes)


@dataclass(frozen=True)
class _Settings:
    rates: tuple[float, ...]
    epochs: int
    batch: int | None
    seed: int


class _Choice(NamedTuple):
    """Fields of the result as well."""

    lr: float
    epoch: int
    held_out: float | None  # top-1 there; None: nothing could be held out


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
    after: Callable[[int], None] = lambda epoch: None,
) -> None:
    """As `heads.train`; `held` are tokens [M, N * D]."""
    dim, device = probes.query_RD.shape[1], probes.query_RD.device
    for epoch in range(until):
        order_N = rows_N[permutation(len(rows_N), seed, "attentive order", epoch)]
        for x_BF, some in chunks(held, order_N, device, batch):
            labels_B = torch.as_tensor(labels_M[some], device=device)
            probes.step(x_BF.unflatten(1, (-1, dim)), labels_B, cosine(epoch, epochs))
        after(epoch)


class _Learning:
    """The labeled training images of one model: their patch tokens, and probes for them."""

    def __init__(self, train: Source, settings: _Settings, model: Model, passing: Passing) -> None:
        self.settings, self.passing = settings, passing
        found = features(model, train, patch_look(model), passing)
        assert train.labels is not None
        self.labels = train.labels[found.rows]
        require_two_classes(train, self.labels)
        self.labeled = np.flatnonzero(self.labels != UNLABELED)
        self.classes, self.bad, self.bytes = len(train.classes), found.bad, found.array.nbytes
        self.batch = settings.batch or default_batch(len(self.labeled))
        self.held = near(found.array, model.device)
        self.mean_D = _mean(self.held, self.labeled, model.backbone.embed_dim, model.device)

    def fit(
        self,
        rates: Sequence[float],
        rows: np.ndarray,
        message: str,
        until: int | None = None,
        after: Callable[[Probes], None] = lambda probes: None,
    ) -> Probes:
        """Fresh probes at rates as they are for a batch of 256, trained on some rows."""
        settings = self.settings
        until = settings.epochs if until is None else until
        scaled = [rate * self.batch / RATE_BATCH for rate in rates]
        probes = Probes(scaled, len(self.mean_D), self.classes, self.mean_D, settings.seed)

        def say(epoch: int) -> None:
            after(probes)
            self.passing.progress(epoch + 1, until, message)

        self.passing.progress(0, until, message)
        train_probes(
            probes, self.held, rows, self.labels, epochs=settings.epochs, batch=self.batch,
            until=until, seed=settings.seed, after=say,
        )  # fmt: skip
        return probes

    def choose(self) -> _Choice:
        """Rate and epoch by a tenth of the images, which the others are trained for."""
        rates, epochs, seed = self.settings.rates, self.settings.epochs, self.settings.seed
        out_M = stratified(self.labels, HELD_OUT, seed, "attentive held out")
        out, rows = np.flatnonzero(out_M), self.labeled[~out_M[self.labeled]]
        if not len(out):
            return _Choice(sorted(rates)[len(rates) // 2], epochs, None)
        figures: list[tuple[np.ndarray, np.ndarray]] = []  # of each epoch, [R] each

        def look(probes: Probes) -> None:
            where = self.mean_D.device
            figures.append(
                scores(probes.flat_logits, self.held, out, self.labels, where, EVALUATED_AT_ONCE)
            )

        self.fit(rates, rows, f"Training {len(rates)} attentive probes", after=look)
        top1_K, loss_K = (np.concatenate(one) for one in zip(*figures, strict=True))
        best = pick(top1_K, loss_K, len(out))
        epoch, place = divmod(best, len(rates))
        return _Choice(rates[place], epoch + 1, float(top1_K[best]))


def _judge(
    train: Source,
    test: Source,
    test_labels: np.ndarray,
    settings: _Settings,
    passing: Passing,
    model: Model,
) -> AttentiveResult:
    """The protocol for one model."""
    learning = _Learning(train, settings, model, passing)
    asked = features(model, test, patch_look(model), passing)
    truth = test_labels[asked.rows]
    require_labeled(test, truth)
    choice = learning.choose()
    message = "Training the chosen probe"
    probes = learning.fit([choice.lr], learning.labeled, message, until=choice.epoch)
    ranked = ranking(
        lambda x_BF: probes.flat_logits(x_BF)[:, 0],
        asked.array, np.arange(len(asked.array)), learning.classes, model.device, EVALUATED_AT_ONCE,
    )  # fmt: skip
    notes = ["no class has two images, so rate and epoch were not chosen"]
    return AttentiveResult(
        **classes_fields(ranked, truth, names_of(train, test), test, asked.rows),
        **choice._asdict(),
        gigabytes=(learning.bytes + asked.array.nbytes) / 1e9,
        classes=learning.classes,
        train_images=len(learning.labeled),
        epochs=settings.epochs,
        batch=learning.batch,
        model=model.spec,
        model_hash=model.hash,
        train=train.spec,
        train_hash=source_hash(train),
        test=test.spec,
        test_hash=source_hash(test),
        notes=(notes if choice.held_out is None else []) + unreadable([*learning.bad, *asked.bad]),
    )


def _mean(held: Held, rows: np.ndarray, width: int, device: torch.device) -> Tensor:
    """The mean token, [D], on the device."""
    parts = chunks(held, rows, device, EVALUATED_AT_ONCE)
    total = sum(x_BF.unflatten(1, (-1, width)).mean(1).sum(0).cpu().double() for x_BF, _ in parts)
    return torch.as_tensor(total / len(rows), dtype=torch.float32).to(device)


def _grid(model: Model) -> tuple[int, int]:
    return model.backbone.grid(model.info.image_size, model.info.image_size)
