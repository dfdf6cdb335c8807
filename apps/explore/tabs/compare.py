"""Two galleries of the same images, side by side: what one model holds for alike and the other not.

In the address: `with` (the second gallery), `k`, `view`, `show` (of the aligned maps), `p` (the
page of what moved most), and of all pages `image` and `color`.
"""

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dino_core.gallery.aligned import FEWEST_IMAGES, MOST_IMAGES
from dino_core.gallery.comparing import (
    MOST_NEIGHBORS,
    AlignedPair,
    Candidates,
    Comparison,
    Figures,
    aligned_pair,
    candidates,
    common_labels,
    compare,
    match_images,
    match_sentences,
)
from dino_core.gallery.listing import list_galleries
from dino_core.gallery.selection import page_of
from explore import address, bars, components, grid, permission, state, words
from explore.here import Here
from explore.mapping import colors_of
from explore.opened import Opened, open_gallery
from explore.server import codes_url, publish
from explore.working import work

NEIGHBORS_FIRST = 10
LABELS_SHOWN = 6
NEIGHBORS, MAPS = "neighbors", "maps"
VIEWS = {NEIGHBORS: "Neighbors side by side", MAPS: "Aligned maps"}
ARROWED, FIRST, SECOND = "arrows", "first", "second"
MAP_KEY = "compare_map"


@dataclass(frozen=True)
class Both:
    """The two galleries and what a comparison of them says."""

    first: Opened
    second: Opened
    told: Comparison
    figures: Figures

    @property
    def names(self) -> tuple[str, str]:
        return self.first.gallery.name, self.second.gallery.name


def show(here: Here) -> None:
    """Draw the page."""
    first = here.opened
    assert first is not None
    found = _found(here, first)
    if found is None:
        return
    if not found.shared:
        _none(first, found)
        return
    asked, names = address.get("with"), {one.name: one for one in found.shared}
    if asked is not None and asked not in names:
        _not_that(first, found, asked)
        return
    with here.bar:
        chosen = address.choice(
            "Compare with", "with", list(names), width=290,
            format_func=lambda name: f"{name} · {names[name].common:,} in common",
        )  # fmt: skip
        k = address.slider("Neighbors", "k", 1, MOST_NEIGHBORS, NEIGHBORS_FIRST, width=170)
    address.imply(**{"with": chosen})
    both = _both(first, open_gallery(names[chosen].path), int(k))
    if both is None:
        return
    _headline(both)
    left, right = st.columns([1.85, 1], gap="small")
    with left, st.container(key="compare_side"):
        controls = st.container(horizontal=True, vertical_alignment="center", gap="small")
        with controls:
            view = address.segments(
                "View", "view", list(VIEWS), format_func=lambda name: VIEWS[name]
            )
        if view == MAPS:
            _maps(both, controls)
        else:
            _side_by_side(both)
    with right, st.container(key="panel"):
        _moved_most(both)


# -- which galleries --------------------------------------------------------------------------


def _found(here: Here, first: Opened) -> Candidates | None:
    made = tuple(
        (entry.name, entry.state, entry.info and entry.info.identity)
        for entry in list_galleries(here.root)
    )
    return work(
        ("compare with", first.key, made),
        "Looking for galleries of the same images",
        lambda progress: candidates(here.root, first.gallery, progress),
    )


def _none(first: Opened, found: Candidates) -> None:
    name = html.escape(first.gallery.name)
    with st.container(key="empty"):
        st.html(
            f"<h2>Nothing to compare with yet</h2><p class='facts'>No other gallery holds images "
            f"of {name}. Build one from the same images with another model, or with another "
            "checkpoint of a run; then both can be compared here.</p>"
        )
        st.button(
            "Build a gallery", type="primary", on_click=address.go, args=("galleries",),
            kwargs={"about": None, "folder": first.gallery.info.data},
        )  # fmt: skip
        _problems(found)


