"""Two slices of a gallery beside each other: which dimensions and heads tell them apart."""

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image

from dino_core.errors import UserError
from dino_core.gallery import clusters, contrast
from dino_core.gallery.columns import stamp
from dino_core.gallery.contrast import DimensionContrast, HeadContrast
from dino_core.gallery.notes import Notes
from dino_core.gallery.progress import Progress
from dino_core.gallery.selection import Selection, select
from explore import address, figures, grid, models, permission, state
from explore.here import Here
from explore.opened import Opened
from explore.server import publish
from explore.working import work

SHOWN = 8  # images of each slice
LISTED = 12  # dimensions
FEW = 100  # images, drawn large on the map
A_LIGHT, A_DARK, B_LIGHT, B_DARK = "#4f46e5", "#818cf8", "#d9480f", "#ff922b"
NEITHER = ("#c5ccdb", "#3d4964")
LINE = "the line between the means"


def show(here: Here, map_name: str) -> dict[str, Any]:
    """Draw the panel; returns what the map has to show (see `mapping.draw`)."""
    opened = here.opened
    assert opened is not None
    drawn: dict[str, Any] = {"color": opened.columns[0], "map_name": map_name}
    a, b = _pick(here)
    selecting = contrast.SELECTION in (a, b)
    key = (opened.key, *_version(here, a), *_version(here, b))
    read = work(("slices", *key), "Reading the slices", _reader(opened, map_name, a, b))
    if read is None:
        return drawn
    rows_a, rows_b, both, selected = read
    if selecting and selected == 0:
        st.info("Nothing is selected: draw around points on the map (Shift-drag), or pick a slice.")
        return drawn
    try:
        contrast.require_two(rows_a, rows_b)
    except UserError as error:
        st.info(str(error))
        return drawn
    common = f" {both:,} images in both count in neither." if both else ""
    st.html(
        f"<p class='facts'><b class='slice-a'>A</b> {len(rows_a):,} images, "
        f"<b class='slice-b'>B</b> {len(rows_b):,} images.{common}</p>"
    )
    by = address.segments(
        "Tell apart by", "by", ["dimensions", "heads"], width="stretch",
        format_func={"dimensions": "Dimensions", "heads": "Attention heads"}.__getitem__,
    )  # fmt: skip
    if by == "dimensions":
        _dimensions(here, opened, rows_a, rows_b, key)
    else:
        _heads(here, opened, rows_a, rows_b, key)
    if len(rows_a) + len(rows_b) <= FEW:  # points that would be lost among all others
        drawn["lit"] = [*rows_a.tolist(), *rows_b.tolist()]
    return drawn | _map_of(len(here.gallery), rows_a, rows_b, polygons=selecting)


# -- the slices ---------------------------------------------------------------------------------


def _pick(here: Here) -> tuple[str, str]:
    """Which slices are compared."""
    names = [*contrast.slices(here.gallery), contrast.SELECTION]
    usual = next((name for name in names if name.startswith(contrast.CLUSTER)), None)
    usual = usual or next((name for name in names if name.startswith(contrast.LABEL)), None)
    titles = _titles(here, names)
    left, right = st.columns(2, gap="small")
    with left:
        a = address.choice("Slice A", "a", names, default=usual, format_func=titles.__getitem__)
    with right:
        b = address.choice("Slice B", "b", [contrast.REST, *names], format_func=titles.__getitem__)
    return a, b


def _titles(here: Here, names: list[str]) -> dict[str, str]:
    """Slices in words: clusters by the names that they were given."""
    notes, given = Notes(here.gallery.path), {}
    titles = {contrast.REST: "Everything else"}
    for name in names:
        titles[name] = name[:1].upper() + name[1:]
        if name.startswith(contrast.CLUSTER):
            clustering, _, number = name.removeprefix(contrast.CLUSTER).rpartition("/")
            if clustering not in given:
                given[clustering] = notes.cluster_names(clustering)
            title = given[clustering].get(int(number), f"cluster {number}")
            titles[name] = f"{clustering}: {title}"
    titles[contrast.ALL] = "All images"
    titles[contrast.SELECTION] = "Selected on the map"
    return titles


