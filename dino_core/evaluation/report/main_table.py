"""The table of all figures on the page: models down, figures across."""

from dino_core.evaluation.report.board import At, Board, Group, Row, sources
from dino_core.evaluation.report.elements import breakable, escaped
from dino_core.evaluation.report.protocols import Figure
from dino_core.evaluation.report.values import after


def main_table(board: Board) -> str:
    """The table, how it is to be read, and where a model is behind its untrained twin."""
    body = "".join(_row(board, row) for row in board.rows)
    behind = "".join(f"<p>{escaped(one)}</p>" for one in board.behind)
    remark = f"<div class='remark'>{behind}</div>" if behind else ""
    return (
        "<div class='board'><div class='scroll' tabindex='0' role='region' "
        f"aria-label='All figures'><table class='figures'><thead>{_heads(board)}</thead>"
        f"<tbody>{body}</tbody></table></div></div>"
        f"<p class='legend'>{' '.join(_legend(board))}</p>{remark}"
    )


def _heads(board: Board) -> str:
    """Two lines: protocols on data, and figures."""
    tops, heads = [], []
    for g, group in enumerate(board.groups):
        if not group.figures:
            continue
        told = f"<a href='#part-{g}'>{escaped(group.first.described.title)}</a>"
        told += f"<small>{escaped(group.data)}{escaped(after(', ', group.remark))}</small>"
        tops.append(f"<th colspan='{len(group.figures)}' scope='colgroup'>{told}</th>")
        for f, figure in enumerate(group.figures):
            edge = " class='edge'" if f == 0 else ""
            unit = f" <small>{escaped(figure.unit)}</small>" if figure.unit else ""
            heads.append(f"<th scope='col'{edge}>{escaped(figure.title)}{unit}</th>")
    return f"<tr><td></td>{''.join(tops)}</tr><tr><th scope='col'>model</th>{''.join(heads)}</tr>"


def _row(board: Board, row: Row) -> str:
    cells = "".join(_cell(board, row, at, figure) for at, figure in board.columns)
    name = breakable(row.name)
    if row.kind == "published":
        name = f"{escaped(row.name)}<small>published</small>"
    return f"<tr class='{row.kind}'><th scope='row'>{name}</th>{cells}</tr>"


def _cell(board: Board, row: Row, at: At, figure: Figure) -> str:
    """One value, with its deviation and how far it is from the untrained twin's."""
    edge = "edge" if at[1] == 0 else ""
    if at not in row.values:
        blank = "" if row.kind == "published" else "–"  # few columns have any
        return f"<td class='none {edge}'>{blank}</td>"
    value = row.values[at]
    best = row.kind == "model" and value == board.best(at, figure)
    told = f"<b class='best'>{figure.text(value)}</b>" if best else f"<b>{figure.text(value)}</b>"
    if at in row.deviations:
        told += f"<small>± {figure.text(row.deviations[at])}</small>"
    twin = board.twin(row)
    if figure.better and twin is not None and at in twin.values:
        gain = value - twin.values[at]
        kind = "up" if gain * figure.better >= 0 else "down"
        told += f"<small class='{kind}'>{gain:+.{figure.digits}f}</small>"
    return f"<td class='{edge}'>{told}</td>"


def _legend(board: Board) -> list[str]:
    """Sentences, HTML already."""
    told = []
    if any(row.kind == "baseline" for row in board.rows):
        told.append("Small and colored: how far a model is from its untrained twin.")
    if any(row.deviations for row in board.rows):
        told.append("±: the deviation over draws of labels.")
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
        f"{escaped(after(', ', group.remark))}: there are <a href='#published'>published figures"
        f"</a>, measured with other settings: {escaped(differs)}."
        for differs in group.otherwise
    ]
