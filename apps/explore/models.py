"""A model for a page, or the reason why there is none yet."""

import html
from typing import TYPE_CHECKING

import streamlit as st

from dino_core.errors import UserError
from dino_core.serving import is_loopback
from explore import loading, words
from explore.here import Here
from explore.options import host, options

if TYPE_CHECKING:
    from dino_core.models import Model


def wanted(here: Here, spec: str | None = None) -> "Model | None":
    """The model of the bar, or `spec`; None while it is loading or when it cannot be loaded, which
    the page then says.
    """
    spec = here.model if spec is None else spec
    try:
        check(spec)
    except UserError as error:
        words.error(error)
        return None
    loaded = loading.load(spec, here.root)
    if loaded.waiting:
        _wait_for(spec, here)
    elif loaded.error:
        words.error(loaded.error)
        st.button("Try again", on_click=loading.forget, args=(spec,), key=f"again {spec}")
    return loaded.model


def check(spec: str) -> None:
    """Refuse to download a model for a stranger; raises `UserError`.

    Everything else in the picker lies on this machine already.
    """
    if spec.startswith("timm:") and spec != options().model and not is_loopback(host()):
        raise UserError(
            f"{spec}: may have to be downloaded, which is off on a page that other machines can "
            "reach; start the page with --model to allow it"
        )


@st.fragment(run_every=0.5)
def _wait_for(spec: str, here: Here) -> None:
    """Say what is being loaded, until it is; then draw the page again."""
    loaded = loading.load(spec, here.root)
    if not loaded.waiting:
        st.rerun()
    st.html(f"<p class='loading'>{html.escape(loaded.waiting)}</p>")
