"""One pass of a plain ViT over images of several sizes, for their class tokens alone.

Everything in a ViT but attention treats each token by itself. So the tokens of all images, of
whatever sizes, stand in one long row; only attention looks at the tokens of one image at a time.
Half the launches on a GPU, and larger matrix products.

In the last block nothing but the class token is asked for, so there only keys and values are made
of all tokens; query, projection and MLP of the class token alone. That leaves out 10 of the 12 D^2
multiplications per token of that block, 7 % of a ViT of 12 blocks, and changes no result.

The plain twin is the backbone itself, size by size: `torch.cat([backbone(x) for x in groups])`.

Shape legend: T tokens of all images, one after the other; B images and N tokens of a group;
M images of all groups; H heads of width E; D = H * E.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dino_core.models.backbone import Backbone
from dino_core.models.vit import VitBackbone

Sizes = tuple[tuple[int, int], ...]  # images and tokens per image of each group
GRAPHS = 64  # most of `packed_block` in one process: a few for each architecture and crop size
BlockFunction = Callable[[Any, Tensor, Sizes, Tensor | None, torch.dtype], Tensor]


def can_pack(backbone: Backbone) -> bool:
    """Whether `class_tokens` knows this backbone: timm's plain blocks, and no rotary positions."""
    if not isinstance(backbone, VitBackbone) or getattr(backbone.vit, "rope", None) is not None:
        return False
    return all(_is_plain(block) for block in backbone.vit.blocks)


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    unknown = [block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm]
    dropouts = [block.attn.attn_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2]
    return (
        all(isinstance(module, nn.Identity) for module in unknown)
        and all(getattr(module, "p", 0) == 0 for module in dropouts)
        and getattr(block.attn, "gate", None) is None
        and isinstance(block.norm1, nn.LayerNorm)
    )


