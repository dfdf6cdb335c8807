"""How a run's model came to see: a slider over its checks moves heads, colors, neighbors, map."""

import json
from html import escape
from typing import Any

import numpy as np
import streamlit as st

from dino_core.emergence import HeldOut, History, Maps, Neighbors
from dino_core.gallery.progress import Progress
from dino_core.gallery.selection import category_colors, gray
from dino_core.runs import ALIVE, Run, list_runs
from explore import address, components, emerging, permission
from explore.emerging import Watched
from explore.here import Here
from explore.server import publish
from explore.working import begun, work

KEY = "emergence"
PLACE = ("step", "picture", "layer", "head", "query")  # of the address
LOOKED_AFTER = 10  # seconds: whether a run that goes on has another check


def show(here: Here) -> None:
    """Draw the page."""
    runs = {run.name: run for run in sorted(list_runs(here.root), key=_newest, reverse=True)}
    if not runs:
        _no_runs(here)
        return
    with here.bar:
        name = address.choice("Run", "run", list(runs), on_change=_leave, width=260)
    address.put(run=name)  # also the first: another run may be newer next time
    run = runs[name]
    watched = emerging.watch(run)
    history = watched.history
    with here.bar:
        _facts(watched)
    for note in history.notes:
        st.html(f'<p class="warning">{escape(note)}</p>')
    view, words = st.container(key="emergence_view"), st.container()
    opening = ("held out", str(run.path.resolve()), tuple(history.ids[:1]), len(history.ids))
    watched.held_out = work(opening, "Opening the run's data", lambda _: HeldOut.open(history))
    near = work(("neighbors", watched.key), "Comparing", lambda progress: _near(history, progress))
    drawn = _maps(watched)
    if watched.held_out is not None and watched.held_out.note:
        words.html(f'<p class="warning">{escape(watched.held_out.note)}</p>')
    with view:
        components.emergence(
            key=KEY,
            data=_props(watched, near, drawn),
            on_place_change=lambda: _moved(history),
        )
    _film(watched, drawn)
    if run.status().get("state") in ALIVE:
        _wait_for_more(run, watched.key)


# -- words --------------------------------------------------------------------------------------


def _no_runs(here: Here) -> None:
    with st.container(key="empty"):
        st.html(
            "<h2>No run yet</h2><p class='facts'>Here you watch a model come to see: what its "
            "heads attend to, whom it takes for neighbors, how its map takes shape. Train one on "
            "the page Runs, or by<br><code>python scripts/train.py --data FOLDER --out "
            f"{escape(str(here.root / 'runs' / 'mine'))}</code></p>"
        )
        st.button("Start a run", type="primary", on_click=address.go, args=("runs",))


def _facts(watched: Watched) -> None:
    history = watched.history
    recipe = history.run.recipe()
    model = str(recipe.get("backbone", {}).get("architecture", "a model"))
    told = [
        f"<b>{escape(history.run.name)}</b>: {escape(model)}, trained on {escape(_data(recipe))}",
        f"{len(history.ids):,} images held out",
        _checks(history),
    ]
    st.html(f'<p class="facts">{" · ".join(told)}</p>', width="content")


def _checks(history: History) -> str:
    count, awaited = len(history.checks), history.awaited()
    told = f"{count:,} checks" if count > 1 else f"one check only, at step {history.steps[0]:,}"
    return told if awaited is None else f"{told}; the next comes at step {awaited:,}"


def _data(recipe: dict[str, Any]) -> str:
    return str(recipe.get("data", "?")).rstrip("/").rsplit("/", 1)[-1] or "?"


# -- what is computed ---------------------------------------------------------------------------


def _near(history: History, progress: Progress) -> tuple[Neighbors, Maps]:
    return history.neighbors(progress=progress), history.components()


