"""One token's attention row in every layer and head of a timm ViT, exact, at no extra cost.

Fused attention never shows its weights, and keeping full N x N maps costs gigabytes at photo
sizes. But one row of the softmax needs only that token's query and the keys, and both exist
already: they are read at the output of `attn.qkv` while the model runs, one row is computed, and
the rest is let go. Nothing in the model is changed, fused attention stays on.

Covered: plain ViTs (DINO v1, DINOv2 with and without registers), Eva blocks with rotary embeddings
(DINOv3, EUPE), query/key norms, separate q/k projections, grouped keys, and the class-attention
layers of XCiT (its other blocks attend between channels, which is no map of the image; so only
CLS looks at anything there).

    rows = cls_rows(backbone, images)               # [L, B, heads, N]
    rows = token_rows(backbone, images, token=40)   # the same of any token
    with recorded_rows(backbone.vit) as rows:       # or: beside what a forward is run for
        tokens = backbone.tokens(images)            # rows is now a list of L tensors

Shape legend: B images, N tokens (prefix first), M of them asked for, A heads, D head width,
E width of all heads, L layers.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.cait import ClassAttn
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import Tensor, nn

from dino_core.errors import UserError

Seen = TypeVar("Seen")

CLS = 0  # the first of the prefix tokens


def cls_rows(backbone: Any, images: Tensor) -> Tensor:
    """Attention of the CLS token to every token: `token_rows` of token 0."""
    return token_rows(backbone, images, CLS)


def token_rows(backbone: Any, images: Tensor, token: int) -> Tensor:
    """Attention of one token to every token, for every layer and head.

    `backbone`: a `Backbone`; `images`: float [B, 3, H, W], H and W multiples of the patch size.
    `token`: index among all tokens, the prefix (CLS, then registers) first, then patches by row.
    Returns float32 [L, B, heads, N], each row summing to 1, without gradients. Safe to call from
    many threads at once.
    Raises `UserError` for a model without a CLS token or with blocks of another kind, for a token
    that the image does not make, and for any but CLS in an XCiT.
    """
    twin = unshared(backbone)  # many threads may look through one model
    with torch.no_grad(), recorded_rows(twin.vit, token) as rows:
        h, w = twin.grid(*images.shape[-2:])
        count = twin.num_prefix_tokens + h * w
        if not 0 <= token < count:
            raise UserError(
                f"token {token}: an image of {images.shape[-1]} x {images.shape[-2]} px makes "
                f"{count:,} tokens; use 0 (CLS) to {count - 1}"
            )
        twin(images)
    return torch.stack(rows)


@contextmanager
def recorded_rows(vit: nn.Module, token: int = CLS) -> Iterator[list[Tensor]]:
    """While open, each forward of `vit` refills the yielded list: L tensors [B, heads, N], float32.

    The rows are detached; any forward will do (features, tokens, training under autocast). Hooks
    stand on `vit` itself meanwhile, so no other thread may run it. Raises `UserError` as
    `token_rows` does.
    """
    modules = attention_modules(vit) if token == CLS else self_attention_modules(vit)
    with _tapped(modules, _row, token) as rows:
        yield rows


@contextmanager
def last_row(vit: nn.Module) -> Iterator[list[Tensor]]:
    """As `recorded_rows`, of the last layer alone: a list of one tensor."""
    with _tapped(attention_modules(vit)[-1:], _row) as rows:
        yield rows


@contextmanager
def last_keys(vit: nn.Module) -> Iterator[list[Tensor]]:
    """While open, each forward fills the list with the keys of the last layer: [B, heads, N, D].

    In float32, as they enter the product with the queries: after a key norm and rotary embeddings.
    """
    with _tapped(attention_modules(vit)[-1:], _all_keys) as keys:
        yield keys


@contextmanager
def queries_and_keys(vit: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, each forward fills the list: per layer all queries and keys, [B, heads, N, D].

    In float32, the queries times the scale: the softmax of their product is the attention. Nothing
    else of a layer is kept alive. Raises `UserError` as `self_attention_modules` does.
    """
    with _tapped(self_attention_modules(vit), _both, None) as layers:
        yield layers


def _row(q_BAMD: Tensor, k_BAND: Tensor, scale: float) -> Tensor:
    return (torch.einsum("bad,band->ban", q_BAMD[:, :, 0], k_BAND) * scale).softmax(dim=-1)


def _all_keys(q_BAMD: Tensor, k_BAND: Tensor, scale: float) -> Tensor:
    return k_BAND


