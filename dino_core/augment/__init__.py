"""Multi-crop augmentation: which crops and colors a view gets, and making it so.

`plan_views` decides from a key alone, `plan_batch` the same for many images at once. `crop_views`
cuts uint8 crops on the CPU (in the loader's workers), `crop_products` out of pixels that lie on the
device; `photometric` changes the colors of a whole batch there. `pil_view` is the plain twin.
"""

from dino_core.augment.config import GLOBAL_VIEWS, MultiCrop
from dino_core.augment.crop import crop_into, crop_views
from dino_core.augment.photometric import PhotometricBatch, photometric
from dino_core.augment.pil import pil_view
from dino_core.augment.plan import Box, ViewPlan, plan_view, plan_views
from dino_core.augment.planning import Plans, plan_batch
from dino_core.augment.products import CropBatch, crop_products
from dino_core.augment.sheet import sheet

__all__ = [
    "GLOBAL_VIEWS",
    "Box",
    "CropBatch",
    "MultiCrop",
    "PhotometricBatch",
    "Plans",
    "ViewPlan",
    "crop_into",
    "crop_products",
    "crop_views",
    "photometric",
    "pil_view",
    "plan_batch",
    "plan_view",
    "plan_views",
    "sheet",
]
