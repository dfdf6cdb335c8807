"""ONNX: feature, patch tokens and the last layer's class-token attention, for any batch and size.

Inputs are normalized images float32 [B, C, H, W], H and W multiples of the patch size (mean and
deviation are in the file's metadata). Outputs: `cls` [B, D], `patch_tokens` [B, N, D] and, but for
convolutional networks, `last_attention` [B, heads, prefix + N], each row summing to 1.

What is written is run beside the model before it appears under its name: one that differs is an
error. `onnx`, `onnxscript` and `onnxruntime` are needed, the extra `export`.

Shape legend: B images, C channels, H x W pixels, h x w patches, N = h w, D width, P prefix tokens.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.models.attention import cls_rows, last_row
from dino_core.models.backbone import Backbone
from dino_core.models.info import PosEmbedMode
from dino_core.models.model import Model
from dino_core.models.pos_embed import OFFSET
from dino_core.models.vit import VitBackbone
from dino_core.models.xcit import XcitBackbone
from dino_core.rng import torch_seed

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest value of an output; fp32 in another order makes 1e-6 to 1e-5
OUTPUTS = ("cls", "patch_tokens", "last_attention")


@dataclass(frozen=True)
class Exported:
    """What was written and how it was checked."""

    outputs: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) in pixels of the images that it was checked with."""
    difference: float
    """Largest difference from the model, as a share of the largest value of that output."""


def export_onnx(model: Model, path: Path, size: int | None = None) -> Exported:
    """Write `path` for images of any size, or of `size` x `size` px alone; check it; say how well.

    `model` on the CPU. Raises `UserError` when a package is missing, the network cannot be written
    for all sizes, or the file does not compute what the model does.
    """
    if path.suffix != ".onnx":
        raise UserError(f"{path}: an ONNX model is one file; let its name end in .onnx")
    onnx, _, runtime = _packages()
    network = Traced(model.backbone, fixed=size is not None)
    if size is None and not network.any_size:
        raise UserError(
            f"{model.spec}: the positions of {model.info.architecture} cannot be written for every "
            "size; give the one that you need, e.g. --size 224"
        )
    sizes = _sizes(model) if size is None else ((size, size),)
    for height, width in sizes:  # a wrong size is told now; tables kept per size are real ones
        _expected(model.backbone, _images(model, 1, height, width))
    outputs = OUTPUTS if model.backbone.depth else OUTPUTS[:2]
    with whole_file(path) as aside:
        program = _traced(network, _images(model, 2, *sizes[-1]), outputs, fixed=size is not None)
        proto = program.model_proto
        onnx.helper.set_model_props(proto, model.info.to_metadata())
        onnx.save(proto, aside)
        difference = _check(model, runtime, aside, sizes)
    return Exported(outputs, sizes, difference)