def _maps(watched: Watched) -> Maps | None:
    """The aligned maps: those that are kept; else they are drawn, which takes a while.

    Of a run that goes on they are drawn again only when asked to: each check would make new ones.
    """
    history = watched.history
    if len(history.checks) < 2:
        return None
    kept, asked = history.drawn_maps(), st.session_state.get("maps_of") == watched.key
    goes_on = history.run.status().get("state") in ALIVE
    if kept is not None and (kept[1] or (goes_on and not asked)):
        if not kept[1]:
            _offer(watched, f"The map is of {len(kept[0].steps)} of {len(history.checks)} checks.")
        return kept[0]
    if goes_on and not asked:
        _offer(watched, "The map shows principal components; UMAP takes a while.")
        return None
    if not permission.gate("Drawing the map"):
        return None if kept is None else kept[0]
    return work(
        ("maps", watched.key), "Drawing the maps", lambda progress: history.maps(progress),
        to_end=True,
    )  # fmt: skip


def _offer(watched: Watched, told: str) -> None:
    with st.container(key="map_offer", horizontal=True, vertical_alignment="center"):
        st.button("Draw the map now", on_click=_want_maps, args=(watched.key,))
        st.html(f'<p class="facts">{told}</p>', width="content")


def _want_maps(key: str) -> None:
    st.session_state["maps_of"] = key


def _props(
    watched: Watched, near: tuple[Neighbors, Maps] | None, drawn: Maps | None
) -> dict[str, Any]:
    """What emergence.js takes; see there."""
    history = watched.history
    layers, heads = history.depth
    props: dict[str, Any] = {
        "at": f"explorer/emergence/{watched.key}",
        "steps": history.steps,
        "total": history.run.recipe().get("steps"),
        "curves": _curves(history),
        "pictures": history.pictures,
        "layers": layers,
        "heads": heads,
        "hasColors": any((check.path / "patches-0.npy").is_file() for check in history.checks),
        "hasTiles": watched.held_out is not None,
        "about": publish(_about(history), "application/json"),
        "neighbors": None,
        "maps": [],
        "state": _state(history),
    }
    if near is not None:
        found, quick = near
        rows, cosines = publish(found.rows), publish(found.cosines)
        props["neighbors"] = {"rows": rows, "cosines": cosines, "k": found.rows.shape[2]}
        props["maps"].append(_map("PCA", quick))
    if drawn is not None:
        props["maps"].append(_map("UMAP", drawn))
    return props


def _curves(history: History) -> list[dict[str, Any]]:
    named = [("k-NN", "knn", " %", 1), ("RankMe", "rankme", "", 1),
             ("neighbors kept", "consistency", "", 2)]  # fmt: skip
    curves = []
    for title, name, unit, digits in named:
        values = [getattr(check, name) for check in history.checks]
        if any(value is not None for value in values):
            curves.append({"title": title, "values": values, "unit": unit, "digits": digits})
    return curves


def _map(name: str, maps: Maps) -> dict[str, Any]:
    return {"name": name, "steps": maps.steps, "points": publish(maps.points)}


def _about(history: History) -> bytes:
    count = len(history.classes)
    about = {
        "ids": history.ids,
        "labels": history.labels.tolist(),
        "classes": history.classes,
        "light": [*category_colors(count, dark=False), gray(dark=False)],
        "dark": [*category_colors(count, dark=True), gray(dark=True)],
    }
    return json.dumps(about).encode()


# -- where one is -------------------------------------------------------------------------------


def _state(history: History) -> dict[str, Any]:
    """What the address says, as the browser takes it; newer than its own where it changed."""
    here = tuple(address.get(name) for name in ("run", *PLACE))
    if st.session_state.get("emergence_here") != here:
        st.session_state["emergence_here"] = here
        st.session_state["emergence_stamp"] = st.session_state.get("emergence_stamp", 0) + 1
    layers, heads = history.depth
    step, picture = _whole("step"), _whole("picture")
    layer, head, query = _whole("layer"), _whole("head"), address.get("query")
    return {
        "check": _nearest_check(history, step),
        "picture": picture if picture in history.pictures else _first(history),
        "layer": min(max(layer, 1), layers) - 1 if layer is not None and layers else layers - 1,
        "head": min(head, heads) - 1 if head and heads else -1,
        "query": history.ids.index(query) if query in history.ids else 0,
        "stamp": st.session_state["emergence_stamp"],
    }


