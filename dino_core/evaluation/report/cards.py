"""What stands in the card of one model under one protocol, beside its figures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dino_core.data import Source
from dino_core.evaluation.report.board import Record
from dino_core.evaluation.report.elements import Bar, bars, block, escaped, small_table
from dino_core.evaluation.report.mask_cards import masks
from dino_core.evaluation.report.opening import Here
from dino_core.evaluation.report.pictures import Pictures
from dino_core.evaluation.report.protocols import few_labels
from dino_core.evaluation.report.values import (
    Confused,
    at,
    confusions,
    listed,
    mapping,
    number,
    numbers,
    records,
)

MOST_CONFUSIONS, THUMBS = 6, 4  # pairs of classes with pictures, and pictures of each class
MOST_FAILURES = 8  # queries or copies that found least
NONE = "–"
TWIN = "Line: the untrained twin."


def parts(record: Record, pictures: Pictures) -> list[str]:
    """Pictures, bars and tables of a record, as its protocol has them."""
    return CARDS.get(record.protocol, _unknown)(record, pictures)


def _twin(record: Record) -> Mapping[str, Any]:
    return mapping(record.values.get("random_init"))


def _classes(record: Record, pictures: Pictures) -> list[str]:
    """What was taken for what, with pictures, and each class's accuracy."""
    own, twin = (numbers(values.get("per_class")) for values in (record.values, _twin(record)))
    each = [Bar(name, own[name], twin.get(name)) for name in sorted(own, key=lambda n: -own[n])]
    return [
        _most_confused(record, pictures),
        _by_k(record),
        bars("Each class, top-1 in %", each, TWIN if twin else ""),
    ]


def _most_confused(record: Record, pictures: Pictures) -> str:
    """The most frequent mistakes, each with the images that were so confused where known."""
    found = confusions(record.values.get("confusions"))[:MOST_CONFUSIONS]
    test = pictures.data(record, "test") if found else None
    pairs = "".join(_pair(record, one, test, pictures) for one in found)
    what = ""
    if "<img" in pairs and any(one.examples for one in found):
        what = ": images that were mistaken, above examples of what they were taken for"
    elif "<img" in pairs:
        what = ", with examples of each"
    inside = f"<div class='pairs'>{pairs}</div>" if pairs else ""
    return block(f"Most confused classes{what}", inside)


def _pair(record: Record, one: Confused, test: Here | None, pictures: Pictures) -> str:
    """One class taken for another: the images that were, above some of the other class."""
    if one.examples:
        above = pictures.thumbs(test, one.examples, f"taken for {one.taken_for}")
        rows = [_row(f"{one.label}, taken for {one.taken_for}", above)]
    else:
        rows = [_row(f"examples of {one.label}", _examples(test, one.label, pictures))]
    other = test
    if test is not None and not len(_of_class(test.source, one.taken_for)):
        other = pictures.data(record, "train")  # it may be a class of the training images alone
    below = _examples(other, one.taken_for, pictures)
    rows.append(_row(f"examples of {one.taken_for}", below))
    return (
        f"<figure class='pair'><figcaption><b>{escaped(one.label)}</b> taken for "
        f"<b>{escaped(one.taken_for)}</b><small>{escaped(_how_many(record, one, test))}</small>"
        f"</figcaption>{''.join(rows)}</figure>"
    )


def _row(caption: str, thumbs: str) -> str:
    if not thumbs:
        return ""
    return f"<p class='what'>{escaped(caption)}</p><div class='thumbs'>{thumbs}</div>"


def _how_many(record: Record, one: Confused, test: Here | None) -> str:
    """`14 images, 12% of church, 3% of all mistakes`."""
    told = f"{one.images:,} image{'' if one.images == 1 else 's'}"
    size = 0 if test is None else len(_of_class(test.source, one.label))
    if size:
        told += f", {one.images / size:.0%} of {one.label}"
    top1, images = number(record.values.get("top1")), number(record.values.get("test_images"))
    mistakes = 0 if top1 is None or images is None else round(images * (1 - top1 / 100))
    return told + (f", {one.images / mistakes:.0%} of all mistakes" if mistakes else "")


