"""Galleries: all there are, one managed, a new one made of a folder.

What takes long runs in a process of its own with its state in the gallery's folder: a closed tab
loses nothing, and any browser finds it again.
"""

import html
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dino_core import catalog
from dino_core.catalog.entries import check_named, model_title
from dino_core.errors import UserError
from dino_core.files import LONGEST_NAME
from dino_core.gallery import Gallery, GalleryEntry, build_status, list_galleries, start_build
from dino_core.gallery.deleting import delete_gallery, loss, size_on_disk, size_said
from dino_core.gallery.folders import is_within, subfolders
from dino_core.gallery.jobs import start_map
from dino_core.gallery.listing import asked_for, gallery_name
from dino_core.gallery.manifest import MANIFEST, GalleryInfo, how_made, said_of_update
from dino_core.gallery.maps import UmapSettings
from dino_core.serving import is_loopback
from explore import address, making, permission, state, words
from explore.here import Here
from explore.options import host, options
from explore.working import work

PATCHES = 49  # of an image
MOST_NEIGHBORS = 31
ERROR = "galleries error"
LOOKED_AGAIN = 20.0  # seconds: images may be moved, and no gallery tells of that
COMMAND = "python scripts/embed.py --data FOLDER --out galleries/NAME"


def show(here: Here) -> None:
    """Draw the page."""
    entries = {entry.name: entry for entry in list_galleries(here.root)}
    chosen = entries.get(address.get("about") or "")
    with here.bar:
        permission.gate("Changing galleries")
    left, right = st.columns([1.55, 1], gap="medium")
    with left:
        _list(here, entries)
    with right, st.container(key="gallery_panel", gap="small"):
        if chosen is None:
            _new(here)
        else:
            _went_wrong()
            _manage(here, chosen)


def _went_wrong() -> None:
    """What the last button could not do."""
    if error := st.session_state.pop(ERROR, None):
        words.error(error)


# -- the list ---------------------------------------------------------------------------------


def _list(here: Here, entries: dict[str, GalleryEntry]) -> None:
    """One card a gallery: what it holds, how it stands, and the way into it."""
    folder = html.escape(words.told(here.root / "galleries"))
    with st.container(horizontal=True, vertical_alignment="center", key="galleries_head"):
        st.html(f"<h2>Galleries</h2><p class='facts'>{len(entries):,} in <code>{folder}</code></p>")
        st.button(
            "New gallery", icon=":material/add:", on_click=address.change, kwargs={"about": None},
            disabled=address.get("about") is None,
        )  # fmt: skip
    if not entries:
        st.html(
            "<p class='facts'>There is none yet. A gallery is a collection of images seen through "
            "a model: their features, their neighbors, a map. Make one here, or in a terminal: "
            f"<code>{COMMAND}</code>.</p>"
        )
    for entry in entries.values():
        _card(entry)


def _card(entry: GalleryEntry) -> None:
    about = address.get("about") == entry.name
    key = f"gallery_{'open' if about else 'card'}_{entry.name}"
    with st.container(key=key, horizontal=True, vertical_alignment="center", gap="small"):
        standing, sentence = _standing(entry)
        badge = f"<span class='badge {standing.replace(' ', '_')}'>{standing}</span>"
        badge = badge if standing else ""
        problem = f"<p class='warning'>{_marked(sentence, entry.info)}</p>" if sentence else ""
        st.html(
            f"<h3>{html.escape(entry.name)} {badge}</h3>"
            f"<p class='facts'>{html.escape(' · '.join(_facts(entry)))}</p>{problem}"
        )
        if entry.state == "whole":
            st.button(
                "Open", key=f"open {entry.name}", on_click=address.go, args=("map",),
                kwargs={"gallery": entry.name, "image": None, "region": None, "shown": None},
            )  # fmt: skip
        st.button(
            "Manage", key=f"manage {entry.name}", on_click=address.change,
            kwargs={"about": entry.name}, disabled=about,
        )  # fmt: skip


