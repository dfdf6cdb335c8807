"""The CLS token's attention row in every layer and head of a timm ViT, exact, at no extra cost.

Fused attention never shows its weights, and keeping full N x N maps costs gigabytes at photo
sizes. But one row of the softmax needs only the CLS query and the keys, and both exist already:
they are read at the output of `attn.qkv` while the model runs, one row is computed, and the rest
is let go. Nothing in the model is changed, fused attention stays on.

Covered: plain ViTs (DINO v1, DINOv2 with and without registers), Eva blocks with rotary embeddings
(DINOv3, EUPE), query/key norms, separate q/k projections, grouped keys, and the class-attention
layers of XCiT (its other blocks attend between channels, which is no map of the image).

    rows = cls_rows(backbone, images)               # [L, B, heads, prefix + N]
    with recorded_rows(backbone.vit) as rows:       # or: beside what a forward is run for
        tokens = backbone.tokens(images)            # rows is now a list of L tensors

Shape legend: B images, N tokens (prefix first), A heads, D head width, L layers.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.cait import ClassAttn
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import Tensor, nn

from dino_core.errors import UserError


def cls_rows(backbone: Any, images: Tensor) -> Tensor:
    """Attention of the CLS token to every token, for every layer and head.

    `backbone`: a `Backbone`; `images`: float [B, 3, H, W], H and W multiples of the patch size.
    Returns float32 [L, B, heads, prefix + N], each row summing to 1, without gradients. Safe to
    call from many threads at once.
    Raises `UserError` for a model without a CLS token or with blocks of another kind.
    """
    twin = unshared(backbone)  # many threads may look through one model
    with torch.no_grad(), recorded_rows(twin.vit) as rows:
        twin(images)
    return torch.stack(rows)


@contextmanager
def recorded_rows(vit: nn.Module) -> Iterator[list[Tensor]]:
    """While open, each forward of `vit` refills the yielded list: L tensors [B, heads, N], float32.

    The rows are detached; any forward will do (features, tokens, training under autocast). Hooks
    stand on `vit` itself meanwhile, so no other thread may run it. Raises `UserError` as `cls_rows`
    does.
    """
    with _tapped(attention_modules(vit)) as rows:
        yield rows


@contextmanager
def last_row(vit: nn.Module) -> Iterator[list[Tensor]]:
    """As `recorded_rows`, of the last layer alone: a list of one tensor."""
    with _tapped(attention_modules(vit)[-1:]) as rows:
        yield rows


@contextmanager
def last_keys(vit: nn.Module) -> Iterator[list[Tensor]]:
    """While open, each forward fills the list with the keys of the last layer: [B, heads, N, D].

    In float32, as they enter the product with the queries: after a key norm and rotary embeddings.
    """
    with _tapped(attention_modules(vit)[-1:], _all_keys) as keys:
        yield keys


def _cls_row(q_BAD: Tensor, k_BAND: Tensor, scale: float) -> Tensor:
    return (torch.einsum("bad,band->ban", q_BAD, k_BAND) * scale).softmax(dim=-1)


def _all_keys(q_BAD: Tensor, k_BAND: Tensor, scale: float) -> Tensor:
    return k_BAND


@contextmanager
def _tapped(
    modules: list[nn.Module], read: Callable[[Tensor, Tensor, float], Tensor] = _cls_row
) -> Iterator[list[Tensor]]:
    rows: list[Tensor] = []
    with ExitStack() as stack:
        for layer, module in enumerate(modules):
            tap = _Tap(module, rows, read, first=layer == 0)
            for handle in tap.hooks():
                stack.callback(handle.remove)
        yield rows


def attention_modules(vit: nn.Module) -> list[nn.Module]:
    """The attention module of each layer that the CLS token is in, first layer first.

    Raises `UserError` where CLS rows cannot be had: convolutional networks, models without a CLS
    token (average-pooled), or blocks that do not keep queries and keys apart from the rest.
    """
    name = type(vit).__name__
    if isinstance(vit, ResNet | ConvNeXt):
        raise UserError(
            f"{name}: a convolutional network has no class token and no attention to show; "
            "look with a ViT or an XCiT"
        )
    if getattr(vit, "cls_token", None) is None:
        raise UserError(f"{name}: this model has no CLS token, so it has no CLS attention to show")
    blocks = getattr(vit, "cls_attn_blocks", None) or getattr(vit, "blocks", None) or []
    modules = [getattr(block, "attn", None) for block in blocks]
    known = [module for module in modules if isinstance(module, nn.Module) and _has_qk(module)]
    if not modules or len(known) != len(modules):
        raise UserError(
            f"{name}: its blocks have no `attn.qkv` to read queries and keys from; "
            "use a plain ViT, an Eva model (DINO, DINOv2, DINOv3) or an XCiT"
        )
    return known


def unshared(module: Any) -> Any:
    """The same module on the same tensors, but with hooks of its own (3 ms for a ViT-S)."""
    twin = copy.copy(module)
    # Module state is one dict of dicts; those with hooks and children must not be shared.
    for name, value in vars(module).items():
        if "hooks" in name and isinstance(value, dict):
            vars(twin)[name] = value.copy()
    vars(twin)["_modules"] = {
        name: None if child is None else unshared(child) for name, child in module._modules.items()
    }
    vars(twin)["_compiled_call_impl"] = None  # it would call the original
    return twin


def _has_qk(module: nn.Module) -> bool:
    """Whether `module` is one softmax over q k^T (differential attention is two)."""
    if isinstance(module, ClassAttn):
        return True
    fused = getattr(module, "qkv", None) is not None
    split = getattr(module, "q_proj", None) is not None
    return (fused or split) and hasattr(module, "q_norm") and not hasattr(module, "lambda_q1")


class _Tap:
    """Appends what `read` makes of an attention module's queries and keys to `rows` as it runs."""

    def __init__(
        self,
        module: nn.Module,
        rows: list[Tensor],
        read: Callable[[Tensor, Tensor, float], Tensor],
        *,
        first: bool,
    ) -> None:
        self.module: Any = module
        self.rows = rows
        self.read = read
        self.first = first  # the first layer of a forward empties the list
        self.seen: dict[str, Any] = {}

    def hooks(self) -> Iterator[Any]:
        """Attach, yielding the handles: the call's arguments, the projections, then the row."""
        yield self.module.register_forward_pre_hook(self._enter, with_kwargs=True)
        for name in ("qkv", "q_proj", "k_proj", "q", "k"):
            projection = getattr(self.module, name, None)
            if isinstance(projection, nn.Module):
                yield projection.register_forward_hook(self._keep(name))
        yield self.module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.first:
            self.rows.clear()
        x_BNC = args[0] if args else kwargs["x"]
        # Positional arguments after x mean different things in different blocks; timm names `rope`.
        self.seen = {"x": x_BNC, "rope": kwargs.get("rope")}

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.seen[name] = output

        return hook

    @torch.no_grad()
    def _leave(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        seen, self.seen = self.seen, {}
        q_BAD, k_BAND = self._query_and_keys(seen)
        with torch.autocast(output.device.type, enabled=False):  # the softmax is wanted in fp32
            self.rows.append(self.read(q_BAD.float(), k_BAND.float(), self.module.scale))

    def _query_and_keys(self, seen: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The CLS query [B, A, D] and all keys [B, A, N, D], as they enter the product."""
        attn = self.module
        q_BE, k_BNE = self._projected(seen)
        q_BAD = q_BE.unflatten(-1, (attn.num_heads, -1))
        key_heads = getattr(attn, "num_kv_heads", attn.num_heads)
        k_BAND = k_BNE.unflatten(-1, (key_heads, -1)).transpose(1, 2)
        if not isinstance(attn, ClassAttn):
            q_BAD, k_BAND = attn.q_norm(q_BAD), attn.k_norm(k_BAND)
        if seen["rope"] is not None:
            # Rotary embeddings turn patch tokens only; CLS, the query, is a prefix token.
            prefix = attn.num_prefix_tokens
            half = {"half": True} if getattr(attn, "rotate_half", False) else {}
            turned = apply_rot_embed_cat(k_BAND[:, :, prefix:], seen["rope"], **half)
            k_BAND = torch.cat([k_BAND[:, :, :prefix], turned.type_as(k_BAND)], dim=2)
        if key_heads != attn.num_heads:
            k_BAND = k_BAND.repeat_interleave(attn.num_heads // key_heads, dim=1)
        return q_BAD, k_BAND

    def _projected(self, seen: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The CLS query [B, A*D] and the keys [B, N, A*D] before norms and rotation."""
        attn = self.module
        if "q" in seen:  # class attention projects the CLS token only
            return seen["q"], seen["k"]
        if "q_proj" in seen:
            return seen["q_proj"][:, 0], seen["k_proj"]
        if "qkv" in seen:
            width = seen["qkv"].shape[-1] // 3
            return seen["qkv"][:, 0, :width], seen["qkv"][..., width : 2 * width]
        # Eva with a q bias multiplies by qkv.weight without calling the module: no output to read,
        # so these two products are made again (a third of the projection).
        weight_q, weight_k, _ = attn.qkv.weight.chunk(3)
        x_BNC = seen["x"].to(weight_q.dtype)
        return F.linear(x_BNC[:, 0], weight_q, attn.q_bias), F.linear(x_BNC, weight_k, attn.k_bias)
