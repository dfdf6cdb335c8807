"""Tens of thousands of 32 px images, as CIFAR-10: ViT-T/4, ten million images seen.

    python scripts/train.py --recipe cifar --data torchvision:cifar10 --out runs/cifar

Crops as in "How to train vision transformer on small-scale datasets" (arXiv 2210.07240), a little
harder; no blur, as solo-learn and lightly do at this size; few prototypes and a quick teacher, as
all who report on small data. Others reached with convolutions: k-NN 84.0 % (lightly, DINO
ResNet-18, 200 epochs). We have not trained it yet.
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
    backbone=BackboneConfig("vit_tiny_patch16_224", patch_size=4, image_size=32, drop_path=0.05),
    crops=MultiCrop(
        global_size=32,
        local_size=16,
        local_count=6,
        global_scale=(0.5, 1.0),
        local_scale=(0.15, 0.5),
        blur=(0.0, 0.0, 0.0),
    ),
    head=HeadConfig(out_dim=2048, batch_norm=True),
    optim=OptimConfig(lr=0.00025, min_lr=1e-5, weight_decay_end=0.2),
    teacher=TeacherConfig(momentum=0.99),
    epochs=200,
    batch_size=1024,
)
