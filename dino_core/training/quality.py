"""What a run has learned so far, measured on images that it does not train on.

At every check the clean teacher features of the held-out slice are taken. With labels, a k-NN vote
of a fixed slice of the training images classifies them; without, RankMe says how many dimensions
they use, and the neighbor consistency whether an image keeps its neighbors when it is augmented.
The features, and the attention and the patches of a few fixed images, stay in the run's `probes/`:

    probes/held_out.json              ids and labels of the slice, in the order of the features
    probes/images/0.png ...           the fixed images
    probes/step-00001000/             features.npy float16 [n, D], quality.json, of each fixed image
                                      attention-0.bin and patches-0.npy float16 [h, w, 8]
"""

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dino_core.augment import PhotometricBatch, crop_views, photometric, plan_views
from dino_core.augment.sheet import visible
from dino_core.data import BadImage, Source
from dino_core.files import read_json, whole_folder, write_json
from dino_core.lenses import LensPayload, look
from dino_core.lenses.tokens import read_tokens
from dino_core.measures import knn_accuracy, neighbor_consistency
from dino_core.measures.rankme import rankme
from dino_core.models import Model
from dino_core.models.preprocess import preprocess
from dino_core.rng import permutation
from dino_core.runs import Run
from dino_core.training.feed import settle_worker
from dino_core.training.recipe import Recipe
from dino_core.training.step import TrainState

BANK = 5_000  # training images that vote
CHUNK = 64  # images per forward pass
DIRECTIONS = 8  # of the patch tokens, kept: three make colors, more let these be steady
AUGMENTED = -1  # in the place of the epoch: no view of the training is met again


@dataclass(frozen=True)
class Split:
    """Which images of a source are trained on, and which are only looked at: int64 each."""

    training: np.ndarray
    held_out: np.ndarray


def split(recipe: Recipe, images: int) -> Split:
    """A function of seed and number of images; in order of their numbers."""
    order = permutation(images, "held out", recipe.seed)
    few = recipe.held_out(images)
    return Split(training=np.sort(order[few:]), held_out=np.sort(order[:few]))


@dataclass(frozen=True)
class Quality:
    """One check. `knn` is None without labels, the other two with them."""

    step: int
    knn: float | None
    """Top-1 of the k-NN vote on the held-out images, in percent."""
    rankme: float
    """Effective rank of their features."""
    consistency: float | None
    """Share of neighbors kept under augmentation, 0 to 1."""

    def sentence(self) -> str:
        rank = f"RankMe {self.rankme:.1f}"
        if self.knn is not None:
            return f"quality at step {self.step}: k-NN {self.knn:.1f} %, {rank}"
        return f"quality at step {self.step}: {rank}, neighbors kept {self.consistency:.2f}"

    def row(self) -> dict[str, float]:
        """As a line of `metrics.jsonl`; its step is the last one that was done."""
        named = {"knn": self.knn, "rankme": self.rankme, "neighbor_consistency": self.consistency}
        row = {"step": max(self.step - 1, 0), "steps_done": self.step}
        return row | {name: value for name, value in named.items() if value is not None}


