"""What is most like an image: neighbors with scores and filters; classes by their neighbors."""

import html
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery import Features, Hits
from dino_core.gallery.agreement import count_votes, hardest, precision_per_class, vote
from dino_core.gallery.finding import suggestions
from dino_core.gallery.manifest import how_made
from explore import address, bars, filters, grid, mapping, photo, state, words
from explore.here import Here
from explore.opened import Opened
from explore.working import work

USUAL, MOST = 24, 120  # neighbors
SUGGESTED = 8
ELECTED = 4  # labels that the neighbors vote for
HARDEST = 240  # images
PREVIEW_SIDE = 480  # pixels
IMAGE, PHOTO = "image", "photo"


@dataclass(frozen=True)
class Query:
    """What neighbors are asked for."""

    key: str  # changes with what is asked
    features: Features
    row: int | None = None  # of an image of the gallery


def show(here: Here) -> None:
    """Draw the page."""
    opened = here.opened
    assert opened is not None
    if len(opened.labels) == 0:
        st.info("This gallery is empty: none of its files could be read as an image.")
        return
    view = address.segments(
        "Show", "view", ["search", "classes"],
        format_func={"search": "Search", "classes": "Classes"}.__getitem__,
    )  # fmt: skip
    if view == "classes":
        _classes(opened)
        return
    left, right = st.columns([1, 2.4], gap="small")
    with left, st.container(key="query"):
        query = _query(here, opened)
        k = address.slider("Neighbors", "k", 1, min(MOST, max(2, len(opened.labels) - 1)), USUAL)
        chosen = filters.show(opened)
        elected = st.container()
    with right, st.container(key="found"):
        if query is None:
            _begin(opened)
        elif chosen is not None:
            _found(here, opened, query, k, chosen, elected)


# -- the query --------------------------------------------------------------------------------


def _query(here: Here, opened: Opened) -> Query | None:
    """Draw what is asked for; None while there is nothing, which the page then says."""
    if address.get("image") is not None:  # picked since, on a grid or on the map
        address.change(**{"from": None})
    start = address.segments(
        "Start from", "from", [IMAGE, PHOTO], width="stretch", on_change=_other_start,
        format_func={IMAGE: "An image", PHOTO: "Your photo"}.__getitem__,
    )  # fmt: skip
    if start == PHOTO:
        return _own_photo(here, opened)
    _find(opened)
    row = state.picked(opened)
    if row is None:
        if (wanted := address.get("image")) is not None:
            words.warning(f"{wanted}: is not in this gallery; find another.")
        return None
    st.image(str(opened.gallery.thumbnail(row, PREVIEW_SIDE)), width="stretch")
    label = opened.labels.iloc[row]
    name = label if isinstance(label, str) else opened.id(row).rsplit("/", 1)[-1]
    st.html(
        f"<h2>{html.escape(name)}</h2>"
        f"<p class='facts'><code>{html.escape(opened.id(row))}</code></p>"
    )
    info = opened.gallery.info
    features = Features(opened.gallery.features[row : row + 1], info.feature_hash, info.model)
    return Query(opened.id(row), features, row)


def _other_start() -> None:
    """Let go of the image: whoever picks another one wants its neighbors, and no photo's."""
    address.put(image=None)


def _find(opened: Opened) -> None:
    """Find an image by part of its id."""
    st.text_input(
        "Find by name", key="find", placeholder="part of a name, then Enter",
        on_change=_typed, args=(opened,), label_visibility="collapsed", icon=":material/search:",
    )  # fmt: skip
    typed = st.session_state.get("find", "").strip()
    if not typed:
        return
    meant = suggestions(opened.gallery.images["id"], typed, SUGGESTED)
    if not meant:
        words.caption(f"No image here is called anything like {typed!r}.")
    with st.container(key="suggestions", gap=None):
        for id in meant:
            st.button(
                words.plain(id), key=f"find {id}", on_click=_take, args=(id,), type="tertiary",
                width="stretch",
            )  # fmt: skip


