"""What is known of a gallery's images, column by column: the user's, and what is derived.

    for name in column_names(gallery): ...
    values = column(gallery, "k-NN agreement")        # pd.Series [n]

Derived columns are named in plain words: what the stored neighbor graph says ("similarity to
nearest", "outlier score", "k-NN agreement"), "cluster: NAME" of each clustering, "tag: NAME" of
each tag. The map is colored by them, searches are filtered by them.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from dino_core.errors import UserError
from dino_core.gallery.opened import Gallery

SIMILARITY = "similarity to nearest"  # low: alone; 1.00: a duplicate
OUTLIER = "outlier score"  # 1 - mean cosine with the ten nearest
AGREEMENT = "k-NN agreement"  # share of the neighbors' vote for the image's own label
CLUSTER, TAG = "cluster: ", "tag: "
FOUND = "found: "  # begins the tags that pages put on, and take off again
_OURS = {"id", "path", "label", "split", "mask", "content_hash", "size", "mtime", "gone"}


def column_names(gallery: Gallery) -> list[str]:
    """The columns there are, the label first where there is one; cheap."""
    from dino_core.gallery.clusters import clusterings
    from dino_core.gallery.notes import Notes

    images = gallery.images
    standard = [name for name in ("label", "split") if images[name].notna().any()]
    own = [name for name in images.columns if name not in _OURS]
    clusters = [CLUSTER + name for name in clusterings(gallery)]
    tags = [TAG + name for name in Notes(gallery.path).tags()]
    graph = [SIMILARITY, OUTLIER] + ([AGREEMENT] if "label" in standard else [])
    return [*standard, *own, *clusters, *tags, *graph]


def column(gallery: Gallery, name: str) -> pd.Series:
    """The values of a column, [n]. Raises `UserError` for one that is not there (any more)."""
    if name.startswith(CLUSTER):
        return _clusters(gallery, name.removeprefix(CLUSTER))
    if name.startswith(TAG):
        return _tagged(gallery, name.removeprefix(TAG))
    if name in _FROM_GRAPH:
        return pd.Series(_FROM_GRAPH[name](gallery), name=name)
    if name in gallery.images.columns and name not in _OURS - {"label", "split"}:
        return gallery.images[name]
    raise UserError(f"{gallery.path}: has no column {name!r}; choose another")


def stamp(gallery: Gallery, name: str) -> int:
    """What changes when a column of the same gallery does: nanoseconds, 0 for what never does."""
    user = gallery.path / "user"
    paths: list[Path] = []
    if name.startswith(CLUSTER):  # the clusters, and the names that they were given
        clustering = gallery.path / "clusters" / f"{name.removeprefix(CLUSTER)}.npz"
        paths = [clustering, user / "clusters.jsonl"]
    elif name.startswith(TAG):
        paths = [user / "tags.jsonl"]
    return max(map(_changed, paths), default=0)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _clusters(gallery: Gallery, name: str) -> pd.Series:
    """Each image's cluster by its name, the user's where there is one; missing: in none."""
    from dino_core.gallery.clusters import Clustering
    from dino_core.gallery.notes import Notes

    labels_N = Clustering.read(gallery, name).labels
    named = Notes(gallery.path).cluster_names(name)
    count = int(labels_N.max(initial=-1)) + 1
    titles = [named.get(number, f"{number}") for number in range(count)]
    values = pd.Categorical.from_codes(labels_N, range(len(titles)))
    return pd.Series(values.rename_categories(_distinct(titles)), name=CLUSTER + name)


def _distinct(titles: list[str]) -> list[str]:
    """Names that several clusters share get the cluster's number, until no two are the same."""
    while len(shared := Counter(titles)) < len(titles):
        titles = [
            f"{title} ({number})" if shared[title] > 1 else title
            for number, title in enumerate(titles)
        ]
    return titles


def _tagged(gallery: Gallery, tag: str) -> pd.Series:
    """The tag where an image has it, missing where not."""
    from dino_core.gallery.notes import Notes

    ids = Notes(gallery.path).tags().get(tag, [])
    tagged_N = gallery.images["id"].isin(ids).to_numpy(bool)
    values = pd.Categorical.from_codes(np.where(tagged_N, 0, -1), [tag])
    return pd.Series(values, name=TAG + tag)


def _similarity(gallery: Gallery) -> np.ndarray:
    _, scores_NK = gallery.neighbors()
    return scores_NK[:, 0] if scores_NK.shape[1] else np.full(len(scores_NK), np.nan)


def _outlier(gallery: Gallery) -> np.ndarray:
    from dino_core.gallery.suspects import mean_similarity

    return 1 - mean_similarity(gallery.neighbors()[1])


def _agreement(gallery: Gallery) -> np.ndarray:
    from dino_core.gallery.agreement import agreement

    return agreement(gallery)


_FROM_GRAPH: dict[str, Callable[[Gallery], np.ndarray]] = {
    SIMILARITY: _similarity,
    OUTLIER: _outlier,
    AGREEMENT: _agreement,
}
