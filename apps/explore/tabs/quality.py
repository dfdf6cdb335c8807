"""What may be wrong with a collection: duplicates, leaks, outliers, labels; and its review."""

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dino_core.gallery.deleting import size_said
from dino_core.gallery.duplicates import Groups, best_copies, leaked, to_remove
from dino_core.gallery.reviewing import (
    DUPLICATE,
    KEEP,
    LABEL,
    LEAK,
    OUTLIER,
    RELABEL,
    REMOVE,
    Findings,
    Grouped,
    Queue,
)
from dino_core.gallery.suspects import Suspects
from dino_core.measures.fences import scale
from explore import address, deciding, queueing
from explore.here import Here
from explore.paging import pager
from explore.working import work

TABS = {
    "duplicates": "Duplicates",
    "leaks": "Leaks",
    "outliers": "Outliers",
    "labels": "Labels",
    "review": "Review",
}
ORDERS = {"surest": "Most alike", "doubtful": "Least alike", "largest": "Largest"}
GROUPS_A_PAGE = 6
CARDS_A_PAGE = 24
MEMBERS_SHOWN = 8  # of a group in the list
EXAMPLES = 3  # on each side of a threshold
BINS = 60
ALIKE, ALONE, DOUBT = "alike", "alone", "doubt"  # thresholds, as the address calls them
BLUE, RED = "#6d78f2", "#e5484d"  # on light and dark
CHART_HEIGHT = 96  # pixels


def show(here: Here) -> None:
    """Draw the page."""
    with st.container(key="quality_top", horizontal=True, vertical_alignment="center"):
        tab = address.segments("Look for", "tab", list(TABS), format_func=TABS.__getitem__)
        deciding.undo_button(here)
    if len(here.gallery) < 2:
        st.caption("This gallery has too few images to compare them with each other.")
        return
    opened = here.opened
    assert opened is not None
    found = work(
        ("quality", opened.key), "Comparing images", lambda say: Findings.of(here.gallery, say)
    )
    if found is None:
        return
    _SHOWS[tab](here, found)


# -- thresholds -------------------------------------------------------------------------------


def _scales(found: Findings) -> dict[str, tuple[float, ...]]:
    """Lowest, highest, usual value and step of each threshold."""
    alone = found.alone
    return {
        ALIKE: scale(found.alike.lowest, 1.0, found.alike.usual),
        ALONE: scale(alone.low, alone.high, alone.usual),
        DOUBT: scale(0.0, 1.0, found.doubtful.usual),
    }


def _slider(found: Findings, name: str, label: str, tip: str) -> float:
    low, high, usual, step = _scales(found)[name]
    value: float = address.slider(
        label, name, low, high, usual, step=step, format=f"%.{_digits(step)}f", help=tip
    )
    return value


def _digits(step: float) -> int:
    """Decimals that tell steps apart; cosines of some models all lie near 1."""
    return max(2, len(f"{step:.10f}".rstrip("0").partition(".")[2]))


def _decimals(found: Findings, name: str) -> int:
    return _digits(_scales(found)[name][-1])


def _threshold(found: Findings, name: str) -> float:
    """A threshold as the address says, where its slider is not on the page."""
    low, high, usual, _ = _scales(found)[name]
    try:
        value = float(address.get(name) or "")
    except ValueError:
        return usual
    return min(max(value, low), high) if value == value else usual


def _grouped(here: Here, found: Findings, threshold: float) -> Grouped | None:
    opened = here.opened
    assert opened is not None
    images = here.gallery.images
    return work(
        ("groups", opened.key, threshold),
        "Grouping images",
        lambda say: Grouped.at(found.alike, threshold, images),
    )


# -- duplicates and leaks ---------------------------------------------------------------------


