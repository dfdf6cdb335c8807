"""Sentences of a page: names that others gave stay text, and strangers learn no paths.

Streamlit reads its sentences as Markdown, and names come from addresses, folders and tables:
`?image=[Log in](http://evil)` must not become a link. `st.html` takes `html.escape(told(text))`.
"""

import re
from pathlib import Path

import streamlit as st

from explore import permission
from explore.options import options

_MARKS = re.compile(r"[\\`*_~\[\]<>$#|]|:(?=\S)")  # what can mean something within a line
_BEGINNING = re.compile(r"(?m)^(\s*\d*)([-+=.)])")  # or at its beginning: lists, lines


def plain(text: object) -> str:
    """Text that Markdown shows as it is."""
    return _BEGINNING.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", str(text)))


def told(text: object, *data: str | None) -> str:
    """A sentence as this visitor may read it: who may not act here sees no absolute paths.

    `data`: more folders to keep to oneself, of which the name alone remains.
    """
    said = str(text)
    if permission.may_act():
        return said
    hidden = {str(options().root.resolve()): "ROOT", str(Path.home()): "~"}
    hidden |= {str(root.resolve()): f"DATA/{root.resolve().name}" for root in options().data_root}
    hidden |= {one.rstrip("/"): Path(one).name for one in data if one and Path(one).is_absolute()}
    for folder in sorted(hidden, key=len, reverse=True):
        if folder not in ("", "/"):
            said = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w-])", hidden[folder], said)
    return said


def error(text: object) -> None:
    """What went wrong."""
    st.error(plain(told(text)))


def warning(text: object) -> None:
    """What is not as it was asked for."""
    st.warning(plain(told(text)))


def caption(text: object) -> None:
    """A word beside something."""
    st.caption(plain(told(text)))


def success(text: object) -> None:
    """What was done."""
    st.success(plain(told(text)))
