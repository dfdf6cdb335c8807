"""Multi-crop augmentation: which crops and colors a view gets, and making it so.

`plan_views` decides from a key alone; `crop_views` cuts uint8 crops on the CPU (in the loader's
workers), `photometric` changes the colors of a whole batch on the device. `pil_view` is the plain
twin of both.
"""

from dino_core.augment.config import GLOBAL_VIEWS, MultiCrop
from dino_core.augment.crop import crop_views
from dino_core.augment.photometric import PhotometricBatch, photometric
from dino_core.augment.pil import pil_view
from dino_core.augment.plan import Box, ViewPlan, plan_view, plan_views
from dino_core.augment.sheet import sheet

__all__ = [
    "GLOBAL_VIEWS",
    "Box",
    "MultiCrop",
    "PhotometricBatch",
    "ViewPlan",
    "crop_views",
    "photometric",
    "pil_view",
    "plan_view",
    "plan_views",
    "sheet",
]
