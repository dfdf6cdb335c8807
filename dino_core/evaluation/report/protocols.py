"""Which figures of each protocol are shown, how they are written, and which settings part them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino_core.evaluation.report.values import at, mapping, number

MOST_UNKNOWN = 8  # numbers shown of a protocol that is not among these


@dataclass(frozen=True)
class Figure:
    """One column: where a result has the value, and how it is written."""

    path: tuple[str, ...]
    title: str
    unit: str = "%"
    scale: float = 1.0
    digits: int = 1
    better: int = 1  # 1: more, -1: less, 0: neither, for figures that order nothing alone
    deviation: tuple[str, ...] = ()

    def of(self, values: Mapping[str, Any]) -> float | None:
        """The value as it is written, in `unit`; None where the result has none."""
        value = number(at(values, self.path))
        return None if value is None else value * self.scale

    def spread(self, values: Mapping[str, Any]) -> float | None:
        """The deviation over repeats, in `unit`; None where the result has none."""
        value = number(at(values, self.deviation)) if self.deviation else None
        return None if value is None else value * self.scale

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    @property
    def head(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Protocol:
    """How the results of a protocol are shown."""

    title: str
    about: str
    figures: tuple[Figure, ...]
    settings: tuple[str, ...] = ()  # fields that make figures another thing, beside data
    masks: bool = False  # whether objects of masks are looked for


def _percent(*fields: tuple[str, str]) -> tuple[Figure, ...]:
    return tuple(Figure((name,), title) for name, title in fields)


def _shares(*fields: tuple[str, str]) -> tuple[Figure, ...]:
    return tuple(Figure((name,), title, scale=100) for name, title in fields)


PROTOCOLS = {
    "knn": Protocol(
        "k-NN accuracy",
        "Test images told by the classes of their nearest neighbors; nothing is trained.",
        _percent(("top1", "top-1"), ("top5", "top-5")),
        ("temperature",),
    ),
    "linear": Protocol(
        "Linear accuracy",
        "One linear layer on frozen features.",
        _percent(("top1", "top-1"), ("top5", "top-5")),
        ("as_published", "epochs", "views", "standardized"),
    ),
    "low-shot": Protocol(
        "Low-shot accuracy",
        "Logistic regression on frozen features with few labels; mean over several draws.",
        (),
        ("repeats", "strength", "k", "seed"),
    ),
    "attentive": Protocol(
        "Attentive accuracy",
        "A linear layer that may look where it wants, on frozen patch tokens.",
        _percent(("top1", "top-1"), ("top5", "top-5")),
        ("epochs", "batch"),
    ),
    "attention": Protocol(
        "Attention masks",
        "Mean overlap (IoU) of each object with the attention head that covers it best.",
        _shares(("jaccard", "IoU"), ("image_jaccard", "IoU, mean of images")),
        ("keep", "layer", "size"),
        masks=True,
    ),
    "objects": Protocol(
        "TokenCut masks",
        "Overlap (IoU) of the cut with all objects, and how often its box finds one (CorLoc).",
        _shares(("jaccard", "IoU"), ("object_jaccard", "IoU, best object"), ("corloc", "CorLoc")),
        ("tau", "size", "as_published"),
        masks=True,
    ),
    "saliency": Protocol(
        "Saliency",
        "Soft maps against the foreground: the largest F-beta, and the overlap (IoU) at 0.5.",
        _shares(("max_f", "max F-beta"), ("iou", "IoU"), ("accuracy", "accuracy")),
        ("map", "tau", "size", "as_published"),
        masks=True,
    ),
    "video": Protocol(
        "Video segmentation",
        "Objects of the first frame followed through a video: region J, boundary F.",
        _shares(("jf_mean", "J&F"), ("j_mean", "J"), ("f_mean", "F")),
        ("size", "settings", "as_published"),
    ),
    "retrieval": Protocol(
        "Image retrieval",
        "The same place found again among many images: mean average precision.",
        _percent(("map_easy", "easy"), ("map_medium", "medium"), ("map_hard", "hard")),
        ("size", "multiscale", "as_published"),
    ),
    "copies": Protocol(
        "Copy detection",
        "Originals of altered copies found again: mean average precision.",
        _percent(("map", "mAP"), ("top1", "top-1")),
        ("size", "whitening_dim", "as_published"),
    ),
    "measures": Protocol(
        "Measures without labels",
        "None of them says alone what features are good for: read them beside accuracies.",
        (
            Figure(("rankme",), "RankMe", "", better=0),
            Figure(("alignment_share",), "alignment", "% of all distances", 100, better=0),
            Figure(("uniformity",), "uniformity", "", digits=3, better=0),
            Figure(("kept",), "kept if corrupted", "%", 100, better=0),
            Figure(("retrieval",), "found again", "%", 100, better=0),
        ),
        ("k", "views", "corruptions", "severities", "seed"),
    ),
}


def described(name: str) -> Protocol:
    """The protocol of that name, or what can be said of one that is not known here."""
    title = name.replace("-", " ").replace("_", " ").capitalize()
    return PROTOCOLS.get(name, Protocol(title, "", ()))


def figures_of(name: str, values: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The columns that a result under that protocol can fill."""
    if name == "low-shot":
        return tuple(few_labels(labels) for labels in mapping(values.get("labels")))
    if name in PROTOCOLS:
        return PROTOCOLS[name].figures
    names = [name for name, value in values.items() if number(value) is not None]
    return tuple(
        Figure((name,), name.replace("_", " "), "", digits=3, better=0)
        for name in names[:MOST_UNKNOWN]
    )


def few_labels(labels: str) -> Figure:
    """The accuracy at one number, or share, of labels."""
    title = f"{labels} of labels" if "%" in labels else labels
    return Figure(("labels", labels, "top1"), title, deviation=("labels", labels, "top1_deviation"))
