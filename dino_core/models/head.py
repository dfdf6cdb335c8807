"""The projection head: features to logits over prototypes, under the published key names."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """MLP, L2-normalized bottleneck, and a weight-normalized last layer of prototypes.

    Keys are `mlp.{0,2,4}.*` (with batch norm the indices shift to `mlp.{0,1,3,4,6}`; a single
    layer is `mlp.*`) and `last_layer.weight_g/weight_v`. With `norm_last_layer` the prototypes have
    length 1 for good, so logits are cosines; else the lengths `weight_g` train too. The MLP starts
    truncated normal with deviation 0.02 and zero biases, the prototypes as torch starts a linear
    layer; all drawn from torch's global generator.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = _mlp(in_dim, hidden_dim, bottleneck_dim, max(layers, 1), batch_norm)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck_dim, out_dim)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Features [B, in_dim] to logits [B, out_dim]."""
        x_BD = self.mlp(x_BD)
        with torch.autocast(x_BD.device.type, enabled=False):  # squares overflow in fp16
            x_BD = F.normalize(x_BD.float(), dim=-1)
        return self.last_layer(x_BD)


class Prototypes(nn.Module):
    """A linear layer whose rows have direction `weight_v` and length `weight_g`.

    Written out rather than with `torch.nn.utils.weight_norm`, whose module cannot be deep-copied
    after a forward pass (the teacher is a copy) and whose successor has other key names.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        bound = in_dim**-0.5
        nn.init.uniform_(self.weight_v, -bound, bound)

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, in_dim] to [B, out_dim]."""
        with torch.autocast(x_BD.device.type, enabled=False):
            # One kernel in either direction; written out, `v / |v|` takes five passes backwards.
            weight_KD = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return F.linear(x_BD, weight_KD)


def _mlp(in_dim: int, hidden: int, out_dim: int, layers: int, batch_norm: bool) -> nn.Module:
    if layers == 1:
        return nn.Linear(in_dim, out_dim)
    widths = [in_dim, *[hidden] * (layers - 1)]
    modules: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        modules.append(nn.Linear(width_in, width_out))
        modules += [nn.BatchNorm1d(width_out)] if batch_norm else []
        modules.append(nn.GELU())
    return nn.Sequential(*modules, nn.Linear(hidden, out_dim))
