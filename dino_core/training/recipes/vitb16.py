"""The ViT-B/16 whose weights were published: 400 epochs, prototypes still for the first three.

    torchrun --nproc-per-node=8 scripts/train.py --recipe vitb16 --data imagenet/train \\
        --out runs/vitb16

Settings: the args.txt beside the published weights, as copied in several repositories (32 GPUs x
32 images, fp32). Published: k-NN 76.1 %, linear 78.2 % (facebookresearch/dino, README). We have
not trained it ourselves.
"""

from dino_core.augment import MultiCrop
from dino_core.training.recipe import BackboneConfig, OptimConfig, Recipe, TeacherConfig

RECIPE = Recipe(
    backbone=BackboneConfig("vit_base_patch16_224"),
    crops=MultiCrop(local_count=10, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25)),
    optim=OptimConfig(lr=0.00075, min_lr=2e-6, clip_grad=0.3, freeze_last_layer=3),
    teacher=TeacherConfig(teacher_temp=0.07, warmup_teacher_temp_epochs=50),
    epochs=400,
    batch_size=1024,
    micro_batch=32,
)