def _reader(
    opened: Opened, map_name: str, a: str, b: str
) -> Callable[[Progress], tuple[np.ndarray, np.ndarray, int, int]]:
    """Reads the rows of A and B, how many are in both, and how many are selected on the map.

    The selection is taken from the address now: what reads it later has none.
    """
    chosen = state.selection() if contrast.SELECTION in (a, b) else Selection()
    color = address.get("color") or opened.columns[0]

    def read(_progress: Progress) -> tuple[np.ndarray, np.ndarray, int, int]:
        rows = np.empty(0, np.int64)
        if chosen:
            rows = select(*opened.xy(map_name), opened.coloring(color).codes, chosen)
        rows_a = contrast.rows_of(opened.gallery, a, selection=rows)
        rows_b = contrast.rows_of(opened.gallery, b, selection=rows, other=rows_a)
        return *contrast.apart(rows_a, rows_b), len(rows)

    return read


def _version(here: Here, name: str) -> tuple[Any, ...]:
    """What changes when a slice has other images."""
    if name.startswith(contrast.CLUSTER):
        clustering = name.removeprefix(contrast.CLUSTER).rpartition("/")[0]
        return name, clusters.stamp(here.gallery, clustering)
    if name.startswith(contrast.TAG):
        return name, Notes(here.gallery.path).stamp()
    if name == contrast.SELECTION:
        values = [address.get(one) for one in ("region", "shown", "color", "map")]
        return name, *values, stamp(here.gallery, address.get("color") or "")
    return (name,)


def _map_of(
    count: int, rows_a: np.ndarray, rows_b: np.ndarray, *, polygons: bool
) -> dict[str, Any]:
    """Props of the map: A and B in two colors, the rest in gray."""
    codes = np.full(count, 2, np.uint8)
    codes[rows_a], codes[rows_b] = 0, 1
    message = state.selection_message() | {"shown": []}
    sizes = [("A", len(rows_a)), ("B", len(rows_b))]
    if count > len(rows_a) + len(rows_b):
        sizes.append(("neither", count - len(rows_a) - len(rows_b)))
    if not polygons:
        address.put(shown=None)  # a click in this legend means no code of a column
    return {
        "codes": publish(codes),
        "legend": {
            "title": "Slices",
            "kind": "categories",
            "entries": sizes,
            "low": 0,
            "high": 0,
        },
        "colors": {
            "light": [A_LIGHT, B_LIGHT, NEITHER[0]],
            "dark": [A_DARK, B_DARK, NEITHER[1]],
        },
        "selection": message if polygons else message | {"polygons": []},
    }


# -- dimensions ---------------------------------------------------------------------------------


def _dimensions(
    here: Here, opened: Opened, rows_a: np.ndarray, rows_b: np.ndarray, key: tuple[Any, ...]
) -> None:
    """Which numbers of the features differ, how well all of them tell A from B, and images."""
    features = here.gallery.features
    found = work(
        ("contrast", *key), "Comparing",
        lambda progress: contrast.contrast_dimensions(features, rows_a, rows_b, progress),
    )  # fmt: skip
    if found is None:
        return
    _line(found)
    places = [place for (place,) in found.each.strongest(LISTED)]
    st.html(_bars([(f"Dimension {i}", found.each.d[i], found.each.auc[i]) for i in places]))
    st.html(_chance(found.each.chance))
    options = ([LINE] if found.direction is not None else []) + [str(i) for i in places]
    picked = address.choice(
        "Images that show it", "dim", options,
        format_func=lambda one: one.capitalize() if one == LINE else f"Dimension {one}",
    )  # fmt: skip
    shown = found.showing(features, None if picked == LINE else int(picked), SHOWN)
    _both_grids(opened, *shown)


def _line(found: DimensionContrast) -> None:
    """How well a straight line tells A from B."""
    line = found.direction
    if line is None:
        st.html("<p class='facts'>A line between the means takes four images in each slice.</p>")
        return
    st.html(
        f"<dl class='measures'><div title='0.5 is chance, 1 is perfect'><dt>AUC</dt><dd>"
        f"{line.auc:.2f}</dd></div><div title='A and B counted the same'><dt>On their side</dt><dd>"
        f"{line.right:.0%}</dd></div></dl><p class='facts'>of {LINE} of A and B, "
        "judged on images that it was not made of.</p>"
    )


def _both_grids(
    opened: Opened, rows_a: np.ndarray, rows_b: np.ndarray, in_a: np.ndarray, in_b: np.ndarray
) -> None:
    for name, rows, values in (("A", rows_a, in_a), ("B", rows_b, in_b)):
        st.html(f"<h3><b class='slice-{name.lower()}'>{name}</b> at its most typical</h3>")
        captions = [f"{value:+.3f}" for value in values.tolist()]
        grid.show(opened, rows, key=f"shows_{name}", color="label", captions=captions)


