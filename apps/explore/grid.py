"""Images of a gallery as thumbnails, with their labels in the colors of the map; a click opens one.

grid.show(opened, rows, key="medoids")
grid.show(opened, rows, key="members", pager="p")     # 24 a page, the page number in the address
"""

from collections.abc import Callable, Sequence

import numpy as np

from dino_core.gallery.selection import page_of
from explore import address, components, state
from explore.opened import Opened

PAGE_SIZE = 24


def show(
    opened: Opened,
    rows: np.ndarray | Sequence[int],
    *,
    key: str,
    color: str | None = None,
    scores: np.ndarray | Sequence[float] | None = None,
    captions: Sequence[str] | None = None,
    pager: str | None = None,
    on_pick: Callable[[int], None] | None = None,
) -> None:
    """Draw the images of `rows`. `color`: the column whose values tell and color them, usually the
    label; `captions` instead of those values; `pager`: the address value that turns pages;
    `on_pick`: what a click calls with the row, instead of opening the image.
    """
    rows = np.asarray(rows, np.int64)
    page, pages, note = 0, 1, ""
    if pager is not None:
        total, wanted = len(rows), address.whole(pager, 1, len(rows) or 1, 1)
        rows, page, pages = page_of(rows, wanted - 1, PAGE_SIZE)
        first, last = page * PAGE_SIZE, page * PAGE_SIZE + len(rows)
        note = f"{first + 1:,}–{last:,} of {total:,}"
        scores = None if scores is None else scores[first:last]
        captions = None if captions is None else captions[first:last]
    column = "label" if "label" in opened.columns or color is None else color
    light, dark = opened.code_colors(column, rows)
    items = [
        {"row": row, "id": id, "label": label, "light": light[place], "dark": dark[place]}
        | ({} if scores is None else {"score": float(scores[place])})
        for place, (row, id, label) in enumerate(
            zip(
                rows.tolist(),
                map(str, opened.gallery.images["id"].iloc[rows]),
                opened.told(column, rows) if captions is None else captions,
                strict=True,
            )
        )
    ]
    components.thumbs(
        key=key,
        data={
            "thumbs": f"explorer/image/{opened.key}",
            "panel": components.PANEL,
            "items": items,
            "page": page,
            "pages": pages,
            "note": note,
        },
        on_pick_change=lambda: state.on_grid(opened, key, on_pick),
        on_page_change=lambda: state.on_page(key, pager),
    )
