"""One picture seen by two models: which head of one looks where a head of the other does."""

from typing import Any

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.entries import model_title
from dino_core.catalog.questions import Question
from dino_core.lenses import LensPayload
from dino_core.lenses.matching import Matching, match_heads


def compare(desk: Desk, question: Question) -> dict[str, Any]:
    """Every head's map by a second model, and how its heads go with those of the first.

    `question` holds `model`, which follows the rules of the page's model box. `across[i]` is the
    second model's layer beside layer i of the first, `back[j]` the first's beside layer j of the
    second; `links` holds a matching of heads for each pair of layers that these name. Correlations
    are those of the maps as sent, whose codes are within 1/255 of the root of the exact ones.
    """
    spec = question.text("model")
    first, second = (_seen(desk, one) for one in (desk.scene.model, spec))
    one, other = first.maps(), second.maps()
    across, back = beside(len(one), len(other)), beside(len(other), len(one))
    layers = sorted({*enumerate(across), *((i, j) for j, i in enumerate(back))})
    matched = {(i, j): match_heads(one[i], other[j]) for i, j in layers}
    last = matched[len(one) - 1, len(other) - 1]
    return {
        "payload": encoded(second.to_bytes()),
        "title": model_title(spec),
        "across": across,
        "back": back,
        "links": [_link(i, j, matching) for (i, j), matching in matched.items()],
        "sentence": "Last layers: " + last.sentence().removesuffix("."),
    }


def beside(layers: int, others: int) -> list[int]:
    """For each of `layers` layers, the one of `others` at the same relative depth.

    First on first and last on last, evenly between, halves rounded up. A single layer goes with
    the last: its output is what the deeper model's last layer gives.
    """
    if layers == 1:
        return [others - 1]
    steps = layers - 1
    return [(2 * i * (others - 1) + steps) // (2 * steps) for i in range(layers)]


def _seen(desk: Desk, spec: str) -> LensPayload:
    """The scene's picture by any model; looks are kept, so the first costs nothing here."""
    scene = desk.scene
    sight = desk.bench.look(scene.picture, spec, size=scene.size, names_allowed=scene.names_allowed)
    return LensPayload.from_bytes(sight.payload)


def _link(first: int, second: int, matching: Matching) -> dict[str, Any]:
    """One pair of layers: `pairs` are [head, head of the second model, correlation]."""
    return {
        "first": first,
        "second": second,
        "pairs": [[pair.first, pair.second, round(pair.similarity, 4)] for pair in matching.pairs],
        "alone": [list(matching.alone_first), list(matching.alone_second)],
        "sentence": matching.sentence(),
    }
