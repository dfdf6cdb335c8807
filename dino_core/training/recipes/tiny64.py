"""A hundred thousand 64 px images, as Tiny-ImageNet: ViT-S/8. On a laptop take `small`.

    python scripts/train.py --recipe tiny64 --data tiny-imagenet/train --out runs/tiny64

Crop scales as in "How to train vision transformer on small-scale datasets" (arXiv 2210.07240).
Nobody reports k-NN for such a model on Tiny-ImageNet. We have not trained it yet.
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
    backbone=BackboneConfig("vit_small_patch8_224", patch_size=8, image_size=64, drop_path=0.1),
    crops=MultiCrop(
        global_size=64,
        local_size=32,
        local_count=6,
        global_scale=(0.5, 1.0),
        local_scale=(0.2, 0.4),
        blur=(0.5, 0.1, 0.2),
        blur_sigma=(0.1, 1.0),
    ),
    head=HeadConfig(out_dim=4096, batch_norm=True),
    optim=OptimConfig(min_lr=1e-5, weight_decay_end=0.2),
    teacher=TeacherConfig(momentum=0.992),
    epochs=200,
    batch_size=512,
)
