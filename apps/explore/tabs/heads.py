"""What every head of the model does over the gallery, and the images that excite each most."""

import html
from functools import lru_cache
from pathlib import Path

import numpy as np
import streamlit as st

from dino_core.catalog.entries import model_stamp
from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery.atlas import FOLDER, HEADER, Atlas, Excited, commonest, excited, in_words
from explore import address, attention, components, models, panels, permission, words
from explore.here import Here
from explore.opened import Opened
from explore.server import publish
from explore.working import work

COUNTS = (128, 512, 2048)  # images to choose from, and all
USUAL = 512
MATRIX, EXCITED = "heads_matrix", "heads_excited"
ASKED = "heads asked"  # of the session: the gallery's path, and how many images

# Title, unit, digits, and what it says.
TOLD = {
    "excitement": (
        "Excitement", " %", 0,
        "How much of its attention a head puts on the tenth of the patches that get most: high "
        "where it finds what it looks for, low where it looks at everything or rests.",
    ),
    "entropy": (
        "Entropy", "", 2,
        "How spread the attention of the class token is, in nats: low for a few patches, high "
        "for all alike.",
    ),
    "distance": (
        "Distance", "", 1,
        "How far from itself a patch looks, in patches: low for heads that see detail and texture, "
        "high for heads that compare across the image.",
    ),
    "foreground": (
        "Foreground", " %", 0,
        "How much of the attention on patches falls on what the masks mark as foreground.",
    ),
    "outside": (
        "Off the patches", " %", 0,
        "How much attention goes to the class token itself and to registers: high for heads that "
        "rest.",
    ),
}  # fmt: skip


def show(here: Here) -> None:
    """Draw the page."""
    atlas = _computed(here, _stored(here))
    if atlas is None:
        if not _asked(here.gallery):
            with st.container(key="empty"):
                st.html(
                    "<h2>Nobody has looked through the heads of this gallery</h2><p class='facts'>"
                    "Every head of every layer is watched over a random sample of the images: how "
                    "spread it is, how far it looks, and which images excite it most. What is "
                    "found is kept with the gallery and needs no model afterwards.</p>"
                )
                _ask(here)
        return
    known = [name for name in TOLD if np.isfinite(atlas.mean[name]).any()]
    with here.bar:
        by = address.choice(
            "Colored by", "by", known, width=190, format_func=lambda name: TOLD[name][0]
        )
    layer, head = _chosen(atlas)
    left, right = st.columns([1, 1.35], gap="small")
    with left, st.container(key="heads_card"):
        _matrix(atlas, by, layer, head)
        _made_of(here, atlas)
    with right, st.container(key="panel"):
        _head(here, atlas, layer, head)


# -- what is stored, and computing it ----------------------------------------------------------


def _stored(here: Here) -> Atlas | None:
    """The gallery's atlas; None where there is none, with the reason where it is of no use."""
    assert here.opened is not None
    path = here.gallery.path
    try:
        changed = (path / FOLDER / HEADER).stat().st_mtime_ns
    except OSError:
        return None
    try:
        return _read(path, changed, here.opened.key)
    except UserError as error:
        words.error(error)
        return None


@lru_cache(maxsize=2)
def _read(path: Path, changed: int, key: str) -> Atlas | None:
    """`key`: of the gallery, which may have got another model since."""
    return Atlas.read(Gallery.open(path))


def _asked(gallery: Gallery) -> int:
    """How many images this visitor asked to look through here; 0 for nothing.

    Not in the address: a link should start nothing that takes hours and replaces what is there.
    """
    path, count = st.session_state.get(ASKED, ("", 0))
    return count if path == str(gallery.path) and permission.may_act() else 0


def _begin(gallery: Gallery, count: int) -> None:
    st.session_state[ASKED] = str(gallery.path), count