def _standing(entry: GalleryEntry) -> tuple[str, str]:
    """A word on how it stands, "" where all is well, and a sentence on what is wrong."""
    if build_status(entry.path)["state"] == "running":
        return "at work", ""
    if entry.state != "whole":
        return entry.state, entry.message
    try:
        problems = _problems(entry.path, _stamp(entry.path), time.monotonic() // LOOKED_AGAIN)
    except UserError as error:
        return "damaged", str(error)
    if not problems:
        return "", ""
    more = f" (and {len(problems) - 1} more: see Manage)" if len(problems) > 1 else ""
    return "", _short(problems[0], entry.path) + more


@lru_cache(maxsize=256)
def _problems(path: Path, _stamp: tuple[int, ...], _moment: float) -> list[str]:
    return Gallery.open(path).problems()


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a build or an update, or a hand, has replaced something in a gallery."""
    return tuple(
        (path / name).stat().st_mtime_ns
        for name in ("", MANIFEST, "maps", "patches")
        if (path / name).exists()
    )


def _short(sentence: str, path: Path) -> str:
    """A sentence that begins with the gallery's folder, with its name instead."""
    return sentence.replace(f"{path}: ", f"{path.name}: ", 1)


def _marked(sentence: str, info: GalleryInfo | None = None) -> str:
    """A sentence as HTML, its commands as such."""
    data = () if info is None else (info.data, info.root)
    parts = html.escape(words.told(sentence, *data)).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))


def _facts(entry: GalleryEntry) -> list[str]:
    info = entry.info
    if info is None:
        asked = asked_for(entry.path)
        if asked is None:
            return []
        return [f"{words.told(asked[1], asked[1])} seen by {model_title(asked[0])}"]
    images = "generated images" if info.generated else "images"
    facts = [f"{info.count:,} {images}", model_title(info.model)]
    facts += [_day(info.created)] if info.created else []
    return [*facts, size_said(size_on_disk(entry.path))]


def _day(moment: str) -> str:
    try:
        return datetime.fromisoformat(moment).strftime("%-d %b %Y")
    except ValueError:
        return moment


# -- one gallery ------------------------------------------------------------------------------


