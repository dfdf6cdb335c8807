"""Images through a model: the features that galleries hold and that evaluation judges.

Decoding and preprocessing run in DataLoader workers while the model computes; a bad image gives
no feature (it is not replaced: a feature must be of its own image) and is reported instead.

Shapes: B images a batch, M images, N tokens, D dimensions.
"""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.gallery.manifest import feature_hash
from dino_core.gallery.progress import Progress
from dino_core.models import Backbone, Model
from dino_core.models.preprocess import preprocess, resize_side

Prepare = Callable[[np.ndarray], Tensor]
Run = Callable[[Tensor], np.ndarray]

GEM_POWER = 4  # generalized mean of the published copy-detection protocol


@dataclass(frozen=True)
class Features:
    """Features that know where they come from, so that only comparable ones are compared."""

    array: np.ndarray  # float32 [M, D], L2-normalized
    feature_hash: str
    model: str = ""  # the model's name for the user, as it was spelled


@dataclass(frozen=True)
class SourceFeatures(Features):
    """Features of a source's readable images."""

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # in the source
    bad: tuple[tuple[str, str], ...] = ()  # (id, reason) of images that could not be read


def cls_tokens(backbone: Backbone, x_BCHW: Tensor) -> Tensor:
    """The class token after the final norm: what the published k-NN and linear protocols use."""
    return backbone(x_BCHW)


def cls_and_gem(backbone: Backbone, x_BCHW: Tensor) -> Tensor:
    """Class token beside the generalized mean (power 4) of the patch tokens, for near copies."""
    x_BND = backbone.tokens(x_BCHW)
    patches_BND = x_BND[:, backbone.num_prefix_tokens :].clamp(min=1e-6)
    gem_BD = patches_BND.pow(GEM_POWER).mean(1).pow(1 / GEM_POWER)
    return torch.cat([x_BND[:, 0], gem_BD], dim=1)


def mean_patch(backbone: Backbone, x_BCHW: Tensor) -> Tensor:
    """The mean of the patch tokens: what is all over the image, rather than its subject."""
    return backbone.tokens(x_BCHW)[:, backbone.num_prefix_tokens :].mean(1)


KINDS: dict[str, Callable[[Backbone, Tensor], Tensor]] = {
    "cls": cls_tokens,
    "cls+gem": cls_and_gem,
    "mean patch": mean_patch,
}


def feature_dim(model: Model, kind: str) -> int:
    """How many numbers a feature of this kind has."""
    return model.backbone.embed_dim * (2 if kind == "cls+gem" else 1)


def model_feature_hash(model: Model, kind: str = "cls") -> str:
    """What makes features comparable: the model's weights, its preprocessing, the kind."""
    return feature_hash(model.hash, preprocessing(model), kind)


def preprocessing(model: Model) -> dict[str, Any]:
    """What happens to an image before the model sees it; plain JSON values."""
    info = model.info
    return {
        "resize": resize_side(info.image_size),
        "crop": info.image_size,
        "interpolation": "bicubic",
        "mean": list(info.mean),
        "std": list(info.std),
    }


def embed(model: Model, images: Sequence[np.ndarray], kind: str = "cls") -> Features:
    """Features of a few images, each uint8 [H, W, 3]."""
    x_BCHW = torch.stack([model.preprocess(image) for image in images])
    array = _embedder(model, kind)(x_BCHW)
    return Features(array, model_feature_hash(model, kind), model.spec)


def features_of(
    model: Model,
    source: Source,
    *,
    kind: str = "cls",
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
    message: str = "Computing features",
) -> SourceFeatures:
    """Features of every readable image of a source, in memory, in the source's order."""
    found = source_features(
        source,
        partial(preprocess, info=model.info),  # not the model's method: workers need no weights
        _embedder(model, kind),
        dim=feature_dim(model, kind),
        batch_size=batch_size,
        workers=default_workers(model.device) if workers is None else workers,
        progress=progress,
        message=message,
    )
    return replace(found, feature_hash=model_feature_hash(model, kind), model=model.spec)