def class_tokens(
    backbone: VitBackbone,
    groups: Sequence[Tensor],
    residual: torch.dtype = torch.float32,
    block_function: BlockFunction | None = None,
) -> Tensor:
    """The class token of every image after the final norm: float32 [M, D], in the groups' order.

    `groups` are float [B, C, S, S], each of its own size S. Under autocast, matrix products run in
    its dtype, and the stream that blocks add to is kept as `residual`. In training, drop path draws
    from torch's global generator as timm does, group by group. `block_function` takes the place of
    `packed_block` (compiled, for one).
    """
    run = block_function or packed_block
    device = groups[0].device.type
    embedded = [backbone.embed(images)[0] for images in groups]
    sizes: Sizes = tuple((x_BND.shape[0], x_BND.shape[1]) for x_BND in embedded)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with torch.autocast(device, enabled=False):
        x_TD = torch.cat([x_BND.flatten(0, 1) for x_BND in embedded])
        dtype = dtype or x_TD.dtype
        x_TD = x_TD.to(residual if dtype != torch.float32 else torch.float32)
        blocks = list(backbone.vit.blocks)
        scales = _drop_path_scales(blocks, sizes, x_TD.device, dtype)
        for block, scale_2M in zip(blocks[:-1], scales[:-1], strict=True):
            scale_2T = None if scale_2M is None else _for_tokens(scale_2M, sizes)
            x_TD = run(block, x_TD, sizes, scale_2T, dtype)
        x_MD = _last_block(blocks[-1], x_TD, sizes, scales[-1], dtype)
        norm = backbone.vit.norm
        return F.layer_norm(x_MD.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def packed_block(
    block: Any, x_TD: Tensor, sizes: Sizes, scale_2T: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """One block on the tokens of all images, matrix products in `dtype`.

    `scale_2T` is what drop path multiplies each token's two branches by; None for 1. Nothing here
    depends on which block it is but its weights, so that one compiled graph serves all of them.
    """
    scale1_T, scale2_T = (None, None) if scale_2T is None else scale_2T.unbind(0)
    y_TD = _attention(block.attn, _normed(block.norm1, x_TD, dtype), sizes)
    x_TD = _added(x_TD, block.ls1(y_TD), scale1_T)
    y_TD = _mlp(block.mlp, _normed(block.norm2, x_TD, dtype))
    return _added(x_TD, block.ls2(y_TD), scale2_T)


@cache
def compiled_block() -> BlockFunction:
    """`packed_block` compiled: one graph for every set of sizes, whatever the number of blocks.

    Without autotuning, which would choose kernels by the clock: two runs could differ.
    """
    # Every architecture in a process has its own graphs; torch stops compiling after eight of one
    # function, with no more than a warning.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    return torch.compile(packed_block, dynamic=False)


def _last_block(
    block: Any, x_TD: Tensor, sizes: Sizes, scale_2M: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The last block for the class tokens alone, [T, D] to [M, D]."""
    scale1_M, scale2_M = (None, None) if scale_2M is None else scale_2M.unbind(0)
    y_MD = _class_attention(block.attn, _normed(block.norm1, x_TD, dtype), sizes)
    x_MD = _added(_class_rows(x_TD, sizes), block.ls1(y_MD), scale1_M)
    y_MD = _mlp(block.mlp, _normed(block.norm2, x_MD, dtype))
    return _added(x_MD, block.ls2(y_MD), scale2_M)


def _attention(attn: Any, x_TD: Tensor, sizes: Sizes) -> Tensor:
    """Multi-head self-attention of every token within its image."""
    qkv_T3D = _linear(x_TD, attn.qkv.weight, attn.qkv.bias)
    mixed = []
    for part, (images, tokens) in zip(qkv_T3D.split(_lengths(sizes)), sizes, strict=True):
        qkv_3BHNE = part.view(images, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BHNE, k_BHNE, v_BHNE = qkv_3BHNE.unbind(0)
        mixed.append(_mix(q_BHNE, k_BHNE, v_BHNE, attn.scale))
    return _linear(torch.cat(mixed), attn.proj.weight, attn.proj.bias)


def _class_attention(attn: Any, x_TD: Tensor, sizes: Sizes) -> Tensor:
    """What the class token of each image takes from all its tokens, [T, D] to [M, D]."""
    width = x_TD.shape[1]
    weight_q, weight_kv = attn.qkv.weight.split([width, 2 * width])
    bias_q, bias_kv = (
        (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
    )
    kv_T2D = _linear(x_TD, weight_kv, bias_kv)
    q_MD = _linear(_class_rows(x_TD, sizes), weight_q, bias_q)
    mixed = []
    parts = zip(kv_T2D.split(_lengths(sizes)), q_MD.split([b for b, _ in sizes]), strict=True)
    for (kv, q_BD), (images, tokens) in zip(parts, sizes, strict=True):
        kv_2BHNE = kv.view(images, tokens, 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BH1E = q_BD.view(images, 1, attn.num_heads, -1).transpose(1, 2)
        k_BHNE, v_BHNE = kv_2BHNE.unbind(0)
        mixed.append(_mix(q_BH1E, k_BHNE, v_BHNE, attn.scale))
    return _linear(torch.cat(mixed), attn.proj.weight, attn.proj.bias)


def _mix(q_BHQE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v for Q queries an image, as rows [B * Q, D].

    On a CPU in half precision through plain matrix products: the backward of torch's fused kernel
    takes more than a third of a training step there (docs/log.md).
    """
    images, heads, queries, _ = q_BHQE.shape
    if q_BHQE.device.type == "cpu" and q_BHQE.dtype != torch.float32:
        q, k, v = (x.flatten(0, 1) for x in (q_BHQE, k_BHNE, v_BHNE))
        # The scale goes into the product: beta = 0 leaves the first argument unread.
        scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
        y_BHQE = (scores.softmax(dim=-1) @ v).view(images, heads, queries, -1)
    else:
        y_BHQE = F.scaled_dot_product_attention(q_BHQE, k_BHNE, v_BHNE, scale=scale)
    return y_BHQE.transpose(1, 2).reshape(images * queries, -1)


def _mlp(mlp: Any, x_TD: Tensor) -> Tensor:
    hidden = mlp.act(_linear(x_TD, mlp.fc1.weight, mlp.fc1.bias))
    return _linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _normed(norm: nn.LayerNorm, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
    """Layer norm computed in float32, the result in `dtype`."""
    if x_TD.device.type != "cpu" or x_TD.dtype != dtype:  # a CPU's kernel reads both types at once
        x_TD = x_TD.float()
    normed = F.layer_norm(x_TD, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return normed.to(dtype)


def _added(x_TD: Tensor, y_TD: Tensor, scale_T: Tensor | None) -> Tensor:
    """The stream with a branch's result added, in the stream's dtype."""
    y_TD = y_TD if scale_T is None else y_TD * scale_T[:, None]
    return (x_TD + y_TD).to(x_TD.dtype)


def _drop_path_scales(
    blocks: Sequence[Any], sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> list[Tensor | None]:
    """Per block: [2, M], 0 where drop path leaves a branch out, 1 / keep where not; None for all 1.

    Drawn in the order in which timm draws when it runs size after size, so that the twins agree.
    """
    draws: list[list[Tensor]] = [[] for _ in blocks]
    for images, _ in sizes:
        for block, drawn in zip(blocks, draws, strict=True):
            rates = [_rate(block.drop_path1), _rate(block.drop_path2)]
            if any(rates):
                drawn.append(
                    torch.stack([_kept(images, 1 - rate, device, dtype) for rate in rates])
                )
    return [torch.cat(drawn, dim=1) if drawn else None for drawn in draws]


def _rate(drop_path: nn.Module) -> float:
    dropping = isinstance(drop_path, DropPath) and drop_path.training
    return drop_path.drop_prob or 0.0 if dropping else 0.0  # type: ignore[return-value]


def _kept(images: int, keep: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    if keep == 1:
        return torch.ones(images, device=device, dtype=dtype)
    return torch.empty(images, device=device, dtype=dtype).bernoulli_(keep).div_(keep)


def _for_tokens(scale_2M: Tensor, sizes: Sizes) -> Tensor:
    """Each image's scales for all its tokens: [2, M] to [2, T]."""
    parts = zip(scale_2M.split([images for images, _ in sizes], dim=1), sizes, strict=True)
    return torch.cat(
        [scale_2B[:, :, None].expand(-1, -1, n).flatten(1) for scale_2B, (_, n) in parts], dim=1
    )


def _class_rows(x_TD: Tensor, sizes: Sizes) -> Tensor:
    """The first token of every image, [M, D]."""
    parts = zip(x_TD.split(_lengths(sizes)), sizes, strict=True)
    return torch.cat([part.view(images, tokens, -1)[:, 0] for part, (images, tokens) in parts])


def _lengths(sizes: Sizes) -> list[int]:
    return [images * tokens for images, tokens in sizes]
