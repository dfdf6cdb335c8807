"""What a model's last layer says of each patch of one image: the ground of patch lenses.

    tokens = read_tokens(model, image)          # the whole image, at the size `attention.plan` says
    tokens.patches                              # float32 [h, w, D], L2-normalized
    tokens.keys                                 # float32 [h, w, D], keys of the last attention

One forward reads them all; what the other lenses show is made of them without the model.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dino_core.lenses.attention import plan, resized
from dino_core.models.attention import last_keys, unshared

if TYPE_CHECKING:
    from dino_core.models import Model


@dataclass(frozen=True)
class Tokens:
    """The tokens of one image after the final norm. D is the model's width, h x w its patch grid.

    `patches` have length 1; how long each was before is in `norms`, where artifacts show.
    """

    patches: np.ndarray  # float32 [h, w, D]
    norms: np.ndarray  # float32 [h, w]
    keys: np.ndarray  # float32 [h, w, D], all heads side by side, as they are
    cls: np.ndarray  # float32 [D], L2-normalized
    image_size: tuple[int, int]  # (height, width) in pixels as fed to the model
    source_size: tuple[int, int]  # (height, width) of the image that was given
    patch_size: int
    model: str  # spec
    model_hash: str

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per (column, row): (h, w)."""
        return self.patches.shape[0], self.patches.shape[1]


def read_tokens(model: "Model", image: np.ndarray, *, size: int | None = None) -> Tokens:
    """Run `model` once on `image` and keep its last tokens, and the keys of its last layer.

    `image`: uint8 [H, W, C]; `size`: short side in pixels (None: `plan`'s default). Raises
    `UserError` as `look` does.
    """
    fed = plan(model, image.shape[0], image.shape[1], size=size)
    pixels = model.normalize(resized(image, fed.height, fed.width))
    backbone = unshared(model.backbone)
    with torch.no_grad(), last_keys(backbone.vit) as keys:
        tokens_ND = backbone.tokens(pixels[None].to(model.device))[0].float()
    prefix = backbone.num_prefix_tokens
    norms_N = tokens_ND.norm(dim=-1)
    unit_ND = (tokens_ND / norms_N[:, None].clamp_min(1e-12)).cpu().numpy()
    keys_ND = keys[0][0].transpose(0, 1).flatten(1).cpu().numpy()
    return Tokens(
        patches=unit_ND[prefix:].reshape(*fed.grid, -1),
        norms=norms_N[prefix:].cpu().numpy().reshape(fed.grid),
        keys=keys_ND[prefix:].reshape(*fed.grid, -1),
        cls=unit_ND[0],
        image_size=(fed.height, fed.width),
        source_size=(image.shape[0], image.shape[1]),
        patch_size=backbone.patch_size,
        model=model.spec,
        model_hash=model.hash,
    )
