"""Many models under many protocols: one table for a terminal, and one HTML page with pictures.

    print(table(files))                        # of what `scripts/evaluate.py ... --json FILE` wrote
    build(files, Path("report.html"))

Figures share a column only where they were measured on the same data with the same settings, as
hashes tell, so whatever stands in one column can be compared. What was published stands in the
table only for data that is recognized as the published; else in a section of its own.

The page asks nothing of any other file or machine. Its pictures are made anew, from the data and
the models that the files name; where these are gone or have changed, a note says so. Files that
lack a figure, or come from a protocol not known here, are shown as far as they go.
"""

import base64
import html
import io
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata, resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dino_core import __version__
from dino_core.data import BadImage, Source, open_source
from dino_core.errors import UserError
from dino_core.evaluation.masks import DamagedMask, Masks, best_and_worst, find_masks
from dino_core.evaluation.published import (
    Published,
    architecture_named,
    published,
    recognized,
)
from dino_core.files import read_json, whole_file
from dino_core.gallery.images import source_hash
from dino_core.gallery.progress import Progress, silent
from dino_core.lenses.attention import look, mass_mask, resized
from dino_core.lenses.objects import TAU, ObjectMask, object_mask
from dino_core.lenses.render import nearest, outline, relative
from dino_core.lenses.tokens import read_tokens
from dino_core.models import Model, load_model

PICTURES = 3_600_000  # bytes of all pictures together: the page stays below 5 MB
MOST_CONFUSIONS, THUMBS = 6, 4  # pairs of classes with pictures, and pictures of each class
MOST_BARS = 40  # classes, videos: of more the best and the worst
MOST_MASKS = 6  # best, and as many worst
MOST_FAILURES = 8  # queries or copies that found least
THUMB_SIDE, MASK_SIDE, QUALITY = 88, 300, 80  # pixels, and of JPEG
FOUND, TRUE = (129, 140, 248), (255, 214, 10)  # colors: what a model covers, an object's outline
TINT, SHADE = 0.28, 0.38  # how much of FOUND lies inside, and how much light is left outside
MASK_LEGEND = "Bright and tinted: what the model covers. Yellow line: the objects."
FROM_AFAR = ("hf:", "torchvision:")  # opened, these might begin to download
BASELINES = {"random_init": "untrained", "pixels": "raw pixels"}


