"""No N x N map is held: what a look and a rollout at the size of a photo need, in a fresh process.

768 x 1152 px make 3,457 tokens with a ViT-S/16, whose full maps of all layers are 3.4 GB in fp32.
"""

import json
import subprocess
import sys

import pytest

LIMIT = 1.5e9  # bytes

# VmHWM is the peak of this program alone; getrusage's ru_maxrss, the fallback where there is no
# /proc, starts at the peak of the process that launched it.
PROGRAM = """
import json, pathlib, resource, sys
import numpy as np
import torch
from dino_core.lenses import look
from dino_core.lenses.rollout import rollout
from dino_core.models import Model, ModelInfo, create_backbone

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.manual_seed(0)
backbone = create_backbone(ModelInfo("vit_small_patch16_224", 16, 224)).freeze()
model = Model(backbone, "random", torch.device("cpu"))
image = np.random.default_rng(0).integers(0, 256, (768, 1152, 3), np.uint8)
if sys.argv[1] == "look":
    shape = look(model, image, size=768, query=(20, 30)).maps.shape
else:
    shape = rollout(model, image, size=768).shape
print(json.dumps({"shape": shape, "peak": peak()}))
"""


@pytest.mark.soak  # 10 seconds and more each where others compute, too
@pytest.mark.parametrize(("lens", "shape"), [("look", [12, 6, 48, 72]), ("rollout", [48, 72])])
def test_a_photo_takes_less_than_one_and_a_half_gigabytes(lens, shape):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, lens], capture_output=True, text=True, check=True
    )
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["shape"] == shape
    assert said["peak"] < LIMIT