def _not_that(first: Opened, found: Candidates, asked: str) -> None:
    """The gallery in the address cannot be compared with: say why, and offer others."""
    name = first.gallery.name
    told = [sentence for sentence in found.problems if sentence.startswith(f"{asked}")]
    if asked == name:
        st.warning("This is the gallery that is open; choose another to compare it with.")
    elif asked in found.others:
        words.warning(
            f"{name} and {asked} have no image in common, by id or by content; choose a gallery of "
            "the same images."
        )
    else:
        words.warning(told[0] if told else f"There is no gallery {asked} any more; choose another.")
    with st.container(horizontal=True):
        for one in found.shared[:4]:
            st.button(
                f"Compare with {words.plain(one.name)} ({one.common:,} in common)",
                on_click=address.change, kwargs={"with": one.name},
            )  # fmt: skip


def _problems(found: Candidates) -> None:
    for sentence in found.problems:
        words.caption(sentence)


# -- figures ----------------------------------------------------------------------------------


def _both(first: Opened, second: Opened, k: int) -> Both | None:
    """The comparison and its figures; None while they are computed."""
    pair = (first.key, second.key)

    def compared(progress):  # type: ignore[no-untyped-def]
        match = match_images(first.gallery, second.gallery)
        return compare(first.gallery, second.gallery, match, progress)

    told = work(("compare", *pair), "Comparing", compared)
    if told is None:
        return None
    figures = work(
        ("compare at", *pair, k),
        "Counting shared neighbors",
        lambda _: Figures.of(told, k, common_labels(first.gallery, second.gallery, told.match)),
    )
    return None if figures is None else Both(first, second, told, figures)


def _headline(both: Both) -> None:
    told, figures = both.told, both.figures
    images = f"{len(told.match):,}"
    cards = [
        (
            f"{figures.mean:.0%}",
            f"of the {figures.k} nearest neighbors are the same",
            f"by chance it would be {_percent(told.chance(figures.k))}",
        )
        if figures.k > 1
        else (
            f"{figures.mean:.0%}",
            "of the nearest neighbors are the same",
            f"by chance it would be {_percent(told.chance(1))}",
        ),
        (
            _number(told.cka),
            "CKA: 1 is alike up to rotation and scale",
            f"unbiased {_number(told.cka_unbiased)}",
        ),
        (images, "images in both galleries", " ".join(_models(both))),
    ]
    with st.container(key="compare_head"):
        numbers, middle, labels = st.columns([1.3, 1, 1], gap="small")
        with numbers:
            st.html("<dl class='compare-figures'>" + "".join(map(_card, cards)) + "</dl>")
        with middle:
            _histogram(figures)
        with labels:
            _by_label(figures)
        said = [*match_sentences(both.first.gallery, both.second.gallery, told.match), *told.notes]
        if said:
            st.html(f"<p class='facts'>{html.escape(' '.join(said))}</p>")


def _histogram(figures: Figures) -> None:
    """How many images keep none of their neighbors, one, two ..., as bars."""
    most, total = max(figures.histogram.max(), 1), len(figures.overlap_S)
    # Of thirty bars every fifth has its number, or they would not fit.
    step = 1 if figures.k <= 12 else 5
    columns = [
        f"<li title='{count:,} images ({count / total:.0%}) keep {kept} of {figures.k}' "
        f"style='--share:{count / most:.4f}'><i></i>"
        f"<span>{kept if kept % step == 0 else ''}</span></li>"
        for kept, count in enumerate(figures.histogram.tolist())
    ]
    st.html(
        f"<h3>Images by how many of {figures.k} they keep</h3>"
        f"<ul class='compare-bars' aria-label='Images by neighbors kept'>{''.join(columns)}</ul>"
    )


def _card(card: tuple[str, str, str]) -> str:
    value, meaning, small = map(html.escape, card)
    return f"<div><dd>{value}</dd><dt>{meaning}<small>{small}</small></dt></div>"


def _models(both: Both) -> list[str]:
    infos = both.first.gallery.info, both.second.gallery.info
    return [" and ".join(f"{one.model.rsplit('/', 1)[-1]} ({one.dim} numbers)" for one in infos)]