# What there is to show


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
        number = _number(_at(values, self.path))
        return None if number is None else number * self.scale

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
        _shares(("jaccard", "IoU")),
        ("keep", "layer", "size"),
    ),
    "objects": Protocol(
        "TokenCut masks",
        "Overlap (IoU) of the cut with all objects, and how often its box finds one (CorLoc).",
        _shares(("jaccard", "IoU"), ("object_jaccard", "IoU, best object"), ("corloc", "CorLoc")),
        ("tau", "size", "as_published"),
    ),
    "saliency": Protocol(
        "Saliency",
        "Soft maps against the foreground: the largest F-beta, and the overlap (IoU) at 0.5.",
        _shares(("max_f", "max F-beta"), ("iou", "IoU"), ("accuracy", "accuracy")),
        ("map", "tau", "size", "as_published"),
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
MOST_UNKNOWN = 8  # numbers shown of a protocol that is not among these


@dataclass(frozen=True)
class Result:
    """One file: a model under a protocol."""

    path: Path
    protocol: str
    values: Mapping[str, Any]

    @property
    def model(self) -> tuple[str, str]:
        """Spec and hash."""
        return str(self.values["model"]), str(self.values.get("model_hash", ""))

    @property
    def described(self) -> Protocol:
        title = self.protocol.replace("-", " ").replace("_", " ").capitalize()
        return PROTOCOLS.get(self.protocol, Protocol(title, "", ()))

    @property
    def settings(self) -> dict[str, Any]:
        return {name: self.values.get(name) for name in self.described.settings}

    @property
    def data(self) -> str:
        """The images judged, as they were named."""
        return str(self.values.get("test") or self.values.get("data") or "")

    @property
    def key(self) -> str:
        """The same for results that can be compared: protocol, hashes of all data, settings."""
        hashes = {
            name: value
            for name, value in self.values.items()
            if name.endswith("_hash") and name != "model_hash"
        }
        data = hashes or {name: self.values.get(name) for name in ("train", "test", "data")}
        return repr((self.protocol, sorted(data.items()), self.settings))

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The columns that this result can fill, of those its protocol has."""
        if self.protocol == "low-shot":
            return tuple(_few(name) for name in _mapping(self.values.get("labels")))
        if self.protocol in PROTOCOLS:
            return self.described.figures
        names = [name for name, value in self.values.items() if _number(value) is not None]
        return tuple(
            Figure((name,), name.replace("_", " "), "", digits=3, better=0)
            for name in names[:MOST_UNKNOWN]
        )

    @property
    def baselines(self) -> dict[str, Mapping[str, Any]]:
        """What the model has to beat, by name."""
        found = {name: self.values.get(key) for key, name in BASELINES.items()}
        return {name: values for name, values in found.items() if isinstance(values, Mapping)}

    @property
    def notes(self) -> list[str]:
        notes = [note for note in _list(self.values.get("notes")) if isinstance(note, str)]
        for name, values in self.baselines.items():
            for note in _list(values.get("notes")):
                if isinstance(note, str) and note not in notes:
                    notes.append(f"{name}: {note}")
        return notes


def _few(labels: str) -> Figure:
    title = f"{labels} of labels" if "%" in labels else labels
    return Figure(("labels", labels, "top1"), title, deviation=("labels", labels, "top1_deviation"))


@dataclass(frozen=True)
class Group:
    """Results that can be compared: one protocol, data and settings, one result a model."""

    results: list[Result]
    remark: str  # in which settings it differs from other groups of the protocol, or ""

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def figures(self) -> list[Figure]:
        """Columns that at least one result fills."""
        every = dict.fromkeys(figure for result in self.results for figure in result.figures)
        return [one for one in every if any(one.of(r.values) is not None for r in self.results)]

    @property
    def data(self) -> str:
        """The data's name, short."""
        spec = self.first.data
        if ":" in spec or not spec:
            return spec
        return "/".join([part for part in PurePosixPath(spec).parts if part != "/"][-2:])

    @property
    def published_data(self) -> str | None:
        return recognized(self.first.protocol, self.first.values)


@dataclass(frozen=True)
class Row:
    """A line of the table: a model, what it has to beat, or what was published."""

    name: str
    kind: str  # "model", "baseline" or "published"
    values: dict[tuple[int, int], float]  # by group and figure
    deviations: dict[tuple[int, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """Everything that table and page show."""

    groups: list[Group]
    rows: list[Row]
    notes: list[str]

    @property
    def columns(self) -> list[tuple[tuple[int, int], Figure]]:
        return [
            ((g, f), figure)
            for g, group in enumerate(self.groups)
            for f, figure in enumerate(group.figures)
        ]

    def best(self, column: tuple[int, int], figure: Figure) -> float | None:
        """The best value of the models in a column, where several can be ordered."""
        values = [
            row.values[column] for row in self.rows if row.kind == "model" and column in row.values
        ]
        if len(values) < 2 or not figure.better:
            return None
        return max(values, key=lambda value: value * figure.better)


# From files to a board


def table(files: Sequence[Path]) -> str:
    """For a terminal: a line a figure, a column a model. Raises `UserError` as `build` does."""
    board = _board(_read(files))
    rows = [row for row in board.rows if row.kind != "published"]
    widths = [max(len(row.name), 6) + 2 for row in rows]
    left = max((len(figure.head) for _, figure in board.columns), default=0) + 2
    lines = [" " * left + "".join(f"{row.name:>{w}}" for row, w in zip(rows, widths, strict=True))]
    for g, group in enumerate(board.groups):
        lines.append(f"{group.first.described.title}: {group.data}{_after(', ', group.remark)}")
        for f, figure in enumerate(group.figures):
            cells = [figure.text(row.values[g, f]) if (g, f) in row.values else "-" for row in rows]
            told = "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
            lines.append(f"{'  ' + figure.head:{left}}{told}")
        near = _near([group])
        for one in near:
            told = ", ".join(
                f"{figure.title} {figure.text(value)} {figure.unit}".rstrip()
                for figure in group.figures
                if (value := figure.of(one.figures)) is not None
            )
            lines.append(f"  published on {one.data}: {one.model}: {told}")
        lines += [f"  (published in: {source})" for source in _sources(near)]
    return "\n".join(lines + board.notes)


def _read(files: Sequence[Path]) -> list[Result]:
    if not files:
        raise UserError("no figures given; name files that `evaluate.py ... --json FILE` wrote")
    return [_result(Path(path)) for path in files]


def _result(path: Path) -> Result:
    values = read_json(path)
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name), str) and values[name] for name in ("protocol", "model")
    ):
        raise UserError(
            f"{path}: holds no figures of a model; name files that `evaluate.py ... --json FILE` "
            "wrote"
        )
    return Result(path, values["protocol"], values)


def _board(results: Sequence[Result]) -> Board:
    notes: list[str] = []
    of_key: dict[str, dict[tuple[str, str], Result]] = {}
    for result in results:
        others = of_key.setdefault(result.key, {})
        if result.model in others:
            notes.append(
                f"{others[result.model].path} and {result.path} both hold "
                f"{result.described.title} of {result.model[0]}: the latter counts"
            )
        others[result.model] = result
    order = list(PROTOCOLS)
    ordered = sorted(
        (list(one.values()) for one in of_key.values()),
        key=lambda one: order.index(one[0].protocol) if one[0].protocol in order else len(order),
    )
    groups = [Group(one, _remark(one[0], [other[0] for other in ordered])) for one in ordered]
    return Board(groups, _rows(groups, results), notes)


def _remark(result: Result, others: Sequence[Result]) -> str:
    """The settings of a result that are not those of all results of its protocol."""
    same = [other for other in others if other.protocol == result.protocol]
    told = [
        f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in result.settings.items()
        if any(other.settings[name] != value for other in same)
    ]
    return ", ".join(told)