def _nearest_check(history: History, step: int | None) -> int:
    if step is None:
        return len(history.steps) - 1
    return int(np.abs(np.array(history.steps) - step).argmin())


def _first(history: History) -> int:
    return history.pictures[0] if history.pictures else 0


def _whole(name: str) -> int | None:
    text = address.get(name) or ""
    return int(text) if text.isdecimal() and len(text) < 12 else None


def _moved(history: History) -> None:
    """Where slider, picture, layer, head and query came to rest in the browser."""
    said = st.session_state[KEY]["place"]
    try:
        check, picture, layer, head, query, stamp = (
            int(said[name]) for name in ("check", "picture", "layer", "head", "query", "stamp")
        )
        step, id = history.steps[check], history.ids[query]
    except (KeyError, TypeError, ValueError, IndexError):
        return
    last_layer = history.depth[0] - 1
    address.put(
        step=None if check == len(history.steps) - 1 else str(step),
        picture=None if picture == _first(history) else str(picture),
        layer=None if layer == last_layer else str(layer + 1),
        head=None if head < 0 else str(head + 1),
        query=None if query == 0 else id,
    )
    st.session_state["emergence_here"] = tuple(address.get(name) for name in ("run", *PLACE))
    st.session_state["emergence_stamp"] = stamp


def _leave() -> None:
    """Another run: nothing of the place in this one means anything there."""
    address.put(**dict.fromkeys(PLACE))


# -- the film -----------------------------------------------------------------------------------


def _film(watched: Watched, drawn: Maps | None) -> None:
    """A button that makes a GIF of what is shown, then one that saves it."""
    history = watched.history
    place = _state(history)
    if len(history.checks) < 2 or not history.depth[0] or not history.pictures:
        return
    head = place["head"] if place["head"] >= 0 else None
    wanted = (watched.key, place["picture"], place["layer"], head, drawn is not None)
    with st.container(key="film", horizontal=True, vertical_alignment="center"):
        shown = f"picture {place['picture'] + 1}, layer {place['layer'] + 1}, " + (
            "mean of the heads" if head is None else f"head {head + 1}"
        )
        if st.session_state.get("film") != wanted and not begun(("film", *wanted)):
            st.button("Make a GIF", on_click=_want_film, args=(wanted,), icon=":material/movie:")
            st.html(f'<p class="facts">All checks of {shown}, as a file to keep or to send.</p>')
            return
        made = work(("film", *wanted), "Making the GIF", lambda progress: _make(
            history, wanted, drawn, progress), to_end=True)  # fmt: skip
        if made is not None:
            name = f"{history.run.name}-emergence.gif"
            st.download_button("Save the GIF", made, name, "image/gif", type="primary",
                               icon=":material/download:", on_click="ignore")  # fmt: skip
            st.html(f'<p class="facts">{shown}, {len(made) / 1e6:.1f} MB</p>')


def _want_film(wanted: tuple[Any, ...]) -> None:
    st.session_state["film"] = wanted


def _make(
    history: History, wanted: tuple[Any, ...], drawn: Maps | None, progress: Progress
) -> bytes:
    from dino_core.emergence.film import Scene, film  # imports torch

    _, picture, layer, head, _ = wanted
    return film(history, Scene(picture, layer, head), drawn, progress)


# -- a run that goes on -------------------------------------------------------------------------


@st.fragment(run_every=LOOKED_AFTER)
def _wait_for_more(run: Run, key: str) -> None:
    if emerging.key_of(run) != key:
        st.rerun()


def _newest(run: Run) -> tuple[bool, float]:
    """Runs with checks first, and of these the one that changed last."""
    probes = run.path / "probes"
    has_checks = any(probes.glob("step-*"))
    return has_checks, (probes if has_checks else run.path).stat().st_mtime
