"""Extracting features from image files: images/s, beside the bare forward of the same batches.

    for result in measure("photos/", architecture="vit_small_patch16_224"):
        print(result.name, result.images_per_second, result.share_of_limit)

The limit is the backbone called on pixels that lie ready on the device, at the same batch size,
precision and number of threads. The plain twin reads, decodes, preprocesses and computes image
after image in one process, and asks the last block for all tokens.
"""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from dino_core import distributed
from dino_core.benchmarks.data import readable, write_jpegs
from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured, Phases, in_alternation, ratio
from dino_core.data import Source, open_source
from dino_core.errors import at_least
from dino_core.gallery.extraction import Embedder, default_workers
from dino_core.gallery.features import cls_tokens, model_batches, prepared
from dino_core.gallery.partial import PartialFeatures
from dino_core.models import Model, ModelInfo, create_backbone, device_of
from dino_core.models.preprocess import normalized

GENERATED = 64  # pictures that are made where no data is given


def measure(
    data: str | None = None,
    *,
    architecture: str = "vit_small_patch16_224",
    patch_size: int = 16,
    image_size: int = 224,
    images: int = 64,
    batch_size: int = 16,
    workers: int | None = None,
    threads: int = 0,
    rounds: int = 3,
    device: str = "auto",
) -> list[Measured]:
    """Measure an untrained model of this architecture on `images` images (default: generated ones).

    Raises `UserError` where none of the images can be read.
    """
    at_least(1, images=images, batch_size=batch_size, rounds=rounds)
    at_least(0, workers=workers, threads=threads)
    where, before = device_of(device), torch.get_num_threads()
    info = ModelInfo(architecture, patch_size, image_size)
    model = Model(create_backbone(info), architecture, where)
    workers = default_workers(where) if workers is None else workers
    torch.set_num_threads(threads or distributed.cores())
    try:
        with ExitStack() as stack:
            if data is None:
                data = stack.enter_context(tempfile.TemporaryDirectory())
                write_jpegs(Path(data), min(images, GENERATED))
            return [_measured(model, open_source(data), images, batch_size, workers, rounds)]
    finally:
        torch.set_num_threads(before)


def _measured(
    model: Model, source: Source, images: int, batch_size: int, workers: int, rounds: int
) -> Measured:
    good = readable(source, images)
    indices = [good[i % len(good)] for i in range(images)]
    half = _in_half(model)
    ready = normalized(_pixels(model, source, indices[:1]), model.info)
    ready = ready.to(model.device).expand(batch_size, -1, -1, -1).contiguous()

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.float16, enabled=half):
            for _ in range(-(-images // batch_size)):
                model.backbone(ready)

    def whole() -> None:
        for _ in model_batches(
            model, source, indices, "cls", batch_size, workers, fingerprints=True
        ):
            pass

    def plain() -> None:
        with torch.inference_mode():
            for i in indices:
                x_CHW = model.preprocess(source.image(i))
                model.backbone(x_CHW[None].to(model.device)).cpu().numpy()

    contenders = {"whole": whole, "bare": bare, "plain": plain}
    seconds = in_alternation(contenders, rounds, device=model.device)
    computed = -(-images // batch_size) * batch_size  # the bare forward's last batch is full
    bare_seconds = [spent * images / computed for spent in seconds["bare"]]
    info = model.info
    again = (f"{len(good):,} images can be read and come again and again",)
    return Measured(
        name=f"embed {info.architecture} patch {info.patch_size} at {info.image_size} px",
        hardware=hardware(model.device),
        images_per_second=images / median(seconds["whole"]),
        ratio_to_plain=ratio(seconds["plain"], seconds["whole"]),
        share_of_limit=ratio(bare_seconds, seconds["whole"]),
        limit=f"the bare forward, {images / median(bare_seconds):,.1f} images/s",
        phases=phases(model, source, indices[:batch_size]),
        notes=(
            f"batches of {batch_size}, {workers} decoding processes, {'fp16' if half else 'fp32'}; "
            "phases are of one image, one after the other in one process",
            "may pass the limit: the last block is computed for the class token alone",
            *(again if len(good) < images else ()),
        ),
    )


def phases(model: Model, source: Source, chosen: list[int]) -> dict[str, float]:
    """Milliseconds of each part for one image, in one process: extraction taken apart."""
    clock, run = Phases(model.device), Embedder(model, cls_tokens, half=_in_half(model))
    with clock("read"):
        files = [source.read(i) for i in chosen]
    with clock("decode"):
        pictures = [source.decode(file) for file in files]
    with clock("fingerprint"):
        for i in chosen:
            source.fingerprint(i)
    with clock("preprocess"):
        pixels_BSSC = torch.stack([prepared(picture, model.info) for picture in pictures])
    with clock("forward"):
        found = run(pixels_BSSC)
        array_BD = found() if callable(found) else found
    with tempfile.TemporaryDirectory() as folder:
        part = PartialFeatures(Path(folder), {}, array_BD.shape[1])
        with clock("write"):
            part.append(array_BD, [{"index": i} for i in chosen])
        part.close()
    return clock.per(len(chosen))


def _in_half(model: Model) -> bool:
    """Whether an `Embedder` would go on in fp16."""
    run = Embedder(model, cls_tokens)
    size = model.info.image_size
    run(torch.randint(0, 256, (2, size, size, model.info.channels), dtype=torch.uint8))
    return bool(run.half)


def _pixels(model: Model, source: Source, chosen: list[int]) -> Tensor:
    prepare = partial(prepared, info=model.info)
    return torch.stack([prepare(source.image(i)) for i in chosen])