def _duplicates(here: Here, found: Findings) -> None:
    side, main = st.columns([1, 2.5], gap="small")
    with side, st.container(key="quality_side"):
        threshold = _alike_side(here, found)
        grouped = _grouped(here, found, threshold)
        if grouped is None:
            return
        groups = grouped.groups
        _group_facts(here, groups, grouped)
        _on_these(here, groups, "duplicates", to_remove)
        _examples_of_pairs(here, found, threshold)
    with main, st.container(key="quality_main"):
        _groups(
            here, groups, to_remove, _decimals(found, ALIKE), "No duplicates",
            "No two images are this much alike. Lower the threshold to see which are the closest.",
        )  # fmt: skip


def _leaks(here: Here, found: Findings) -> None:
    splits = here.gallery.images["split"].dropna().unique()
    if len(splits) < 2:
        there = "have no splits" if len(splits) == 0 else f"are all of one split, {splits[0]}"
        _nothing(
            "No splits to leak between",
            f"These images {there}. Folders called train and val, or a column split of a "
            "table, make splits.",
        )
        return
    side, main = st.columns([1, 2.5], gap="small")
    with side, st.container(key="quality_side"):
        threshold = _alike_side(here, found)
        grouped = _grouped(here, found, threshold)
        if grouped is None:
            return
        leaks = grouped.leaks
        names = ", ".join(html.escape(str(name)) for name in sorted(map(str, splits)))
        st.html(
            f"<p class='facts'><b>{_many(len(leaks), 'group')}</b> of {len(leaks.rows):,} images "
            f"{'lies' if len(leaks) == 1 else 'lie'} in more than one split"
            f" (of {names}); {int(leaks.equal.sum()):,} of them by equal "
            "files. What is measured on stays as it is: suggested is to remove an image from the "
            "less guarded split, train first, then val, then the larger one.</p>"
        )
        _on_these(here, leaks, "leaks", leaked)
        _examples_of_pairs(here, found, threshold)
    with main, st.container(key="quality_main"):
        _groups(
            here, leaks, leaked, _decimals(found, ALIKE), "No leaks",
            "No image of one split is this much alike to one of another.",
        )  # fmt: skip


def _alike_side(here: Here, found: Findings) -> float:
    threshold = _slider(
        found, ALIKE, "Alike from a cosine of",
        "Images are one group when a chain of pairs, each at least this alike, joins them. It "
        "begins where pairs are unusually alike for this gallery.",
    )  # fmt: skip
    low, high, *_ = _scales(found)[ALIKE]
    at = np.linspace(low, high, 80)
    _, images = found.alike.counts(at)
    _chart(at, images, threshold, "images that are in a group, by threshold", step=False)
    return threshold


def _group_facts(here: Here, groups: Groups, grouped: Grouped) -> None:
    equal = int(groups.equal.sum())
    left = len(here.gallery) - len(groups.rows) + len(groups)
    conflicts = ""
    if grouped.conflicts:
        verb = "holds" if grouped.conflicts == 1 else "hold"
        conflicts = (
            f" <b>{_many(grouped.conflicts, 'group')}</b> {verb} images with different labels."
        )
    st.html(
        f"<p class='facts'><b>{_many(len(groups), 'group')}</b> of {len(groups.rows):,} images, "
        f"{equal:,} of them equal files (told by their content). With one image of each, "
        f"{left:,} would be left.{conflicts} Suggested is to keep the one with most pixels, then "
        "the largest file; one that is measured on before one that is trained on.</p>"
    )


def _groups(
    here: Here,
    groups: Groups,
    suggest: Callable[[Groups, pd.DataFrame], np.ndarray],
    digits: int,
    nothing: str,
    hint: str,
) -> None:
    """The list of groups, side by side each, with what can be decided."""
    if len(groups) == 0:
        _nothing(nothing, hint)
        return
    with st.container(key="quality_head", horizontal=True, vertical_alignment="center"):
        order = address.segments("Order", "order", list(ORDERS), format_func=ORDERS.__getitem__)
        page = pager("p", len(groups), GROUPS_A_PAGE)
    groups = groups.where(_ordered(groups, order)[page])
    images, decided = here.gallery.images, deciding.decisions(here)
    remove, best = suggest(groups, images), best_copies(groups, images)
    halves = st.columns(2, gap="small")
    for group in range(len(groups)):
        part = slice(groups.starts[group], groups.starts[group + 1])
        with halves[group % 2]:
            _group(here, groups, group, remove[part], int(best[group]), decided, digits)


