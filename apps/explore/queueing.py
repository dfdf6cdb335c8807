"""The queue of a review: a table to decide in, the image at hand beside others, the result."""

import html
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery.cleaned import Cleaned, free_name, in_folder, write_cleaned
from dino_core.gallery.notes import DECISIONS, Notes
from dino_core.gallery.reviewing import (
    DUPLICATE,
    KEEP,
    LABEL,
    LEAK,
    OUTLIER,
    RELABEL,
    REMOVE,
    Findings,
    Grouped,
    Queue,
    members,
    why,
)
from explore import address, deciding, grid, permission, words
from explore.here import Here
from explore.paging import pager
from explore.working import work

PAGE = 20  # entries of the table
BESIDE = 11  # images beside the one at hand
SHOWN = {
    "open": "To decide",
    "all": "All",
    LEAK: "Leaks",
    DUPLICATE: "Duplicates",
    LABEL: "Labels",
    OUTLIER: "Outliers",
    "decided": "Decided",
}
FOLDER = "cleaned"  # under the root
_TABLE = "queue table"


def show(here: Here, found: Findings, grouped: Grouped, alone: float, doubt: float) -> None:
    """Draw the tab; `alone` and `doubt` are thresholds."""
    assert here.opened is not None
    queue = work(
        ("queue", here.opened.key, grouped.threshold, alone, doubt),
        "Putting in order",
        lambda say: Queue.of(
            here.gallery.images,
            leaks=grouped.leaks,
            alike=grouped.groups,
            doubtful=found.doubtful.beyond(doubt),
            alone=found.alone.beyond(alone),
            votes=found.votes,
        ),
    )
    if queue is None:
        return
    decided_N = deciding.decisions(here)
    left, right = st.columns([1.9, 1], gap="small")
    with left, st.container(key="quality_main"):
        listed = _listed(queue, decided_N)
        page = _page(here, listed, decided_N)
        if len(page):
            _table(here, page, found, grouped, decided_N)
    with right, st.container(key="quality_side"):
        if len(page):
            _at_hand(here, page, found, grouped, decided_N)
        _result(here, decided_N)


def _listed(queue: Queue, decided_N: np.ndarray) -> Queue:
    """The entries that the visitor wants to see."""
    done_Q = decided_N[queue.rows] != np.array(None)
    counts = queue.counts() | {"all": len(queue), "open": int((~done_Q).sum())}
    counts["decided"] = int(np.count_nonzero(decided_N != np.array(None)))
    chosen = address.segments(
        "Show", "show", list(SHOWN), format_func=lambda name: f"{SHOWN[name]} {counts[name]:,}"
    )
    st.session_state["review shown"] = chosen
    if chosen == "open":
        return queue.where(~done_Q)
    if chosen == "decided":
        return _decided(queue, decided_N)
    return queue if chosen == "all" else queue.where(queue.reasons == chosen)


def _decided(queue: Queue, decided_N: np.ndarray) -> Queue:
    """All images with a decision: those of the queue first, then those that it does not hold."""
    rows = np.flatnonzero(decided_N != np.array(None))
    inside = queue.where(np.isin(queue.rows, rows))
    rest = rows[~np.isin(rows, queue.rows)]
    empty = np.full(len(rest), None, object)
    return Queue(
        np.concatenate([inside.rows, rest]),
        np.concatenate([inside.reasons, np.full(len(rest), "", object)]),
        np.concatenate([inside.groups, np.full(len(rest), -1)]),
        np.concatenate([inside.suggestions, empty]),
        np.concatenate([inside.labels, empty]),
    )


def _page(here: Here, listed: Queue, decided_N: np.ndarray) -> Queue:
    """The entries of this page. What was just decided stays on it until the page is turned."""
    shown = st.session_state["review shown"]
    if shown == "open":
        return _next(here, listed)
    if len(listed) == 0:
        st.html("<p class='facts'>Nothing here.</p>")
        return listed
    return listed.where(pager("p", len(listed), PAGE))


