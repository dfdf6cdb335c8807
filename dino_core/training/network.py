"""Student and teacher: a backbone with a projection head, fed views of several sizes."""

import copy
from collections.abc import Iterator, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dino_core.models import Backbone, ProjectionHead, create_backbone
from dino_core.models.packed import can_pack, class_tokens, compiled_block
from dino_core.training.recipe import BackboneConfig, HeadConfig


class Network(nn.Module):
    """Backbone and head: all views share one pass through a plain ViT, and one head pass.

    Other backbones take a pass for each size of views. `residual` is the dtype of a ViT's stream
    under mixed precision, and `compiled` whether its blocks run compiled.
    """

    residual = torch.float32
    compiled = False

    def __init__(self, backbone: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.packed = can_pack(backbone)

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Logits float [N, K] for groups of views, each [n_i, C, S_i, S_i] of its own size S_i."""
        return self.head(self.features(groups))

    def features(self, groups: Sequence[Tensor]) -> Tensor:
        """The backbone's features [N, D] for groups of views, in their order."""
        if not self.packed:
            return torch.cat([self.backbone(views) for views in groups])
        run = compiled_block() if self.compiled else None
        return class_tokens(self.backbone, groups, self.residual, run)  # type: ignore[arg-type]

    def published_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters under the names of the published checkpoints."""
        for name, parameter in self.named_parameters():
            yield name.replace("backbone.vit.", "backbone.", 1), parameter


def create_student(backbone: BackboneConfig, head: HeadConfig) -> Network:
    """A freshly initialized student (from torch's global generator: seed it first)."""
    body = create_backbone(backbone.info(), drop_path_rate=backbone.drop_path)
    return Network(
        body,
        ProjectionHead(
            body.embed_dim,
            out_dim=head.out_dim,
            hidden_dim=head.hidden_dim,
            bottleneck_dim=head.bottleneck_dim,
            layers=head.layers,
            norm_last_layer=head.norm_last_layer,
            batch_norm=head.batch_norm,
        ),
    )


def create_teacher(student: Network) -> Network:
    """The student's equal at the start: same weights, no gradient, no drop path.

    It stays in train mode, as published, which matters only to batch norm.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return teacher