def _ordered(groups: Groups, order: str) -> np.ndarray:
    if order == "doubtful":
        return np.arange(len(groups))[::-1]
    if order == "largest":
        return np.argsort(-groups.sizes, kind="stable")
    return np.arange(len(groups))


def _group(
    here: Here,
    groups: Groups,
    group: int,
    remove_M: np.ndarray,
    best: int,
    decided: Any,
    digits: int,
) -> None:
    images, rows = here.gallery.images, groups.rows_of(group)
    shown = np.lexsort((rows, rows != best))[:MEMBERS_SHOWN]  # the one to keep first
    alike = here.gallery.features[rows[shown]] @ here.gallery.features[best]
    facts = (
        "equal files" if groups.equal[group] else f"weakest link {groups.weakest[group]:.{digits}f}"
    )
    if len(rows) > MEMBERS_SHOWN:
        facts += f", {MEMBERS_SHOWN} of them shown"
    with st.container(key=f"quality_group_{group}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.html(f"<h3>{len(rows):,} images <small>{facts}</small></h3>")
            ids = images["id"].iloc[rows].tolist()
            goes = [id for id, gone in zip(ids, remove_M, strict=True) if gone]
            stays = [id for id, gone in zip(ids, remove_M, strict=True) if not gone]
            if any(decided[row] for row in rows.tolist()):
                deciding.button(here, "Decide again", [(ids, None, None)], f"again {group}")
            else:
                several: deciding.Several = [(goes, REMOVE, None), (stays, KEEP, None)]
                label = f"Remove {len(goes):,}, keep {len(stays):,}"
                deciding.button(here, label, several, f"remove {group}")
                deciding.button(here, "Keep all", [(ids, KEEP, None)], f"keep {group}")
        cards = []
        for at, cosine in zip(shown.tolist(), alike.tolist(), strict=True):
            row, word = int(rows[at]), REMOVE if remove_M[at] else KEEP
            told = "compared with" if row == best else f"cosine {cosine:.{digits}f}"
            cards.append(_card(here, row, word, told, decided[row]))
        st.html(f"<div class='cards'>{''.join(cards)}</div>")


def _card(
    here: Here, row: int, suggestion: str, told: str, decision: str | None, label: Any = None
) -> str:
    """One image: what it is, and what is suggested or decided."""
    one = here.gallery.images.iloc[row]
    word = decision or suggestion
    if decision is None:
        badge = f"{label}?" if word == RELABEL and label else f"{word}?"
    else:
        badge = {KEEP: "kept", REMOVE: "removed", RELABEL: "relabeled"}[decision]
    size = "" if pd.isna(one["size"]) else f" · {size_said(int(one['size']))}"
    named = [str(one[name]) for name in ("split", "label") if not pd.isna(one[name])]
    lines = [" · ".join(named), f"{one['width']} × {one['height']}{size}", told]
    text = "".join(
        f"<span title='{html.escape(line, quote=True)}'>{html.escape(line)}</span>"
        for line in lines
        if line
    )
    return (
        f"<figure class='{word}{'' if decision else ' open'}'>{picture(here, row)}"
        f"<b>{html.escape(badge)}</b><figcaption>{text}</figcaption></figure>"
    )


def picture(here: Here, row: int) -> str:
    """A thumbnail that leads to its image on the map."""
    assert here.opened is not None
    id = html.escape(here.opened.id(row), quote=True)
    link = html.escape(deciding.image_url(here, row), quote=True)
    return (
        f"<a href='{link}' target='_self' title='{id}'>"
        f"<img src='explorer/image/{here.opened.key}/{row}' alt='{id}' loading='lazy'></a>"
    )


def _examples_of_pairs(here: Here, found: Findings, threshold: float) -> None:
    """Where the threshold cuts: the last pairs that count, and the first that do not."""
    above, below = found.alike.around(threshold, EXAMPLES)
    _examples_at_the_boundary(
        here,
        _decimals(found, ALIKE),
        [(found.alike.pairs_P2[at].tolist(), float(found.alike.cosines_P[at])) for at in above],
        [(found.alike.pairs_P2[at].tolist(), float(found.alike.cosines_P[at])) for at in below],
    )


def _examples_at_the_boundary(
    here: Here,
    digits: int,
    inside: list[tuple[list[int], float]],
    outside: list[tuple[list[int], float]],
) -> None:
    for title, examples in (("Just counted", inside), ("Just not counted", outside)):
        figures = [
            f"<figure>{''.join(picture(here, row) for row in rows)}"
            f"<figcaption>{value:.{digits}f}</figcaption></figure>"
            for rows, value in examples
        ]
        body = "".join(figures) or "<p class='facts'>none</p>"
        st.html(f"<h3>{title}</h3><div class='examples'>{body}</div>")


# -- outliers and labels ----------------------------------------------------------------------


def _outliers(here: Here, found: Findings) -> None:
    side, main = st.columns([1, 2.5], gap="small")
    alone = found.alone
    with side, st.container(key="quality_side"):
        threshold = _slider(
            found, ALONE, "Alone below a mean cosine of",
            "Of an image with its ten nearest. It begins where images are unusually alone.",
        )  # fmt: skip
        _histogram(alone, threshold)
        rows = alone.beyond(threshold)
        st.html(
            f"<p class='facts'><b>{_many(len(rows), 'image')}</b> of {len(alone):,}. An outlier "
            "need not be an error: it may be the only one of its kind. Suggested is to remove it, "
            "unless its neighbors vote for its own label.</p>"
        )
        queue = _queue(here, found, alone=rows)
        _on(here, "outliers", OUTLIER, queue)
        _examples_of(here, alone, threshold, _decimals(found, ALONE))
    with main, st.container(key="quality_main"):
        if len(rows) == 0:
            _nothing("No outliers", "No image is this much alone. Raise the threshold to see the "
                     "ones that are the most.")  # fmt: skip
            return
        digits = _decimals(found, ALONE)
        told = [f"mean cosine {value:.{digits}f}" for value in alone.values[: len(rows)].tolist()]
        _suspects(here, queue, told)


def _labels(here: Here, found: Findings) -> None:
    side, main = st.columns([1, 2.5], gap="small")
    doubtful, votes = found.doubtful, found.votes
    with side, st.container(key="quality_side"):
        if not votes.names:
            st.html("<h3>No labels</h3>")
        else:
            threshold = _slider(
                found, DOUBT, "Doubtful from a margin of",
                "The share of the neighbors' vote for another label, less the share for its own.",
            )  # fmt: skip
            _histogram(doubtful, threshold)
            rows = doubtful.beyond(threshold)
            right = int(votes.right.sum()) / max(1, int((votes.codes >= 0).sum()))
            st.html(
                f"<p class='facts'><b>{_many(len(rows), 'image')}</b>. The {votes.k} nearest of "
                "each image vote on its label, the nearer with more weight (k-NN, temperature "
                f"0.07). In this gallery they are right for {right:.0%} of the images: the lower "
                "that is, the less their doubt means. Suggested is the label they vote for.</p>"
            )
            queue = _queue(here, found, doubtful=rows)
            _on(here, "doubtful labels", LABEL, queue)
            _examples_of(here, doubtful, threshold, 2)
    with main, st.container(key="quality_main"):
        if not votes.names:
            _nothing(
                "No labels to doubt",
                "These images have no labels. Folders named after classes, or a column label of "
                "a table, make labels.",
            )
            return
        if len(rows) == 0:
            _nothing("No doubtful labels", "The neighbors of every image vote for its own label, "
                     "or not this clearly for another.")  # fmt: skip
            return
        own, most = votes.own[rows].tolist(), votes.winner_share[rows].tolist()
        told = [f"{a:.0%} for it, {b:.0%} for that" for a, b in zip(own, most, strict=True)]
        _suspects(here, queue, told)


def _suspects(here: Here, queue: Queue, told: list[str]) -> None:
    """The images as cards, in pages; `told`: of each, what makes it suspect."""
    with st.container(key="quality_head", horizontal=True, vertical_alignment="center"):
        page = pager("p", len(queue), CARDS_A_PAGE)
    part, decided = queue.where(page), deciding.decisions(here)
    cards = [
        _card(here, int(row), str(word), text, decided[row], label)
        for row, word, label, text in zip(
            part.rows, part.suggestions, part.labels, told[page], strict=True
        )
    ]
    st.html(f"<div class='cards'>{''.join(cards)}</div>")


def _examples_of(here: Here, suspects: Suspects, threshold: float, digits: int) -> None:
    inside, outside = suspects.around(threshold, 2 * EXAMPLES)
    both = [
        [([int(suspects.rows[at])], float(suspects.values[at])) for at in places]
        for places in (inside, outside)
    ]
    _examples_at_the_boundary(here, digits, *both)


def _histogram(suspects: Suspects, threshold: float) -> None:
    counts, edges = np.histogram(suspects.values, BINS)
    _chart((edges[:-1] + edges[1:]) / 2, counts, threshold, "images", step=True)


# -- what all tabs have -----------------------------------------------------------------------


def _on_these(
    here: Here,
    groups: Groups,
    name: str,
    suggest: Callable[[Groups, pd.DataFrame], np.ndarray],
) -> None:
    remove = suggest(groups, here.gallery.images)
    words = np.where(remove, REMOVE, KEEP).astype(object)
    none = np.full(len(groups.rows), None, object)
    queue = Queue(groups.rows, none, groups.of_rows, words, none)
    _on(here, name, LEAK if name == "leaks" else DUPLICATE, queue)


def _queue(here: Here, found: Findings, **which: np.ndarray) -> Queue:
    """One kind of suspects as entries."""
    rows = {"doubtful": np.empty(0, np.int64), "alone": np.empty(0, np.int64)} | which
    none = Groups.none()
    return Queue.of(here.gallery.images, leaks=none, alike=none, votes=found.votes, **rows)


def _on(here: Here, name: str, reason: str, queue: Queue) -> None:
    if len(queue):
        deciding.actions(here, name, reason, queue)


def _review(here: Here, found: Findings) -> None:
    grouped = _grouped(here, found, _threshold(found, ALIKE))
    if grouped is None:
        return
    queueing.show(here, found, grouped, _threshold(found, ALONE), _threshold(found, DOUBT))


def _chart(x: np.ndarray, y: np.ndarray, threshold: float, what: str, *, step: bool) -> None:
    """How many, by threshold or by value; a line where the threshold is."""
    area = {"type": "area", "color": BLUE, "opacity": 0.75, "tooltip": True}
    place = {
        "field": "at", "type": "quantitative", "title": None,
        "scale": {"zero": False, "nice": False}, "axis": {"tickCount": 4, "grid": False},
    }  # fmt: skip
    amount = {
        "field": "images", "type": "quantitative", "title": None, "axis": {"tickCount": 3}
    }  # fmt: skip
    bars = [{"at": a, "images": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    spec = {
        "height": CHART_HEIGHT,
        "description": what,
        "background": "transparent",
        "data": {"values": bars},
        "config": {"view": {"fill": None, "strokeWidth": 0}},
        "layer": [
            {
                "mark": area | ({"interpolate": "step"} if step else {}),
                "encoding": {"x": place, "y": amount},
            },
            {
                "mark": {"type": "rule", "color": RED, "strokeWidth": 2},
                "data": {"values": [{"at": threshold}]},
                "encoding": {"x": {"field": "at", "type": "quantitative"}},
            },
        ],
    }
    st.vega_lite_chart(spec, width="stretch")


def _nothing(title: str, hint: str) -> None:
    st.html(f"<h3>{html.escape(title)}</h3><p class='facts'>{html.escape(hint)}</p>")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


_SHOWS = {
    "duplicates": _duplicates,
    "leaks": _leaks,
    "outliers": _outliers,
    "labels": _labels,
    "review": _review,
}
