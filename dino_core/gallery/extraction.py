"""From a source's files to arrays of features, decoding and computing at the same time.

Workers of a DataLoader decode, cut to size and hand over whole batches as bytes; everything else is
done in batches where the model is. On a GPU the features of a batch are fetched only when the next
batch is under way, so that it never waits for the CPU.

Shapes: B images a batch, S pixels a side, C channels, D dimensions.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_core import distributed
from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.models import Backbone, Model
from dino_core.models.preprocess import normalized

Prepare = Callable[[np.ndarray], Tensor]
Later = Callable[[], np.ndarray]
Run = Callable[[Tensor], np.ndarray | Later]
Tokens = Callable[[Backbone, Tensor], Tensor]

ALIKE = 0.9999  # cosine similarity to features in fp32 that half precision has to keep


@dataclass(frozen=True)
class Batch:
    """Some images in the order of the source: features of the good, facts of all."""

    features_BD: np.ndarray  # float32
    facts: list[dict[str, Any]]  # index, width, height (and fingerprint), or index and bad


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
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Decode and `prepare` images in `workers` processes, and `run` what comes, in order.

    `prepare` takes uint8 [H, W, C] and gives a tensor of one shape for all images; `run` takes
    those stacked and gives float32 features [B, dim], or a function that waits for them, which is
    called when the next batch was run. With `fingerprints` the facts hold a hash of the image's
    content; with `pin` batches lie in memory that a GPU copies from in the background.
    """
    loader = DataLoader(
        _Images(source, indices, prepare, fingerprints),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
    )
    waiting: tuple[Later, list[dict[str, Any]]] | None = None
    for stacked, facts in loader:
        features = np.empty((0, dim), np.float32) if stacked is None else run(stacked)
        if waiting is not None:
            yield Batch(waiting[0](), waiting[1])
            waiting = None
        if callable(features):
            waiting = features, facts
        else:
            yield Batch(features, facts)
    if waiting is not None:
        yield Batch(waiting[0](), waiting[1])


def default_workers(device: torch.device) -> int:
    """How many decoding processes keep a model on `device` busy, of those torchrun started.

    On two cores or fewer they would only take time from the model: none.
    """
    cores = distributed.cores() // distributed.local_world_size()
    if device.type == "cpu":
        return 0 if cores <= 2 else min(4, cores // 2)
    return min(12, max(1, cores - 1))


class Embedder:
    """Pixels as `preprocess.cropped` gives them, uint8 [B, S, S, C], to features [B, D].

    The features are float32, L2-normalized if `unit`. On a GPU the first batch is computed in fp32
    and in fp16, and only where all its features agree to a cosine of 0.9999 fp16 is gone on with; a
    CPU stays in fp32. Raises `UserError` where a feature is not finite.
    """

    def __init__(
        self, model: Model, tokens: Tokens, half: bool | None = None, *, unit: bool = True
    ) -> None:
        self.model, self.tokens, self.unit = model, tokens, unit
        # None: not known yet.
        self.half = half if half is not None else (None if model.device.type == "cuda" else False)

    def __call__(self, pixels_BSSC: Tensor) -> np.ndarray | Later:
        there = pixels_BSSC.to(self.model.device, non_blocking=True)
        if self.half is None:
            self.half = self._agree(there)
        half = self.half
        features_BD = self._features(there, half)

        def fetched() -> np.ndarray:
            array = features_BD.cpu().numpy()
            if half and not np.isfinite(array).all():  # too large for fp16, it may be
                self.half = False
                array = self._features(there, False).cpu().numpy()
            if not np.isfinite(array).all():
                raise UserError(
                    f"{self.model.spec}: gives features that are not finite; its weights are broken"
                )
            return array

        return fetched if features_BD.device.type == "cuda" else fetched()

    def _agree(self, pixels_BSSC: Tensor) -> bool:
        """Whether fp16 gives the features that fp32 gives."""
        halved, whole = self._features(pixels_BSSC, True), self._features(pixels_BSSC, False)
        cosine_B = torch.nn.functional.cosine_similarity(halved, whole, dim=1)
        return bool((cosine_B > ALIKE).all())  # not a number is not greater

    @torch.inference_mode()
    def _features(self, pixels_BSSC: Tensor, half: bool) -> Tensor:
        x_BCSS = normalized(pixels_BSSC, self.model.info)
        with torch.autocast(x_BCSS.device.type, torch.float16, enabled=half):
            features_BD = self.tokens(self.model.backbone, x_BCSS)
        features_BD = features_BD.float()
        return torch.nn.functional.normalize(features_BD, dim=1) if self.unit else features_BD


class _Images(Dataset):
    """Batches of: the prepared pixels of the good images, stacked, or None; the facts of all."""

    def __init__(
        self, source: Source, indices: Sequence[int], prepare: Prepare, fingerprints: bool
    ) -> None:
        self.source, self.indices = source, indices
        self.prepare, self.fingerprints = prepare, fingerprints

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, places: list[int]) -> tuple[Tensor | None, list[dict[str, Any]]]:
        items = [self._item(int(self.indices[at])) for at in places]
        good = [pixels for pixels, _ in items if pixels is not None]
        return torch.stack(good) if good else None, [facts for _, facts in items]

    def _item(self, index: int) -> tuple[Tensor | None, dict[str, Any]]:
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


def _as_it_is(batch: Any) -> Any:
    return batch
