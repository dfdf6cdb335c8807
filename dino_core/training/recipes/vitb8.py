"""The ViT-B/8 whose weights were published, the best of them by linear evaluation.

    torchrun --nproc-per-node=8 scripts/train.py --recipe vitb8 --data imagenet/train \\
        --out runs/vitb8

Settings: the args.txt beside the published weights, as copied in two repositories (176 GPUs x 6
images, fp32). Published: k-NN 77.4 %, linear 80.1 % (facebookresearch/dino, README). We have not
trained it ourselves.
"""

from dino_core.augment import MultiCrop
from dino_core.training.recipe import BackboneConfig, OptimConfig, Recipe, TeacherConfig

RECIPE = Recipe(
    backbone=BackboneConfig("vit_base_patch8_224", patch_size=8),
    crops=MultiCrop(local_count=10, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25)),
    optim=OptimConfig(min_lr=2e-6, freeze_last_layer=3),
    teacher=TeacherConfig(
        warmup_teacher_temp=0.03, teacher_temp=0.07, warmup_teacher_temp_epochs=50
    ),
    epochs=300,
    batch_size=1056,
    micro_batch=6,
)
