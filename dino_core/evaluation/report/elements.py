"""Pieces of HTML: text that cannot be anything else, notes, bars, small tables."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_BARS = 40  # classes, videos: of more the best and the worst


def escaped(text: object) -> str:
    """Text as it may stand in a page, also in an attribute."""
    return html.escape(str(text), quote=True)


def breakable(name: str) -> str:
    """A spec as text that breaks after its signs, before it breaks anywhere else."""
    return re.sub(r"([/:@_-])(?=\w)", r"\1<wbr>", escaped(name))


def notes(sentences: Sequence[str]) -> str:
    """A list of sentences, each once; nothing for none."""
    told = "".join(f"<li>{escaped(one)}</li>" for one in dict.fromkeys(sentences))
    return f"<ul class='notes'>{told}</ul>" if told else ""


def block(title: str, inside: str) -> str:
    """A part of a card; nothing where nothing is inside."""
    return f"<div class='block'><h4>{escaped(title)}</h4>{inside}</div>" if inside else ""


@dataclass(frozen=True)
class Bar:
    """A share of a whole, and perhaps the untrained twin's, as a mark on it."""

    name: str
    percent: float
    mark: float | None = None

    def element(self) -> str:
        name = escaped(self.name)
        mark = "" if self.mark is None else f"<u style='left:{_within(self.mark):.1f}%'></u>"
        return (
            f"<li><span title='{name}'>{name}</span><div class='bar'>"
            f"<i style='width:{_within(self.percent):.1f}%'></i>{mark}</div>"
            f"<em>{self.percent:.1f}</em></li>"
        )


def bars(title: str, every: Sequence[Bar], what: str = "") -> str:
    """A list of bars, of many the first and the last ones; `what` says how to read it."""
    rows = [bar.element() for bar in every]
    left_out = len(rows) - MOST_BARS
    if left_out > 0:
        gap = f"<li class='gap'>{left_out:,} more between</li>"
        rows = [*rows[: MOST_BARS // 2], gap, *rows[-MOST_BARS // 2 :]]
    said = f"<p class='legend'>{escaped(what)}</p>" if what else ""
    return block(title, f"<ol class='bars'>{''.join(rows)}</ol>{said}" if rows else "")


def _within(percent: float) -> float:
    return min(max(percent, 0.0), 100.0)


def small_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already; nothing without rows."""
    if not rows:
        return ""
    top = "".join(f"<th scope='col'>{escaped(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        "<div class='scroll'><table class='plain'>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