def _of_class(source: Source, name: str) -> np.ndarray:
    """The places of a class's images, int64."""
    if source.labels is None or name not in source.classes:
        return np.empty(0, np.int64)
    return np.flatnonzero(source.labels == source.classes.index(name))


def _examples(here: Here | None, name: str, pictures: Pictures) -> str:
    """A few images of a class, from all over it."""
    places = np.empty(0, np.int64) if here is None else _of_class(here.source, name)
    if here is None or not len(places):
        return ""
    steps = np.linspace(0, len(places) - 1, min(THUMBS, len(places))).round().astype(int)
    return pictures.thumbs(here, [here.source.ids[place] for place in places[steps]], name)


def _by_k(record: Record) -> str:
    """Top-1 by the number of neighbors, where that was tried."""
    told = {record.model[0]: record.values, **record.baselines}
    ks = list(mapping(record.values.get("per_k")))
    rows = []
    for name, values in told.items() if ks else ():
        tops = [number(at(values, ("per_k", k, "top1"))) for k in ks]
        rows.append([escaped(name), *(NONE if top is None else f"{top:.1f}" for top in tops)])
    return block("Top-1 in %, by the number of neighbors", small_table(["", *map(str, ks)], rows))


def _low_shot(record: Record, pictures: Pictures) -> list[str]:
    """Both classifiers by the number of labels."""
    rows = []
    twins = mapping(_twin(record).get("labels"))
    for name, few in mapping(record.values.get("labels")).items():
        cells = [_spread(one, kind) for one in (few, twins.get(name)) for kind in ("top1", "knn")]
        rows.append([escaped(few_labels(name).title), *cells])
    heads = ["labels", "linear", "k-NN", "untrained, linear", "untrained, k-NN"]
    return [block("Top-1 in %, by the number of labels", small_table(heads, rows))]


def _spread(few: Any, name: str) -> str:
    mean, deviation = (number(at(few, (key,))) for key in (name, f"{name}_deviation"))
    if mean is None:
        return NONE
    return f"{mean:.1f}" + ("" if deviation is None else f" <small>± {deviation:.1f}</small>")


def _videos(record: Record, pictures: Pictures) -> list[str]:
    """J and F of each video, the mean over its objects."""
    own, twin = _by_video(record.values), _by_video(_twin(record))
    order = sorted(own, key=lambda name: -sum(own[name]))
    both = []
    for place, title in enumerate(("Region J of each video, %", "Boundary F of each video, %")):
        each = [
            Bar(name, own[name][place], twin[name][place] if name in twin else None)
            for name in order
        ]
        both.append(bars(title, each, TWIN if twin else ""))
    return [f"<div class='columns'>{''.join(both)}</div>"]


