"""Two pictures seen by one model: which patches of one are like which of the other."""

from typing import TYPE_CHECKING, Any

from dino_core.catalog.answers.desk import Desk
from dino_core.catalog.answers.heads import coded
from dino_core.catalog.pictures import jpeg, jpeg_url, load
from dino_core.catalog.questions import Question
from dino_core.catalog.workbench import SHOWN_SIDE
from dino_core.lenses.similarity import best_match, matches, similarity

if TYPE_CHECKING:
    from dino_core.lenses.tokens import Tokens

MOST_PAIRS = 200  # mutual neighbors that are sent: more dots than that hide the pictures


def pair(desk: Desk, question: Question) -> dict[str, Any]:
    """The second picture, both patch grids, and the best mutual nearest neighbors.

    `question` holds `second`, which names a picture as `Desk.picture` reads it. Pairs are lists of
    [row, column, row in the second, column in the second, cosine], best first.
    """
    picture = desk.picture(question.part("second"))
    first, second = desk.tokens(), desk.tokens(picture)
    found = matches(first, second)
    places = zip(found.first.tolist(), found.second.tolist(), found.cosines.tolist(), strict=True)
    pairs = [[*here, *there, round(cosine, 4)] for here, there, cosine in places]
    return {
        "title": picture.title,
        "credit": picture.credit,
        "image": jpeg_url(jpeg(load(picture), SHOWN_SIDE)),
        "grids": [list(first.grid), list(second.grid)],
        "pairs": pairs[:MOST_PAIRS],
        "count": len(found),
        "sentence": f"{desk.scene.picture.title} and {picture.title}: {len(found):,} patches of "
        "each are the other's nearest",
    }


def alike(desk: Desk, question: Question) -> dict[str, Any]:
    """How alike one patch is to every patch of both pictures, and its best match in the other.

    `question` holds `second`, `side` (0 or 1: the picture whose patch it is), `row` and `column`.
    `maps` are cosines on the grid of each picture; `best` is of the picture that `side` is not.
    """
    both = desk.tokens(), desk.tokens(desk.picture(question.part("second")))
    side = question.whole("side", 0, 1)
    own, other = both[side], both[1 - side]
    row, column = _place(question, own)
    best_row, best_column, cosine = best_match(own, row, column, other)
    return {
        "maps": [coded(similarity(own, row, column, one)) for one in both],
        "best": {"row": best_row, "column": best_column, "cosine": cosine},
        "sentence": f"The patch nearest to patch {column + 1}, {row + 1} is patch "
        f"{best_column + 1}, {best_row + 1} of the other picture (cosine {cosine:.3f})",
    }


def _place(question: Question, tokens: "Tokens") -> tuple[int, int]:
    height, width = tokens.grid
    return question.whole("row", 0, height - 1), question.whole("column", 0, width - 1)
