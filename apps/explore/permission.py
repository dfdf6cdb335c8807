"""Who may change what: start runs and builds, write notes, name folders of this computer.

On this machine alone everyone may. A page that is open to the network shows what there is, and
changes something only for who knows the word it was started with (`--token`); which folders may be
named is said by `--data-root`.
"""

import re
from pathlib import Path

import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery.folders import place_of
from dino_core.serving import is_loopback, may_change
from explore.options import host, options

KEPT = "token"  # in the session


def open_to_network() -> bool:
    """Whether other machines can reach this page."""
    return not is_loopback(host())


def may_act() -> bool:
    """Whether this visitor may change things."""
    return may_change(host(), options().token, st.session_state.get(KEPT))


def check(given: str | None = None) -> None:
    """Raise `UserError` unless this visitor may change things; a right token is kept for them."""
    given = st.session_state.get(KEPT) if given is None else given
    if not may_change(host(), options().token, given):
        raise UserError(
            "That is not the token this page was started with"
            if given
            else "This page is open to the network: changing things needs its token"
        )
    if given is not None:
        st.session_state[KEPT] = given


def why_not(what: str) -> str:
    """Why nobody may do this from here, e.g. "Starting a run"; "" where some may."""
    if not open_to_network() or options().token:
        return ""
    return f"{what} is off: the page is open to the network and was started without --token."


def gate(what: str) -> bool:
    """Whether this visitor may; else the sentence that says why not, or the field for the token."""
    if may_act():
        return True
    if reason := why_not(what):
        st.caption(reason)
        return False
    key = f"token for {what}"
    st.text_input("Token", type="password", key=key, on_change=_keep, args=(key,), width=220)
    wrong = st.session_state.get(KEPT) and "That is not the token. "
    st.caption(f"{wrong or ''}{what} needs the token that this page was started with.")
    return False


def _keep(key: str) -> None:
    st.session_state[KEPT] = st.session_state[key]


def data_of(root: Path, typed: str) -> str:
    """The images that someone named, spelled for any process.

    Raises `UserError` where there are none, or this page may not read them.
    """
    if not typed:
        raise UserError("Name a folder of images first, for example /home/me/photos")
    if re.fullmatch(r"scenes(:[\d-]+)?", typed):  # generated: allowed everywhere
        return typed
    return str(place(root, typed))


def place(root: Path, typed: str) -> Path:
    """The folder or file that someone named, resolved. Raises `UserError` as `data_of` does."""
    return place_of(typed, root, options().data_root, open_to_network=open_to_network())
