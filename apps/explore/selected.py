"""The map's panel for many images: what they are, their thumbnails, tags, and ways out.

selected.show(here, rows, color)       # rows of the selection, or all rows where there is none
"""

import hashlib
import html
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery.columns import TAG
from dino_core.gallery.exporting import Links, as_csv, as_parquet, as_paths, link_folder, table
from dino_core.gallery.notes import Notes
from dino_core.gallery.summary import Summary, summarize
from explore import address, bars, grid, permission, state, words
from explore.here import Here
from explore.opened import Opened
from explore.working import work

BARS = 6  # labels with a bar of their own
MEDOIDS = 4  # a row of the panel
TAGS_LISTED = 24
AT_ONCE = 5_000  # images; a file of more is made first, then offered
PARQUET = "application/vnd.apache.parquet"
LINKING, MAKING, SAID = "links asked for", "file asked for", "tags said"


def show(here: Here, rows: np.ndarray, color: str) -> None:
    """Draw the panel."""
    opened = here.opened
    assert opened is not None
    chosen = bool(state.selection())
    title, head = f"<h2>{_title(len(rows), chosen)}</h2>", st.empty()
    head.html(title + ("" if chosen else _facts(opened)))
    if len(rows) == 0:
        st.caption(_nothing(opened))
        return
    summary = _summary(opened, rows) if chosen else None
    if summary is not None:
        head.html(title + _what(summary) + _bars(opened, summary))
    _doors(here, opened, rows, chosen)
    _links(here, opened, rows)
    _slices(opened)
    if summary is not None and summary.count > MEDOIDS:
        st.html("<h3>Most typical <small>nearest to the middle of the selection</small></h3>")
        medoids = summary.medoids[:MEDOIDS]
        grid.show(opened, medoids, key="medoids", color=color, scores=summary.cosines[:MEDOIDS])
        st.html("<h3>All of them <small>in a random order</small></h3>")
    grid.show(opened, opened.mixed(rows), key="grid", color=color, pager="p")


def _title(count: int, chosen: bool) -> str:
    if chosen:
        return f"{count:,} selected" if count else "Nothing selected"
    return f"All {count:,} images" if count else "No images"


def _facts(opened: Opened) -> str:
    """What the gallery is, while nothing is selected."""
    info = opened.gallery.info
    model = html.escape(info.model.rsplit("/", 1)[-1])
    facts = [f"features of <b title='{html.escape(info.model)}'>{model}</b>"]
    if info.classes:
        facts.insert(0, f"{len(info.classes):,} classes")
    if info.quarantined:
        facts.append(f"{info.quarantined:,} files could not be read (quarantine.jsonl says why)")
    hint = "Click a point or a thumbnail for its neighbors; lasso a group with Shift-drag."
    return f"<p class='facts'>{' · '.join(facts)}<br>{hint}</p>"


def _nothing(opened: Opened) -> str:
    if len(opened.labels) == 0:
        return "This gallery is empty: none of its files could be read as an image."
    return "There is no point inside. Draw around a group of points, or clear the selection."


def _digest(rows: np.ndarray) -> str:
    return hashlib.blake2b(np.asarray(rows, np.int64).tobytes(), digest_size=16).hexdigest()


# -- what they are ----------------------------------------------------------------------------


def _summary(opened: Opened, rows: np.ndarray) -> Summary | None:
    """Purity, likeness and labels; None while they are computed, which the page then says."""
    gallery = opened.gallery
    return work(
        ("summary", opened.key, _digest(rows)), "Looking at the selection",
        lambda progress: summarize(gallery, rows, progress=progress),
    )  # fmt: skip


def _what(summary: Summary) -> str:
    facts = [f"mean cosine with their middle <b>{summary.alike:.2f}</b>"]
    if summary.purity is not None:
        facts.insert(0, f"purity <b>{summary.purity:.0%}</b>")
        if summary.labeled < summary.count:
            facts.insert(1, f"{summary.count - summary.labeled:,} without a label")
    if summary.looked_at < summary.count:
        facts.append(f"middle of {summary.looked_at:,} random ones")
    return f"<p class='facts'>{' · '.join(facts)}</p>"


