"""The health of a model as one image shows it: idle heads, twin heads, artifact tokens.

    health = health(look(model, image), read_tokens(model, image), residual_norms(model, image))
    health.sentences()                          # what a person should know, in plain words
    health.rows()                               # one row a head, for a table

Four findings, each a fact about this ONE image; look at several before blaming the model:

- A FLAT head spreads its attention over all patches nearly alike (entropy of 0.99 or more, where 1
  is uniform): it averages the image. What pattern it has may be real (it can follow the image when
  that is mirrored), but is faint, and a picture stretched to its range hides how faint.
- A RESTING head gives patches less than 1 % of its attention; the rest is on CLS and registers.
- TWINS are heads of one layer with the same map up to scale (correlation of 0.99 or more).
- ARTIFACTS are patches whose token is far longer than the others' (Darcet et al. 2023, "Vision
  Transformers Need Registers", arXiv:2309.16588): large models use them as scratch space, about ten
  times as long as the rest and around 2 % of all, and their features say little of their place.

How far a head looks is given as `spread`, the standard deviation of the position that its map
weights, in patches. It is NOT the mean attention distance of Dosovitskiy et al. (arXiv:2010.11929,
appendix D.7): that is measured from every query patch to what it attends to, and the CLS token,
whose rows these are, has no position to measure from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dino_core.errors import UserError
from dino_core.lenses.attention import Attention, plan, resized
from dino_core.lenses.tokens import Tokens
from dino_core.models.attention import unshared

if TYPE_CHECKING:
    from dino_core.models import Model

FLAT_ENTROPY = 0.99
RESTING_SHARE = 0.01
TWIN_CORRELATION = 0.99
ROUNDING = 1e-5  # a map that deviates less from its mean, relative to it, has no direction in fp32
# An artifact has to pass both bounds. Against the spread of the others alone, a plain image whose
# tokens are nearly of one length would have artifacts that differ by a few percent; against the
# median alone, a wide but whole distribution would. Median and MAD stand until half of the tokens
# are artifacts, where mean and standard deviation are moved by the very outliers they should find.
ARTIFACT_MADS = 6.0  # median absolute deviations above the median, in units of sigma (x 1.4826)
ARTIFACT_RATIO = 2.5  # times the median; published artifacts lie near 10, whole tokens below 2

State = Literal["fine", "flat", "resting", "not a number"]
VERDICTS: dict[State, str] = {
    "fine": "looks at some places more than at others",
    "flat": "flat: patches get nearly alike, and pictures of it show more contrast than it has",
    "resting": "resting: patches get less than 1 % of the attention, CLS or registers the rest",
    "not a number": "broken: the attention is not a number; the weights are damaged",
}


@dataclass(frozen=True)
class HeadHealth:
    """One head of one layer."""

    layer: int
    head: int
    entropy: float  # 0 one patch, 1 all patches alike; of the patches' part
    spread: float  # in patches: see the top of this file
    peak: float  # how many times the mean patch's attention the most attended patch has
    patch_share: float  # 0..1, attention that goes to patches
    state: State

    @property
    def verdict(self) -> str:
        """The state in plain words."""
        return VERDICTS[self.state]


@dataclass(frozen=True)
class Twins:
    """Heads of one layer that show the same map; each is linked to another by `correlation`."""

    layer: int
    heads: tuple[int, ...]
    correlation: float  # the least of the links that hold the group together


@dataclass(frozen=True)
class Health:
    """What `health` found. h x w is the patch grid of the tokens."""

    heads: tuple[HeadHealth, ...]  # by layer, then by head
    twins: tuple[Twins, ...]
    norms: np.ndarray  # float64 [h, w], length of each patch token
    artifacts: np.ndarray  # bool [h, w]
    flat_spread: float  # `spread` of a map without any preference, in patches
    before_norm: bool  # whether `norms` are from before the final norm, where artifacts show fully
    model: str  # spec

    @property
    def idle(self) -> tuple[HeadHealth, ...]:
        """The heads that are anything but fine."""
        return tuple(head for head in self.heads if head.state != "fine")

    def sentences(self) -> list[str]:
        """What was found, one sentence each: heads, twins, artifacts; good news too."""
        return [*self._of_heads(), *self._of_twins(), self._of_artifacts()]

    def rows(self) -> list[dict[str, Any]]:
        """One row a head: numbers as a page shows them, `twins` the other heads of the group."""
        group = {(t.layer, head): t.heads for t in self.twins for head in t.heads}
        return [
            {
                "layer": head.layer,
                "head": head.head,
                "entropy": _rounded(head.entropy, 3),
                "spread": _rounded(head.spread, 2),
                "peak": _rounded(head.peak, 2),
                "on patches": _rounded(head.patch_share, 3),
                "state": head.state,
                "twins": [h for h in group.get((head.layer, head.head), ()) if h != head.head],
                "verdict": head.verdict,
            }
            for head in self.heads
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything but the norms of single patches; plain JSON values, null for no number."""
        return {
            "model": self.model,
            "heads": self.rows(),
            "twins": [
                {"layer": t.layer, "heads": list(t.heads), "correlation": t.correlation}
                for t in self.twins
            ],
            "artifacts": {
                "patches": np.argwhere(self.artifacts).tolist(),  # [row, column]
                "of": self.artifacts.size,
                "median norm": _rounded(float(np.median(self.norms)), 4),
                "largest norm": _rounded(float(self.norms.max()), 4),
                "before the final norm": self.before_norm,
            },
            "flat spread": _rounded(self.flat_spread, 2),
            "sentences": self.sentences(),
        }

    def _of_heads(self) -> list[str]:
        if not self.idle:
            return [f"All {len(self.heads)} heads have a map of their own preference."]
        found = []
        for state in ("not a number", "flat", "resting"):
            # Counted from 1, as the lens page counts them.
            names = [f"{h.layer + 1}.{h.head + 1}" for h in self.idle if h.state == state]
            if names:
                verdict, number = VERDICTS[state], _counted(len(names), "head")
                are = f"{number} of {len(self.heads)} {'is' if len(names) == 1 else 'are'}"
                where = f"layer.head {_listed(names)}"
                found.append(f"{are} {verdict} ({where}).")
        return found

    def _of_twins(self) -> list[str]:
        if not self.twins:
            return ["No two heads of a layer show the same map."]
        return [
            f"Layer {t.layer + 1}: heads {_listed([str(h + 1) for h in t.heads])} show the same "
            f"map (correlation {t.correlation:.3f}), so looking at one of them is enough."
            for t in self.twins
        ]

    def _of_artifacts(self) -> str:
        number, of = int(self.artifacts.sum()), self.artifacts.size
        if not np.isfinite(self.norms).all():
            return "The patch tokens are not numbers: the weights are damaged."
        if not number:
            seen = "" if self.before_norm else ", as far as lengths after the final norm can tell"
            return f"No patch token is an artifact{seen}."
        ratio = float(self.norms.max() / max(np.median(self.norms), 1e-30))
        are = "is an artifact" if number == 1 else "are artifacts"
        return (
            f"{_counted(number, 'patch token')} of {of} ({number / of:.1%}) {are}, up to "
            f"{ratio:.1f} times as long as the median: do not trust what patch lenses say there, "
            "and prefer a model with registers."
        )


