"""A few thousand small images on a laptop: ViT-T/8 at 64 px, and the default recipe.

    python scripts/train.py --data photos/ --out runs/mine

Small data and short runs want few prototypes, a faster teacher, gentler local crops than the
paper's, and batch norm in the head: without it the first thousands of images were spent on getting
all features apart (docs/log.md).
"""

from dino_core.augment import MultiCrop
from dino_core.training.recipe import (
    BackboneConfig,
    HeadConfig,
    OptimConfig,
    Recipe,
    TeacherConfig,
)

RECIPE = Recipe(
    backbone=BackboneConfig("vit_tiny_patch16_224", patch_size=8, image_size=64, drop_path=0.05),
    crops=MultiCrop(
        global_size=64,
        local_size=32,
        local_count=4,
        global_scale=(0.4, 1.0),
        local_scale=(0.1, 0.4),
    ),
    head=HeadConfig(out_dim=1024, hidden_dim=1024, batch_norm=True),
    optim=OptimConfig(
        lr=0.002, min_lr=1e-5, warmup_epochs=1, weight_decay_end=0.2, freeze_last_layer=0.2
    ),
    teacher=TeacherConfig(momentum=0.99, teacher_temp=0.04),
    epochs=20,
    batch_size=64,
    save_every=200,
)