def _typed(opened: Opened) -> None:
    """Enter: take what can only be meant."""
    typed = st.session_state["find"].strip()
    meant = suggestions(opened.gallery.images["id"], typed, 2)
    if meant and (len(meant) == 1 or meant[0] == typed):
        _take(meant[0])


def _take(id: str) -> None:
    st.session_state["find"] = ""
    address.put(image=id)


def _own_photo(here: Here, opened: Opened) -> Query | None:
    data = photo.ask("neighbors upload")
    if data is None:
        st.html("<p class='facts'>The photo is forgotten when this page is closed.</p>")
        return None
    st.image(data, width="stretch")
    features = photo.look(here, data)
    return None if features is None else Query(photo.digest(data), features)


def _begin(opened: Opened) -> None:
    """The page before anything is asked for."""
    st.html(
        "<h2>Start from an image</h2><p class='facts'>Click one of these, find one by its name, or "
        "use a photo of your own: the images most like it appear here.</p>"
    )
    grid.show(opened, opened.order[: grid.PAGE_SIZE], key="begin")


# -- what is found ----------------------------------------------------------------------------


def _found(
    here: Here, opened: Opened, query: Query, k: int, chosen: filters.Filter, elected: Any
) -> None:
    """The neighbors, as images or on the map."""
    gallery = opened.gallery
    key = ("neighbors", opened.key, query.key, query.features.feature_hash, k, *chosen.key)
    try:
        filters.check(chosen)
        gallery.refuse_others(query.features.model, query.features.feature_hash)
    except UserError as error:
        words.warning(error)
        return
    hits: Hits | None = work(key, "Comparing", lambda _: _search(opened, query, k, chosen))
    if hits is None:
        return
    title = f"{len(hits):,} nearest" if len(hits) else "There is no other image to compare it with"
    with st.container(horizontal=True, vertical_alignment="center", key="found_head"):
        st.html(f"<h2>{title}</h2><p class='facts'>{_how(opened, chosen)}</p>")
        shown_as = address.segments(
            "Show as", "as", ["images", "map"],
            format_func={"images": "Images", "map": "On the map"}.__getitem__,
        )  # fmt: skip
    if "label" not in chosen.names:  # it would have decided the vote
        with elected:
            _elected(opened, query, hits)
    if shown_as == "map":
        color, map_name = mapping.pickers(here)
        place = None if query.row is not None else gallery.place(query.features, map_name)
        xy = None if place is None else place[["x", "y"]].iloc[0].tolist()
        mapping.draw(here, color, map_name, lit=hits.rows.tolist(), query=xy, key="neighbors_map")
    elif len(hits):
        grid.show(opened, hits.rows, key="neighbors", scores=hits.scores)


def _search(opened: Opened, query: Query, k: int, chosen: filters.Filter) -> Hits:
    allowed_N = chosen.allowed
    if query.row is not None:  # nobody is a neighbor of itself
        allowed_N = np.ones(len(opened.labels), bool) if allowed_N is None else allowed_N.copy()
        allowed_N[query.row] = False
    return opened.gallery.search(query.features, k, where=allowed_N)


def _how(opened: Opened, chosen: filters.Filter) -> str:
    return html.escape(filters.sentence(chosen, len(opened.labels)))


def _elected(opened: Opened, query: Query, hits: Hits) -> None:
    """What the neighbors say it is, as bars."""
    shares = vote(hits.labels, hits.scores)
    if not shares:
        return
    colors = opened.label_colors()
    lines = [
        (label, share, colors.get(label, bars.GRAY), f"{share:.1%}")
        for label, share in shares[:ELECTED]
    ]
    own = None if query.row is None else opened.labels.iloc[query.row]
    said = f" {dict(shares).get(own, 0):.0%} for its own label" if isinstance(own, str) else ""
    st.html(f"<h3>The neighbors' vote<small>{said}</small></h3>{bars.shares(lines, 'Vote')}")


# -- classes ----------------------------------------------------------------------------------