def _manage(here: Here, entry: GalleryEntry) -> None:
    """All that can be done with one gallery."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.html(f"<h2>{html.escape(entry.name)}</h2>")
        st.button("Close", key="close", on_click=address.change, kwargs={"about": None})
    status = build_status(entry.path)
    if status["state"] == "running":
        st.html(
            "<p class='facts'>Something is being made in it: the bar above says how far it is. It "
            "goes on when this page is closed.</p>"
        )
        return
    if status["state"] in ("failed", "dead", "stopped") and status["message"]:
        st.html(f"<p class='warning'>{_marked(status['message'])}</p>")
    gallery = None
    try:
        gallery = Gallery.open(entry.path)
    except UserError as error:
        if entry.state == "whole" or entry.message != status["message"]:
            st.html(f"<p class='warning'>{_marked(_short(str(error), entry.path))}</p>")
    if gallery is None:
        _go_on(here, entry)
    else:
        _about(here, gallery)
        _update(here, gallery)
        _maps(here, gallery)
        _patches(here, gallery)
    _delete(here, entry)


def _about(here: Here, gallery: Gallery) -> None:
    """What it is made of, and what does not work."""
    info, facts = gallery.info, []
    facts += [("Images", f"{info.count:,}")]
    if info.quarantined:
        facts += [("Unreadable", f"{info.quarantined:,}, listed in quarantine.jsonl")]
    facts += [("Of", words.told(info.data, info.data)), ("Model", info.model)]
    facts += [("Feature", f"{info.kind}, {info.dim:,} numbers")]
    facts += [("Made", _day(info.created))] if info.created else []
    if info.update:
        time = _day(str(info.update.get("time", "")))
        facts += [("Updated", f"{time}: {said_of_update(info.update)}")]
    lost = loss(gallery.path)
    facts += [("On the disk", f"{size_said(lost.bytes)}, thumbnails aside")]
    facts += [("Notes", f"{lost.notes:,}")]
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    st.html(f"<dl class='about'>{rows}</dl>")
    for sentence in how_made(info):
        st.html(f"<p class='facts'>{html.escape(sentence[0].upper() + sentence[1:])}.</p>")
    for problem in [*gallery.problems(), _model_gone(here.root, info.model)]:
        if problem:
            st.html(f"<p class='warning'>{_marked(_short(problem, gallery.path), info)}</p>")


def _model_gone(root: Path, model: str) -> str:
    try:
        check_named(root, model, None)
    except UserError as error:
        return f"{error}. Without it everything works but searches with new images and updates."
    return ""


def _update(here: Here, gallery: Gallery) -> None:
    """Images that came, went or changed; damaged files; a folder that was moved."""
    info = gallery.info
    data = ""
    if gallery.images_missing():
        data = st.text_input("The images are now in", placeholder="/new/place/of/photos")
    with _row("update_row"):
        st.html(
            "<h3>Update</h3><p class='facts'>Adds new images, drops gone ones, computes changed "
            "ones again, and mends damaged files. All else is kept.</p>"
        )
        _button("Update", "update", lambda: _start_update(here, gallery, data.strip() or info.data))


def _start_update(here: Here, gallery: Gallery, data: str) -> None:
    if data != gallery.info.data:
        data = permission.data_of(here.root, data)
    start_build(gallery.info.model, data, gallery.path, root=here.root, update=True)


def _maps(here: Here, gallery: Gallery) -> None:
    """The maps there are, and one more of other settings."""
    st.html("<h3>Maps</h3>")
    for place, (name, made) in enumerate(gallery.info.maps.items()):
        with _row(f"map_row_{place}"):
            st.html(f"<p class='facts'><b>{html.escape(name)}</b> {_how(made)}</p>")
            if made.get("placed_since"):
                _button("Draw anew", f"anew {name}", partial(_draw, here, gallery, name))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        neighbors = address.slider("Neighbors", "neighbors", 2, MOST_NEIGHBORS, 15)
        distance = address.slider("Distance", "distance", 0.0, 1.0, 0.1, step=0.05)
    distance = round(distance, 2)
    there = UmapSettings(neighbors, distance).name in gallery.info.maps
    with _row("draw_row"):
        st.html(
            "<p class='facts'>Few neighbors show small groups, many the whole. A small distance "
            "packs groups, a large one spreads them.</p>"
        )
        _button(
            "There is one of these" if there else "Draw a map of these", "draw",
            lambda: start_map(gallery.path, neighbors, distance, root=here.root), disabled=there,
        )  # fmt: skip


def _draw(here: Here, gallery: Gallery, name: str) -> None:
    from dino_core.gallery.building import settings_of

    settings = settings_of(name)
    assert settings is not None
    start_map(gallery.path, settings.n_neighbors, settings.min_dist, root=here.root, redo=True)


def _how(made: dict[str, Any]) -> str:
    if made.get("method") != "umap":
        return "principal components"
    text = f"UMAP of {made.get('n_neighbors')} neighbors, distance {made.get('min_dist')}"
    if made.get("placed_since"):
        text += f"; {made['placed_since']:,} images placed since"
    return html.escape(text)


def _patches(here: Here, gallery: Gallery) -> None:
    """Parts of images to be searched."""
    held = (gallery.path / "patches").is_dir()
    text = (
        "It holds parts of its images."
        if held
        else (f"With {PATCHES} patches of each image held as well, a click on an eye finds eyes.")
    )
    info = gallery.info
    asked = (info.model, info.data, gallery.path)
    with _row("patches_row"):
        st.html(f"<h3>Parts of images</h3><p class='facts'>{text}</p>")
        if not held:
            _button(
                "Hold patches", "hold patches",
                lambda: start_build(*asked, root=here.root, patches=PATCHES),
            )  # fmt: skip


def _go_on(here: Here, entry: GalleryEntry) -> None:
    """Finish what is half made, or build again what is damaged."""
    asked = asked_for(entry.path)
    if asked is None:
        st.html("<p class='facts'>Nothing in it says what it was to be made of.</p>")
        return
    model, data = asked
    again, redo = entry.state != "half made", entry.state == "damaged"
    st.html(
        f"<p class='facts'>Of <code>{html.escape(words.told(data, data))}</code>, seen by "
        f"<code>{html.escape(model)}</code>."
        f"{' What people added is kept.' if again else ' What was computed is kept.'}</p>"
    )
    _button(
        "Build it again" if again else "Go on", "go on",
        lambda: start_build(model, data, entry.path, root=here.root, redo=redo), type="primary",
    )  # fmt: skip


def _delete(here: Here, entry: GalleryEntry) -> None:
    """Deleting, once its name was typed."""
    st.html(f"<h3>Delete</h3><p class='facts'>{html.escape(loss(entry.path).sentence)}</p>")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        typed = st.text_input(
            f"Type {words.plain(entry.name)} to delete it",
            key=f"typed {entry.name}",
            placeholder=entry.name,
        )
        _button(
            "Delete for good", "delete", lambda: _delete_now(here, entry),
            disabled=typed.strip() != entry.name,
        )  # fmt: skip


def _delete_now(here: Here, entry: GalleryEntry) -> None:
    delete_gallery(entry.path, here.root)
    address.change(about=None)
    if address.get("gallery") == entry.name:
        address.change(gallery=None)
        state.forget()  # its image, its selection


def _row(key: str) -> DeltaGenerator:
    """A line of the panel: words, and a button at its end."""
    return st.container(
        key=f"panel_{key}", horizontal=True, vertical_alignment="center", gap="small"
    )


def _button(
    label: str, key: str, act: Callable[[], object], *, disabled: bool = False, **how: Any
) -> None:
    """A button that changes something, if this visitor may; what goes wrong is said at the top."""
    if st.button(label, key=key, disabled=disabled or not permission.may_act(), **how):
        try:
            permission.check()
            act()
        except UserError as error:
            st.session_state[ERROR] = str(error)
        st.rerun()


# -- a new one --------------------------------------------------------------------------------


def _new(here: Here) -> None:
    """Model, folder, button."""
    st.html(
        "<h2>New gallery</h2><p class='facts'>Of a folder on the computer that runs this page, "
        "nested or flat; subfolders become labels. Or of a .csv or .parquet with a path column, an "
        f"uncompressed .tar, or <code>scenes</code>. In a terminal: <code>{COMMAND}</code>.</p>"
    )
    roots = options().data_root or ((Path("/"),) if is_loopback(host()) else ())
    titles = {entry.spec: entry.title for entry in catalog.models(here.root)}
    if asked := options().model:
        titles = {asked: asked} | titles
    if not titles:
        st.html(f"<p class='warning'>{html.escape(catalog.no_model(here.root))}</p>")
        return
    spec = address.choice("Model", "with", list(titles), format_func=lambda spec: str(titles[spec]))
    folder = address.text(
        "Folder", "folder", placeholder=words.told(_first(here, roots) or "scenes")
    )
    if roots and permission.may_act() and address.toggle("Browse folders", "browse"):
        _browse(here, folder, roots)
    name = address.text(
        "Name", "name", max_chars=LONGEST_NAME,
        placeholder=_proposed(spec, folder.strip()) or "of model and folder",
    )  # fmt: skip
    patches = address.toggle(
        "Hold patches, too", "patches",
        help=f"{PATCHES} patches of each image: a click on an eye then finds eyes. Takes as long "
        "again.",
    )  # fmt: skip
    _went_wrong()
    _button(
        "Make the gallery", "make",
        lambda: _make(here, spec, folder.strip(), name.strip(), patches), type="primary",
    )  # fmt: skip
    if options().data_root:
        allowed = words.told(", ".join(str(root) for root in options().data_root))
        st.html(f"<p class='facts'>Folders in {html.escape(allowed)} may be read.</p>")


def _make(here: Here, model: str, folder: str, name: str, patches: bool) -> None:
    out = making.start(
        here.root, model, folder, PATCHES if patches else None, name=name, opens=False
    )
    address.change(about=out.name, folder=None, name=None, browse=None)


def _proposed(model: str, folder: str) -> str:
    try:
        return gallery_name(model, folder) if folder else ""
    except (OSError, ValueError):  # no path at all: the button says so
        return ""


def _first(here: Here, roots: tuple[Path, ...]) -> Path | None:
    """Where browsing begins."""
    return next(iter(options().data_root), here.root if roots else None)


def _browse(here: Here, typed: str, roots: tuple[Path, ...]) -> None:
    """The folders inside the one that is named, to step into or back out of."""
    try:
        folder = permission.place(here.root, typed or str(_first(here, roots)))
    except UserError as error:
        words.caption(error)
        return
    if not folder.is_dir():
        st.html("<p class='facts'>That is no folder.</p>")
        return
    found = work(
        ("folders", str(folder), folder.stat().st_mtime_ns, roots), "Looking into folders",
        lambda _progress: subfolders(folder, roots),
    )  # fmt: skip
    if found is None:
        return
    with st.container(key="folders", height=230, gap=None):
        if is_within(folder.parent, roots) and folder.parent != folder:
            _step(
                folder.parent,
                f"Up to {words.plain(folder.parent.name or '/')}",
                ":material/arrow_upward:",
            )
        for one in found:
            _step(one.path, words.plain(one.label), ":material/folder:")
        if not found:
            st.html(f"<p class='facts'>No folders in {html.escape(folder.name or '/')}.</p>")


def _step(path: Path, label: str, icon: str) -> None:
    st.button(
        label, icon=icon, key=f"step {path}", type="tertiary", on_click=address.change,
        kwargs={"folder": str(path)},
    )  # fmt: skip