def _by_video(values: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """J and F in percent by the video's name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in records(values.get("per_sequence")):
        j, f = number(one.get("j")), number(one.get("f"))
        if j is not None and f is not None:
            found.setdefault(str(one.get("name")), []).append((100 * j, 100 * f))
    return {
        name: (sum(j for j, _ in both) / len(both), sum(f for _, f in both) / len(both))
        for name, both in found.items()
    }


def _worst(record: Record, figure: str) -> list[tuple[float, Mapping[str, Any]]]:
    """The answers that found least of what they should, but none that found all of it."""
    answers = [
        (precision, one)
        for one in records(record.values.get("answers"))
        if (precision := number(one.get(figure))) is not None and precision < 100
    ]
    return sorted(answers, key=lambda pair: pair[0])[:MOST_FAILURES]


def _queries(record: Record, pictures: Pictures) -> list[str]:
    """The queries that found least, beside the first wrong image they got."""
    answers = _worst(record, "ap_medium")
    here = pictures.data(record, "data") if answers else None
    rows = []
    for precision, one in answers:
        rank = one.get("first_wrong_rank")
        place = f"rank {rank}" if isinstance(rank, int) else ""
        query = _shown(pictures, here, one.get("query"))
        wrong = _shown(pictures, here, one.get("first_wrong"), place)
        rows.append([query, f"{precision:.1f}", wrong])
    heads = ["query", "AP medium, %", "first wrong answer"]
    return [block("Queries that found least", small_table(heads, rows))]


def _copies(record: Record, pictures: Pictures) -> list[str]:
    """The copies that found least, beside the nearest image that is no original of theirs."""
    answers = _worst(record, "ap")
    copies = pictures.data(record, "data") if answers else None
    originals = pictures.data(record, "originals") if answers else None
    rows = []
    for precision, one in answers:
        others = pictures.data(record, "distractors") if one.get("is_distractor") else originals
        rank, right = one.get("rank"), (listed(one.get("originals")) or [None])[0]
        place = f"rank {rank}" if isinstance(rank, int) else "not among the nearest"
        rows.append(
            [
                _shown(pictures, copies, one.get("copy")),
                f"{precision:.1f}",
                _shown(pictures, originals, right, place),
                _shown(pictures, others, one.get("first_wrong")),
            ]
        )
    heads = ["copy", "AP, %", "its original", "nearest other image"]
    return [block("Copies that found least", small_table(heads, rows))]


def _shown(pictures: Pictures, here: Here | None, name: Any, remark: str = "") -> str:
    """A thumbnail with its name, or the name."""
    if not isinstance(name, str):
        return NONE
    thumb, small = pictures.thumb(here, name), f"<small>{escaped(remark)}</small>"
    return f"<div class='named'>{thumb}<span>{escaped(name)}{small}</span></div>"


def _measures(record: Record, pictures: Pictures) -> list[str]:
    """All figures beside the untrained twin's, and how often a corrupted image finds itself."""
    twin = _twin(record)
    rows = []
    for figure in record.figures:
        value, other = figure.of(record.values), figure.of(twin)
        if value is not None:
            beside = NONE if other is None else figure.text(other)
            rows.append([escaped(figure.head), figure.text(value), beside])
    for name, share in numbers(record.values.get("overlap")).items():
        rows.append([f"neighbors shared with {escaped(name)}, %", f"{100 * share:.1f}", NONE])
    own, others = _by_corruption(record.values), _by_corruption(twin)
    each = [Bar(name, own[name], others.get(name)) for name in sorted(own, key=lambda n: -own[n])]
    what = f"Mean over severities. {TWIN if others else ''}".strip()
    return [
        block("Figures", small_table(["", "model", "untrained"], rows)),
        bars("Found again if corrupted, %", each, what),
    ]


def _by_corruption(values: Mapping[str, Any]) -> dict[str, float]:
    """How often an image finds itself, in percent, mean over severities."""
    found: dict[str, list[float]] = {}
    for one in records(values.get("robustness")):
        share = number(one.get("retrieval"))
        if share is not None:
            found.setdefault(str(one.get("corruption")).replace("_", " "), []).append(100 * share)
    return {name: sum(every) / len(every) for name, every in found.items()}


def _unknown(record: Record, pictures: Pictures) -> list[str]:
    """Numbers, for a protocol that is not known here."""
    rows: Sequence[Sequence[str]] = [
        [escaped(figure.head), figure.text(value)]
        for figure in record.figures
        if (value := figure.of(record.values)) is not None
    ]
    return [block("Figures", small_table(["", "value"], rows))]


CARDS: dict[str, Callable[[Record, Pictures], list[str]]] = {
    "knn": _classes,
    "linear": _classes,
    "attentive": _classes,
    "low-shot": _low_shot,
    "attention": masks,
    "objects": masks,
    "saliency": masks,
    "video": _videos,
    "retrieval": _queries,
    "copies": _copies,
    "measures": _measures,
}
PICTURED = CARDS.keys() - {"low-shot", "video", "measures"}  # whose cards may have pictures