class Examiner:
    """Checks a training state, always on the same images."""

    def __init__(
        self, run: Run, recipe: Recipe, source: Source, split: Split, workers: int
    ) -> None:
        self.run, self.recipe, self.source, self.workers = run, recipe, source, workers
        self.held_out = split.held_out
        self.bank = np.empty(0, dtype=np.int64)
        if self._labeled(split):
            few = permutation(len(split.training), "bank", recipe.seed)[:BANK]
            self.bank = split.training[np.sort(few)]

    @property
    def images(self) -> int:
        """How many are looked at: held out, and voting."""
        return len(self.held_out) + len(self.bank)

    def due(self, step: int) -> bool:
        """Evenly spaced over the run, before its first step and after its last among them."""
        steps, checks = self.recipe.steps, self.recipe.quality.checks
        if steps is None or not len(self.held_out):
            return False
        return step in {round(steps * i / checks) for i in range(checks + 1)}

    def check(self, state: TrainState) -> Quality:
        """Measure the teacher, and keep its probes. The state stays as it is."""
        model = Model(
            copy.deepcopy(state.teacher.backbone),
            f"{self.run.path}@{state.step}",
            state.center.device,
        )
        features_ND = self._clean(model, self.held_out)
        quality = Quality(
            step=state.step,
            knn=self._knn(model, features_ND) if len(self.bank) else None,
            rankme=rankme(features_ND),
            consistency=None if len(self.bank) else self._consistency(model),
        )
        self._keep(model, features_ND, quality)
        return quality

    def _labeled(self, split: Split) -> bool:
        """Whether both sides have labels of more than one class, so that a vote says something."""
        labels = self.source.labels
        if labels is None:
            return False
        sides = (set(labels[part].tolist()) - {-1} for part in (split.training, split.held_out))
        return all(len(classes) > 1 for classes in sides)

    def _knn(self, model: Model, features_ND: Tensor) -> float:
        assert self.source.labels is not None
        k = self.recipe.quality.k
        accuracy = knn_accuracy(
            self._clean(model, self.bank),
            self.source.labels[self.bank],
            features_ND,
            self.source.labels[self.held_out],
            ks=[k],
        )
        return accuracy[k].top1

    def _consistency(self, model: Model) -> float:
        first, second = (
            self._embed(model, _Augmented(self.source, self.held_out, self.recipe, view))
            for view in (0, 1)
        )
        return neighbor_consistency(first, second, k=min(10, len(self.held_out) - 1))

    def _clean(self, model: Model, indices: np.ndarray) -> Tensor:
        return self._embed(model, _Clean(self.source, indices, model))

    def _embed(self, model: Model, images: "_Images") -> Tensor:
        """L2-normalized float32 features [n, D], on the CPU."""
        parts = []
        for batch in images.loader(self.workers):
            with torch.inference_mode():
                features_BD = model.backbone(images.views(batch, model))
            parts.append(F.normalize(features_BD.float(), dim=1).cpu())
        return torch.cat(parts)

    def _keep(self, model: Model, features_ND: Tensor, quality: Quality) -> None:
        probes = self.run.path / "probes"
        if not (probes / "held_out.json").is_file():
            write_json(probes / "held_out.json", self._described())
        shown = self.held_out[self._shown(read_json(probes / "held_out.json"))]
        if not (probes / "images").is_dir():
            with whole_folder(probes / "images") as aside:
                for i, image in self._readable(shown):
                    Image.fromarray(visible(image)).save(aside / f"{i}.png")
        folder = probes / f"step-{quality.step:08d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a stretch that was rolled back or killed
        with whole_folder(folder) as aside:
            np.save(aside / "features.npy", features_ND.numpy().astype(np.float16))
            write_json(aside / "quality.json", quality.row())
            if getattr(model.backbone, "has_attention", True):
                images = dict(self._readable(shown))
                for i, image in images.items():
                    payload = LensPayload.from_attention(look(model, image))
                    (aside / f"attention-{i}.bin").write_bytes(payload.to_bytes())
                patches = [read_tokens(model, image).patches for image in images.values()]
                for i, scores_hwC in zip(images, principal(patches), strict=True):
                    np.save(aside / f"patches-{i}.npy", scores_hwC)

    def _shown(self, described: dict[str, Any]) -> list[int]:
        """Places of the fixed images in the slice. Older runs took the first: theirs stay."""
        first = list(range(min(self.recipe.quality.probes, len(self.held_out))))
        return [int(place) for place in described.get("shown", first)]

    def _described(self) -> dict[str, Any]:
        labels = self.source.labels
        count = len(self.held_out)  # in the order of the data, so by folder: take some of each
        shown = np.linspace(0, count - 1, min(self.recipe.quality.probes, count)).round()
        return {
            "shown": shown.astype(int).tolist(),
            "ids": [self.source.ids[int(i)] for i in self.held_out],
            "labels": None if labels is None else labels[self.held_out].tolist(),
            "classes": self.source.classes,
        }

    def _readable(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for place, index in enumerate(indices):
            try:
                yield place, self.source.image(int(index))
            except BadImage:
                continue


def principal(patches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Patch tokens [h, w, D] of several images along the directions of most variance among all.

    float16 [h, w, 8] each (fewer where D is less), the largest variance first, 0 in the mean. PCA
    by the eigenvectors of the covariance; their signs are arbitrary.
    """
    if not patches:
        return []
    tokens_ND = np.concatenate([one.reshape(-1, one.shape[-1]) for one in patches])
    centered_ND = tokens_ND - tokens_ND.mean(axis=0)
    _, vectors_DD = np.linalg.eigh(centered_ND.T @ centered_ND)  # the largest last
    scores_NC = (centered_ND @ vectors_DD[:, ::-1][:, :DIRECTIONS]).astype(np.float16)
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in patches])[:-1]
    parts = np.split(scores_NC, ends)
    return [part.reshape(*one.shape[:2], -1) for part, one in zip(parts, patches, strict=True)]


class _Images(Dataset[Any]):
    """Some images of a source, numbered from 0; an unreadable one becomes a gray one."""

    def __init__(self, source: Source, indices: np.ndarray, channels: int) -> None:
        self.source = source
        self.indices = indices
        self.channels = channels

    def __len__(self) -> int:
        return len(self.indices)

    def loader(self, workers: int) -> DataLoader[Any]:
        return DataLoader(
            self,
            batch_size=CHUNK,
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),  # its own: torch's global one belongs to the step
            worker_init_fn=settle_worker,
        )

    def image(self, i: int) -> np.ndarray:
        try:
            return self.source.image(int(self.indices[i]))
        except BadImage:
            return np.full((64, 64, self.channels), 128, dtype=np.uint8)

    def views(self, batch: Sequence[Any], model: Model) -> Tensor:
        raise NotImplementedError


class _Clean(_Images):
    def __init__(self, source: Source, indices: np.ndarray, model: Model) -> None:
        super().__init__(source, indices, model.info.channels)
        self.info = model.info

    def __getitem__(self, i: int) -> Tensor:
        return preprocess(self.image(i), self.info)

    def views(self, batch: Sequence[Tensor], model: Model) -> Tensor:
        return torch.stack(list(batch)).to(model.device)


class _Augmented(_Images):
    """Each image under the recipe's global view `view`, the same at every check."""

    def __init__(self, source: Source, indices: np.ndarray, recipe: Recipe, view: int) -> None:
        super().__init__(source, indices, recipe.backbone.channels)
        self.recipe, self.view = recipe, view

    def __getitem__(self, i: int) -> Any:
        image = self.image(i)
        height, width = image.shape[:2]
        key = (self.recipe.seed, AUGMENTED, int(self.indices[i]))
        plan = plan_views(self.recipe.crops, *key, height=height, width=width)[self.view]
        return crop_views(image, [plan])[0], plan

    def views(self, batch: Sequence[Any], model: Model) -> Tensor:
        crops, plans = zip(*batch, strict=True)
        params = PhotometricBatch.collate(plans).to(model.device)
        images = torch.stack(crops).to(model.device)
        return photometric(images, params, model.info.mean, model.info.std)