def health(attention: Attention, tokens: Tokens, norms: np.ndarray | None = None) -> Health:
    """Judge every head and patch token that one image gave.

    `norms`: float [h, w] from `residual_norms`, the lengths of patch tokens before the final norm;
    without them those of `tokens` are judged, which a layer norm has made nearly alike, so that
    artifacts can go unseen. Raises `UserError` when `attention` and `tokens` are of two models.
    """
    if attention.model_hash != tokens.model_hash:
        raise UserError(
            f"attention is of {attention.model}, tokens are of {tokens.model}: read both from one"
        )
    lengths = np.asarray(tokens.norms if norms is None else norms, dtype=np.float64)
    return Health(
        heads=_judged(attention),
        twins=tuple(t for layer in range(attention.layers) for t in _twins(attention, layer)),
        norms=lengths,
        artifacts=artifacts(lengths),
        flat_spread=float(spread(np.ones(attention.grid))),
        before_norm=norms is not None,
        model=attention.model,
    )


def residual_norms(model: "Model", image: np.ndarray, *, size: int | None = None) -> np.ndarray:
    """Lengths of the patch tokens BEFORE the final norm, float32 [h, w]: where artifacts show.

    A layer norm gives every token the same variance, so after it a token ten times as long is as
    long as the others but for the learned scales. `image` uint8 [H, W, C]; `size` as in `look`,
    which raises the same errors.
    """
    fed = plan(model, image.shape[0], image.shape[1], size=size)
    pixels = model.normalize(resized(image, fed.height, fed.width))
    backbone = unshared(model.backbone)
    seen: list[torch.Tensor] = []
    backbone.vit.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        backbone.tokens(pixels[None].to(model.device))
    tokens_ND = seen[-1][0, backbone.num_prefix_tokens :].float()
    return tokens_ND.norm(dim=-1).cpu().numpy().reshape(fed.grid)