def _rows(groups: Sequence[Group], results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    models = list(dict.fromkeys(result.model for result in results))
    for spec, digest in models:
        twins = [other for other in models if other[0] == spec]
        own = Row(spec if len(twins) == 1 else f"{spec} ({digest[:8]})", "model", {})
        beaten = {name: Row(name, "baseline", {}) for name in BASELINES.values()}
        for g, group in enumerate(groups):
            for result in group.results:
                if result.model == (spec, digest):
                    _fill(own, g, group, result.values)
                    for name, values in result.baselines.items():
                        _fill(beaten[name], g, group, values)
        rows += [own, *(row for row in beaten.values() if row.values)]
    known: dict[str, Row] = {}
    for g, group in enumerate(groups):
        for one in _near([group]):
            _fill(
                known.setdefault(one.model, Row(one.model, "published", {})), g, group, one.figures
            )
    return rows + list(known.values())


def _fill(row: Row, g: int, group: Group, values: Mapping[str, Any]) -> None:
    for f, figure in enumerate(group.figures):
        value = figure.of(values)
        if value is not None:
            row.values[g, f] = value
        deviation = _number(_at(values, figure.deviation)) if figure.deviation else None
        if deviation is not None:
            row.deviations[g, f] = deviation * figure.scale


def _near(groups: Sequence[Group]) -> list[Published]:
    """What was published on the very data of these groups."""
    found = [
        one
        for group in groups
        if (data := group.published_data)
        for one in published(group.first.protocol, data)
    ]
    return list({(one.protocol, one.model, one.data): one for one in found}.values())


def _sources(entries: Sequence[Published]) -> list[str]:
    return list(dict.fromkeys(one.source for one in entries))


# What a file holds need not be what it should


def _number(value: Any) -> float | None:
    """A finite number, and nothing else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    """A whole number, and nothing else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in _list(value) if isinstance(one, Mapping)]


def _numbers(value: Any) -> dict[str, float]:
    found = {name: _number(one) for name, one in _mapping(value).items()}
    return {name: one for name, one in found.items() if one is not None}


def _scored(value: Any) -> list[tuple[str, float]]:
    """(id, score) pairs."""
    pairs = [one for one in _list(value) if isinstance(one, list) and len(one) == 2]
    return [
        (one[0], s)
        for one in pairs
        if isinstance(one[0], str) and (s := _number(one[1])) is not None
    ]


def _confusions(value: Any) -> list[tuple[str, str, int]]:
    """(class, taken for, images)."""
    return [
        (one[0], one[1], one[2])
        for one in _list(value)
        if isinstance(one, list) and [type(part) for part in one] == [str, str, int]
    ]


def _plain(value: Any) -> str:
    """A setting as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(one) for one in value)
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    return str(value)


def _after(separator: str, text: str) -> str:
    return separator + text if text else ""


# The page


def build(
    files: Sequence[Path], out: Path, *, device: str = "auto", progress: Progress = silent
) -> Path:
    """Write the page of all `files` to `out`, whole or not at all, and return `out`.

    `device`: where models run for pictures of masks. Raises `UserError` for no files, for one that
    is missing or holds no figures, and where `out` is one of them.
    """
    if Path(out).resolve() in {Path(path).resolve() for path in files}:
        raise UserError(f"{out}: holds figures that the report is made of; name another file")
    board = _board(_read(files))
    cards = sum(len(group.results) for group in board.groups)
    pictures = Pictures(PICTURES // max(cards, 1), device)
    sections = []
    done = 0
    for g, group in enumerate(board.groups):
        inside = []
        for result in group.results:
            progress(done, cards, "Report")
            inside.append(_card(result, pictures))
            done += 1
        sections.append(_section(g, group, inside))
    progress(done, cards, "Report")
    fields = {
        "style": _template("report.css"),
        "head": _head(board),
        "table": _main_table(board),
        "sections": "\n".join(sections),
        "published": _orientation(board),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _template("report.html"))
    with whole_file(Path(out)) as aside:
        aside.write_text(page, encoding="utf-8")
    return Path(out)


def _template(name: str) -> str:
    return resources.files("dino_core.evaluation").joinpath(name).read_text("utf-8")


def _e(text: object) -> str:
    """Text as it may stand in a page, also in an attribute."""
    return html.escape(str(text), quote=True)


def _head(board: Board) -> str:
    """What was judged, on what, when, with what."""
    models = [row.name for row in board.rows if row.kind == "model"]
    data = list(dict.fromkeys(group.data for group in board.groups if group.data))
    paths = {result.path for group in board.groups for result in group.results}
    days = sorted(date.fromtimestamp(path.stat().st_mtime) for path in paths)
    span = f"{days[0]}" if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    versions = f"dino-core {__version__}, Python {platform.python_version()}, " + ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "timm", "numpy")
    )
    facts = {
        "models": ", ".join(models),
        "data": ", ".join(data),
        "figures of": span,
        "page made": f"{date.today()} with {versions}",
    }
    told = "".join(f"<dt>{_e(name)}</dt><dd>{_e(text)}</dd>" for name, text in facts.items())
    return f"<dl class='facts'>{told}</dl>{_notes(board.notes)}"


def _main_table(board: Board) -> str:
    """Models down, figures across."""
    columns = board.columns
    tops, heads = [], []
    for g, group in enumerate(board.groups):
        figures = group.figures
        if not figures:
            continue
        told = f"<a href='#part-{g}'>{_e(group.first.described.title)}</a>"
        told += f"<small>{_e(group.data)}{_e(_after(', ', group.remark))}</small>"
        tops.append(f"<th colspan='{len(figures)}' scope='colgroup'>{told}</th>")
        for f, figure in enumerate(figures):
            edge = " class='edge'" if f == 0 else ""
            unit = f" <small>{_e(figure.unit)}</small>" if figure.unit else ""
            heads.append(f"<th scope='col'{edge}>{_e(figure.title)}{unit}</th>")
    body = []
    for row in board.rows:
        cells = "".join(_cell(board, row, at, figure) for at, figure in columns)
        mark = "<small>published</small>" if row.kind == "published" else ""
        body.append(f"<tr class='{row.kind}'><th scope='row'>{_e(row.name)}{mark}</th>{cells}</tr>")
    near = _near(board.groups)
    legend = []
    if any(row.kind == "baseline" for row in board.rows):
        legend.append("Small and colored: how far a model is from its untrained twin.")
    if any(row.deviations for row in board.rows):
        legend.append("±: the deviation over draws of labels.")
    if any(board.best(at, figure) is not None for at, figure in columns):
        legend.append("<b class='best'>Marked</b>: the best model of a column.")
    if near:
        legend.append(f"Published: {_e('; '.join(_sources(near)))}.")
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='All figures'>"
        f"<table class='figures'><thead><tr><td></td>{''.join(tops)}</tr>"
        f"<tr><th scope='col'>model</th>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div><p class='legend'>{' '.join(legend)}</p>"
    )


def _cell(board: Board, row: Row, at: tuple[int, int], figure: Figure) -> str:
    """One value, with its deviation and how far it is from the untrained twin's."""
    edge = "edge" if at[1] == 0 else ""
    if at not in row.values:
        return f"<td class='none {edge}'>–</td>"
    value = row.values[at]
    best = row.kind == "model" and value == board.best(at, figure)
    told = f"<b class='best'>{figure.text(value)}</b>" if best else f"<b>{figure.text(value)}</b>"
    if at in row.deviations:
        told += f"<small>± {figure.text(row.deviations[at])}</small>"
    twin = _twin(board, row)
    if figure.better and twin is not None and at in twin.values:
        gain = value - twin.values[at]
        kind = "up" if gain * figure.better >= 0 else "down"
        told += f"<small class='{kind}'>{gain:+.{figure.digits}f}</small>"
    return f"<td class='{edge}'>{told}</td>"


