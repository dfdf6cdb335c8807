"""The page's address, in which every state of the explorer lives: back, forward and a link work.

    k = address.slider("Neighbors", "k", 1, 50, 18)
    st.button("On the map", on_click=address.go, args=("map",), kwargs={"image": id})

A run of the script changes a copy, and writes it out once at its end (`finish`): one step of the
visitor, one entry of the browser's history. Back and forward reach the script only as a run with
another address than the one that was written (`begin`): whatever differs then is read anew.
What has its default is left out, so addresses are short, and a bare one stays bare.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

COMMON = ("page", "gallery", "model", "color", "map", "image", "region", "shown")  # of all pages
FIRST_PAGE = "map"
ON_ITS_WAY = 1.0  # seconds that an address may take to the browser
OLDER_KEPT = 4  # addresses that clicks in a row may overtake
_NOW, _WRITTEN, _KEPT, _IMPLIED = "address", "address written", "address kept", "address implied"
_OLDER = "addresses before"

MOST_DIGITS = 12  # of a whole number

Spelled = Callable[[Any], str]
Default = TypeVar("Default")


# -- a run of the script ----------------------------------------------------------------------


def begin() -> set[str]:
    """Take up the browser's address; returns the names that the visitor changed in it."""
    st.session_state[_IMPLIED] = {}
    there = st.query_params.to_dict()
    before = st.session_state.get(_WRITTEN, {})
    if there == before and _NOW in st.session_state:
        return set()
    if _is_late(there):
        return set()  # a click overtook the address that the run before it had written
    changed = {name for name in {*there, *before} if there.get(name) != before.get(name)}
    st.session_state[_NOW] = dict(there)
    st.session_state[_WRITTEN] = there
    for name in changed:
        st.session_state.pop(_key(name), None)
    return changed


def _is_late(there: dict[str, str]) -> bool:
    """Whether the browser sends an address that was written over since, with a click.

    Streamlit tells Back and Forward apart from 1.67 on; before, an old address counts as late only
    for as long as a new one may take to the browser.
    """
    told = getattr(get_script_run_ctx(suppress_warning=True), "is_history_navigation", None)
    older = st.session_state.get(_OLDER, [])
    if told is None:
        older = [one for one in older[-1:] if time.monotonic() - one[1] < ON_ITS_WAY]
    return not told and any(there == address for address, _ in older)


def finish() -> None:
    """Write what this run has put, as one entry of the browser's history."""
    now, written = _now(), st.session_state.get(_WRITTEN, {})
    if now:  # a bare address stays bare, or Back from it would be undone at once
        now |= st.session_state.get(_IMPLIED, {})
    if now == written:
        return
    older = st.session_state.setdefault(_OLDER, [])
    older.append((written, time.monotonic()))
    del older[:-OLDER_KEPT]
    ordered = sorted(now, key=lambda name: COMMON.index(name) if name in COMMON else len(COMMON))
    st.session_state[_WRITTEN] = dict(now)
    st.query_params.from_dict({name: now[name] for name in ordered})


def _now() -> dict[str, str]:
    now: dict[str, str] = st.session_state.setdefault(_NOW, {})
    return now


# -- values -----------------------------------------------------------------------------------


def get(name: str) -> str | None:
    """A value of the address."""
    return _now().get(name)


def whole(name: str, low: int, high: int, default: Default) -> int | Default:
    """A whole number of the address, moved into its bounds; `default` for anything else."""
    value = whole_of(get(name))
    return default if value is None else min(max(value, low), high)


def whole_of(text: str | None) -> int | None:
    """A whole number as an address may spell it; None for anything else."""
    is_one = text and text.isdecimal() and len(text) <= MOST_DIGITS
    return int(text) if text and is_one else None


def put(**values: str | None) -> None:
    """Put values into the address; None takes one out."""
    now = _now()
    for name, value in values.items():
        if value is None:
            now.pop(name, None)
        else:
            now[name] = value


def imply(**values: str) -> None:
    """Defaults that may change one day: they stand in the address as soon as anything else does."""
    st.session_state.setdefault(_IMPLIED, {}).update(values)


def page() -> str:
    """The page that is open."""
    return get("page") or FIRST_PAGE


def go(page_name: str, **values: str | None) -> None:
    """Open a page, with these values: for a callback. A page's own values wait for its return."""
    now, kept = dict(_now()), st.session_state.setdefault(_KEPT, {})
    kept[page()] = {name: value for name, value in now.items() if name not in COMMON}
    there = {name: value for name, value in now.items() if name in COMMON}
    there |= kept.get(page_name, {})
    there["page"] = page_name
    if page_name == FIRST_PAGE:
        del there["page"]
    st.session_state[_NOW] = there
    st.session_state.pop("page", None)
    change(**values)


