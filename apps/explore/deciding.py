"""Decisions about images as pages take them: saved at once, undone, taken for many together.

Whatever is decided is a line in the gallery's `user/reviews.jsonl` before the page is drawn again,
so nothing is lost with a tab. The way back is kept for this visitor's last steps.
"""

import threading
from typing import Any
from urllib.parse import urlencode

import numpy as np
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery.cleaned import decisions_of
from dino_core.gallery.columns import FOUND, TAG
from dino_core.gallery.notes import Notes
from dino_core.gallery.reviewing import Queue, Undo, decide_all, follow_suggestions
from explore import address, permission, state, words
from explore.here import Here

Several = list[tuple[list[str], str | None, str | None]]  # ids, decision, label
STEPS_KEPT = 20
_UNDO, _SAID = "review undo", "review said"
_decided: dict[str, tuple[Any, np.ndarray]] = {}
_lock = threading.Lock()


def decisions(here: Here) -> np.ndarray:
    """The decision about each image, object [N]; None where there is none."""
    assert here.opened is not None
    notes, key = Notes(here.gallery.path), here.opened.key
    stamp = notes.stamp()[-1]
    with _lock:
        if key not in _decided or _decided[key][0] != stamp:
            while len(_decided) > 4:
                _decided.pop(next(iter(_decided)))
            _decided[key] = stamp, decisions_of(here.gallery.images["id"], notes.reviews())
        return _decided[key][1]


def take(here: Here, several: Several) -> None:
    """Decide, and keep the way back: for a callback."""
    notes = Notes(here.gallery.path)
    try:
        permission.check()
        known = set(here.gallery.images["label"].dropna().unique())
        undo = decide_all(notes, [one for one in several if one[0]], known)
    except UserError as error:
        st.session_state[_SAID] = str(error)
        return
    _keep(here, dict(undo.before))


def take_suggestions(here: Here, queue: Queue) -> None:
    """Decide all as suggested that nothing was decided about: for a callback."""
    ids = here.gallery.images["id"].iloc[queue.rows].tolist()
    try:
        permission.check()
        undo = follow_suggestions(Notes(here.gallery.path), ids, queue)
    except UserError as error:
        st.session_state[_SAID] = str(error)
        return
    _keep(here, dict(undo.before))


def _keep(here: Here, before: dict[str, Any]) -> None:
    steps = st.session_state.setdefault(_UNDO, [])
    steps.append((str(here.gallery.path), Undo(before)))
    del steps[:-STEPS_KEPT]
    remounted()


def remounted() -> None:
    """Let tables that are being edited show what was decided elsewhere."""
    st.session_state["review version"] = st.session_state.get("review version", 0) + 1


def undo_button(here: Here) -> None:
    """The way back from the last step, and what went wrong with it."""
    steps = [step for step in st.session_state.get(_UNDO, []) if step[0] == str(here.gallery.path)]
    if steps:
        count = len(steps[-1][1].before)
        label = f"Undo the last decision ({count:,} image{'' if count == 1 else 's'})"
        st.button(label, icon=":material/undo:", key="undo", on_click=_undo, args=(here,))
    if said := st.session_state.pop(_SAID, None):
        words.error(said)


def _undo(here: Here) -> None:
    steps = st.session_state.get(_UNDO, [])
    for place in range(len(steps) - 1, -1, -1):
        if steps[place][0] == str(here.gallery.path):
            try:
                permission.check()
                steps.pop(place)[1].apply(Notes(here.gallery.path))
            except UserError as error:
                st.session_state[_SAID] = str(error)
            break
    remounted()


def button(here: Here, label: str, several: Several, key: str, **how: Any) -> None:
    """A button that decides."""
    st.button(label, key=f"decide {key}", on_click=take, args=(here, several), **how)


def actions(here: Here, name: str, reason: str, queue: Queue) -> None:
    """What can be done with all that a tab has found. `name`: for a tag; `reason`: in the queue."""
    rows, decided = queue.rows, decisions(here)
    open_count = int(sum(one is None for one in decided[rows]))
    with st.container(key="quality_actions", horizontal=True, gap="small"):
        st.button(
            "Decide one by one", key="one by one", type="primary", on_click=address.change,
            kwargs={"tab": "review", "show": reason, "p": None},
        )  # fmt: skip
        st.button(
            f"Decide {open_count:,} as suggested" if open_count else "All decided",
            key="as suggested", disabled=not open_count, on_click=take_suggestions,
            args=(here, queue), help="Of these, all that nothing was decided about. Can be undone.",
        )  # fmt: skip
        st.button(
            "Show on the map", key="on the map", on_click=_show_on_map, args=(here, name, rows),
            help=f"They alone get the tag “{FOUND}{name}”, by which the map is then colored.",
        )  # fmt: skip
        with st.popover("Tag these"):
            tag = st.text_input("Tag", value=name, key=f"tag {name}")
            st.button(
                f"Tag {len(rows):,} images", key="tag these", on_click=_tag, args=(here, tag, rows)
            )


def _tag(here: Here, tag: str, rows: np.ndarray) -> None:
    ids = here.gallery.images["id"].iloc[np.unique(rows)]
    try:
        permission.check()
        Notes(here.gallery.path).tag(ids, tag)
        st.toast(f"{len(ids):,} images have the tag “{words.plain(tag)}” now.")
    except UserError as error:
        st.session_state[_SAID] = str(error)


def _show_on_map(here: Here, name: str, rows: np.ndarray) -> None:
    """Under a tag of the page's own: nobody's tag loses images."""
    opened = here.opened
    assert opened is not None
    notes, tag = Notes(here.gallery.path), FOUND + name
    try:
        permission.check()
        notes.untag(None, tag)  # what an earlier threshold found
        tag = notes.tag(here.gallery.images["id"].iloc[np.unique(rows)], tag)
        entries = opened.coloring(TAG + tag).entries
    except UserError as error:
        st.session_state[_SAID] = str(error)
        return
    code = next(place for place, (value, _) in enumerate(entries) if value == tag)
    address.go("map", color=TAG + tag, shown=str(code), image=None, region=None)
    state.follow({"shown"})


def image_url(here: Here, row: int) -> str:
    """The address of an image on the map."""
    assert here.opened is not None
    words = {"gallery": here.gallery.name, "image": here.opened.id(row)}
    return "?" + urlencode(words, errors="replace")