def _computed(here: Here, there: Atlas | None) -> Atlas | None:
    """The atlas that was asked for; the one that is there while it is being computed."""
    gallery = here.gallery
    asked = _asked(gallery)
    if not asked:
        return there
    if there is not None and there.info.asked == asked and there.is_current(gallery):
        return _done(there)
    model = models.wanted(here)
    if model is not None:

        def compute(progress):  # type: ignore[no-untyped-def]
            from dino_core.gallery.atlas_building import build_atlas

            return build_atlas(gallery, model, images=asked, progress=progress)

        stamp = model_stamp(here.root, here.model)
        of = str(gallery.path), gallery.info.source_hash, gallery.info.model_hash
        key = ("heads", *of, here.model, stamp, asked)
        made = work(key, "The heads", compute, to_end=True)
        if made is not None:
            return _done(made)
    st.button("Do something else", on_click=st.session_state.pop, args=(ASKED,), type="tertiary")
    return there


def _done(atlas: Atlas) -> Atlas:
    del st.session_state[ASKED]
    address.change(again=None)
    return atlas


def _ask(here: Here) -> None:
    """How many images, how long that takes, and the button that begins."""
    assert here.opened is not None
    if not permission.gate("Looking through the heads"):
        return
    model = models.wanted(here)
    if model is None:
        return
    gallery = here.gallery

    def measure(progress):  # type: ignore[no-untyped-def]
        from dino_core.gallery.atlas_building import seconds_per_image

        progress(0, 0, "Trying it on a few images")
        return seconds_per_image(gallery, model)

    stamp = model_stamp(here.root, here.model)
    seconds = work(("heads time", here.opened.key, here.model, stamp), "How long", measure)
    if seconds is None:
        return
    total = int((~gallery.images["gone"].to_numpy(bool)).sum())
    counts = [*(count for count in COUNTS if count < total), total]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        count = address.choice(
            "Images", "images", counts, width=260, default=USUAL if total > USUAL else total,
            format_func=lambda count: f"{count:,} images, {in_words(count * seconds)}",
        )  # fmt: skip
        st.button(
            "Look through the heads",
            on_click=_begin, args=(gallery, count), type="primary",
        )  # fmt: skip


# -- every head --------------------------------------------------------------------------------


def _chosen(atlas: Atlas) -> tuple[int, int]:
    """Layer and head of the address, from 0; else those that are most excitable."""
    layer, head = attention.chosen()
    excitement = atlas.mean["excitement"]
    if layer is None or layer >= atlas.info.layers:
        layer = int(excitement.max(axis=1).argmax())
    if head is None or not 0 <= head < atlas.info.heads:
        head = int(excitement[layer].argmax())
    return layer, head


def _matrix(atlas: Atlas, by: str, layer: int, head: int) -> None:
    title, unit, digits, meaning = TOLD[by]
    scale = 100 if unit else 1
    values = scale * atlas.mean[by].astype(float)
    known = np.isfinite(values)
    st.html(f"<h2>{title} <small>of every head</small></h2><p class='facts'>{meaning}</p>")
    components.heads(
        key=MATRIX,
        data={
            "values": [
                [value if ok else None for value, ok in zip(*pair, strict=True)]
                for pair in zip(values.tolist(), known.tolist(), strict=True)
            ],
            "low": float(values[known].min()),
            "high": float(values[known].max()),
            "digits": digits,
            "name": title,
            "unit": unit,
            "even": scale * atlas.info.even[by],
            "layer": layer,
            "head": head,
        },
        on_pick_change=_on_matrix,
    )


def _on_matrix() -> None:
    place = st.session_state[MATRIX]["pick"]
    if isinstance(place, dict) and all(isinstance(place.get(n), int) for n in ("layer", "head")):
        address.put(**attention.spelled(place["layer"], place["head"]))


def _made_of(here: Here, atlas: Atlas) -> None:
    """What the figures are of, and what they are not."""
    info = atlas.info
    lines = [
        f"{info.images:,} of {len(here.gallery):,} images at random, each looked at as "
        f"{info.crop} × {info.crop} px ({info.grid[0]} × {info.grid[1]} patches)."
    ]
    if info.images < info.asked:
        lines.append(f"{info.asked - info.images:,} more could not be read.")
    if not info.masked:
        lines.append("These images have no masks, so nothing is known of foreground.")
    if not np.isfinite(atlas.mean["distance"]).any():
        lines.append("Patches of this model do not attend to each other: there is no distance.")
    text = " ".join(lines)
    stale = ""
    if not atlas.is_current(here.gallery):
        stale = (
            "<p class='warning'>The gallery's images have changed since; compute again to look at "
            "those that are here now.</p>"
        )
    st.html(f"<p class='facts'>{html.escape(text)}</p>{stale}")
    if address.toggle("Compute again", "again"):
        _ask(here)


