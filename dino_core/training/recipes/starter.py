"""The weights that come with this project: ViT-T/8, 64 px, two hours of a two-core CPU."""

import dataclasses

from dino_core.augment import MultiCrop
from dino_core.training.recipe import OptimConfig, TeacherConfig
from dino_core.training.recipes import small

RECIPE = dataclasses.replace(
    small.RECIPE,
    crops=MultiCrop(
        global_size=48,
        local_size=24,
        local_count=4,
        global_scale=(0.3, 1.0),
        local_scale=(0.08, 0.3),
        blur=(0.5, 0.1, 0.2),
        blur_sigma=(0.1, 1.0),
    ),
    optim=OptimConfig(
        lr=0.002, min_lr=2e-5, warmup_epochs=0.15, weight_decay_end=0.1, freeze_last_layer=0.1
    ),
    teacher=TeacherConfig(momentum=0.99, teacher_temp=0.04),
    steps=1300,
    batch_size=64,
    save_every=100,
    keep=0,
)
