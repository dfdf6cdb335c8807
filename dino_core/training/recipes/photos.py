"""A few thousand photos and a GPU: ViT-S/16 at 128 px, from nothing.

    python scripts/train.py --recipe photos --data photos/ --out runs/mine

Where published weights may be used, `continue` knows more from the start. Few prototypes and a
quick teacher as lightly-train chooses them for up to 20,000 images. We have not trained it yet.
"""

import dataclasses

from dino_core.training.recipe import HeadConfig
from dino_core.training.recipes import imagenette

RECIPE = dataclasses.replace(
    imagenette.RECIPE, head=HeadConfig(out_dim=1024, batch_norm=True), batch_size=256
)
