"""The paper's vanilla ViT-S/16, 100 epochs of ImageNet.

    python scripts/train.py --recipe vits16 --data imagenet/train --out runs/vits16

Published with a global batch of 512 (8 x 64): k-NN 69.3 %, linear 74.0 %
(facebookresearch/dino, README). We have not trained it ourselves.
"""

from dino_core.training.recipe import Recipe

RECIPE = Recipe(batch_size=512, micro_batch=64)
