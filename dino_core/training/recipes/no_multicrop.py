"""ViT-S/16 on two large crops alone: what multi-crop is worth.

    torchrun --nproc-per-node=8 scripts/train.py --recipe no_multicrop --data imagenet/train \\
        --out runs/no_multicrop

Settings: the author's (facebookresearch/dino, issue 122; 16 GPUs x 64 images); the teacher's
temperature, not said there, as in the paper. Published: k-NN 67.9 %, linear 72.5 % (paper, the
ablation without multi-crop and the table of time and memory). We have not trained it ourselves.
"""

from dino_core.augment import MultiCrop
from dino_core.training.recipe import OptimConfig, Recipe, TeacherConfig

RECIPE = Recipe(
    crops=MultiCrop(local_count=0, global_scale=(0.14, 1.0)),
    optim=OptimConfig(min_lr=1e-5, clip_grad=0),
    teacher=TeacherConfig(teacher_temp=0.07, warmup_teacher_temp_epochs=30),
    epochs=300,
    batch_size=1024,
    micro_batch=64,
)