def _bars(opened: Opened, summary: Summary) -> str:
    """Which labels they have, as bars in the colors of the map."""
    if not summary.labeled:
        return ""
    colors = opened.label_colors()
    ranked = summary.shares[:BARS]
    if others := summary.shares[BARS:]:
        shared = (sum(one[1] for one in others), sum(one[2] for one in others))
        ranked = [*ranked, (f"{len(others):,} others", *shared)]
    lines = [
        (name, share, colors.get(name, bars.GRAY), f"{count:,}") for name, count, share in ranked
    ]
    return bars.shares(lines, "Labels")


# -- tags -------------------------------------------------------------------------------------


def _doors(here: Here, opened: Opened, rows: np.ndarray, chosen: bool) -> None:
    """The two buttons: tag, and export."""
    if said := st.session_state.pop(SAID, None):
        kind, sentence = said
        words.error(sentence) if kind == "error" else st.toast(sentence)
    with st.container(horizontal=True, gap="small", key="doors"):
        if chosen:
            with st.popover("Tag", icon=":material/sell:", key="tag door"):
                _tagging(opened, rows)
        with st.popover("Export", icon=":material/download:", key="export door"):
            _exporting(here, opened, rows)


def _tagging(opened: Opened, rows: np.ndarray) -> None:
    """Put a tag on the selection, or take one off."""
    if not permission.gate("Tagging"):
        return
    count = f"{len(rows):,} image{'s' if len(rows) != 1 else ''}"
    with st.form("tag form", border=False, clear_on_submit=True):
        st.text_input("A tag for them", key="tag typed", placeholder="to label", max_chars=80)
        st.form_submit_button(
            f"Tag {count}", type="primary", on_click=_tag, args=(opened, rows, None)
        )
    there = opened.tagged
    if not there:
        st.caption("Tagged images are a slice: color the map by it, filter by it, export it.")
        return
    st.caption("Tags so far, and how many of these images have each")
    for tag, tagged in list(there.items())[:TAGS_LISTED]:
        have = int(np.isin(rows, tagged).sum())
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"{words.plain(tag)} · {have:,}", width="stretch")
            st.button(
                "Add", key=f"tag on {tag}", on_click=_tag, args=(opened, rows, tag),
                disabled=have == len(rows),
            )  # fmt: skip
            st.button(
                "Take off", key=f"tag off {tag}", on_click=_untag, args=(opened, rows, tag),
                disabled=have == 0,
            )  # fmt: skip


def _tag(opened: Opened, rows: np.ndarray, tag: str | None) -> None:
    typed = st.session_state["tag typed"] if tag is None else tag
    ids = opened.gallery.images["id"].iloc[rows]
    try:
        name = Notes(opened.gallery.path).tag(ids, typed)
    except UserError as error:
        st.session_state[SAID] = ("error", str(error))
        return
    st.session_state[SAID] = ("done", f"Tagged {len(rows):,}: {words.plain(name)}")


def _untag(opened: Opened, rows: np.ndarray, tag: str) -> None:
    try:
        Notes(opened.gallery.path).untag(opened.gallery.images["id"].iloc[rows], tag)
    except UserError as error:
        st.session_state[SAID] = ("error", str(error))


def _slices(opened: Opened) -> None:
    """The tags as buttons that select their images on the map."""
    there = opened.tagged
    if not there:
        return
    with st.container(horizontal=True, gap="small", key="slices"):
        for tag, rows in list(there.items())[:TAGS_LISTED]:
            st.button(
                f"{words.plain(tag)} · {len(rows):,}", key=f"slice {tag}", icon=":material/sell:",
                on_click=_open_slice, args=(opened, tag),
            )  # fmt: skip
    if len(there) > TAGS_LISTED:
        st.caption(f"{len(there) - TAGS_LISTED:,} more tags are among the colors of the map.")