def artifacts(norms: np.ndarray) -> np.ndarray:
    """Which of `norms` [...] are outliers upward: bool of the same shape.

    Longer than the median by 6 robust standard deviations (1.4826 x the median absolute deviation)
    AND longer than 2.5 medians. Scaling all norms changes nothing; neither does their order.
    """
    median = np.median(norms)
    sigma = 1.4826 * np.median(np.abs(norms - median))
    return (norms > median + ARTIFACT_MADS * sigma) & (norms > ARTIFACT_RATIO * median)


def spread(maps: np.ndarray) -> np.ndarray:
    """The standard deviation of the position under each map [..., h, w], in patches: [...].

    sqrt(sum w |p - mean|^2) with w the map over its sum. A point has 0, a map of ones
    sqrt((h^2 + w^2 - 2) / 12). NaN for a map without mass.
    """
    rows, columns = np.indices(maps.shape[-2:], dtype=np.float64).reshape(2, -1)
    flat = maps.reshape(*maps.shape[:-2], -1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        share = flat / flat.sum(axis=-1, keepdims=True)
    middle = [(share * axis).sum(axis=-1, keepdims=True) for axis in (rows, columns)]
    square = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2
    return np.sqrt((share * square).sum(axis=-1))


def _judged(attention: Attention) -> tuple[HeadHealth, ...]:
    entropy, wide = attention.entropy(), spread(attention.maps)
    share = attention.maps.sum(axis=(-2, -1), dtype=np.float64)
    peak = attention.maps.max(axis=(-2, -1)) * (
        attention.maps[0, 0].size / np.maximum(share, 1e-30)
    )
    places = np.ndindex(attention.layers, attention.heads)
    return tuple(
        HeadHealth(
            layer=layer,
            head=head,
            entropy=float(entropy[layer, head]),
            spread=float(wide[layer, head]),
            peak=float(peak[layer, head]),
            patch_share=float(share[layer, head]),
            state=_state(float(entropy[layer, head]), float(share[layer, head])),
        )
        for layer, head in places
    )


def _state(entropy: float, share: float) -> State:
    if not np.isfinite(share):
        return "not a number"
    if share < RESTING_SHARE:  # first: what little is left on patches may well be flat
        return "resting"
    return "flat" if entropy >= FLAT_ENTROPY else "fine"


def _twins(attention: Attention, layer: int) -> list[Twins]:
    """Groups of heads linked by the same map; those without any pattern are in none."""
    maps = attention.maps[layer].reshape(attention.heads, -1).astype(np.float64)
    mean = maps.mean(axis=-1, keepdims=True)
    centered = maps - mean
    alive = np.flatnonzero(centered.std(axis=-1) > ROUNDING * mean[:, 0]).tolist()  # not NaN either
    flat = centered[alive] / np.linalg.norm(centered[alive], axis=-1, keepdims=True)
    alike = flat @ flat.T
    groups: list[list[int]] = []
    for head in range(len(alive)):
        linked = [g for g in groups if any(alike[head, other] >= TWIN_CORRELATION for other in g)]
        groups = [g for g in groups if g not in linked] + [[*(h for g in linked for h in g), head]]
    return [
        Twins(layer, tuple(sorted(alive[h] for h in group)), _least_link(alike, group))
        for group in sorted(map(sorted, groups))
        if len(group) > 1
    ]


def _least_link(alike: np.ndarray, group: list[int]) -> float:
    """The weakest link of the strongest tree that holds `group` together (Prim)."""
    held, rest, least = [group[0]], list(group[1:]), 1.0
    while rest:
        best, head = max((float(alike[h, held].max()), h) for h in rest)
        least = min(least, best)
        held.append(head)
        rest.remove(head)
    return least


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if np.isfinite(value) else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: list[str], most: int = 8) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
