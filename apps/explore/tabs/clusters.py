"""Groups of images that the model finds alike: make them, look at each, name, merge, split them."""

import html
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery import averages, clusters
from dino_core.gallery.clusters import Cluster, Clustering, Description, clusterings, describe
from dino_core.gallery.columns import CLUSTER
from dino_core.gallery.notes import Notes
from dino_core.gallery.selection import shares
from explore import address, bars, figures, grid, mapping, models, permission, slicing, state, words
from explore.here import Here
from explore.opened import Opened
from explore.paging import pager
from explore.working import has_failed, work

LISTED = 20  # clusters a page
THUMBS = 6  # of a cluster in the list
BARS = 6  # labels with a bar of their own
ORDERS = {
    "size": lambda one: -one.size,
    "purity": lambda one: -(one.purity or 0.0),
    "tightness": lambda one: -one.tightness,
}
BUMPS = 9  # of a selection's stamp by this program; a browser's are milliseconds apart
PENDING, SAID = "clusters pending", "clusters said"


def show(here: Here) -> None:
    """Draw the page."""
    with here.bar:
        names = clusterings(here.gallery)
        name = _pick_clustering(names)
        map_name = address.choice(
            "Map", "map", mapping.maps(_opened(here)), width=110, format_func=str.upper
        )
        with st.popover("New clustering", icon=":material/add:"):
            _form(here, "bar")
    left, right = st.columns([1.35, 1], gap="small")
    with right, st.container(key="panel"):
        drawn = _panel(here, name, map_name)
    with left, st.container(key="map_side"):
        mapping.draw(here, **drawn)


def _opened(here: Here) -> Opened:
    assert here.opened is not None
    return here.opened


def _pick_clustering(names: list[str]) -> str | None:
    if not names:
        return None
    return str(address.choice("Clustering", "clustering", names, on_change=_close, width=210))


def _panel(here: Here, name: str | None, map_name: str) -> dict[str, Any]:
    """Draw the panel; returns what the map has to show (see `mapping.draw`)."""
    tab = address.segments(
        "Show", "tab", ["clusters", "slices"], width="stretch",
        format_func={"clusters": "Clusters", "slices": "Compare slices"}.__getitem__,
    )  # fmt: skip
    if said := st.session_state.pop(SAID, None):
        words.error(said)
    _pending(here)
    name = address.get("clustering") or name  # a new one has just been made
    if tab == "slices":
        return slicing.show(here, map_name)
    color = _opened(here).columns[0]
    if name is None:
        _first(here)
        return {"color": color, "map_name": map_name}
    try:
        clustering = Clustering.read(here.gallery, name)
    except UserError as error:
        words.error(error)
        return {"color": color, "map_name": map_name}
    return {"map_name": map_name} | _clustering(here, clustering)


# -- making -------------------------------------------------------------------------------------


def _first(here: Here) -> None:
    """The panel of a gallery that has no clustering yet."""
    st.html(
        "<h2>No clusters yet</h2><p class='facts'>A clustering puts images that the model finds "
        "alike into groups. k-means makes as many groups as you say, of all images; HDBSCAN finds "
        "the dense regions of a map and leaves out what lies between them.</p>"
    )
    _form(here, "first")


