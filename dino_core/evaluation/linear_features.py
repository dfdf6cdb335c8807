"""Which features linear heads see: class tokens of the last blocks, the mean patch token; and of
which view of an image, the center crop or random ones.

Shapes: B images, C channels, H x W pixels, N tokens, D width, S pixels a side.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from dino_core.augment import MultiCrop
from dino_core.augment.plan import plan_view
from dino_core.data import Source
from dino_core.evaluation.passes import Look
from dino_core.gallery.features import prepared, preprocessing
from dino_core.models import Backbone, Model, ModelInfo
from dino_core.models.preprocess import by_band, require_channels
from dino_core.models.vit import VitBackbone
from dino_core.rng import torch_seed

CROP_SCALE = (0.08, 1.0)  # share of the area, of torchvision's RandomResizedCrop
WIDE = 768  # from this width on a ViT is judged by one block and average pooling


@dataclass(frozen=True)
class Seen:
    """Which features heads see."""

    blocks: int
    avgpool: bool

    def __str__(self) -> str:
        blocks = "1 block" if self.blocks == 1 else f"{self.blocks} blocks"
        return f"{blocks} + mean" if self.avgpool else blocks


def published_features(model: Model) -> Seen:
    """What the published script sees of an architecture."""
    if not isinstance(model.backbone, VitBackbone):
        return Seen(1, False)
    return Seen(1, True) if model.backbone.embed_dim >= WIDE else Seen(4, False)


def look_at(model: Model, blocks: int, avgpool: bool, view: str = "") -> Look:
    """Raw features: class tokens of the last blocks, then the mean patch token of the last.

    `view` names another than the center crop; images then come as they are to be seen.
    """
    settings = {"preprocessing": preprocessing(model), "blocks": blocks, "avgpool": avgpool}
    return Look(
        name=f"{Seen(blocks, avgpool)}{', ' if view else ''}{view}",
        prepare=_as_it_is if view else partial(prepared, info=model.info),
        tokens=partial(block_tokens, blocks=blocks, avgpool=avgpool),
        dim=model.backbone.embed_dim * (blocks + avgpool),
        settings=settings | ({"view": view} if view else {}),
        unit=False,
    )


def block_tokens(backbone: Backbone, x_BCHW: Tensor, blocks: int, avgpool: bool) -> Tensor:
    """[B, width * (blocks + avgpool)], all after the final norm; the last block's stand last."""
    layers = backbone.intermediate(x_BCHW, blocks)
    parts = [x_BND[:, 0] for x_BND in layers]
    if avgpool:
        parts.append(layers[-1][:, backbone.num_prefix_tokens :].mean(1))
    return torch.cat(parts, dim=1)


def columns(seen: Seen, blocks: int, width: int) -> slice:
    """Where some features lie in those of `blocks` blocks and the mean patch token."""
    return slice((blocks - seen.blocks) * width, (blocks + seen.avgpool) * width)


class RandomCrops(Source):
    """Another source's images as the published training sees them: a random crop, half flipped.

    `RandomResizedCrop` to the model's size (8 to 100 % of the area, bilinear) and a flip, keyed by
    `seed`, `view` and the image's number, so that any process cuts the same.
    """

    def __init__(self, source: Source, info: ModelInfo, view: int, seed: int) -> None:
        self.source, self.info, self.view = source, info, view
        self.seed = torch_seed(seed, "linear crops")
        self.crop = MultiCrop(global_size=info.image_size, global_scale=CROP_SCALE)
        self.spec, self.root, self.ids = source.spec, source.root, source.ids
        self.labels, self.classes, self.channels = source.labels, source.classes, source.channels
        self.notes, self.generated = source.notes, source.generated

    def read(self, i: int) -> bytes:
        return self.source.read(i)

    def path(self, i: int) -> Path | None:
        return self.source.path(i)

    def image(self, i: int) -> np.ndarray:
        """uint8 [S, S, channels]."""
        image = self.source.image(i)
        require_channels(image, self.info)
        height, width = image.shape[:2]
        plan = plan_view(self.crop, self.seed, self.view, i, view=0, height=height, width=width)
        box, size = plan.box, [plan.size, plan.size]

        def cut(band: Image.Image) -> np.ndarray:
            view = tv.resized_crop(
                band, box.top, box.left, box.height, box.width, size, InterpolationMode.BILINEAR
            )
            return np.asarray(tv.hflip(view) if plan.flip else view)

        return by_band(cut, image)


def _as_it_is(image: np.ndarray) -> Tensor:
    """What is already cut, for an `Embedder`."""
    return torch.from_numpy(np.array(image))