def _twin(board: Board, row: Row) -> Row | None:
    """The untrained twin's row, which is among those right below a model's."""
    if row.kind != "model":
        return None
    for below in board.rows[board.rows.index(row) + 1 :]:
        if below.kind != "baseline":
            return None
        if below.name == BASELINES["random_init"]:
            return below
    return None


def _section(g: int, group: Group, cards: Sequence[str]) -> str:
    """One protocol on one data set."""
    first = group.first
    about = f"<p class='about'>{_e(first.described.about)}</p>" if first.described.about else ""
    return (
        f"<section id='part-{g}'><h2>{_e(first.described.title)}"
        f"<span>{_e(group.data)}{_e(_after(', ', group.remark))}</span></h2>{about}"
        f"{''.join(cards)}</section>"
    )


def _card(result: Result, pictures: "Pictures") -> str:
    """One model under one protocol: pictures and bars, notes, and where all of it comes from."""
    allowance = pictures.allowance()
    parts = CARDS.get(result.protocol, _unknown)(result, allowance)
    shown = "".join(parts)
    headline = " ".join(
        f"<span><b>{figure.text(value)}</b> {_e(figure.head)}</span>"
        for figure in result.figures[:4]
        if (value := figure.of(result.values)) is not None
    )
    return (
        f"<article class='card'><header><h3>{_e(result.model[0])}</h3>"
        f"<p class='headline'>{headline}</p></header>{shown}"
        f"{_notes([*result.notes, *allowance.notes])}{_provenance(result)}</article>"
    )


def _notes(notes: Sequence[str]) -> str:
    told = "".join(f"<li>{_e(note)}</li>" for note in dict.fromkeys(notes))
    return f"<ul class='notes'>{told}</ul>" if told else ""


def _provenance(result: Result) -> str:
    """Every plain field: specs, hashes, settings, numbers of images."""
    rows = "".join(
        f"<tr><th scope='row'>{_e(name.replace('_', ' '))}</th><td>{_e(_plain(value))}</td></tr>"
        for name, value in result.values.items()
        if isinstance(value, str | int | float | bool) and value != ""
    )
    rows += f"<tr><th scope='row'>file</th><td>{_e(result.path.name)}</td></tr>"
    return (
        "<details><summary>Where this comes from</summary><div class='scroll'>"
        f"<table class='plain'><tbody>{rows}</tbody></table></div></details>"
    )


def _orientation(board: Board) -> str:
    """What was published on other data than ours, by protocol."""
    architectures = {
        architecture_named(row.name.removeprefix("timm:"))
        for row in board.rows
        if row.kind == "model"
    }
    protocols = dict.fromkeys(group.first.protocol for group in board.groups)
    near = {(group.first.protocol, group.published_data) for group in board.groups}
    tables = []
    for protocol in protocols:
        entries = [one for one in published(protocol) if (protocol, one.data) not in near]
        for data in dict.fromkeys(one.data for one in entries):
            there = [one for one in entries if one.data == data]
            tables.append(_published_table(protocol, data, there, architectures))
    if not tables:
        return ""
    return (
        "<section class='published'><h2>For orientation: published, on other data</h2>"
        "<p class='about'>Measured on other images than the figures above, so none of these can be "
        f"held against one of them.</p><div class='columns'>{''.join(tables)}</div></section>"
    )


