"""The ResNet-50 whose weights were published: LARS, batch norm in the head, 60,000 prototypes.

    torchrun --nproc-per-node=8 scripts/train.py --recipe resnet50 --data imagenet/train \\
        --out runs/resnet50

Settings: the args.txt beside the published weights, as copied in several repositories (80 GPUs x
51 images, fp32), confirmed by the author (facebookresearch/dino, issue 133). Batch norm saw all
4,080 images there; here it sees those of one forward pass over all processes. Published: k-NN
67.5 %, linear 75.3 % (facebookresearch/dino, README). We have not trained it ourselves.

On 8 small GPUs the authors advise --optimizer sgd --lr 0.03 --weight-decay 1e-4
--weight-decay-end 1e-4 with these crops, the default head and 100 epochs of 512 images.
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
    backbone=BackboneConfig("resnet50", patch_size=1, drop_path=0),
    crops=MultiCrop(local_count=6, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14)),
    head=HeadConfig(out_dim=60_000, batch_norm=True),
    optim=OptimConfig(
        optimizer="lars",
        lr=0.3,
        min_lr=0.0048,
        weight_decay=1e-6,
        weight_decay_end=1e-6,
        clip_grad=0,
    ),
    teacher=TeacherConfig(teacher_temp=0.07, warmup_teacher_temp_epochs=50),
    epochs=800,
    batch_size=4080,
    micro_batch=51,
)
