"""The weights that come with this project: ViT-T/8 trained on small photos by two-core hardware.

    python scripts/train.py --recipe starter --data photos/ --out runs/starter

What it was trained on and what it reached stands in its card, dino_core/models/starter/README.md.
"""

import dataclasses

from dino_core.augment import MultiCrop
from dino_core.training.recipe import OptimConfig
from dino_core.training.recipes import small

RECIPE = dataclasses.replace(
    small.RECIPE,
    backbone=dataclasses.replace(small.RECIPE.backbone, drop_path=0),
    crops=MultiCrop(
        global_size=48,
        local_size=24,
        local_count=4,
        global_scale=(0.4, 1.0),
        local_scale=(0.1, 0.4),
        blur=(0.5, 0.1, 0.2),
        blur_sigma=(0.1, 1.0),
    ),
    optim=OptimConfig(
        lr=0.004, min_lr=2e-5, warmup_epochs=0.15, weight_decay_end=0.1, freeze_last_layer=0.1
    ),
    steps=2300,
    batch_size=32,
    save_every=100,
    keep=0,
)