def _next(here: Here, still_open: Queue) -> Queue:
    assert here.opened is not None
    key = (here.opened.key, address.get("alike"), address.get("alone"), address.get("doubt"))
    pinned: tuple[Any, Queue] | None = st.session_state.get("review pinned")
    if pinned is None or pinned[0] != key or len(pinned[1]) == 0:
        pinned = key, still_open.where(slice(0, PAGE))
        st.session_state["review pinned"] = pinned
    page = pinned[1]
    waiting = int(np.isin(page.rows, still_open.rows).sum())
    later = len(still_open) - waiting
    if len(still_open) == 0:
        st.html(
            "<h3>Nothing to decide</h3><p class='facts'>Everything that was found at these "
            "thresholds is decided. Write the new table, or move the thresholds.</p>"
        )
    elif waiting == 0 or later:
        with st.container(key="quality_next", horizontal=True, vertical_alignment="center"):
            st.html(
                f"<p class='facts'>{waiting:,} of these {len(page):,} to decide, "
                f"{later:,} more after them.</p>"
            )
            st.button(
                f"Show the next {min(PAGE, len(still_open)):,}", key="next entries",
                type="primary" if waiting == 0 else "secondary", on_click=_unpin,
            )  # fmt: skip
    return page


def _unpin() -> None:
    st.session_state.pop("review pinned", None)
    address.change(at=None)


# -- the table --------------------------------------------------------------------------------


def _table(
    here: Here, page: Queue, found: Findings, grouped: Grouped, decided_N: np.ndarray
) -> None:
    """The entries of one page, to decide in. What is edited is saved by `_edited` at once."""
    assert here.opened is not None
    version = st.session_state.get("review version", 0)
    key = f"{_TABLE} {version} {hash(page.rows.tobytes())}"
    kept = st.session_state.get(_TABLE)
    if kept is None or kept[0] != key:  # the same table as long as it is edited: edits build on it
        kept = key, _frame(here, page, found, grouped, decided_N), {}
        st.session_state[_TABLE] = kept
    st.data_editor(
        kept[1], key=key, hide_index=True, num_rows="fixed", row_height=60, height="content",
        placeholder="",
        on_change=_edited, args=(here, key, page),
        disabled=["image", "id", "label", "why", "suggested"],
        column_config={
            "image": st.column_config.ImageColumn("", width=64),
            "id": st.column_config.TextColumn("Image", width="medium"),
            "label": st.column_config.TextColumn("Label", width="small"),
            "why": st.column_config.TextColumn("Why", width="medium"),
            "suggested": st.column_config.TextColumn("Suggested", width="small"),
            "decision": st.column_config.SelectboxColumn(
                "Decision", options=list(DECISIONS), width="small",
                help="Saved at once. Empty it to undo.",
            ),
            "new label": st.column_config.TextColumn(
                "New label", width="small", help="Typing one relabels the image."
            ),
        },
    )  # fmt: skip


def _frame(
    here: Here, page: Queue, found: Findings, grouped: Grouped, decided_N: np.ndarray
) -> pd.DataFrame:
    assert here.opened is not None
    images, reviews = here.gallery.images, Notes(here.gallery.path).reviews()
    ids = images["id"].iloc[page.rows].tolist()
    told = [
        f"{word} → {label}" if word == RELABEL else word
        for word, label in zip(page.suggestions, page.labels, strict=True)
    ]
    return pd.DataFrame(
        {
            "image": [f"{_base()}explorer/image/{here.opened.key}/{row}" for row in page.rows],
            "id": [id.rsplit("/", 1)[-1] for id in ids],
            "label": images["label"].iloc[page.rows].astype(object).tolist(),
            "why": [
                why(page, place, grouped, found, images) if page.reasons[place] else "decided"
                for place in range(len(page))
            ],
            "suggested": told,
            "decision": pd.Series(decided_N[page.rows], dtype=object),
            "new label": pd.Series(
                [reviews[id].label if id in reviews else None for id in ids], dtype=object
            ),
        }
    )