def source_features(
    source: Source,
    prepare: Prepare,
    run: Run,
    *,
    dim: int,
    batch_size: int,
    workers: int,
    progress: Progress | None,
    message: str,
) -> SourceFeatures:
    """`features_of` for anything that makes `dim` numbers of an image (see `batches`)."""
    say = progress or (lambda done, total, message: None)
    parts, rows, bad = [np.empty((0, dim), np.float32)], [], []
    done, total = 0, len(source)
    say(0, total, message)
    for batch in batches(
        source, range(total), prepare, run, dim=dim, batch_size=batch_size, workers=workers
    ):
        parts.append(batch.features_BD)
        rows += [one["index"] for one in batch.facts if "bad" not in one]
        bad += [(source.ids[one["index"]], one["bad"]) for one in batch.facts if "bad" in one]
        done += len(batch.facts)
        say(done, total, message)
    array = np.concatenate(parts)
    return SourceFeatures(array, "", rows=np.array(rows, np.int64), bad=tuple(bad))


@dataclass(frozen=True)
class Batch:
    """Some images in the order of the source: features of the good, facts of all."""

    features_BD: np.ndarray  # float32, L2-normalized
    facts: list[dict[str, Any]]  # index, width, height (and fingerprint), or index and bad


def model_batches(
    model: Model,
    source: Source,
    indices: Sequence[int],
    kind: str = "cls",
    batch_size: int = 64,
    workers: int | None = None,
    *,
    fingerprints: bool = False,
) -> Generator[Batch, None, None]:
    """Run `source`'s images through `model`, batch by batch. See `batches`."""
    return batches(
        source,
        indices,
        partial(preprocess, info=model.info),  # not the model's method: workers need no weights
        _embedder(model, kind),
        dim=feature_dim(model, kind),
        batch_size=batch_size,
        workers=default_workers(model.device) if workers is None else workers,
        fingerprints=fingerprints,
    )


def batches(
    source: Source,
    indices: Sequence[int],
    prepare: Prepare,
    run: Run,
    *,
    dim: int,
    batch_size: int,
    workers: int,
    fingerprints: bool = False,
) -> Generator[Batch, None, None]:
    """Decode and `prepare` images in `workers` processes, and `run` what comes, in order.

    `prepare` takes uint8 [H, W, 3] and gives a tensor of one shape for all images; `run` takes
    those stacked and gives float32 features [B, dim]. With `fingerprints` the facts hold a hash of
    the image's content.
    """
    loader = DataLoader(
        _Images(source, indices, prepare, fingerprints),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
    )
    for items in loader:
        good = [pixels for pixels, _ in items if pixels is not None]
        features_BD = run(torch.stack(good)) if good else np.empty((0, dim), np.float32)
        yield Batch(features_BD, [facts for _, facts in items])


def default_workers(device: torch.device) -> int:
    """How many decoding processes keep a model on `device` busy.

    On two cores or fewer they would only take time from the model: none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if device.type == "cpu":
        return 0 if cores <= 2 else min(4, cores // 2)
    return min(12, max(1, cores - 1))


class _Images(Dataset):
    """Item i: (prepared pixels, or None for a bad image; its facts)."""

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        prepare: Prepare,
        fingerprints: bool,
    ) -> None:
        self.source, self.indices = source, indices
        self.prepare, self.fingerprints = prepare, fingerprints

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> tuple[Tensor | None, dict[str, Any]]:
        index = int(self.indices[at])
        try:
            image = self.source.image(index)
            height, width = image.shape[:2]
            facts: dict[str, Any] = {"index": index, "width": width, "height": height}
            if self.fingerprints:
                facts["fingerprint"] = self.source.fingerprint(index)
            return self.prepare(image), facts
        except BadImage as error:
            return None, {"index": index, "bad": error.reason}
        except OSError as error:  # the file went away since it was listed
            return None, {"index": index, "bad": f"cannot be read ({error.strerror or error})"}


def _embedder(model: Model, kind: str) -> Callable[[Tensor], np.ndarray]:
    if kind not in KINDS:
        raise UserError(f"feature kind {kind!r} is unknown; there are {', '.join(KINDS)}")
    return partial(_normalized_features, model, KINDS[kind])


@torch.inference_mode()
def _normalized_features(
    model: Model, tokens: Callable[[Backbone, Tensor], Tensor], x_BCHW: Tensor
) -> np.ndarray:
    features_BD = tokens(model.backbone, x_BCHW.to(model.device, non_blocking=True)).float()
    features_BD = torch.nn.functional.normalize(features_BD, dim=1)
    if not torch.isfinite(features_BD).all():
        raise UserError(f"{model.spec}: gives features that are not finite; its weights are broken")
    return features_BD.cpu().numpy()
