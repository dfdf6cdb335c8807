"""The board for a terminal: a line a figure, a column a model."""

from collections.abc import Sequence

from dino_core.evaluation.published import Published
from dino_core.evaluation.report.board import Board, Group, Row, sources
from dino_core.evaluation.report.values import after


def written(board: Board) -> str:
    """Groups one below the other, what was published under each, and notes."""
    rows = [row for row in board.rows if row.kind != "published"]
    widths = [max(len(row.name), 6) + 2 for row in rows]
    left = max((len(figure.head) for _, figure in board.columns), default=0) + 2
    lines = [" " * left + "".join(f"{row.name:>{w}}" for row, w in zip(rows, widths, strict=True))]
    for g, group in enumerate(board.groups):
        lines.append(f"{group.first.described.title}{after(': ', group.conditions)}")
        lines += _figures(g, group, rows, widths, left)
        lines += _published(group)
    return "\n".join([*lines, *board.behind, *board.notes])


def _figures(
    g: int, group: Group, rows: Sequence[Row], widths: Sequence[int], left: int
) -> list[str]:
    lines = []
    for f, figure in enumerate(group.figures):
        cells = [figure.text(row.values[g, f]) if (g, f) in row.values else "-" for row in rows]
        told = "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        lines.append(f"{'  ' + figure.head:{left}}{told}")
    return lines


def _published(group: Group) -> list[str]:
    lines = [f"  published on {_told(one, group)}" for one in group.near]
    for differs, entries in group.otherwise.items():
        lines.append(f"  published on the same data, measured with other settings: {differs}")
        lines += [f"    published on {_told(one, group)}" for one in entries]
    every = [entry for entry, _ in group.references]
    return lines + [f"  (published in: {source})" for source in sources(every)]


def _told(entry: Published, group: Group) -> str:
    """`ImageNet: ViT-S/16, DINO: top-1 74.5 %`."""
    figures = ", ".join(
        f"{figure.title} {figure.text(value)} {figure.unit}".rstrip()
        for figure in group.figures
        if (value := figure.of(entry.figures)) is not None
    )
    return f"{entry.data}: {entry.model}: {figures}"