def _base() -> str:
    """Where the page is, since a table takes no relative addresses."""
    url = str(st.context.url or "")
    return url.split("?")[0].rstrip("/") + "/"


def _edited(here: Here, key: str, page: Queue) -> None:
    """Save what was edited since the last time: for a callback."""
    kept = st.session_state[_TABLE]
    edits: dict[int, dict[str, Any]] = st.session_state[key]["edited_rows"]
    new = {at: cells for at, cells in edits.items() if kept[2].get(at) != cells}
    st.session_state[_TABLE] = (kept[0], kept[1], {at: dict(one) for at, one in edits.items()})
    ids = here.gallery.images["id"].iloc[page.rows].tolist()
    several: deciding.Several = []
    redraw = False
    for at, cells in new.items():
        row = {name: kept[1].at[at, name] for name in ("decision", "new label")}
        now, before = row | cells, row | kept[2].get(at, {})
        changed = {name: now[name] for name in now if now[name] != before[name]}
        decision, label = _meant(now, changed, page.labels[at])
        redraw |= (decision, label) != (now["decision"], now["new label"])
        several.append(([ids[at]], decision, label))
    version = st.session_state.get("review version", 0)
    deciding.take(here, several)
    if not redraw:
        st.session_state["review version"] = version  # the table shows it already


def _meant(
    now: dict[str, Any], changed: dict[str, Any], suggestion: str | None
) -> tuple[str | None, str | None]:
    """The decision and the label of someone who changed these cells of a row."""
    label = now["new label"] or None
    if label and "new label" in changed:
        return RELABEL, str(label)
    if now["decision"] == RELABEL:
        label = None if "new label" in changed else label or suggestion  # or it was emptied
        return (RELABEL, label) if label else (None, None)
    return now["decision"] or None, None


# -- the image at hand ------------------------------------------------------------------------


def _at_hand(
    here: Here, page: Queue, found: Findings, grouped: Grouped, decided_N: np.ndarray
) -> None:
    """One entry beside what it is like, with what can be decided."""
    opened = here.opened
    assert opened is not None
    images = here.gallery.images
    ids = images["id"].iloc[page.rows].tolist()
    waiting = [place for place, row in enumerate(page.rows.tolist()) if decided_N[row] is None]
    first = ids[waiting[0]] if waiting else ids[0]
    asked = address.get("at")
    at = ids.index(asked) if asked in ids else ids.index(first)
    row = int(page.rows[at])
    with st.container(horizontal=True, vertical_alignment="center", key="quality_at"):
        st.html(f"<h3>{at + 1} of {len(page)} on this page</h3>")
        for label, to, tip in (("‹", at - 1, "Previous"), ("›", at + 1, "Next")):
            st.button(
                label, key=f"at {label}", help=tip, disabled=not 0 <= to < len(page),
                on_click=address.change, kwargs={"at": ids[to % len(page)]},
            )  # fmt: skip
    st.image(str(here.gallery.thumbnail(row, 640)), width="stretch")
    one = images.iloc[row]
    facts = [f"{one['width']} × {one['height']} px"]
    facts += [f"{name} {one[name]}" for name in ("split", "label") if not pd.isna(one[name])]
    st.html(
        f"<p class='facts'><code>{html.escape(ids[at])}</code><br>"
        f"{html.escape(' · '.join(facts))}</p>"
    )
    decided = decided_N[row]
    with st.container(horizontal=True, key="quality_decide", gap="small"):
        for decision, keys in ((KEEP, "Alt+K"), (REMOVE, "Alt+X")):
            wanted = decision in (decided, page.suggestions[at] if decided is None else None)
            st.button(
                decision.capitalize(), key=f"one {decision}", shortcut=keys,
                type="primary" if wanted else "secondary",
                on_click=_decide, args=(here, ids[at], decision, None),
            )  # fmt: skip
        if decided is not None:
            st.button(
                "Undecide", key="one none", on_click=_decide, args=(here, ids[at], None, None)
            )
    _relabel(here, found, ids[at], page.labels[at])
    rows, title = _beside(here, page, at, grouped)
    st.html(f"<h3>{title}</h3>")
    cosines = here.gallery.features[rows] @ here.gallery.features[row]
    grid.show(opened, rows, key="quality_beside", scores=cosines)


