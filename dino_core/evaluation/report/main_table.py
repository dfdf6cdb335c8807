"""The table of all figures on the page: models down, figures across.

Few models with many figures are turned, as in the terminal: they would need a page of many widths.
"""

from dino_core.evaluation.report.board import At, Board, Group, Row, sources
from dino_core.evaluation.report.elements import breakable, escaped
from dino_core.evaluation.report.protocols import Figure, ahead
from dino_core.evaluation.report.values import after

FEW_MODELS, MANY_FIGURES = 4, 6


def main_table(board: Board) -> str:
    """The table, how it is to be read, and where a model is behind its untrained twin."""
    few = sum(row.kind == "model" for row in board.rows) <= FEW_MODELS
    turned = few and len(board.columns) > MANY_FIGURES
    inside = _turned(board) if turned else _upright(board)
    behind = "".join(f"<p>{escaped(one)}</p>" for one in board.behind)
    remark = f"<div class='remark'>{behind}</div>" if behind else ""
    return (
        f"<div class='board{' turned' if turned else ''}'><div class='scroll' tabindex='0' "
        f"role='region' aria-label='All figures'><table class='figures'>{inside}</table></div>"
        f"</div><p class='legend'>{' '.join(_legend(board))}</p>{remark}"
    )


def _upright(board: Board) -> str:
    body = "".join(_row(board, row) for row in board.rows)
    return f"<thead>{_heads(board)}</thead><tbody>{body}</tbody>"


def _turned(board: Board) -> str:
    """A line a figure, below one for each protocol on its data; a column a row of the board."""
    heads = "".join(
        f"<th scope='col' class='{row.kind}{_edge(row)}'>{_name(row)}</th>" for row in board.rows
    )
    lines = []
    for g, group in enumerate(board.groups):
        if not group.figures:
            continue
        lines.append(
            f"<tr class='group'><th scope='rowgroup' colspan='{len(board.rows) + 1}'>"
            f"<div>{_group(g, group)}</div></th></tr>"
        )
        for f, figure in enumerate(group.figures):
            cells = "".join(
                f"<td class='{row.kind}{_edge(row)}{_none(row, (g, f))}'>"
                f"{_told(board, row, (g, f), figure)}</td>"
                for row in board.rows
            )
            lines.append(f"<tr><th scope='row'>{_title(figure)}</th>{cells}</tr>")
    return f"<thead><tr><th scope='col'></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"


def _edge(row: Row) -> str:
    """A line stands before each model, and before what was published."""
    return "" if row.kind == "baseline" else " edge"


def _none(row: Row, at: At) -> str:
    return "" if at in row.values else " none"


def _group(g: int, group: Group) -> str:
    """Protocol, data and settings."""
    told = f"<a href='#part-{g}'>{escaped(group.first.described.title)}</a>"
    return told + (f"<small>{escaped(group.conditions)}</small>" if group.conditions else "")


def _title(figure: Figure) -> str:
    small = f" <small>{escaped(figure.remark)}</small>" if figure.remark else ""
    return escaped(figure.title) + small


def _heads(board: Board) -> str:
    """Two lines: protocols on data, and figures."""
    tops, heads = [], []
    for g, group in enumerate(board.groups):
        if not group.figures:
            continue
        told = f"<th colspan='{len(group.figures)}' scope='colgroup'>{_group(g, group)}</th>"
        tops.append(told)
        for f, figure in enumerate(group.figures):
            edge = " class='edge'" if f == 0 else ""
            heads.append(f"<th scope='col'{edge}>{_title(figure)}</th>")
    return f"<tr><td></td>{''.join(tops)}</tr><tr><th scope='col'>model</th>{''.join(heads)}</tr>"


def _row(board: Board, row: Row) -> str:
    cells = "".join(
        f"<td class='{'edge' if at[1] == 0 else ''}{_none(row, at)}'>"
        f"{_told(board, row, at, figure)}</td>"
        for at, figure in board.columns
    )
    return f"<tr class='{row.kind}'><th scope='row'>{_name(row)}</th>{cells}</tr>"


def _name(row: Row) -> str:
    if row.kind == "published":
        return f"{escaped(row.name)}<small>published</small>"
    return breakable(row.name)


def _told(board: Board, row: Row, at: At, figure: Figure) -> str:
    """One value, with its deviation and how far it is from the untrained twin's."""
    if at not in row.values:
        return "" if row.kind == "published" else "–"  # few columns have any
    value = row.values[at]
    best = row.kind == "model" and value == board.best(at, figure)
    told = f"<b class='best'>{figure.text(value)}</b>" if best else f"<b>{figure.text(value)}</b>"
    if at in row.deviations:
        told += f"<small>± {figure.text(row.deviations[at])}</small>"
    twin = board.twin(row)
    if figure.better and twin is not None and at in twin.values:
        gain = value - twin.values[at]
        lead = ahead(gain, figure.better, row.deviations.get(at), twin.deviations.get(at))
        kind = {1: "up", 0: "level", -1: "down"}[lead]
        told += f"<small class='{kind}'>{gain:+.{figure.digits}f}</small>"
    return told


def _legend(board: Board) -> list[str]:
    """Sentences, HTML already."""
    told = []
    if any(row.kind == "baseline" for row in board.rows):
        told.append("Small with a sign: how far a model is from its untrained twin.")
    if any(row.deviations for row in board.rows):
        told.append(
            "±: the deviation over draws of labels; a distance from the twin within it is gray."
        )
    if any(board.best(at, figure) is not None for at, figure in board.columns):
        told.append("<b class='best'>Marked</b>: the best model of a column.")
    near = [entry for group in board.groups for entry in group.near]
    if near:
        told.append(f"Published: {escaped('; '.join(sources(near)))}.")
    return told + [one for group in board.groups for one in _otherwise(group)]


def _otherwise(group: Group) -> list[str]:
    """What was published on a group's data, but cannot stand in its columns."""
    return [
        f"{escaped(group.first.described.title)} on {escaped(group.published_data)}"
        f"{escaped(after(', ', group.settings))}: there are <a href='#published'>published figures"
        f"</a>, measured with other settings: {escaped(differs)}."
        for differs in group.otherwise
    ]
