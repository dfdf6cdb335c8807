"""A contact sheet of an image's augmentations, to look at what training will see.

sheet(Image.open("dog.jpg"), MultiCrop()).save("sheet.png")
"""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino_core.augment.config import GLOBAL_VIEWS, MultiCrop
from dino_core.augment.crop import crop_views
from dino_core.augment.photometric import PhotometricBatch, photometric
from dino_core.augment.plan import ViewPlan, plan_views

GAP = 8  # pixels between pictures
LEGIBLE = 160  # smaller global crops are enlarged by a whole factor to about this side
PAPER = (255, 255, 255)
GLOBAL_COLOR, LOCAL_COLOR = (79, 70, 229), (245, 158, 11)


def sheet(
    image: np.ndarray | Image.Image,
    config: MultiCrop,
    seed: int = 0,
    rows: int = 4,
    index: int = 0,
) -> Image.Image:
    """Draw `rows` independent draws of an image's views, through the path that training uses.

    Each row has the image with the boxes of the crops (global in indigo, local in amber), the two
    global crops, and the local ones. `image` is uint8 [H, W, C] or a Pillow image; of other than
    three channels, the first three are shown as red, green and blue (the first alone as gray).
    With the `index` that the image has in its source, these are the views that training draws.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    height, width = pixels.shape[:2]
    pictures = []
    for epoch in range(rows):
        plans = plan_views(config, seed, epoch, index, height=height, width=width)
        views = _views(pixels, plans)
        overview = _overview(pixels, plans, side=views[0].height)
        pictures.append([overview, *views[:GLOBAL_VIEWS], _block(views)])
    return _grid(pictures)


def stacked(pages: list[Image.Image]) -> Image.Image:
    """Sheets of several images, one below the other."""
    return _grid([[page] for page in pages])


def _views(pixels: np.ndarray, plans: list[ViewPlan]) -> list[Image.Image]:
    """Each planned view as a picture, small ones enlarged."""
    crops = crop_views(pixels, plans)
    zoom = max(1, round(LEGIBLE / plans[0].size))
    pictures = []
    for crop_CSS, plan in zip(crops, plans, strict=True):
        batch = PhotometricBatch.collate([plan])
        zeros, ones = [0.0] * len(crop_CSS), [1.0] * len(crop_CSS)
        view_1CSS = photometric(crop_CSS.unsqueeze(0), batch, mean=zeros, std=ones)
        side = plan.size * zoom
        pictures.append(_picture(view_1CSS[0]).resize((side, side), Image.Resampling.NEAREST))
    return pictures


def _picture(view_CSS: Tensor) -> Image.Image:
    """A float image in [0, 1] as a Pillow image."""
    pixels = view_CSS.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(visible(pixels))


def visible(pixels: np.ndarray) -> np.ndarray:
    """An image of any number of channels [H, W, C] as RGB [H, W, 3], to be looked at."""
    channels = pixels.shape[2]
    if channels == 3:
        return pixels
    shown = [0, 0, 0] if channels == 1 else [0, 1, min(2, channels - 1)]
    return np.ascontiguousarray(pixels[:, :, shown])


def _overview(pixels: np.ndarray, plans: list[ViewPlan], side: int) -> Image.Image:
    """The whole image, its longer side `side`, with every view's box."""
    picture = Image.fromarray(visible(pixels))
    scale = side / max(picture.size)
    picture = picture.resize([max(1, round(length * scale)) for length in picture.size])
    pen = ImageDraw.Draw(picture)
    for plan in reversed(plans):  # the global boxes on top
        box = plan.box
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        color = GLOBAL_COLOR if plan.view < GLOBAL_VIEWS else LOCAL_COLOR
        pen.rectangle([round(corner * scale) for corner in corners], outline=color, width=2)
    return picture


def _block(views: list[Image.Image]) -> Image.Image:
    """The local crops in columns as high as a global one."""
    local = views[GLOBAL_VIEWS:]
    if not local:
        return Image.new("RGB", (1, 1), PAPER)
    high = max(1, views[0].height // local[0].height)
    return _grid([local[start::high] for start in range(min(high, len(local)))])


def _grid(pictures: list[list[Image.Image]]) -> Image.Image:
    """Pictures in rows, each column as wide as its widest picture."""
    widths = [
        max(row[column].width for row in pictures if column < len(row))
        for column in range(max(map(len, pictures)))
    ]
    heights = [max(picture.height for picture in row) for row in pictures]
    width = sum(widths) + GAP * (len(widths) - 1)
    paper = Image.new("RGB", (width, sum(heights) + GAP * (len(heights) - 1)), PAPER)
    top = 0
    for row, height in zip(pictures, heights, strict=True):
        left = 0
        for picture, cell in zip(row, widths, strict=False):
            paper.paste(picture, (left, top))
            left += cell + GAP
        top += height + GAP
    return paper