class Traced(nn.Module):
    """A backbone whose forward pass holds its size as a variable, and gives all three outputs."""

    def __init__(self, backbone: Backbone, *, fixed: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.fixed = fixed

    @property
    def any_size(self) -> bool:
        """Whether the positions can be computed for a size that is not known yet."""
        if isinstance(self.backbone, XcitBackbone):
            return False
        rope: Any = getattr(self.backbone.vit, "rope", None)
        return rope is None or (
            hasattr(rope, "periods")
            and getattr(rope, "normalize_coords", "") == "separate"
            and getattr(rope, "grid_indexing", "") == "ij"
            and not rope.grid_offset
        )

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Images to (cls, patch tokens[, last attention])."""
        backbone = self.backbone
        if not backbone.depth:
            x_BND = backbone.tokens(x_BCHW)
            return x_BND[:, 0], x_BND[:, 1:]
        with last_row(backbone.vit) as rows:
            vit = isinstance(backbone, VitBackbone) and not self.fixed
            x_BND = self._vit_tokens(x_BCHW) if vit else backbone.tokens(x_BCHW)
        return x_BND[:, 0], x_BND[:, backbone.num_prefix_tokens :], rows[0]

    def _vit_tokens(self, x_BCHW: Tensor) -> Tensor:
        """As `VitBackbone.tokens`, its twin, with nothing decided by the size."""
        vit = self.backbone.vit
        patches_BDhw = vit.patch_embed.proj(x_BCHW)
        grid = patches_BDhw.shape[-2:]
        x_BND = vit.patch_embed.norm(patches_BDhw.flatten(2).transpose(1, 2))
        prefix = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        prefix_BPD = torch.cat(prefix, dim=1).expand(x_BND.shape[0], -1, -1)
        if vit.pos_embed is not None:
            count = 0 if vit.no_embed_class else prefix_BPD.shape[1]
            x_BND = x_BND + self._pos_embed(vit.pos_embed[:, count:], *grid)
            prefix_BPD = prefix_BPD + vit.pos_embed[:, :count] if count else prefix_BPD
        x_BND = vit.norm_pre(torch.cat([prefix_BPD, x_BND], dim=1))
        rope = getattr(vit, "rope", None) and rotary(vit.rope, *grid)
        for block in vit.blocks:
            x_BND = block(x_BND) if rope is None else block(x_BND, rope=rope)
        return vit.norm(x_BND)

    def _pos_embed(self, patches_1ND: Tensor, h: int, w: int) -> Tensor:
        """The position embedding of the patches, [1, h * w, D]; at the native grid unchanged."""
        native_H, native_W = self.backbone.vit.patch_embed.grid_size
        mode = self.backbone.info.pos_embed
        rows_hH, same_rows = resize_matrix(native_H, torch.arange(h), mode)
        columns_wW, same_columns = resize_matrix(native_W, torch.arange(w), mode)
        same = same_rows & same_columns
        rows_hH = torch.where(same, _identity(rows_hH), rows_hH)
        columns_wW = torch.where(same, _identity(columns_wW), columns_wW)
        patches_HWD = patches_1ND.reshape(native_H, native_W, -1)
        patches_hWD = torch.einsum("hH,HWD->hWD", rows_hH, patches_HWD)
        patches_hwD = torch.einsum("wW,hWD->hwD", columns_wW, patches_hWD)
        return patches_hwD.reshape(1, h * w, -1)


def resize_matrix(native: int, steps: Tensor, mode: PosEmbedMode) -> tuple[Tensor, Tensor]:
    """As `pos_embed.resize_matrix`, its twin, in arithmetic; and whether nothing is to be resized.

    `steps`: 0, 1, ... wanted - 1, so that the wanted length need not be known. The kernel is
    Keys' cubic, with the constants that torch uses: -0.75, and -0.5 with antialiasing.
    """
    wanted = (steps[-1] + 1).double()
    at = steps.double()[:, None] + 0.5
    native_1H = torch.arange(native)[None]
    if mode == "dino":
        source = at / ((wanted + OFFSET) / native) - 0.5
        first = source.floor()
        matrix = torch.zeros(1, dtype=torch.double)
        for tap in (-1, 0, 1, 2):  # beyond the border its last value goes on
            weight = _cubic(source - first - tap, -0.75)
            matrix = matrix + weight * ((first + tap).clamp(0, native - 1) == native_1H)
    else:
        scale = native / wanted
        weight = _cubic((native_1H + 0.5 - at * scale) / scale.clamp(min=1), -0.5)
        matrix = weight / weight.sum(dim=1, keepdim=True)
    return matrix.float(), wanted == native


def rotary(rope: Any, h: int, w: int) -> Tensor:
    """DINOv3's sine and cosine, [h * w, 2 * head width], as timm's module computes them."""
    rows, columns = torch.arange(h), torch.arange(w)
    at_h = (rows + 0.5) / (rows[-1] + 1)
    at_w = (columns + 0.5) / (columns[-1] + 1)
    at_hw2 = torch.stack(torch.meshgrid(at_h, at_w, indexing="ij"), dim=-1)
    at_N2 = (2 * at_hw2 - 1).flatten(0, 1)
    angles = (2 * math.pi * at_N2[:, :, None] / rope.periods).flatten(1)
    both = [angles.sin(), angles.cos()]
    half = rope.rotate_half
    spread = [a.repeat(1, 2) if half else a.repeat_interleave(2, dim=-1) for a in both]
    return torch.cat(spread, dim=-1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _identity(matrix: Tensor) -> Tensor:
    rows, columns = torch.arange(matrix.shape[0]), torch.arange(matrix.shape[1])
    return (rows[:, None] == columns[None]).float()


def _traced(network: Traced, images: Tensor, outputs: tuple[str, ...], *, fixed: bool) -> Any:
    free = torch.export.Dim.DYNAMIC
    shapes = {0: free} if fixed else {0: free, 2: free, 3: free}
    try:
        with _quiet():
            return torch.onnx.export(
                network.eval(),
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=list(outputs),
                dynamic_shapes={"x_BCHW": shapes},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        architecture = network.backbone.info.architecture
        hint = "take another torch or report this" if fixed else "give one size with --size"
        raise UserError(
            f"torch {torch.__version__} cannot write {architecture} as ONNX; {hint}"
        ) from error


def _check(model: Model, runtime: Any, path: Path, sizes: tuple[tuple[int, int], ...]) -> float:
    """Run file and model on the same noise, and return the largest difference; or `UserError`."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, (height, width) in enumerate(sizes, start=1):
        images = _images(model, batch, height, width)
        expected = _expected(model.backbone, images)
        given = session.run(None, {"images": images.numpy()})
        names = OUTPUTS[: len(expected)]
        for name, theirs, ours in zip(names, given, expected, strict=True):
            difference = (torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max()
            worst = max(worst, float(difference))
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{model.spec}: at {height} x {width} px the ONNX model's {name} is off by "
                    f"{float(difference):.1%}, so it was not kept; give one size with --size, "
                    "and report this"
                )
    return worst


def _expected(backbone: Backbone, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        x_BND = backbone.tokens(images)
    outputs = [x_BND[:, 0], x_BND[:, backbone.num_prefix_tokens :]]
    return [*outputs, cls_rows(backbone, images)[-1]] if backbone.depth else outputs


def _sizes(model: Model) -> tuple[tuple[int, int], ...]:
    """The native size, and one that is neither native nor square."""
    info = model.info
    step = info.patch_size if info.patch_size > 1 else 32
    native = -(-info.image_size // step) * step
    return (native, native), (max(native // 2 // step, 1) * step, native + step)


def _images(model: Model, batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(torch_seed(0, "onnx", height, width))
    return torch.randn(batch, model.info.channels, height, width, generator=generator)


def _packages() -> tuple[Any, ...]:
    missing = []
    found = []
    for name in PACKAGES:
        try:
            found.append(import_module(name))
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: install with pip install '.[export]', "
            f"or pip install {' '.join(missing)}"
        )
    return tuple(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings about its own insides from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
