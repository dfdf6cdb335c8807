"""What is on the page as files: the picture as drawn, its arrays, and all settings."""

from dataclasses import replace
from typing import Any

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.finding import content_hash
from dino_core.catalog.questions import Question
from dino_core.errors import UserError
from dino_core.views import View, exported, zipped


def export(desk: Desk, question: Question) -> dict[str, Any]:
    """The view that a page's address tells, as a zip; see `dino_core.views.exported`."""
    view = View.from_query(question.text("query", 20_000))
    if view.image != content_hash(desk.scene.picture):
        raise UserError("another picture is shown by now; export it again")
    view = replace(view, model=desk.scene.model, size=desk.scene.size)
    return {"zip": encoded(zipped(exported(view, desk.image, desk.model)))}