def _published_table(
    protocol: str, data: str, entries: Sequence[Published], architectures: set[str | None]
) -> str:
    known = PROTOCOLS[protocol]
    figures = [one for one in known.figures if any(one.of(e.figures) is not None for e in entries)]
    heads = "".join(f"<th scope='col'>{_e(figure.head)}</th>" for figure in figures)
    rows = []
    for entry in entries:
        values = [figure.of(entry.figures) for figure in figures]
        cells = "".join(
            f"<td>{'–' if value is None else figure.text(value)}</td>"
            for figure, value in zip(figures, values, strict=True)
        )
        same = " class='same'" if entry.architecture in architectures else ""
        rows.append(f"<tr{same}><th scope='row'>{_e(entry.model)}</th>{cells}</tr>")
    return (
        f"<article class='card'><h3>{_e(known.title)}: published, on {_e(data)}</h3>"
        "<div class='scroll'><table class='plain'>"
        f"<thead><tr><th scope='col'>model</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='legend'>Source: {_e('; '.join(_sources(entries)))}.</p></article>"
    )


# Bars and tables


@dataclass(frozen=True)
class Bar:
    """A share of a whole, and perhaps the untrained twin's, as a mark on it."""

    name: str
    percent: float
    mark: float | None = None
    text: str = ""


