"""What takes long, computed once behind the page's back, for all its visitors.

value = work(("clusters", opened.key, k), "Clustering", lambda progress: ...)
if value is None:
    return        # the page says how far it is, or what went wrong, and redraws itself
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import streamlit as st

from dino_core.catalog.works import Works
from dino_core.gallery.progress import Progress
from explore import permission, words

AT_ONCE = 0.2  # seconds; what is done by then shows no bar

Value = TypeVar("Value")
_works = Works()


def work(
    key: tuple[Hashable, ...],
    what: str,
    function: Callable[[Progress], Value],
    *,
    to_end: bool = False,
    again: bool = True,
) -> Value | None:
    """What `function` returns, which is never None; None while it is not there.

    The key has to hold all that the value depends on. Once no page shows it any more it is given
    up; what someone has begun by a button and is kept on the disk goes on `to_end`. `again` offers
    to try again what has failed.
    """
    found = _works.ask(key, function, to_end=to_end)
    found.wait(AT_ONCE)
    if found.state == "done":
        return found.value  # type: ignore[no-any-return]
    if found.state == "failed":
        words.error(found.message)
        if again:
            st.button("Try again", on_click=_works.forget, args=(key,), key=f"again {key}")
    else:
        _bar(key, what)
    return None


def has_failed(key: tuple[Hashable, ...]) -> bool:
    """Whether that came to nothing, or was cancelled."""
    found = _works.find(key)
    return found is not None and found.state == "failed"


def begun(key: tuple[Hashable, ...]) -> bool:
    """Whether someone asked for this, and it is being computed or still kept."""
    return _works.find(key) is not None


@st.fragment(run_every=0.5)
def _bar(key: tuple[Hashable, ...], what: str) -> None:
    """How far it is, until it ends; then the page is drawn again."""
    found = _works.find(key)
    if found is None or found.state != "running":
        st.rerun()
    share = found.done / found.total if found.total else 0.0
    count = f", {found.done:,} of {found.total:,}" if found.total > 1 else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(min(share, 1.0), text=f"{what}: {found.message.lower()}{count}")
        if permission.may_act():  # others may wait for it, too
            st.button("Cancel", on_click=_works.cancel, args=(key,), key=f"cancel {key}")