def change(**values: str | None) -> None:
    """`put`, and let the widgets of these names show it: for a callback."""
    put(**values)
    for name in values:
        st.session_state.pop(_key(name), None)


def _key(name: str) -> str:
    """The widget's: pages may use one name for different things."""
    return name if name in COMMON else f"{page()}_{name}"


# -- widgets that live in the address ---------------------------------------------------------


def choice(
    label: str,
    name: str,
    options: Sequence[Any],
    *,
    default: Any = None,
    format_func: Spelled = str,
    **how: Any,
) -> Any:
    """A select box; `default`: the first option."""
    key, default = _chosen(name, options, default)
    index = list(options).index(st.session_state[key])
    chosen = st.selectbox(label, options, index, key=key, format_func=format_func, **how)
    return _put_chosen(name, chosen, options, default)


def segments(
    label: str,
    name: str,
    options: Sequence[Any],
    *,
    default: Any = None,
    format_func: Spelled = str,
    **how: Any,
) -> Any:
    """A segmented control of few options, of which one is always chosen."""
    key, default = _chosen(name, options, default)
    usual: dict[str, Any] = {"label_visibility": "collapsed", "required": True}
    usual["default"] = st.session_state[key]
    chosen = st.segmented_control(label, options, key=key, format_func=format_func, **usual | how)
    return _put_chosen(name, chosen, options, default)


def slider(
    label: str, name: str, low: float, high: float, default: float, *, step: Any = None, **how: Any
) -> Any:
    """A slider of whole numbers, or of others where `default` is a float."""
    key, kind = _key(name), type(default)
    if not low <= st.session_state.get(key, low - 1) <= high:
        st.session_state[key] = min(max(_number(get(name), kind, default), low), high)
    _say_again(key)
    if low >= high:  # Streamlit refuses a slider without room
        return default
    value = st.slider(label, low, high, st.session_state[key], key=key, step=step, **how)
    put(**{name: None if value == default else f"{value:.9g}"})
    return value


def toggle(label: str, name: str, *, default: bool = False, **how: Any) -> bool:
    """A switch."""
    key = _key(name)
    if key not in st.session_state:
        st.session_state[key] = {"yes": True, "no": False}.get(get(name) or "", default)
    _say_again(key)
    value = st.toggle(label, st.session_state[key], key=key, **how)
    put(**{name: None if value == default else ("yes" if value else "no")})
    return value


def text(label: str, name: str, **how: Any) -> str:
    """A line of text."""
    key = _key(name)
    if key not in st.session_state:
        st.session_state[key] = get(name) or ""
    value = st.text_input(label, key=key, **how)
    put(**{name: value or None})
    return value


def several(
    label: str, name: str, options: Sequence[Any], *, format_func: Spelled = str, **how: Any
) -> list[Any]:
    """Any number of the options, none to begin with."""
    key = _key(name)
    known = {str(option): option for option in options}
    if any(value not in options for value in st.session_state.get(key, [None])):
        wanted = [unquote(part) for part in (get(name) or "").split(",")]
        st.session_state[key] = [known[part] for part in wanted if part in known]
    _say_again(key)
    begun = st.session_state[key]
    values = st.multiselect(label, options, begun, key=key, format_func=format_func, **how)
    put(**{name: ",".join(quote(str(value), safe="") for value in values) or None})
    return values


def _chosen(name: str, options: Sequence[Any], default: Any) -> tuple[str, Any]:
    """The widget's key, with a value in the session that is among the options; and the default."""
    key = _key(name)
    default = default if default in options else options[0]
    if st.session_state.get(key) not in options:
        known = {str(option): option for option in options}
        st.session_state[key] = known.get(get(name) or "", default)
    _say_again(key)
    return key, default


def _put_chosen(name: str, chosen: Any, options: Sequence[Any], default: Any) -> Any:
    """Write what is chosen, where it is not the default; a choice that is gone is the default."""
    chosen = chosen if chosen in options else default
    put(**{name: None if chosen == default else str(chosen)})
    return chosen


def _say_again(key: str) -> None:
    """Send a widget its value with this run too: the run that sent it first may have been cut off
    by a click before it reached the browser, which would then answer with a value of its own.

    It is also given as the widget's own default, for one that the browser loads only later.
    """
    st.session_state[key] = st.session_state[key]


def _number(text: str | None, kind: type, default: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return default
    return kind(value) if math.isfinite(value) else default
