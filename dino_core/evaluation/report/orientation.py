"""What was published, but on other data or with other settings: for orientation, by protocol."""

from collections.abc import Sequence

from dino_core.evaluation.published import Published, architecture_named, published
from dino_core.evaluation.report.board import Board, sources
from dino_core.evaluation.report.elements import escaped
from dino_core.evaluation.report.protocols import PROTOCOLS


def orientation(board: Board) -> str:
    """Tables of all published figures that stand in no column of ours; nothing without any."""
    architectures = {
        architecture_named(row.name.removeprefix("timm:"))
        for row in board.rows
        if row.kind == "model"
    }
    tables = [
        _table(protocol, data, why, entries, architectures)
        for (protocol, data, why), entries in _elsewhere(board).items()
    ]
    if not tables:
        return ""
    return (
        "<section class='published' id='published'>"
        "<h2>For orientation: published, but measured otherwise</h2>"
        "<p class='about'>Measured on other images than the figures above, or with other settings, "
        "so none of these can be held against one of them.</p>"
        f"<div class='columns'>{''.join(tables)}</div></section>"
    )


def _elsewhere(board: Board) -> dict[tuple[str, str, str], list[Published]]:
    """Entries by protocol, data, and what sets them apart where that is not the data."""
    near = {_key(entry) for group in board.groups for entry in group.near}
    apart = {
        _key(entry): differs
        for group in board.groups
        for differs, entries in group.otherwise.items()
        for entry in entries
    }
    found: dict[tuple[str, str, str], list[Published]] = {}
    for protocol in dict.fromkeys(group.first.protocol for group in board.groups):
        for entry in published(protocol):
            if _key(entry) not in near:
                why = apart.get(_key(entry), "")
                found.setdefault((protocol, entry.data, why), []).append(entry)
    return found


def _key(entry: Published) -> tuple[str, str, str]:
    return entry.protocol, entry.data, entry.model


def _table(
    protocol: str,
    data: str,
    why: str,
    entries: Sequence[Published],
    architectures: set[str | None],
) -> str:
    """One data set; our architectures are marked."""
    known = PROTOCOLS[protocol]
    figures = [one for one in known.figures if any(one.of(e.figures) is not None for e in entries)]
    heads = "".join(f"<th scope='col'>{escaped(figure.head)}</th>" for figure in figures)
    rows = []
    for entry in entries:
        values = [figure.of(entry.figures) for figure in figures]
        cells = "".join(
            f"<td>{'–' if value is None else figure.text(value)}</td>"
            for figure, value in zip(figures, values, strict=True)
        )
        same = " class='same'" if entry.architecture in architectures else ""
        rows.append(f"<tr{same}><th scope='row'>{escaped(entry.model)}</th>{cells}</tr>")
    apart = f"The same data, measured with other settings: {why}." if why else ""
    return (
        f"<article class='card'><h3>{escaped(known.title)}: published, on {escaped(data)}</h3>"
        + (f"<p class='remark'>{escaped(apart)}</p>" if apart else "")
        + "<div class='scroll'><table class='plain'>"
        f"<thead><tr><th scope='col'>model</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='legend'>Source: {escaped('; '.join(sources(entries)))}.</p></article>"
    )
