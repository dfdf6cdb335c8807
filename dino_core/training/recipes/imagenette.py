"""Ten thousand photos of a few things, as Imagenette: ViT-S/16 at 128 px, three million images.

    python scripts/train.py --recipe imagenette --data torchvision:imagenette --out runs/imagenette

Others reached on Imagenette: k-NN 83.8 % (stable-pretraining, DINO ViT-S/16 at 224 px, 200
epochs), 88.8 % (lightly, DINO ResNet-18 at 128 px, 800 epochs). We have not trained it yet.
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
    backbone=BackboneConfig(image_size=128),
    crops=MultiCrop(global_size=128, local_size=64, local_count=6),
    head=HeadConfig(out_dim=4096, batch_norm=True),
    optim=OptimConfig(min_lr=1e-5, weight_decay_end=0.2),
    teacher=TeacherConfig(momentum=0.99),
    epochs=300,
    batch_size=512,
)