# -- one head ----------------------------------------------------------------------------------


def _head(here: Here, atlas: Atlas, layer: int, head: int) -> None:
    """Its numbers, how images differ in them, and those that excite it most."""
    opened = here.opened
    assert opened is not None
    known = [name for name in TOLD if np.isfinite(atlas.mean[name][layer, head])]
    cards = "".join(_number(atlas, name, layer, head) for name in known)
    st.html(f"<h2>Layer {layer + 1}, head {head + 1}</h2><dl class='head-numbers'>{cards}</dl>")
    gallery = here.gallery
    found = work(
        ("excited", opened.key, atlas.info.created, atlas.info.asked, layer, head),
        "Images",
        lambda progress: _read_images(gallery, atlas, layer, head, progress),
    )
    if found is None:
        return
    rows = [one.row for one in found if one.row is not None]
    st.html(
        f"<h3>Images that excite it most <small>{html.escape(_labels(opened, rows))}</small></h3>"
        "<p class='facts'>The outline holds 60 % of the attention on patches, the number is what "
        "the most attended tenth gets. Point at an image to see it plain; click to open it.</p>"
    )
    components.excited(
        key=EXCITED,
        data={"maps": publish(atlas.payload(layer, head)), "items": _items(opened, found)},
        on_pick_change=lambda: _on_excited(opened, layer, head),
    )


def _read_images(gallery: Gallery, atlas: Atlas, layer: int, head: int, progress) -> list[Excited]:  # type: ignore[no-untyped-def]
    progress(0, 0, "Reading")
    return excited(gallery, atlas, layer, head)


def _number(atlas: Atlas, name: str, layer: int, head: int) -> str:
    """Mean and deviation over images, and a histogram as bars."""
    title, unit, digits, meaning = TOLD[name]
    scale = 100 if unit else 1
    mean, deviation = (scale * float(of[name][layer, head]) for of in (atlas.mean, atlas.deviation))
    counts = atlas.counts[name][layer, head]
    shares = (counts / max(counts.max(), 1)).tolist()
    bars = "".join(f"<i style='--share:{share:.3f}'></i>" for share in shares)
    most = f"{scale * atlas.info.most[name]:.{digits}f}{unit}"
    return (
        f"<div class='number' title='{html.escape(meaning, quote=True)}'><dt>{title}</dt>"
        f"<dd>{mean:.{digits}f}{unit} <small>± {deviation:.{digits}f}</small></dd>"
        f"<div role='img' aria-label='How many images have how much, from 0 to {most}'>{bars}</div>"
        f"<p><span>0</span><span>{most}</span></p></div>"
    )


def _labels(opened: Opened, rows: list[int]) -> str:
    """`9 of 16 are golf_ball`, where there are labels and one of them stands out."""
    if "label" not in opened.columns or not rows:
        return ""
    name, count = commonest(opened.labels.iloc[rows])
    return f"{count} of {len(rows)} are {name}" if count > 1 else "each of another label"


def _items(opened: Opened, found: list[Excited]) -> list[dict[str, object]]:
    items: list[dict[str, object]] = [
        {
            "id": one.id,
            "row": one.row,
            "label": None,
            "score": one.score,
            "photo": None if one.photo is None else publish(one.photo, "image/jpeg"),
        }
        for one in found
    ]
    here = [item for item in items if item["row"] is not None]
    if "label" in opened.columns and here:
        rows = np.array([item["row"] for item in here], np.int64)
        columns = (opened.told("label", rows), *opened.code_colors("label", rows))
        for item, label, light, dark in zip(here, *columns, strict=True):
            item.update(label=label, light=light, dark=dark)
    return items


def _on_excited(opened: Opened, layer: int, head: int) -> None:
    """Open the image, its lens at this head."""
    row = st.session_state[EXCITED]["pick"]
    if isinstance(row, int) and 0 <= row < len(opened.labels):
        place = attention.spelled(layer, head)
        address.go("map", image=opened.id(row), show=panels.ATTENTION, **place)