def _by_label(figures: Figures) -> None:
    table = figures.by_label
    if table.empty:
        st.html("<h3>By label</h3><p class='facts'>These images have no labels.</p>")
        return
    some = table.head(LABELS_SHOWN)
    note = f"<small>the {len(some)} least of {len(table):,}</small>"
    lines = [
        (str(row.label), row.overlap, "var(--d-accent)", f"{row.images:,} images")
        for row in some.itertuples()
    ]
    st.html(
        f"<h3>Neighbors kept, by label{note if len(table) > len(some) else ''}</h3>"
        + bars.shares(lines, "Neighbors kept, by label")
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0095 else f"{share:.1%}"


def _number(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.2f}"


# -- what moved most, and one image -----------------------------------------------------------


def _moved_most(both: Both) -> None:
    """The images with the fewest shared neighbors, least first."""
    figures, told = both.figures, both.told
    st.html(
        f"<h2>Moved most</h2><p class='facts'>Images by how few of their {figures.k} neighbors "
        "they keep. Click one to see both lists.</p>"
    )
    rows = told.match.first_C[told.judged_S[figures.order]]
    told_by_count = np.array([f"{shared} of {figures.k}" for shared in range(figures.k + 1)])
    kept = told_by_count[np.rint(figures.k * figures.overlap_S[figures.order]).astype(int)]
    grid.show(  # which cuts its page out of the captions of a million
        both.first,
        rows,
        key="compare_grid",
        captions=kept,
        pager="p",  # type: ignore[arg-type]
    )


def _place(both: Both) -> int | None:
    """Where the image of the address stands among the judged ones; None where it does not."""
    row = state.picked(both.first)
    at = np.flatnonzero(both.told.match.first_C[both.told.judged_S] == (-1 if row is None else row))
    return int(at[0]) if len(at) else None


def _row(both: Both, at: int) -> int:
    """The first gallery's row of a judged image."""
    return int(both.told.match.first_C[both.told.judged_S[at]])


def _say_why_not(both: Both) -> None:
    """Why the image of the address has no neighbors to show."""
    asked, first = address.get("image") or "", html.escape(both.names[0])
    row, name = state.picked(both.first), html.escape(asked.rsplit("/", 1)[-1])
    if row is None:
        why = f"{first} has no image {name}"
    elif row in both.told.match.first_C:
        why = f"{name} is not among the images whose neighbors were compared"
    else:
        why = f"{name} is only in {first}"
    st.html(f"<p class='warning'>{why}; choose one of those that moved most.</p>")


def _side_by_side(both: Both) -> None:
    """One image's neighbors by either gallery, ranked, shared ones marked."""
    at = _place(both)
    if at is None and address.get("image") is None:
        at = int(both.figures.order[0])
    if at is None:
        _say_why_not(both)
        return
    told, k = both.told, both.figures.k
    lists = told.first_SK[at, :k], told.second_SK[at, :k]
    shared = set(lists[0].tolist()) & set(lists[1].tolist())
    row = _row(both, at)
    with st.container(key="compare_image", horizontal=True, vertical_alignment="center"):
        st.html(
            f"<img class='compare-picked' alt='' src='explorer/image/{both.first.key}/{row}'>",
            width="content",
        )
        id = both.first.id(row)
        label = both.first.labels.iloc[row]
        title = id.rsplit("/", 1)[-1] if pd.isna(label) else str(label)
        st.html(
            f"<h2>{html.escape(title)}</h2><p class='facts'><code>{html.escape(id)}</code><br>"
            f"{len(shared)} of its {k} nearest neighbors are the same in both galleries, "
            "marked with ✓.</p>"
        )
    sides = (both.first, told.match.first_C), (both.second, told.match.second_C)
    for column, (opened, rows_C), found in zip(
        st.columns(2, gap="medium"), sides, lists, strict=True
    ):
        with column:
            info = opened.gallery.info
            st.html(
                f"<h3>By {html.escape(opened.gallery.name)}"
                f"<small>{html.escape(info.model.rsplit('/', 1)[-1])}</small></h3>"
            )
            here_D = opened.gallery.features[rows_C[told.judged_S[at]]]
            rows = told.match.first_C[found]  # the pictures are the same ones
            told_labels = both.first.told("label", rows)
            marks = ["✓ " if one in shared else "" for one in found.tolist()]
            ids = [both.first.id(one).rsplit("/", 1)[-1] for one in rows]
            names = [label or id for label, id in zip(told_labels, ids, strict=True)]
            grid.show(
                both.first, rows, key=f"compare_{'second' if opened is both.second else 'first'}",
                scores=opened.gallery.features[rows_C[found]] @ here_D,
                captions=[mark + name for mark, name in zip(marks, names, strict=True)],
            )  # fmt: skip


# -- maps -------------------------------------------------------------------------------------


def _maps(both: Both, controls: DeltaGenerator) -> None:
    """Both galleries' maps, drawn together; one is shown, or the way from one to the other."""
    first, second = both.first.gallery, both.second.gallery
    if not permission.gate("Drawing aligned maps"):
        return
    pair = work(
        ("aligned", both.first.key, both.second.key),
        "Drawing the aligned maps",
        lambda progress: aligned_pair(first, second, both.told.match, progress),
    )
    if pair is None:
        st.caption(f"Of up to {MOST_IMAGES:,} common images; it takes some seconds once.")
        return
    names = {ARROWED: f"{both.names[0]} → {both.names[1]}", FIRST: both.names[0]}
    names[SECOND] = both.names[1]
    with controls:
        shown = address.segments("Map", "show", list(names), format_func=lambda name: names[name])
        color = address.choice(
            "Color", "color", both.first.columns, label_visibility="collapsed", width=170
        )
    at = _place(both)
    if at is None and address.get("image") is not None:
        _say_why_not(both)
    _draw(both, pair, shown, color, at)
    with st.container(horizontal=True, vertical_alignment="center"):
        words.caption(_about(both, pair, shown, at))
        if at is not None:
            st.button("Clear the image", on_click=address.change, kwargs={"image": None})


def _draw(both: Both, pair: AlignedPair, shown: str, color: str, at: int | None) -> None:
    opened, count = both.first, len(both.first.gallery)
    chosen = state.selection_message()
    components.scatter(
        key=MAP_KEY,
        data={
            "points": publish(pair.spread(count, second=shown != FIRST)),
            "moves": publish(pair.spread(count, second=False)) if shown == ARROWED else None,
            "ease": True,
            "codes": codes_url(opened, color),
            "thumbs": f"explorer/image/{opened.key}",
            "info": f"explorer/info/{opened.key}",
            "panel": components.PANEL,
            "selection": chosen | {"polygons": []},  # a region is one of the gallery's own map
            "picked": None if at is None else _row(both, at),
            "lit": _lit(both, pair, shown, at),
            "query": None,
        }
        | colors_of(opened.coloring(color)),
        on_pick_change=lambda: state.on_map(opened, "pick", MAP_KEY),
        on_select_change=_filter,
    )


def _filter() -> None:
    """The legend's filter belongs to all pages; what is drawn around on this map does nothing."""
    value = st.session_state[MAP_KEY]["select"]
    if isinstance(value, dict):
        shown = [code for code in value.get("shown", []) if isinstance(code, int)]
        address.put(shown=",".join(map(str, sorted(shown))) or None)
        state.follow({"shown"})


def _lit(both: Both, pair: AlignedPair, shown: str, at: int | None) -> list[int]:
    """The rows to point at: an image's neighbors, or those of the grid that moved most."""
    told = both.told
    if at is not None:
        lists = told.second_SK if shown == SECOND else told.first_SK
        rows = told.match.first_C[lists[at, : both.figures.k]]
    elif shown == ARROWED:
        page = address.whole("p", 1, len(both.figures.order) or 1, 1)
        order, _, _ = page_of(both.figures.order, page - 1, grid.PAGE_SIZE)
        rows = told.match.first_C[told.judged_S[order]]
    else:
        return []
    return rows[np.isin(rows, pair.rows_S)].tolist()


def _about(both: Both, pair: AlignedPair, shown: str, at: int | None) -> str:
    count, common = len(pair.rows_S), len(both.told.match)
    said = []
    if count < common:
        said.append(f"{count:,} of the {common:,} common images, chosen at random.")
    if count < FEWEST_IMAGES:
        said.append(
            f"Principal components: fewer than {FEWEST_IMAGES} images are too few for a UMAP."
        )
    first, second = both.names
    if at is not None:
        by = second if shown == SECOND else first
        said.append(f"Lines lead from the image to its {both.figures.k} neighbors by {by}.")
    else:
        said.append("Images whose neighbors stay lie at about the same place in both maps.")
    if shown == ARROWED:
        which = "these neighbors" if at is not None else "the images beside the map"
        said.append(f"Arrows lead {which} from their places by {first} to those by {second}.")
    return " ".join(said)
