"""Images through a model: the features that galleries hold and that evaluation judges.

Decoding overlaps with computing (`extraction.py`); a bad image gives no feature (it is not
replaced: a feature must be of its own image) and is reported instead.

Shapes: B images a batch, M images, N tokens, D dimensions.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.gallery.extraction import (
    Batch,
    Embedder,
    Prepare,
    Run,
    Tokens,
    batches,
    default_workers,
)
from dino_core.gallery.manifest import feature_hash
from dino_core.gallery.progress import Progress
from dino_core.models import Backbone, Model, ModelInfo
from dino_core.models.packed import can_pack, class_tokens
from dino_core.models.preprocess import cropped, resize_side
from dino_core.models.vit import VitBackbone

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
    """The class token after the final norm: what the published k-NN and linear protocols use.

    Where the blocks are plain ones, the last does nothing that only other tokens would need.
    """
    if isinstance(backbone, VitBackbone) and can_pack(backbone):
        return class_tokens(backbone, [x_BCHW])
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


KINDS: dict[str, Tokens] = {
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
    run = _embedder(model, kind, half=False)
    found = run(torch.stack([prepared(image, model.info) for image in images]))
    array = found() if callable(found) else found
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
        partial(prepared, info=model.info),
        _embedder(model, kind),
        dim=feature_dim(model, kind),
        batch_size=batch_size,
        workers=default_workers(model.device) if workers is None else workers,
        progress=progress,
        message=message,
        pin=model.device.type == "cuda",
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
    pin: bool = False,
) -> SourceFeatures:
    """`features_of` for anything that makes `dim` numbers of an image (see `batches`)."""
    say = progress or (lambda done, total, message: None)
    parts, rows, bad = [np.empty((0, dim), np.float32)], [], []
    done, total = 0, len(source)
    say(0, total, message)
    for batch in batches(
        source, range(total), prepare, run,
        dim=dim, batch_size=batch_size, workers=workers, pin=pin,
    ):  # fmt: skip
        parts.append(batch.features_BD)
        rows += [one["index"] for one in batch.facts if "bad" not in one]
        bad += [(source.ids[one["index"]], one["bad"]) for one in batch.facts if "bad" in one]
        done += len(batch.facts)
        say(done, total, message)
    array = np.concatenate(parts)
    return SourceFeatures(array, "", rows=np.array(rows, np.int64), bad=tuple(bad))


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
        partial(prepared, info=model.info),
        _embedder(model, kind),
        dim=feature_dim(model, kind),
        batch_size=batch_size,
        workers=default_workers(model.device) if workers is None else workers,
        fingerprints=fingerprints,
        pin=model.device.type == "cuda",
    )


def prepared(image: np.ndarray, info: ModelInfo) -> Tensor:
    """Pixels for an `Embedder`; without the model, whose weights no worker needs."""
    return torch.from_numpy(np.array(cropped(image, info)))


def _embedder(model: Model, kind: str, half: bool | None = None) -> Embedder:
    if kind not in KINDS:
        raise UserError(f"feature kind {kind!r} is unknown; there are {', '.join(KINDS)}")
    return Embedder(model, KINDS[kind], half)