def _both(q_BAMD: Tensor, k_BAND: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    # Copies: a part of the projection's output would keep all of it, values too.
    return (q_BAMD * scale).contiguous(), k_BAND.clone(memory_format=torch.contiguous_format)


@contextmanager
def _tapped(
    modules: list[nn.Module],
    read: Callable[[Tensor, Tensor, float], Seen],
    token: int | None = CLS,
) -> Iterator[list[Seen]]:
    """While open, what `read` makes of each layer's queries (`token`'s; None: all) and keys."""
    seen: list[Seen] = []
    with ExitStack() as stack:
        for layer, module in enumerate(modules):
            tap = _Tap(module, seen, read, token, first=layer == 0)
            for handle in tap.hooks():
                stack.callback(handle.remove)
        yield seen


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


def self_attention_modules(vit: nn.Module) -> list[nn.Module]:
    """As `attention_modules`, where every token has a query.

    Raises `UserError` for XCiT as well, whose class attention asks for CLS alone.
    """
    modules = attention_modules(vit)
    if any(isinstance(module, ClassAttn) for module in modules):
        raise UserError(
            f"{type(vit).__name__}: CLS alone attends to patches here, in the last "
            f"{len(modules)} layers, and the other blocks attend between channels; "
            "look from CLS, or take a ViT"
        )
    return modules


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
    """Appends what `read` makes of an attention module's queries and keys to `seen` as it runs."""

    def __init__(
        self,
        module: nn.Module,
        seen: list[Any],
        read: Callable[[Tensor, Tensor, float], Any],
        token: int | None,
        *,
        first: bool,
    ) -> None:
        self.module: Any = module
        self.seen = seen
        self.read = read
        self.token = token
        self.first = first  # the first layer of a forward empties the list
        self.parts: dict[str, Any] = {}

    def hooks(self) -> Iterator[Any]:
        """Attach, yielding the handles: the call's arguments, the projections, then the end."""
        yield self.module.register_forward_pre_hook(self._enter, with_kwargs=True)
        for name in ("qkv", "q_proj", "k_proj", "q", "k"):
            projection = getattr(self.module, name, None)
            if isinstance(projection, nn.Module):
                yield projection.register_forward_hook(self._keep(name))
        yield self.module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.first:
            self.seen.clear()
        x_BNC = args[0] if args else kwargs["x"]
        # Positional arguments after x mean different things in different blocks; timm names `rope`.
        self.parts = {"x": x_BNC, "rope": kwargs.get("rope")}

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.parts[name] = output

        return hook

    @torch.no_grad()
    def _leave(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        parts, self.parts = self.parts, {}
        q_BAMD, k_BAND = self._queries_and_keys(parts)
        with torch.autocast(output.device.type, enabled=False):  # the softmax is wanted in fp32
            self.seen.append(self.read(q_BAMD.float(), k_BAND.float(), self.module.scale))

    def _queries_and_keys(self, parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries [B, A, M, D] and all keys [B, A, N, D], as they enter the product."""
        attn = self.module
        q_BME, k_BNE = self._projected(parts)
        key_heads = getattr(attn, "num_kv_heads", attn.num_heads)
        q_BAMD = q_BME.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        k_BAND = k_BNE.unflatten(-1, (key_heads, -1)).transpose(1, 2)
        if not isinstance(attn, ClassAttn):
            q_BAMD, k_BAND = attn.q_norm(q_BAMD), attn.k_norm(k_BAND)
        if parts["rope"] is not None:
            q_BAMD = self._turned(q_BAMD, parts["rope"], self.token)
            k_BAND = self._turned(k_BAND, parts["rope"], None)
        if key_heads != attn.num_heads:
            k_BAND = k_BAND.repeat_interleave(attn.num_heads // key_heads, dim=1)
        return q_BAMD, k_BAND

    def _turned(self, x_BAMD: Tensor, rope: Tensor, token: int | None) -> Tensor:
        """`token`'s (None: all) queries or keys with rotary embeddings, which only patches have."""
        prefix = self.module.num_prefix_tokens
        if token is not None:
            if token < prefix:
                return x_BAMD
            rope = rope[..., token - prefix : token - prefix + 1, :]  # one row for each patch
            prefix = 0
        half = {"half": True} if getattr(self.module, "rotate_half", False) else {}
        turned = apply_rot_embed_cat(x_BAMD[:, :, prefix:], rope, **half)
        return torch.cat([x_BAMD[:, :, :prefix], turned.type_as(x_BAMD)], dim=2)

    def _projected(self, parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries [B, M, E] and all keys [B, N, E] before norms and rotation."""
        attn = self.module
        asked = slice(None) if self.token is None else slice(self.token, self.token + 1)
        if "q" in parts:  # class attention projects the CLS token only
            return parts["q"][:, None], parts["k"]
        if "q_proj" in parts:
            return parts["q_proj"][:, asked], parts["k_proj"]
        if "qkv" in parts:
            width = parts["qkv"].shape[-1] // 3
            return parts["qkv"][:, asked, :width], parts["qkv"][..., width : 2 * width]
        # Eva with a q bias multiplies by qkv.weight without calling the module: no output to read,
        # so these two products are made again (a third of the projection).
        weight_q, weight_k, _ = attn.qkv.weight.chunk(3)
        x_BNC = parts["x"].to(weight_q.dtype)
        q_BME = F.linear(x_BNC[:, asked], weight_q, attn.q_bias)
        return q_BME, F.linear(x_BNC, weight_k, attn.k_bias)
