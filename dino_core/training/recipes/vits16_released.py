"""The ViT-S/16 whose weights were published: 800 epochs, ten local crops, no clipping.

    torchrun --nproc-per-node=8 scripts/train.py --recipe vits16_released --data imagenet/train \\
        --out runs/vits16_released

Settings: the args.txt beside the published weights, as copied in several repositories (16 GPUs x
64 images, fp32). Published: k-NN 74.5 %, linear 77.0 % (facebookresearch/dino, README). We have
not trained it ourselves.
"""

from dino_core.augment import MultiCrop
from dino_core.training.recipe import HeadConfig, OptimConfig, Recipe, TeacherConfig

RECIPE = Recipe(
    crops=MultiCrop(local_count=10, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25)),
    head=HeadConfig(norm_last_layer=False),
    optim=OptimConfig(min_lr=1e-5, clip_grad=0),
    teacher=TeacherConfig(teacher_temp=0.07, warmup_teacher_temp_epochs=30),
    epochs=800,
    batch_size=1024,
    micro_batch=64,
)
