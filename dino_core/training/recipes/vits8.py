"""The ViT-S/8 whose weights were published: four times the tokens of a ViT-S/16.

    torchrun --nproc-per-node=8 scripts/train.py --recipe vits8 --data imagenet/train \\
        --out runs/vits8

Settings: 64 GPUs x 16 images in fp32, by the author (facebookresearch/dino, issue 104); the rest
from a copy of the published args.txt, less certain than the others': one copy was found, and the
crop scales of the ViT-S/16 differ. Published: k-NN 78.3 %, linear 79.7 %
(facebookresearch/dino, README). We have not trained it ourselves.
"""

from dino_core.augment import MultiCrop
from dino_core.training.recipe import BackboneConfig, HeadConfig, Recipe, TeacherConfig

RECIPE = Recipe(
    backbone=BackboneConfig("vit_small_patch8_224", patch_size=8),
    crops=MultiCrop(local_count=10),
    head=HeadConfig(norm_last_layer=False),
    teacher=TeacherConfig(teacher_temp=0.07, warmup_teacher_temp_epochs=30),
    epochs=800,
    batch_size=1024,
    micro_batch=16,
)
