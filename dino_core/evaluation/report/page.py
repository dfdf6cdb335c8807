"""The page: its head, the table, a section for each group, and what was published."""

import platform
import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from importlib import metadata, resources

from dino_core import __version__
from dino_core.evaluation.report.board import Board, Group, Record
from dino_core.evaluation.report.cards import PICTURED, parts
from dino_core.evaluation.report.elements import escaped, notes
from dino_core.evaluation.report.main_table import main_table
from dino_core.evaluation.report.opening import Opening
from dino_core.evaluation.report.orientation import orientation
from dino_core.evaluation.report.pictures import BYTES, Pictures
from dino_core.evaluation.report.values import plain
from dino_core.evaluation.results import UNTRAINED
from dino_core.gallery.progress import Progress

MOST_HEADLINES = 4  # figures in the head of a card


def whole_page(
    board: Board,
    device: str,
    progress: Progress,
    tell: Callable[[str], None] = lambda sentence: None,
) -> str:
    """The whole page as HTML; `device` is where models run for pictures of masks.

    `tell` gets a sentence for what pictures could not be made of, once for each protocol.
    """
    fields = {
        "style": _template("report.css"),
        "head": _head(board),
        "table": main_table(board),
        "sections": "\n".join(_sections(board, Opening(device, progress), progress, tell)),
        "published": orientation(board),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _template("report.html"))


def _sections(
    board: Board, opening: Opening, progress: Progress, tell: Callable[[str], None]
) -> list[str]:
    """One for each group; the cards that may have pictures share the room there is for them."""
    every = [record for group in board.groups for record in group.results]
    room, waiting = BYTES, sum(record.protocol in PICTURED for record in every)
    missing: dict[str, None] = {}  # a set that keeps its order
    sections, done = [], 0
    for g, group in enumerate(board.groups):
        cards = []
        for record in group.results:
            progress(done, len(every), "Report")
            pictures = Pictures(opening, room // max(waiting, 1))
            cards.append(_card(record, pictures))
            title = record.described.title
            missing |= dict.fromkeys(f"no pictures for {title}: {why}" for why in pictures.missing)
            room -= pictures.used
            waiting -= record.protocol in PICTURED
            done += 1
        sections.append(_section(g, group, cards))
    progress(done, len(every), "Report")
    for sentence in missing:
        tell(sentence)
    return sections


def _template(name: str) -> str:
    return resources.files("dino_core.evaluation.report").joinpath(name).read_text("utf-8")


def _head(board: Board) -> str:
    """What was judged, on what, when, with what."""
    models = [row.name for row in board.rows if row.kind == "model"]
    data = list(dict.fromkeys(group.data for group in board.groups if group.data))
    paths = {record.path for group in board.groups for record in group.results}
    days = sorted(date.fromtimestamp(path.stat().st_mtime) for path in paths)
    span = f"{days[0]}" if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    facts = {
        "models": ", ".join(models),
        "data": ", ".join(data),
        "figures of": span,
        "page made": f"{date.today()} with {_versions()}",
    }
    told = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>" for name, text in facts.items() if text
    )
    return f"<dl class='facts'>{told}</dl>{notes(board.notes)}"


@cache
def _versions() -> str:
    others = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "numpy"))
    return f"dino-core {__version__}, Python {platform.python_version()}, {others}"


def _section(g: int, group: Group, cards: Sequence[str]) -> str:
    """One protocol on one data set."""
    protocol = group.first.described
    about = f"<p class='about'>{escaped(protocol.about)}</p>" if protocol.about else ""
    span = f"<span>{escaped(group.conditions)}</span>" if group.conditions else ""
    return (
        f"<section id='part-{g}'><h2>{escaped(protocol.title)}"
        f"{span}</h2>{about}{''.join(cards)}</section>"
    )


def _card(record: Record, pictures: Pictures) -> str:
    """One model under one protocol: pictures and bars, notes, and where all of it comes from."""
    shown = "".join(parts(record, pictures))
    return (
        f"<article class='card'><header><h3>{escaped(record.model[0])}</h3>"
        f"<p class='headline'>{_headline(record)}</p></header>{shown}"
        f"{notes([*record.notes, *pictures.notes])}{_provenance(record)}</article>"
    )


def _headline(record: Record) -> str:
    """The first figures, each with the untrained twin's."""
    twin = record.baselines.get(UNTRAINED, {})
    told = []
    for figure in record.figures[:MOST_HEADLINES]:
        value, other = figure.of(record.values), figure.of(twin)
        if value is not None:
            beside = "" if other is None else f" <small>untrained {figure.text(other)}</small>"
            told.append(f"<span><b>{figure.text(value)}</b> {escaped(figure.head)}{beside}</span>")
    return " ".join(told)


def _provenance(record: Record) -> str:
    """Every plain field: specs, hashes, settings, numbers of images."""
    fields = {
        name.replace("_", " "): plain(value)
        for name, value in record.values.items()
        if isinstance(value, str | int | float | bool) and value != ""
    }
    rows = "".join(
        f"<tr><th scope='row'>{escaped(name)}</th><td>{escaped(text)}</td></tr>"
        for name, text in [*fields.items(), ("file", record.path.name)]
    )
    return (
        "<details><summary>Where this comes from</summary><div class='scroll'>"
        f"<table class='plain'><tbody>{rows}</tbody></table></div></details>"
    )
