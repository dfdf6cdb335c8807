"""The bar's pickers of gallery and model. The address and the command line choose first."""

from pathlib import Path

import streamlit as st

from dino_core import catalog
from dino_core.gallery.listing import is_gallery, list_galleries
from explore import address, state
from explore.opened import Opened
from explore.options import options

_OTHER = "gallery instead"


def gallery(root: Path) -> tuple[Path | None, str]:
    """The gallery to show; None when there is none yet, or, with a sentence, not this one.

    What an address names is never swapped for another: decisions would go to that.
    """
    found = {entry.name: entry.path for entry in list_galleries(root) if entry.state == "whole"}
    asked = options().gallery
    if asked is not None:
        path = _named(asked, root)
        found = {path.name: path} | {k: v for k, v in found.items() if v.resolve() != path}
    if not found:
        return None, ""
    if (made := st.session_state.pop("open next", None)) in found:
        address.change(gallery=made)
        state.forget()
    wanted = address.get("gallery")
    if wanted and wanted not in found:
        st.selectbox(
            "Gallery", list(found), index=None, placeholder="Choose another", key=_OTHER,
            on_change=_take_other, width=210,
        )  # fmt: skip
        return None, (f"There is no gallery {wanted} here, or it is being built; choose another.")
    chosen = address.choice("Gallery", "gallery", list(found), on_change=state.forget, width=210)
    address.imply(gallery=chosen)
    return found[chosen], ""


def _take_other() -> None:
    address.change(gallery=st.session_state[_OTHER])
    state.forget()


def _named(asked: str, root: Path) -> Path:
    """A folder, or the name of a gallery under the root; the folder need not exist."""
    for path in (Path(asked), root / asked, root / "galleries" / asked):
        if is_gallery(path):
            return path.resolve()
    return Path(asked).resolve()


def model(root: Path, opened: Opened | None) -> str:
    """The model for images of your own, and for what has to look at images again."""
    titles = {entry.spec: entry.title for entry in catalog.models(root)}
    made_with = opened.gallery.info.model if opened is not None else None
    first = [spec for spec in (options().model, made_with) if spec]
    specs = list(dict.fromkeys([*first, *titles])) or ["starter"]
    return str(
        address.choice(  # never a path that someone made up
            "Model",
            "model",
            specs,
            width=210,
            help="Looks at a photo of your own, and at images whose attention is asked for.",
            format_func=lambda spec: titles.get(spec, spec.rsplit("/", 1)[-1]),
        )
    )
