"""What an address asks a page to show: a view, the gallery beside it, the visitor's own upload."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from dino_core.catalog.questions import Question
from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.views import View

LONGEST = 20_000  # characters of an address


@dataclass(frozen=True)
class Link:
    """What a page was opened with; all None where the address says nothing."""

    view: "View | None" = None
    gallery: str | None = None  # public name
    upload: Question | None = None  # the file that this browser sent earlier, if it is of that

    @classmethod
    def read(cls, told: str) -> "Link":
        """From a browser's JSON: `query`, the address' query, and maybe `upload` {path, name}.

        Raises `UserError` for a view that cannot be read.
        """
        from dino_core.views import View

        try:
            given = json.loads(told[:LONGEST])
            query, upload = str(given["query"]), given.get("upload")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls()
        asked = parse_qs(query.lstrip("?"))
        if "image" not in asked:
            return cls(gallery=asked.get("gallery", [None])[0])
        try:
            view = View.from_query(query)
        except UserError as error:
            raise UserError(f"this link cannot be followed: {error}") from None
        own = Question(upload) if isinstance(upload, dict) else None
        return cls(view, asked.get("gallery", [None])[0], own)
