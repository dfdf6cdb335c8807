"""Which figures of each protocol are shown, how they are written, and which settings part them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino_core.evaluation.report.values import at, counted, mapping, number, whole
from dino_core.evaluation.unlabeled import MEASURES

MOST_UNKNOWN = 8  # numbers shown of a protocol that is not among these
TOP = 5  # of no more classes than this every answer is among the first five
ORDERS = {1: "higher is better", -1: "lower is better", 0: "neither is better"}


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
    amount: tuple[str, ...] = ()  # where it says how many labels were used
    said: str = ""  # in a sentence, where not as the title
    hint: str = ""  # which way is better, where nobody could know

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

    def lead(self, own: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
        """1: `own` is ahead, -1: `other` is, 0: the two are within the larger deviation.

        None where one has no value, or where the figure orders nothing.
        """
        value, against = self.of(own), self.of(other)
        if value is None or against is None or not self.better:
            return None
        return ahead(value - against, self.better, self.spread(own), self.spread(other))

    @property
    def head(self) -> str:
        return f"{self.title}, {self.remark}" if self.remark else self.title

    @property
    def remark(self) -> str:
        """What stands small beside the title."""
        return ", ".join(filter(None, (self.unit, self.hint)))


def ahead(gain: float, better: int, *deviations: float | None) -> int:
    """The sign of a gain, by what is better; 0 within the larger of the deviations."""
    if abs(gain) <= max(one or 0.0 for one in deviations):
        return 0
    return 1 if gain * better > 0 else -1


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
        _shares(
            ("jaccard", "IoU of the cut"),
            ("object_jaccard", "of its main part"),
            ("corloc", "CorLoc"),
        ),
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
        tuple(  # they order no models, so nothing is marked
            Figure(
                (one.field,), one.title, "", one.scale, int(one.form[1]), 0, hint=ORDERS[one.better]
            )
            for one in MEASURES
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
        few = not _classes(values) > TOP
        return tuple(one for one in PROTOCOLS[name].figures if not (few and one.path == ("top5",)))
    names = [name for name, value in values.items() if number(value) is not None]
    return tuple(
        Figure((name,), name.replace("_", " "), "", digits=3, better=0)
        for name in names[:MOST_UNKNOWN]
    )


def _classes(values: Mapping[str, Any]) -> float:
    """How many classes there are; infinite where nothing says so."""
    said = values.get("classes")
    known = whole(said) or len(said if isinstance(said, list) else mapping(values.get("per_class")))
    return known or float("inf")


def few_labels(labels: str) -> Figure:
    """The accuracy at one number, or share, of labels."""
    title = f"{labels} of labels" if "%" in labels else labels
    number, _, rest = labels.partition(" ")
    each = f"{counted(int(number), 'label')} {rest}" if number.isdecimal() and rest else title
    of = "labels", labels
    return Figure(
        (*of, "top1"),
        title,
        deviation=(*of, "top1_deviation"),
        amount=(*of, "images"),
        said=f"with {title if '%' in labels else each}",
    )
