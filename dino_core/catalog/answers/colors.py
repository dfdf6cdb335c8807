"""Patch features as colors: of one picture, with a gallery, or as kept from another."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.questions import Question
from dino_core.errors import UserError
from dino_core.lenses import pca
from dino_core.lenses.tokens import Tokens, read_tokens
from dino_core.rng import permutation

SAMPLE = 16  # images of a gallery that colors are fitted on: seconds on a laptop
LONGEST = 400_000  # characters of a basis in base64: width 4,096 in three directions, and more


def colors(desk: Desk, question: Question) -> dict[str, Any]:
    """The picture's patches in the colors of a basis: fitted here, or one that was kept."""
    tokens = desk.tokens()
    basis = _basis(desk, tokens, question)
    height, width = tokens.grid
    inside = pca.foreground(basis, tokens)
    share = f"{inside.mean():.0%} of the picture are foreground"
    return {
        "grid": [height, width],
        "rgb": encoded(pca.colors(basis, tokens).tobytes()),
        "foreground": encoded(inside.astype("u1").tobytes()),
        "basis": encoded(basis.to_bytes()),
        "told": f"{_told(desk, question)}; {share}",
    }


def _basis(desk: Desk, tokens: Tokens, question: Question) -> pca.PcaBasis:
    foreground = question.flag("foreground")
    of = question.text("of")
    if of == "kept":
        return _kept(question.text("basis", LONGEST))
    if of == "picture":
        return pca.fit([tokens], foreground=foreground)
    if of == "gallery":
        return pca.fit(_of_gallery(desk, tokens), foreground=foreground)
    raise UserError(f"{of[:40]}: colors are fitted on the picture, on a gallery, or kept ones")


def _kept(text: str) -> pca.PcaBasis:
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise UserError("these colors cannot be read; fit them again") from None
    return pca.PcaBasis.from_bytes(blob, "these colors")


def _of_gallery(desk: Desk, tokens: Tokens) -> Iterator[Tokens]:
    """The picture's tokens and those of some of the gallery's images, always the same ones."""
    yield tokens
    gallery = desk.gallery
    for row in permutation(len(gallery), "gallery colors")[:SAMPLE]:
        with suppress(UserError):  # its file is gone
            yield read_tokens(desk.model, gallery.image(int(row)), size=desk.scene.size)


def _told(desk: Desk, question: Question) -> str:
    of = question.text("of")
    if of == "gallery":
        return f"Colors shared by this picture and some of {desk.gallery.name}"
    return "Colors as kept" if of == "kept" else "Colors of this picture alone"
