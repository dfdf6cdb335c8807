"""What an answer works with: the model and the picture on the page, and the rest of the house."""

import base64
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dino_core.catalog.pictures import Picture, load
from dino_core.catalog.questions import Job, Question, Scene
from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.catalog.workbench import Workbench
    from dino_core.gallery import Gallery
    from dino_core.lenses.tokens import Tokens
    from dino_core.models import Model


@dataclass(frozen=True)
class Desk:
    """Everything about one scene, opened when an answer first wants it."""

    bench: "Workbench"
    scene: Scene
    job: Job = field(default_factory=Job)

    @cached_property
    def model(self) -> "Model":
        """The scene's model. Raises `UserError` where it may not be opened, or has trained on."""
        model = self.bench.open_model(self.scene.model, self.scene.names_allowed)
        if self.scene.model_hash not in ("", model.hash):
            raise UserError(
                f"{self.scene.model} has other weights by now than those that drew the picture; "
                "choose the model or the picture again"
            )
        return model

    @cached_property
    def image(self) -> np.ndarray:
        """The picture's pixels, uint8 [H, W, 3]."""
        return load(self.scene.picture)

    @cached_property
    def gallery(self) -> "Gallery":
        """The gallery beside the picture. Raises `UserError` when none is picked."""
        if not self.scene.gallery:
            raise UserError("no gallery is picked; make one with scripts/embed.py, or pick one")
        return self.bench.gallery_at(self.scene.gallery)

    def tokens(self, picture: Picture | None = None) -> "Tokens":
        """The patch tokens of the scene's picture, or of another, by the scene's model."""
        return self.bench.tokens(picture or self.scene.picture, self.model, self.scene.size)

    def picture(self, named: Question) -> Picture:
        """The picture a question names: an example, one of a gallery, or the visitor's upload."""
        return self.bench.picture_named(named)


def encoded(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode()