def _decide(here: Here, id: str, decision: str | None, label: str | None) -> None:
    deciding.take(here, [([id], decision, label)])
    address.change(at=None)  # the next one that is not decided


def _relabel(here: Here, found: Findings, id: str, suggestion: str | None) -> None:
    names = found.votes.names
    if len(names) > 1000:
        names = [suggestion] if suggestion else []
    with st.container(horizontal=True, vertical_alignment="bottom", key="quality_relabel"):
        label = st.selectbox(
            "New label", names, index=names.index(suggestion) if suggestion in names else None,
            key=f"label of {id}", accept_new_options=True, placeholder="A label, new or known",
            label_visibility="collapsed",
        )  # fmt: skip
        st.button(
            "Relabel", key="one relabel", disabled=not label,
            on_click=_decide, args=(here, id, RELABEL, label),
        )  # fmt: skip


def _beside(here: Here, page: Queue, at: int, grouped: Grouped) -> tuple[np.ndarray, str]:
    """What to compare an entry with: the others of its group, or its nearest."""
    row = int(page.rows[at])
    if page.groups[at] >= 0:
        groups, group = members(page, at, grouped)
        others = groups.rows_of(group)
        return others[others != row][:BESIDE], "Alike: the others of its group"
    return here.gallery.neighbors()[0][row][:BESIDE].astype(np.int64), "Nearest neighbors"


# -- the result -------------------------------------------------------------------------------


def _result(here: Here, decided_N: np.ndarray) -> None:
    """What was decided so far, and the button that writes it as a new table."""
    with st.container(key="quality_result"):
        counts = {name: int((decided_N == name).sum()) for name in DECISIONS}
        st.html(
            "<h3>The new table</h3><p class='facts'>"
            f"So far <b>{counts[KEEP]:,}</b> kept, <b>{counts[REMOVE]:,}</b> removed, "
            f"<b>{counts[RELABEL]:,}</b> relabeled. The table lists all images but the removed "
            "ones, with their new labels; the images themselves are never touched.</p>"
        )
        _written(here)
        folder = here.root / FOLDER
        name = st.text_input(
            "File name", value=free_name(folder, f"{here.gallery.name}-cleaned"),
            key="cleaned name", help="A .csv or a .parquet. No file is ever written over.",
        )  # fmt: skip
        st.button("Write it", key="write table", on_click=_write, args=(here, name), type="primary")


def _write(here: Here, name: str) -> None:
    """Want a table: for a callback. The page writes it, and says how far it is."""
    st.session_state.pop("cleaned", None)
    try:
        permission.check()
        path = in_folder(here.root / FOLDER, name)
    except UserError as error:
        st.session_state["cleaned"] = str(error)
        return
    st.session_state["writing"] = path, time.time_ns()  # asked again, it is tried again


def _outcome(gallery: Gallery, path: Path) -> Cleaned | str:
    """What was written, or the sentence that says why nothing was."""
    try:
        return write_cleaned(gallery, path)
    except UserError as error:
        return str(error)


def _written(here: Here) -> None:
    """Write what is wanted, and say what was written."""
    if wanted := st.session_state.get("writing"):
        path, moment = wanted
        done = work(
            ("cleaned", str(path), moment), "Writing the table",
            lambda say: _outcome(here.gallery, path),
            to_end=True,
        )  # fmt: skip
        if done is None:
            return
        del st.session_state["writing"]
        st.session_state["cleaned"] = done
        st.session_state.pop("cleaned name", None)  # propose the next one
    said = st.session_state.get("cleaned")
    if isinstance(said, Cleaned):
        words.success(f"Written to {said.path}: {said.sentence()}.")
        command = words.told(f"python scripts/embed.py --data {said.path}")
        st.code(command, language=None, wrap_lines=True)
    elif said:
        words.error(said)