def _bars(title: str, bars: Sequence[Bar], what: str = "") -> str:
    """A list of bars; of many the first and the last ones."""
    if not bars:
        return ""
    left_out = len(bars) - MOST_BARS
    shown = bars if left_out <= 0 else [*bars[: MOST_BARS // 2], *bars[-MOST_BARS // 2 :]]
    rows = []
    for place, bar in enumerate(shown):
        if left_out > 0 and place == MOST_BARS // 2:
            rows.append(f"<li class='gap'>{left_out:,} more between</li>")
        mark = ""
        if bar.mark is not None:
            mark = f"<u style='left:{_within(bar.mark):.1f}%'></u>"
        text = bar.text or f"{bar.percent:.1f}"
        rows.append(
            f"<li><span title='{_e(bar.name)}'>{_e(bar.name)}</span><div class='bar'>"
            f"<i style='width:{_within(bar.percent):.1f}%'></i>{mark}</div><em>{_e(text)}</em></li>"
        )
    said = f"<p class='legend'>{_e(what)}</p>" if what else ""
    return (
        f"<div class='block'><h4>{_e(title)}</h4><ol class='bars'>{''.join(rows)}</ol>{said}</div>"
    )


def _within(percent: float) -> float:
    return min(max(percent, 0.0), 100.0)


def _rows_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table; cells are HTML already."""
    if not rows:
        return ""
    top = "".join(f"<th scope='col'>{_e(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f"<div class='block'><h4>{_e(title)}</h4><div class='scroll'><table class='plain'>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


# Pictures


class Pictures:
    """Opens the data and models that results name, each once; says why where it cannot."""

    def __init__(self, each: int, device: str) -> None:
        self.each = each  # bytes for the pictures of one card
        self.device = device
        self._sources: dict[tuple[str, str], tuple[Source | None, list[str]]] = {}
        self._models: dict[tuple[str, str], tuple[Model | None, list[str]]] = {}

    def allowance(self) -> "Allowance":
        return Allowance(self)

    def source(self, spec: str, digest: str) -> tuple[Source | None, list[str]]:
        """The source that `spec` names, and notes."""
        if (spec, digest) not in self._sources:
            self._sources[spec, digest] = _opened(spec, digest)
        return self._sources[spec, digest]

    def model(self, spec: str, digest: str) -> tuple[Model | None, list[str]]:
        """The model that `spec` names where it is the one that was judged, and notes."""
        if (spec, digest) not in self._models:
            self._models[spec, digest] = self._loaded(spec, digest)
        return self._models[spec, digest]

    def _loaded(self, spec: str, digest: str) -> tuple[Model | None, list[str]]:
        try:
            model = load_model(spec, device=self.device)
        except UserError as error:
            return None, [f"no pictures of masks, for the model cannot be opened: {error}"]
        if model.hash != digest:
            return None, [f"no pictures of masks, for {spec} is not the model any more it was then"]
        return model, []


class Allowance:
    """The pictures of one card: how many bytes are left for them, and what is to be said."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self.left = pictures.each
        self.notes: list[str] = []

    def source(self, result: Result, name: str) -> Source | None:
        """The source in a result's field `name`; None, noted, where it cannot be opened."""
        spec = result.values.get(name)
        if not isinstance(spec, str) or not spec:
            return None
        source, notes = self.pictures.source(spec, str(result.values.get(f"{name}_hash", "")))
        self.notes += notes
        return source

    def model(self, result: Result) -> Model | None:
        model, notes = self.pictures.model(*result.model)
        self.notes += notes
        return model

    def img(self, pixels: np.ndarray, alt: str) -> str:
        """uint8 [H, W, 3] as an element; "", noted, when there is no room for it."""
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY, optimize=True)
        data = base64.b64encode(stream.getvalue()).decode()
        if len(data) > self.left:
            self.notes.append("further pictures are left out, to keep the page small")
            return ""
        self.left -= len(data)
        height, width = pixels.shape[:2]
        return (
            f"<img src='data:image/jpeg;base64,{data}' alt='{_e(alt)}' loading='lazy' "
            f"width='{width}' height='{height}'>"
        )

    def thumb(self, source: Source | None, name: str, caption: str = "") -> str:
        """The middle square of the image of that id; "" where it cannot be had."""
        place = None if source is None else _place(source, name)
        return "" if source is None or place is None else self.thumb_at(source, place, caption)

    def thumb_at(self, source: Source, place: int, caption: str = "") -> str:
        try:
            image = source.image(place)
        except BadImage:
            return ""
        return self.img(_square(image), caption or source.ids[place])


def _opened(spec: str, digest: str) -> tuple[Source | None, list[str]]:
    if spec.startswith(FROM_AFAR):
        return None, [f"no pictures of {spec}: only data on this machine is opened"]
    try:
        source = open_source(spec)
        now = source_hash(source)
    except (UserError, OSError) as error:
        return None, [f"no pictures, for the data cannot be opened: {error}"]
    if digest and now != digest:
        return source, [f"{spec} has changed since: pictures show what lies there now"]
    return source, []


def _place(source: Source, name: str) -> int | None:
    """Where the image of that id is, if anywhere."""
    try:
        return list(source.ids).index(name)
    except ValueError:
        return None


def _square(image: np.ndarray) -> np.ndarray:
    """The middle square, `THUMB_SIDE` pixels a side."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return resized(image[top : top + side, left : left + side], THUMB_SIDE, THUMB_SIDE)


# What stands in a card, by protocol


def _classes(result: Result, allowance: Allowance) -> list[str]:
    """What was taken for what, with pictures, and each class's accuracy."""
    confusions = _confusions(result.values.get("confusions"))
    test = allowance.source(result, "test") if confusions else None
    pairs = [_pair(result, one, test, allowance) for one in confusions[:MOST_CONFUSIONS]]
    shown = (
        "<div class='block'><h4>Most confused classes, with examples of each</h4>"
        f"<div class='pairs'>{''.join(pairs)}</div></div>"
    )
    own = _numbers(result.values.get("per_class"))
    twin = _numbers(_at(result.values, ("random_init", "per_class")))
    bars = [Bar(name, own[name], twin.get(name)) for name in sorted(own, key=lambda n: -own[n])]
    what = "Line: the untrained twin." if twin else ""
    return [shown if pairs else "", _by_k(result), _bars("Each class, top-1 in %", bars, what)]


def _by_k(result: Result) -> str:
    """Top-1 by the number of neighbors, where that was tried."""
    told = {result.model[0]: result.values, **result.baselines}
    ks = list(_mapping(result.values.get("per_k")))
    rows = []
    for name, values in told.items() if ks else ():
        tops = [_number(_at(values, ("per_k", k, "top1"))) for k in ks]
        rows.append([_e(name), *("–" if top is None else f"{top:.1f}" for top in tops)])
    return _rows_table("Top-1 in %, by the number of neighbors", ["", *map(str, ks)], rows)


def _pair(
    result: Result, confusion: tuple[str, str, int], test: Source | None, allowance: Allowance
) -> str:
    """One class taken for another."""
    right, taken, count = confusion
    told = f"{count:,} image{'' if count == 1 else 's'}"
    size = _class_size(test, right)
    if size:
        told += f", {count / size:.0%} of {right}"
    mistakes = _mistakes(result.values)
    if mistakes:
        told += f", {count / mistakes:.0%} of all mistakes"
    sides = "".join(
        f"<div class='thumbs' aria-label='{_e(name)}'>{_thumbs(test, name, allowance)}</div>"
        for name in (right, taken)
    )
    return (
        f"<figure class='pair'><figcaption><b>{_e(right)}</b> taken for <b>{_e(taken)}</b>"
        f"<small>{_e(told)}</small></figcaption>{sides if 'img' in sides else ''}</figure>"
    )


def _mistakes(values: Mapping[str, Any]) -> int:
    top1, images = _number(values.get("top1")), _number(values.get("test_images"))
    return 0 if top1 is None or images is None else round(images * (1 - top1 / 100))


def _of_class(test: Source | None, name: str) -> np.ndarray:
    """The places of a class's images."""
    if test is None or test.labels is None or name not in test.classes:
        return np.empty(0, np.int64)
    return np.flatnonzero(test.labels == test.classes.index(name))


def _class_size(test: Source | None, name: str) -> int:
    return len(_of_class(test, name))


def _thumbs(test: Source | None, name: str, allowance: Allowance) -> str:
    """A few images of a class, from all over it."""
    places = _of_class(test, name)
    if test is None or not len(places):
        return ""
    steps = np.linspace(0, len(places) - 1, min(THUMBS, len(places))).round().astype(int)
    return "".join(allowance.thumb_at(test, int(place), name) for place in places[steps])


def _low_shot(result: Result, allowance: Allowance) -> list[str]:
    """Both classifiers by the number of labels."""
    rows = []
    twins = _mapping(_at(result.values, ("random_init", "labels")))
    for name, few in _mapping(result.values.get("labels")).items():
        cells = [_spread(few, "top1"), _spread(few, "knn")]
        cells += [_spread(twins.get(name), "top1"), _spread(twins.get(name), "knn")]
        rows.append([_e(_few(name).title), *cells])
    heads = ["labels", "linear", "k-NN", "untrained, linear", "untrained, k-NN"]
    return [_rows_table("Top-1 in %, by the number of labels", heads, rows)]


def _spread(few: Any, name: str) -> str:
    mean, deviation = (_number(_at(few, (key,))) for key in (name, f"{name}_deviation"))
    if mean is None:
        return "–"
    return f"{mean:.1f}" + ("" if deviation is None else f" <small>± {deviation:.1f}</small>")


def _masks(result: Result, allowance: Allowance) -> list[str]:
    """The best and the worst images with what the model covers, and single heads."""
    scores = _scored(result.values.get("images_scored"))
    parts = []
    if scores:
        opened = _mask_sources(result, allowance)
        best, worst = best_and_worst(scores, MOST_MASKS)
        parts = [
            _gallery("Best masks", best, result, opened, allowance),
            _gallery("Worst masks", worst, result, opened, allowance),
        ]
        if opened is not None and any("<img" in part for part in parts):
            parts.append(f"<p class='legend'>{MASK_LEGEND}</p>")
    heads = [_number(one) for one in _list(result.values.get("per_head"))]
    bars = [Bar(f"head {n}", 100 * one) for n, one in enumerate(heads) if one is not None]
    return [*parts, _bars("One head for all objects, IoU in %", bars)]


@dataclass(frozen=True)
class _Opened:
    """What pictures of masks need."""

    model: Model
    source: Source
    masks: Masks


def _mask_sources(result: Result, allowance: Allowance) -> _Opened | None:
    source = allowance.source(result, "data")
    model = None if source is None else allowance.model(result)
    if source is None or model is None:
        return None
    folder = str(result.values.get("masks", ""))
    try:
        masks = find_masks(source, None if folder in ("", source.spec) else Path(folder))
    except (UserError, OSError) as error:
        allowance.notes.append(f"no pictures, for the masks cannot be opened: {error}")
        return None
    return _Opened(model, source, masks)


def _gallery(
    title: str,
    scores: Sequence[tuple[str, float]],
    result: Result,
    opened: _Opened | None,
    allowance: Allowance,
) -> str:
    """Images with their scores; without pictures where they cannot be made."""
    if not scores:
        return ""
    figures = []
    for name, score in scores:
        picture = "" if opened is None else _masked(name, result, opened, allowance)
        figures.append(
            f"<figure>{picture}<figcaption><span title='{_e(name)}'>{_e(name)}</span>"
            f"<em>{100 * score:.1f}</em></figcaption></figure>"
        )
    return (
        f"<div class='block'><h4>{title}, IoU in %</h4>"
        f"<div class='masks'>{''.join(figures)}</div></div>"
    )


def _masked(name: str, result: Result, opened: _Opened, allowance: Allowance) -> str:
    place = _place(opened.source, name)
    if place is None or place not in opened.masks.indices:
        return ""
    try:
        image = opened.source.image(place)
        truth = opened.masks.truth(place, (image.shape[0], image.shape[1]))
        found = COVERS[result.protocol](opened.model, image, truth.labels, result.values)
    except (BadImage, DamagedMask, UserError) as error:
        allowance.notes.append(f"no picture of {name}: {error}")
        return ""
    scale = min(1.0, MASK_SIDE / max(image.shape[:2]))
    small = resized(image, *(max(1, round(side * scale)) for side in image.shape[:2]))
    return allowance.img(_covered(small, found, truth.foreground), name)


def _covered(photo: np.ndarray, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`photo` dark where nothing was found, tinted where something was, objects outlined."""
    inside = nearest(found, photo.shape[0], photo.shape[1])[..., None]
    tinted = (1 - TINT) * photo + TINT * np.array(FOUND)
    mixed = np.where(inside, tinted, SHADE * photo.mean(axis=-1, keepdims=True))
    return outline(np.rint(mixed).astype(np.uint8), truth, TRUE)


def _by_attention(
    model: Model, image: np.ndarray, labels: np.ndarray, values: Mapping[str, Any]
) -> np.ndarray:
    """Each object's best head, together: bool [h, w]."""
    attention = look(model, image, size=_whole(values.get("size")))
    layer, keep = _whole(values.get("layer")), _number(values.get("keep"))
    heads = mass_mask(attention.maps[-1 if layer is None else layer], 0.6 if keep is None else keep)
    found = np.zeros(heads.shape[1:], bool)
    for number in np.unique(labels[labels != 0]):
        overlaps = [_overlap(nearest(head, *labels.shape), labels == number) for head in heads]
        found |= heads[int(np.argmax(overlaps))]
    return found


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def _by_cut(
    model: Model, image: np.ndarray, labels: np.ndarray, values: Mapping[str, Any]
) -> np.ndarray:
    """The side of the cut with the object: bool [h, w]."""
    return _cut(model, image, values).foreground


def _by_map(
    model: Model, image: np.ndarray, labels: np.ndarray, values: Mapping[str, Any]
) -> np.ndarray:
    """A soft map at one half: bool [h, w]."""
    if values.get("map") == "attention":
        size = _fed(image, values)
        return relative(look(model, image, size=size).head_mean()) >= 0.5
    cut = _cut(model, image, values)
    return cut.foreground if values.get("map") == "cut" else relative(cut.y) >= 0.5


def _cut(model: Model, image: np.ndarray, values: Mapping[str, Any]) -> ObjectMask:
    """As `objects.py` cuts."""
    tau = _number(values.get("tau"))
    return object_mask(
        read_tokens(model, image, size=_fed(image, values)),
        tau=TAU if tau is None else tau,
        center=False if values.get("as_published") else None,
    )


def _fed(image: np.ndarray, values: Mapping[str, Any]) -> int | None:
    """The short side in pixels; as published an image's own."""
    return min(image.shape[:2]) if values.get("as_published") else _whole(values.get("size"))


def _videos(result: Result, allowance: Allowance) -> list[str]:
    """J and F of each video, the mean over its objects."""
    own, twin = (_by_video(result.values), _by_video(_mapping(result.values.get("random_init"))))
    order = sorted(own, key=lambda name: -sum(own[name]))
    what = "Line: the untrained twin." if twin else ""
    parts = []
    for place, title in enumerate(("Region J of each video, %", "Boundary F of each video, %")):
        bars = [
            Bar(name, own[name][place], twin[name][place] if name in twin else None)
            for name in order
        ]
        parts.append(_bars(title, bars, what))
    return [f"<div class='columns'>{''.join(parts)}</div>"]


def _by_video(values: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """J and F in percent by the video's name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in _records(values.get("per_sequence")):
        j, f = _number(one.get("j")), _number(one.get("f"))
        if j is not None and f is not None:
            found.setdefault(str(one.get("name")), []).append((100 * j, 100 * f))
    return {
        name: (sum(j for j, _ in both) / len(both), sum(f for _, f in both) / len(both))
        for name, both in found.items()
    }


def _queries(result: Result, allowance: Allowance) -> list[str]:
    """The queries that found least, beside the first wrong image they got."""
    answers = [
        (ap, one)
        for one in _records(result.values.get("answers"))
        if (ap := _number(one.get("ap_medium"))) is not None
    ]
    source = allowance.source(result, "data") if answers else None
    rows = []
    for ap, one in sorted(answers, key=lambda pair: pair[0])[:MOST_FAILURES]:
        rank = one.get("first_wrong_rank")
        place = f"rank {rank}" if isinstance(rank, int) else ""
        rows.append(
            [
                _shown(allowance, source, one.get("query")),
                f"{ap:.1f}",
                _shown(allowance, source, one.get("first_wrong"), place),
            ]
        )
    heads = ["query", "AP medium, %", "first wrong answer"]
    return [_rows_table("Queries that found least", heads, rows)]


def _copies(result: Result, allowance: Allowance) -> list[str]:
    """The copies that found least, beside the nearest image that is no original of theirs."""
    answers = [
        (ap, one)
        for one in _records(result.values.get("answers"))
        if (ap := _number(one.get("ap"))) is not None and ap < 100
    ]
    copies = allowance.source(result, "data") if answers else None
    originals = allowance.source(result, "originals") if answers else None
    rows = []
    for ap, one in sorted(answers, key=lambda pair: pair[0])[:MOST_FAILURES]:
        wrong = (
            originals if not one.get("is_distractor") else allowance.source(result, "distractors")
        )
        rank = one.get("rank")
        right = (_list(one.get("originals")) or [None])[0]
        place = f"rank {rank}" if isinstance(rank, int) else "not among the nearest"
        rows.append(
            [
                _shown(allowance, copies, one.get("copy")),
                f"{ap:.1f}",
                _shown(allowance, originals, right, place),
                _shown(allowance, wrong, one.get("first_wrong")),
            ]
        )
    heads = ["copy", "AP, %", "its original", "nearest other image"]
    return [_rows_table("Copies that found least", heads, rows)]


def _shown(allowance: Allowance, source: Source | None, name: Any, remark: str = "") -> str:
    """A thumbnail with its name, or the name."""
    if not isinstance(name, str):
        return "–"
    thumb = allowance.thumb(source, name)
    return f"<div class='named'>{thumb}<span>{_e(name)}<small>{_e(remark)}</small></span></div>"


def _measures(result: Result, allowance: Allowance) -> list[str]:
    """All figures beside the untrained twin's, and how often a corrupted image finds itself."""
    twin = _mapping(result.values.get("random_init"))
    rows = []
    for figure in result.described.figures:
        value, other = figure.of(result.values), figure.of(twin)
        if value is not None:
            rows.append(
                [_e(figure.head), figure.text(value), "–" if other is None else figure.text(other)]
            )
    shared = _numbers(result.values.get("overlap"))
    rows += [
        [f"neighbors shared with {_e(n)}, %", f"{100 * v:.1f}", "–"] for n, v in shared.items()
    ]
    own, others = _by_corruption(result.values), _by_corruption(twin)
    bars = [Bar(name, own[name], others.get(name)) for name in sorted(own, key=lambda n: -own[n])]
    what = "Mean over severities. Line: the untrained twin." if others else "Mean over severities."
    return [
        _rows_table("Figures", ["", "model", "untrained"], rows),
        _bars("Found again if corrupted, %", bars, what),
    ]


def _by_corruption(values: Mapping[str, Any]) -> dict[str, float]:
    """How often an image finds itself, in percent, mean over severities."""
    found: dict[str, list[float]] = {}
    for one in _records(values.get("robustness")):
        share = _number(one.get("retrieval"))
        if share is not None:
            found.setdefault(str(one.get("corruption")).replace("_", " "), []).append(100 * share)
    return {name: sum(every) / len(every) for name, every in found.items()}


def _unknown(result: Result, allowance: Allowance) -> list[str]:
    """Numbers, for a protocol that is not known here."""
    rows = [
        [_e(figure.head), figure.text(value)]
        for figure in result.figures
        if (value := figure.of(result.values)) is not None
    ]
    return [_rows_table("Figures", ["", "value"], rows)]


COVERS: dict[str, Callable[[Model, np.ndarray, np.ndarray, Mapping[str, Any]], np.ndarray]] = {
    "attention": _by_attention,
    "objects": _by_cut,
    "saliency": _by_map,
}
CARDS: dict[str, Callable[[Result, Allowance], list[str]]] = {
    "knn": _classes,
    "linear": _classes,
    "attentive": _classes,
    "low-shot": _low_shot,
    "attention": _masks,
    "objects": _masks,
    "saliency": _masks,
    "video": _videos,
    "retrieval": _queries,
    "copies": _copies,
    "measures": _measures,
}
