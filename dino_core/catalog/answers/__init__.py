"""Answers to what a page asks about the picture on it, each as plain JSON values.

    answer(desk, "patch", Question({"row": 3, "column": 7}))

One module a kind of question, imported when it is first asked. Pictures and maps travel as base64.
"""

from importlib import import_module
from typing import Any

from dino_core.catalog.answers.desk import Desk
from dino_core.catalog.questions import Question
from dino_core.errors import UserError

_HOME = {  # where each kind of question is answered, by the function of that name
    "patch": "heads",
    "rollout": "heads",
    "pair": "pairs",
    "alike": "pairs",
    "compare": "compare",
    "colors": "colors",
    "object": "objects",
    "health": "health",
    "clip": "clips",
    "export": "views",
    "near": "near",
    "filters": "near",
}


def answer(desk: Desk, about: str, question: Question) -> dict[str, Any]:
    """The answer to one question. Raises `UserError` for an unknown kind or a field that is off."""
    if about not in _HOME:
        raise UserError(f"{about[:40]}: this page cannot be asked that; load it again")
    module = import_module(f"{__name__}.{_HOME[about]}")
    return getattr(module, about)(desk, question)


__all__ = ["Desk", "answer"]