def _open_slice(opened: Opened, tag: str) -> None:
    """Color the map by a tag and leave only what has it."""
    column = TAG + tag
    names = [name for name, _ in opened.coloring(column).entries]
    shown = str(names.index(tag)) if tag in names else None
    address.go("map", color=column, shown=shown, region=None, image=None)
    state.follow({"color", "shown", "region"})


# -- export -----------------------------------------------------------------------------------


def _exporting(here: Here, opened: Opened, rows: np.ndarray) -> None:
    """Files to download, made when they are asked for, and a folder of links."""
    gallery = opened.gallery
    name = f"{gallery.name}-{len(rows)}"
    st.caption(f"{len(rows):,} images, with all that is known of them")
    files = {
        "Table (CSV)": (".csv", "text/csv", lambda: as_csv(table(gallery, rows))),
        "Table (Parquet)": (".parquet", PARQUET, lambda: as_parquet(table(gallery, rows))),
        "List of paths": (".txt", "text/plain", lambda: as_paths(gallery, rows)),
    }
    for title, (suffix, kind, make) in files.items():
        data: Any = make
        if len(rows) > AT_ONCE:
            data = _made(opened, rows, title, suffix, make)
        if data is not None:
            st.download_button(
                title, data, f"{name}{suffix}", kind, key=f"download {suffix}", on_click="ignore",
                icon=":material/download:", width="stretch",
            )  # fmt: skip
    st.caption("Files that are gone are marked in tables and left out of lists and folders.")
    if not permission.gate("Making a folder"):
        return
    with st.form("links form", border=False):
        st.text_input("A folder of links in exports/", key="links name", value=name, max_chars=80)
        if "label" in opened.columns:
            st.toggle("One folder for each label", key="links by label")
        st.form_submit_button("Make the folder", on_click=_ask_for_links, args=(opened, rows))


def _made(
    opened: Opened, rows: np.ndarray, title: str, suffix: str, make: Callable[[], bytes]
) -> bytes | None:
    """A large file once it was asked for and is made; of many images that takes minutes."""
    wanted = (opened.key, _digest(rows), suffix)
    asked = st.session_state.get(MAKING)
    if asked is None or asked[:3] != wanted:
        st.button(
            f"Make: {title}", key=f"make {suffix}", on_click=_ask_for_file, args=(wanted,),
            width="stretch",
        )  # fmt: skip
        return None

    def made(progress: Any) -> bytes:
        progress(0, 1, f"Writing {len(rows):,} images")
        return make()

    return work(("export", *asked), "Making the file", made)


def _ask_for_file(wanted: tuple[str, str, str]) -> None:
    st.session_state[MAKING] = (*wanted, time.time_ns())  # tags may have changed since the last


def _ask_for_links(opened: Opened, rows: np.ndarray) -> None:
    st.session_state[LINKING] = {
        "key": (opened.key, _digest(rows), time.time_ns()),
        "rows": rows,
        "name": st.session_state["links name"],
        "by_label": bool(st.session_state.get("links by label")),
    }


def _links(here: Here, opened: Opened, rows: np.ndarray) -> None:
    """The folder that is being made, or what became of it; until something else is selected."""
    asked = st.session_state.get(LINKING)
    if asked is None or asked["key"][:2] != (opened.key, _digest(rows)):
        return
    gallery, exports = opened.gallery, here.root / "exports"

    def make(progress: Any) -> Links:
        how = {"by_label": asked["by_label"], "progress": progress}
        return link_folder(gallery, asked["rows"], exports, asked["name"], **how)

    made = work(("links", *asked["key"]), "Making the folder", make, to_end=True)
    if made is not None:
        st.html(f"<p class='done' role='status'>{html.escape(made.sentence)}</p>")