def _classes(opened: Opened) -> None:
    """How well each class keeps to itself, and the images that its neighbors deny it."""
    if "label" not in opened.columns:
        st.info(
            "These images have no labels, so there is nothing for their neighbors to agree with. "
            "Labels come from subfolders, or from a label column of a .csv or .parquet."
        )
        return
    rows_NK, scores_NK = opened.gallery.neighbors()
    labels = opened.gallery.images["label"]

    def judge(progress: Any) -> tuple[Any, Any]:
        votes = count_votes(rows_NK, scores_NK, labels, progress=progress)
        return votes, precision_per_class(rows_NK, votes, progress=progress)

    judged = work(("classes", opened.key), "Judging the classes", judge)
    if judged is None:
        return
    votes, table = judged
    if np.isnan(votes.own).all():
        st.info("No image has a neighbor with a label, so there is nothing to judge.")
        return
    left, right = st.columns([1.25, 1], gap="small")
    with left, st.container(key="classes"):
        known = ~np.isnan(votes.own)
        st.html(
            f"<h2>{len(table):,} classes</h2><p class='facts'>The {votes.k} nearest neighbors of "
            f"an image elect its own label for <b>{votes.right[known].mean():.1%}</b> of "
            f"{int(known.sum()):,} labeled images (weighted k-NN, each left out of its own vote). "
            "P@k, precision at k: the share of an image's k nearest that have its label. "
            f"{_graph(opened)}</p>"
        )
        _table(table)
    with right, st.container(key="hardest"):
        _hardest(opened, votes)


def _graph(opened: Opened) -> str:
    """Whether the stored neighbors are exact."""
    graph = opened.gallery.info.graph
    if "recall" not in graph:
        return "The neighbors are exact."
    said = next(iter(how_made(opened.gallery.info)))
    return html.escape(f"The {said}.")


def _table(table: Any) -> None:
    table = table.drop(columns="agreement")  # by weighted vote nearly the last precision
    shares = [name for name in table.columns if name not in ("class", "images", "taken for")]
    configured = {
        name: st.column_config.NumberColumn(name.replace("precision", "P"), format="percent")
        for name in shares
    }
    st.dataframe(
        table.round(dict.fromkeys(shares, 3)),
        hide_index=True,
        height=min(35 * (len(table) + 1) + 3, 633),
        column_config=configured
        | {
            "class": st.column_config.TextColumn("class", pinned=True),
            "images": st.column_config.NumberColumn("images", format="localized"),
            "k-NN accuracy": st.column_config.NumberColumn(
                "k-NN", format="percent", help="Images whose neighbors elect their own label."
            ),
            "taken for": st.column_config.TextColumn(
                "taken for", help="The other label that wins most of the votes it loses."
            ),
        },
    )


def _hardest(opened: Opened, votes: Any) -> None:
    everything = "all classes"
    st.html(
        "<h2>Hardest images</h2><p class='facts'>Their own label gets the least of their "
        "neighbors' vote; beneath each stands the label that they elect instead.</p>"
    )
    label = address.choice(
        "Class", "class", [everything, *votes.names], on_change=_first_page, width=260
    )
    only = None if label == everything else label
    rows = work(
        ("hardest", opened.key, only), "Sorting", lambda _: hardest(votes, HARDEST, only)
    )  # fmt: skip
    if rows is None:
        return
    if len(rows) == 0:
        words.caption(f"No image of {label} has a neighbor with a label.")
        return
    captions = [
        f"→ {votes.names[votes.winner[row]]}"
        if votes.winner[row] != votes.codes[row]
        else f"{votes.names[votes.codes[row]]} {votes.own[row]:.0%}"
        for row in rows
    ]
    grid.show(
        opened,
        rows,
        key="hardest_grid",
        captions=captions,
        pager="p",
        on_pick=partial(_look, opened),
    )


def _first_page() -> None:
    address.put(p=None)


def _look(opened: Opened, row: int) -> None:
    """Ask for the neighbors of a hard image."""
    address.change(view=None)
    address.put(image=opened.id(row))