def _bars(values: list[tuple[str, float, float]]) -> str:
    """Names with Cohen's d as bars to A's side or to B's, and the AUC."""
    most = max([abs(d) for _, d, _ in values], default=0.0) or 1.0
    lines = [
        f"<li class='{'to-a' if d >= 0 else 'to-b'}'><span>{html.escape(name)}</span>"
        f"<i style='--share:{abs(d) / most:.3f}'></i><b>{d:+.2f}</b><b>{auc:.2f}</b></li>"
        for name, d, auc in values
    ]
    head = "<li class='head'><span></span><em>more in B · more in A</em><b>d</b><b>AUC</b></li>"
    return f"<ul class='contrasts' aria-label='Differences'>{head}{''.join(lines)}</ul>"


def _chance(chance: float) -> str:
    return (
        f"<p class='facts'>d is Cohen's: the difference of the means in standard deviations. When "
        f"the same images are dealt out at random, the largest is {chance:.2f}; what does not "
        "exceed it is chance.</p>"
    )


# -- heads --------------------------------------------------------------------------------------


def _heads(
    here: Here, opened: Opened, rows_a: np.ndarray, rows_b: np.ndarray, key: tuple[Any, ...]
) -> None:
    """Which heads look at A otherwise than at B, and images on which they do."""
    if not permission.gate("Running the model over slices"):
        return
    model = models.wanted(here)
    if model is None:
        return
    found = work(
        ("contrast heads", *key, model.hash), "Looking at both slices",
        lambda progress: contrast.contrast_heads(
            model, here.gallery, rows_a, rows_b, progress=progress
        ),
    )  # fmt: skip
    if found is None:
        return
    statistic = address.segments(
        "Statistic", "stat", list(contrast.STATISTICS), width="stretch",
        format_func=lambda name: name.capitalize(),
    )  # fmt: skip
    each = found.each[statistic]
    st.html(
        f"<p class='facts'>{statistic.capitalize()}: {contrast.STATISTICS[statistic]}. "
        f"{len(found.rows_a)} and {len(found.rows_b)} images were looked at.</p>"
        + _table(each.d, each.chance)
    )
    st.html(_chance(each.chance))
    order = [f"{layer + 1}.{head + 1}" for layer, head in each.strongest(each.d.size)]
    picked = address.choice(
        "Images that show it", "head", order,
        format_func=lambda one: _head_title(one, each),
    )  # fmt: skip
    layer, head = (int(part) - 1 for part in picked.split("."))
    _head_images(opened, found, statistic, layer, head)


def _head_title(place: str, each: contrast.Contrast) -> str:
    layer, head = (int(part) - 1 for part in place.split("."))
    d, auc = each.d[layer, head], each.auc[layer, head]
    return f"Layer {layer + 1}, head {head + 1}: d {d:+.2f}, AUC {auc:.2f}"


def _table(d: np.ndarray, chance: float) -> str:
    """Every head's d as a colored cell; faint where it is not beyond chance."""
    most = max(float(np.abs(d).max()), 1e-9)
    rows = [
        f"<tr><th>{layer + 1}</th>" + "".join(
            f"<td class='{'to-a' if value >= 0 else 'to-b'}' style='--share:"
            f"{min(abs(value) / most, 1):.2f}' title='layer {layer + 1}, head {head + 1}: d "
            f"{value:+.2f}'>{f'{value:+.1f}' if abs(value) > chance else ''}</td>"
            for head, value in enumerate(line)
        ) + "</tr>"
        for layer, line in enumerate(d.tolist())
    ]  # fmt: skip
    head = "".join(f"<th>{head + 1}</th>" for head in range(d.shape[1]))
    return (
        f"<table class='heads'><caption>d of each head, layers down; in figures where beyond chance"
        f"</caption><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    )


def _head_images(
    opened: Opened, found: HeadContrast, statistic: str, layer: int, head: int
) -> None:
    both = found.showing(statistic, layer, head, SHOWN // 2)
    for name, rows in zip("AB", both, strict=True):
        st.html(f"<h3><b class='slice-{name.lower()}'>{name}</b> at its most typical</h3>")
        pictures = [
            ([_painted(opened, row, found.maps[row][layer, head])], _name(opened, row))
            for row in rows
        ]
        figures.show(pictures)


def _painted(opened: Opened, row: int, attention: np.ndarray) -> np.ndarray:
    """The image's thumbnail under one head's map."""
    from dino_core.lenses.paint import Style, painted  # loads torch; the model is there by now

    with Image.open(opened.gallery.thumbnail(row)) as photo:
        pixels = np.asarray(photo.convert("RGB"))
    return painted(pixels, attention.astype(np.float32), Style())


def _name(opened: Opened, row: int) -> str:
    return opened.id(row).rsplit("/", 1)[-1]