def _form(here: Here, key: str) -> None:
    count = len(here.gallery)
    if count < 2:
        st.caption("This gallery has too few images for clusters.")
        return
    how = st.segmented_control(
        "How", ["k-means", "HDBSCAN"], default="k-means", key=f"how {key}", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    if how == "HDBSCAN":
        maps = mapping.maps(_opened(here))
        st.selectbox("Of the map", maps, format_func=str.upper, key=f"map {key}")
        fewest = min(max(5, count // 100), count)
        st.number_input("At least so many images each", 2, count, fewest, key=f"size {key}")
    else:
        most = min(clusters.MOST_CLUSTERS, count)
        usual = min(max(2, len(here.gallery.info.classes) or 12), most)
        st.number_input("Clusters", 2, most, usual, key=f"k {key}")
    st.button("Make clusters", type="primary", on_click=_make, args=(here, key), key=f"make {key}")


def _make(here: Here, key: str) -> None:
    """What the form says now: what was typed last arrives together with the click."""
    form = st.session_state
    if form[f"how {key}"] == "HDBSCAN":
        _begin(here, ("hdbscan", form[f"map {key}"], int(form[f"size {key}"])))
    else:
        _begin(here, ("kmeans", int(form[f"k {key}"])))


def _begin(here: Here, action: tuple[Any, ...]) -> None:
    """Ask for something that takes a moment: it is done while this gallery's page is drawn."""
    try:
        permission.check()
    except UserError as error:
        st.session_state[SAID] = str(error)
        return
    st.session_state[PENDING] = (str(here.gallery.path), time.time_ns(), *action)


def _pending(here: Here) -> None:
    """Do, or go on doing, what was asked for; show what came of it."""
    gallery = here.gallery
    path, asked_at, what, *rest = st.session_state.get(PENDING) or ("", 0, "")
    if path != str(gallery.path):
        return
    actions: dict[str, tuple[str, Callable[..., Clustering]]] = {
        "kmeans": ("Clustering", clusters.kmeans),
        "hdbscan": ("Clustering", clusters.hdbscan),
        "split": ("Splitting", clusters.split),
    }
    title, function = actions[what]
    key = ("clusters", path, asked_at)  # the gallery may get another map meanwhile
    made = work(
        key, title, lambda progress: function(gallery, *rest, progress=progress),
        to_end=True, again=False,
    )  # fmt: skip
    if made is None and has_failed(key):
        del st.session_state[PENDING]
        return
    if made is None:
        st.button("Hide", on_click=st.session_state.pop, args=(PENDING,), type="tertiary")
        return
    del st.session_state[PENDING]
    if what != "split":
        address.change(clustering=made.name, cluster=None, p=None)
    st.rerun()


# -- a clustering -------------------------------------------------------------------------------


def _clustering(here: Here, clustering: Clustering) -> dict[str, Any]:
    """The list of clusters, or one of them; returns how the map is colored and what it lights."""
    opened, color = _opened(here), CLUSTER + clustering.name
    _color_map(color)
    shown = {"color": color}
    key = ("describe", opened.key, clustering.name, clusters.stamp(here.gallery, clustering.name))
    described = work(
        key, "Describing", lambda progress: describe(here.gallery, clustering, progress)
    )
    if described is None:
        return shown
    by_number = {one.number: one for one in described.clusters}
    chosen = _chosen(opened, color, by_number)
    names = Notes(here.gallery.path).cluster_names(clustering.name)
    if chosen is None:
        _whole(here, clustering, described)
        _list(opened, clustering, described, names)
    else:
        _one(here, clustering, by_number, names, chosen)
    return shown | {"selection": _lit(opened, color, chosen)}


def _color_map(color: str) -> None:
    """The address says what colors the map, so that other pages go on with it."""
    if address.get("color") != color:
        address.change(color=color, shown=None)
        state.follow({"color"})


def _code(opened: Opened, color: str, one: Cluster) -> int:
    return int(opened.coloring(color).codes[one.rows[0]])


def _chosen(opened: Opened, color: str, by_number: dict[int, Cluster]) -> Cluster | None:
    """The cluster that is open; a click in the legend opens one, too."""
    shown = address.get("shown") or ""
    *_, stamp = st.session_state.get("clusters lit", [0])
    if not shown and state.selection_message()["stamp"] > stamp + BUMPS and stamp:
        address.put(cluster=None, p=None)  # cleared on the map
    if shown:
        address.put(shown=None)
        codes = {_code(opened, color, one): one for one in by_number.values()}
        if (code := address.whole_of(shown)) in codes:
            address.put(cluster=str(codes[code].number), p=None)
        elif "," not in shown or address.get("cluster") is None:
            address.put(cluster=None, p=None)
    number = address.whole_of(address.get("cluster"))
    return None if number is None else by_number.get(number)


def _lit(opened: Opened, color: str, chosen: Cluster | None) -> dict[str, Any]:
    """The map shows the open cluster alone."""
    number = None if chosen is None else chosen.number
    if st.session_state.get("clusters lit", [])[:2] != [color, number]:
        state.follow({"shown"})
    message = state.selection_message()
    st.session_state["clusters lit"] = [color, number, message["stamp"]]
    return message | {"shown": [] if chosen is None else [_code(opened, color, chosen)]}


def _open(number: int) -> None:
    address.change(cluster=str(number), p=None)


def _close() -> None:
    address.change(cluster=None, p=None, lp=None)


def _whole(here: Here, clustering: Clustering, described: Description) -> None:
    """How it was made, how well it agrees with the labels, and what can be done with it."""
    count = len(described.clusters)
    none = clustering.unclustered
    facts = [html.escape(clustering.how())]
    if none:
        facts.append(f"{none:,} of {len(clustering.labels):,} images are in none")
    st.html(
        f"<h2>{count:,} cluster{'' if count == 1 else 's'}</h2>"
        f"<p class='facts'>{' · '.join(facts)}</p>"
    )
    if clustering.added:
        st.html(
            f"<p class='warning'>{clustering.added:,} images were added to the gallery since; make "
            "the clustering again to have them in it. Clusters that stay the same keep their "
            "names.</p>"
        )
    if described.purity is not None:
        _agreement(described)
    with st.container(horizontal=True, gap="small", key="cluster_tools"):
        if clustering.before is not None:
            last = clustering.history[-1]["what"] if clustering.history else "change"
            st.button(
                f"Undo {last}", icon=":material/undo:", on_click=_do,
                args=(clusters.undo, here.gallery, clustering.name),
            )  # fmt: skip
        again = _settings(clustering)
        if again is not None:
            st.button("Make again", icon=":material/refresh:", on_click=_begin, args=(here, again))
        with st.popover("Delete", icon=":material/delete:"):
            st.markdown(f"Delete **{words.plain(clustering.name)}**? Tags and names you gave stay.")
            st.button("Delete it", on_click=_delete, args=(here, clustering.name), type="primary")


def _agreement(described: Description) -> None:
    """Purity, NMI and ARI against the labels."""
    tiles = [
        ("Purity", f"{described.purity:.0%}", "share of images with their cluster's label"),
        ("NMI", f"{described.nmi:.2f}", "normalized mutual information with the labels, 0 to 1"),
        ("ARI", f"{described.ari:.2f}", "adjusted Rand index: 0 is chance, 1 the same groups"),
    ]
    cells = "".join(
        f"<div title='{title}'><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value, title in tiles
    )
    st.html(
        f"<dl class='measures'>{cells}</dl><p class='facts'>against the labels of "
        f"{described.labeled:,} images</p>"
    )


def _settings(clustering: Clustering) -> tuple[Any, ...] | None:
    """What to ask for to make it again; None where its file does not say."""
    made = clustering.made
    if made.get("method") == "kmeans":
        return ("kmeans", made["k"])
    if made.get("method") == "hdbscan":
        return ("hdbscan", made["map"], made["min_size"])
    return None


def _do(function: Any, *arguments: Any) -> None:
    """An edit, for a callback; what is wrong is said on the page."""
    try:
        permission.check()
        function(*arguments)
    except UserError as error:
        st.session_state[SAID] = str(error)


def _delete(here: Here, name: str) -> None:
    _do(clusters.remove, here.gallery, name)
    address.change(clustering=None, cluster=None, color=None, p=None)


# -- the list -----------------------------------------------------------------------------------


def _list(
    opened: Opened, clustering: Clustering, described: Description, names: dict[int, str]
) -> None:
    """Every cluster in a row: its color, name, size, label and most typical images."""
    orders = [name for name in ORDERS if name != "purity" or described.purity is not None]
    order = address.segments("Order", "order", orders, format_func=lambda name: f"By {name}")
    ordered = sorted(described.clusters, key=ORDERS[order])
    page = pager("lp", len(ordered), LISTED)
    colors = opened.code_colors(
        CLUSTER + clustering.name, np.array([one.rows[0] for one in ordered[page]], np.int64)
    )
    for one, light, dark in zip(ordered[page], *colors, strict=True):
        with st.container(key=f"cluster_row_{one.number}"):
            st.html(_row(opened, one, _title(one.number, names), f"light-dark({light},{dark})"))
            st.button(
                f"Open {words.plain(_title(one.number, names))}",
                key=f"open {clustering.name} {one.number}", on_click=_open, args=(one.number,),
            )  # fmt: skip


def _title(number: int, names: dict[int, str]) -> str:
    return names.get(number, f"Cluster {number}")


def _row(opened: Opened, one: Cluster, title: str, color: str) -> str:
    thumbs = "".join(
        f"<img src='explorer/image/{opened.key}/{row}' alt='' loading='lazy'>"
        for row in one.medoids[:THUMBS].tolist()
    )
    mostly = ""
    if one.label is not None:
        mostly = f" · {one.purity:.0%} {html.escape(one.label)}"
    return (
        f"<div class='cluster'><p><i style='--color:{color}'></i><b>{html.escape(title)}</b>"
        f"<span>{one.size:,} image{'' if one.size == 1 else 's'}{mostly}</span></p>"
        f"<div>{thumbs}</div></div>"
    )


# -- one cluster --------------------------------------------------------------------------------


def _one(
    here: Here,
    clustering: Clustering,
    by_number: dict[int, Cluster],
    names: dict[int, str],
    one: Cluster,
) -> None:
    st.button("← All clusters", on_click=_close, type="tertiary")
    name, opened = names.get(one.number, ""), _opened(here)
    st.text_input(
        "Name", name, key=(key := f"name {clustering.name} {one.number} {name}"),
        placeholder=f"Cluster {one.number}: type a name", label_visibility="collapsed",
        on_change=_rename, args=(here, clustering.name, one.number, key), max_chars=80,
    )  # fmt: skip
    st.html(
        f"<p class='facts'><b>{one.size:,}</b> image{'' if one.size == 1 else 's'} · mean cosine "
        f"with their common direction <b>{one.tightness:.2f}</b></p>" + _bars(opened, one)
    )
    _tools(here, clustering, by_number, names, one)
    view = address.segments(
        "Look at", "view", ["images", "attention", "colors"], format_func={
            "images": "Images", "attention": "Mean attention", "colors": "PCA colors",
        }.__getitem__, width="stretch",
    )  # fmt: skip
    if view == "images":
        st.html("<p class='facts'>The most typical first.</p>")
        grid.show(opened, one.rows, key="members", color="label", pager="p")
    elif view == "attention":
        _attention(here, clustering, one)
    else:
        _colors(here, clustering, one)


def _rename(here: Here, clustering: str, number: int, key: str) -> None:
    _do(Notes(here.gallery.path).name_cluster, clustering, number, st.session_state[key])


def _bars(opened: Opened, one: Cluster) -> str:
    """Which labels its images have, as bars."""
    if one.label is None:
        return ""
    colors = opened.label_colors()
    lines = [
        (label, share, colors.get(label, bars.GRAY), f"{count:,} images")
        for label, count, share in shares(opened.labels.iloc[one.rows], BARS)
    ]
    return bars.shares(lines, "Labels")


def _tools(
    here: Here,
    clustering: Clustering,
    by_number: dict[int, Cluster],
    names: dict[int, str],
    one: Cluster,
) -> None:
    """Keep it as a slice, merge it with others, split it, compare it with the rest."""
    at = f"{clustering.name} {one.number}"
    with st.container(horizontal=True, gap="small", key="cluster_tools"):
        with st.popover("Tag", icon=":material/sell:"):
            st.text_input("Tag all its images", _title(one.number, names), key=f"tag {at}")
            st.button("Tag", on_click=_tag, args=(here, one, f"tag {at}"), type="primary")
        with st.popover("Merge", icon=":material/merge:"):
            others = [number for number in by_number if number != one.number]
            st.multiselect(
                "Merge with", others, key=f"merge {at}", format_func=lambda n: _title(n, names)
            )
            st.button(
                "Merge", on_click=_merge, args=(here, clustering.name, one.number, f"merge {at}"),
                type="primary",
            )  # fmt: skip
        if one.size > 1:
            with st.popover("Split", icon=":material/call_split:"):
                st.number_input("Into", 2, min(one.size, 50), 2, key=f"split {at}")
                st.button(
                    "Split", type="primary", on_click=_split,
                    args=(here, clustering.name, one.number, f"split {at}"),
                )  # fmt: skip
        st.button(
            "Compare", icon=":material/compare_arrows:", on_click=address.change,
            kwargs={"tab": "slices", "a": f"{CLUSTER}{clustering.name}/{one.number}", "b": "rest"},
        )  # fmt: skip


def _tag(here: Here, one: Cluster, key: str) -> None:
    ids = here.gallery.images["id"].iloc[one.rows]
    _do(Notes(here.gallery.path).tag, ids.tolist(), st.session_state[key])
    if SAID not in st.session_state:
        st.toast(f"{one.size:,} images are tagged")


def _split(here: Here, name: str, number: int, key: str) -> None:
    _begin(here, ("split", name, number, int(st.session_state[key])))


def _merge(here: Here, name: str, number: int, key: str) -> None:
    others = st.session_state.get(key) or []
    if not others:
        st.session_state[SAID] = "Choose the clusters to merge with this one first"
        return
    _do(clusters.merge, here.gallery, name, [number, *others])


# -- as the model sees it -----------------------------------------------------------------------


def _attention(here: Here, clustering: Clustering, one: Cluster) -> None:
    """Where the model looks in the cluster's images, on average, and each head."""
    seen = _seen(here, clustering, one, "Looking at its images", averages.mean_attention)
    if seen is None:
        return
    layers, heads = seen.maps.shape[:2]
    layer = address.slider("Layer", "layer", 1, layers, layers)
    st.html(
        f"<p class='facts'>Where the CLS token looks: the mean of {len(seen.rows):,} images, "
        "stretched to a square; darkest where least, brightest where most. The figures say how "
        "much that is, 1 being the same everywhere.</p>"
    )
    figures.show([_looks(seen, None, layer - 1, "All heads")], size="large")
    figures.show([_looks(seen, head, layer - 1, f"Head {head + 1}") for head in range(heads)])


def _looks(
    seen: averages.MeanAttention, head: int | None, layer: int, title: str
) -> figures.Figure:
    low, high = seen.extent(head, layer)
    return [seen.picture(head, layer)], f"{title}: {low:.1f} to {high:.1f}"


def _colors(here: Here, clustering: Clustering, one: Cluster) -> None:
    """The most typical images in PCA colors that they share."""
    found = _seen(here, clustering, one, "Coloring its images", averages.shared_colors)
    if found is None:
        return
    st.html(
        f"<p class='facts'>The {len(found)} most typical images; red, green and blue are the three "
        "main directions of all their patches together, so one color means one thing.</p>"
    )
    ids = here.gallery.images["id"]
    figures.show(
        [([each.photo, each.colors], str(ids.iat[each.row]).rsplit("/", 1)[-1]) for each in found],
        blocks=True,
    )


def _seen(
    here: Here, clustering: Clustering, one: Cluster, what: str, look: Callable[..., Any]
) -> Any:
    """What the model sees in the cluster's images; None while it is not there."""
    if not permission.gate("Looking at images with the model"):
        return None
    model = models.wanted(here)
    if model is None:
        return None
    changed = clusters.stamp(here.gallery, clustering.name)  # when the cluster has other images
    key = (what, _opened(here).key, clustering.name, changed, one.number, model.hash)
    return work(key, what, lambda progress: look(model, here.gallery, one.rows, progress=progress))
