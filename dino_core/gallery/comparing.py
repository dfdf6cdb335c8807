"""Two galleries of the same images: what one model holds for alike, and the other does not.

    match = match_images(first, second)
    told = compare(first, second, match)
    told.overlap(k=10).mean(), told.cka, told.moved_most(k=10)[:24]

Images are the same where ids and contents agree, or contents alone where ids differ. Neighbors are
those among the common images, so that a picture which only one gallery has takes no place in its
lists. Features may differ in model and dimension; nothing compares them directly.

Shapes: C common images, S of them whose neighbors are compared, K neighbors, N images in a gallery.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.gallery.aligned import aligned_maps, common_sample
from dino_core.gallery.images import IMAGES
from dino_core.gallery.listing import list_galleries
from dino_core.gallery.manifest import MANIFEST, require_there
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.measures.cka import CkaSums
from dino_core.measures.shared_neighbors import neighbor_overlap, overlap_by_chance
from dino_core.rng import permutation

MOST_NEIGHBORS = 30
FEWEST = 3  # common images; of two, each is the other's only neighbor
MOST_SEARCHED = 50_000  # common images among which neighbors are found anew
MOST_IN_CKA = 100_000
CHUNK = 8192  # rows in memory at a time
FOLDER = "comparisons"  # in a gallery: what was computed of it and another
NEEDED = ["id", "content_hash", "gone"]


@dataclass(frozen=True)
class Match:
    """Which rows of two galleries are the same images, in the order of the first."""

    first_C: np.ndarray  # int64, rows of the first gallery, ascending
    second_C: np.ndarray
    only_first: int = 0  # images of the first that are not common
    only_second: int = 0
    by_content: int = 0  # common images whose ids differ
    changed: int = 0  # ids that both have, of pictures that differ: not common
    copies: int = 0  # further copies of a common picture, not common

    def __len__(self) -> int:
        return len(self.first_C)


@dataclass(frozen=True)
class Shared:
    """Another gallery that has images of this one."""

    name: str
    path: Path
    common: int


@dataclass(frozen=True)
class Candidates:
    """Galleries to compare with, those with most common images first; and what cannot be."""

    shared: tuple[Shared, ...]
    others: tuple[str, ...] = ()  # names of those without a common image
    problems: tuple[str, ...] = ()  # sentences on those that cannot be read


def match_images(first: Gallery, second: Gallery) -> Match:
    """Which images both galleries have. Raises `UserError` when a table cannot be read."""
    return match_tables(first.images, second.images)


def match_tables(first: pd.DataFrame, second: pd.DataFrame) -> Match:
    """The same of their tables, of which `id`, `content_hash` and `gone` are needed.

    First by id, unless the contents are known to differ; then, among the rest, by content. Of
    copies within a gallery each is matched by its own id, else only the first by content.
    """
    if _alike(first, second):  # two models on one folder, the usual case: nothing to look up
        return Match(np.arange(len(first)), np.arange(len(second)))
    left, right = _there(first), _there(second)
    # By id.
    at = pd.Index(right["id"]).get_indexer(left["id"])
    found = at >= 0
    known = left["content_hash"].notna().to_numpy() & found
    theirs = right["content_hash"].to_numpy(object)[at]
    differs = known & pd.notna(theirs) & (left["content_hash"].to_numpy(object) != theirs)
    same = found & ~differs
    pairs = [np.stack([np.flatnonzero(same), at[same]])]
    # The rest by content.
    left_rest = _rest(left, pairs[0][0])
    right_rest = _rest(right, pairs[0][1])
    at = pd.Index(right_rest).get_indexer(left_rest)
    found = at >= 0
    places = left_rest.index.to_numpy()[found], right_rest.index.to_numpy()[at[found]]
    pairs.append(np.stack(places))
    left_C, right_C = np.concatenate(pairs, axis=1)
    order = np.argsort(left_C)
    left_C, right_C = left_C[order], right_C[order]
    return Match(
        left["row"].to_numpy()[left_C],
        right["row"].to_numpy()[right_C],
        only_first=len(left) - len(left_C),
        only_second=len(right) - len(left_C),
        by_content=int(found.sum()),
        changed=int(differs.sum()),
        copies=_copies(left, right, left_C) + _copies(right, left, right_C),
    )


def match_sentences(first: Gallery, second: Gallery, match: Match) -> list[str]:
    """What a user should know of what is not common, and of how the rest was matched."""
    said = []
    for gallery, others in ((first, match.only_first), (second, match.only_second)):
        if others:
            said.append(f"{others:,} {_images(others)} of {gallery.name} left out: not in both.")
    if match.by_content:
        said.append(
            f"{match.by_content:,} {_images(match.by_content)} matched by content: the ids differ."
        )
    if match.changed:
        said.append(
            f"{match.changed:,} {'id means' if match.changed == 1 else 'ids mean'} another picture "
            "in each gallery."
        )
    if match.copies:
        said.append(
            f"{match.copies:,} of those left out: further {_copy(match.copies)} of a common image."
        )
    return said


def _images(count: int) -> str:
    return "image" if count == 1 else "images"


def _copy(count: int) -> str:
    return "copy" if count == 1 else "copies"


def common_labels(first: Gallery, second: Gallery, match: Match) -> pd.Series:
    """A label for each row of the first gallery: its own, or, where it has none at all, those of
    the second for common images."""
    own = first.images["label"]
    if own.notna().any():
        return own
    labels_N = np.full(len(first), None, object)
    labels_N[match.first_C] = second.images["label"].to_numpy(object)[match.second_C]
    return pd.Series(labels_N)


def candidates(root: str | Path, gallery: Gallery, progress: Progress | None = None) -> Candidates:
    """The galleries in `root/galleries` that `gallery` can be compared with."""
    say, shared, others, problems = progress or silent, [], [], []
    entries = [e for e in list_galleries(root) if e.path.resolve() != gallery.path.resolve()]
    for done, entry in enumerate(entries):
        say(done, len(entries), "Looking for common images")
        if entry.info is None:
            state = "is being built" if entry.state == "running" else f"is {entry.state}"
            problems.append(f"{entry.name} {state}, so it cannot be compared with yet.")
            continue
        try:
            table = pd.read_parquet(entry.path / IMAGES, columns=NEEDED)
        except Exception:  # bytes that are no table can fail in any way
            problems.append(f"{entry.name}: its {IMAGES} cannot be read; build it again.")
            continue
        common = len(match_tables(gallery.images, table))
        if common:
            shared.append(Shared(entry.name, entry.path, common))
        else:
            others.append(entry.name)
    shared.sort(key=lambda one: -one.common)
    return Candidates(tuple(shared), tuple(others), tuple(problems))


@dataclass(frozen=True)
class Comparison:
    """What two galleries say of their common images. Positions count these, from 0 to C - 1."""

    match: Match
    judged_S: np.ndarray  # int64, positions of the images whose neighbors are compared
    first_SK: np.ndarray  # int32, positions of their neighbors by the first gallery, best first
    second_SK: np.ndarray
    cka: float  # NaN where it is not defined
    cka_unbiased: float
    notes: tuple[str, ...] = ()  # sentences on what is not all of it, or not exact

    @property
    def most(self) -> int:
        """The largest k there is."""
        return int(self.first_SK.shape[1])

    def overlap(self, k: int) -> np.ndarray:
        """The share of each judged image's `k` neighbors that both agree on: float32 [S]."""
        return neighbor_overlap(self.first_SK, self.second_SK, k)

    def chance(self, k: int) -> float:
        """The mean overlap of features that have nothing to do with each other."""
        return overlap_by_chance(len(self.judged_S), k)  # among which neighbors were found

    def histogram(self, k: int) -> np.ndarray:
        """How many judged images share 0, 1, ... `k` neighbors: int64 [k + 1]."""
        shared_S = np.rint(k * self.overlap(k)).astype(np.int64)
        return np.bincount(shared_S, minlength=k + 1)

    def moved_most(self, k: int) -> np.ndarray:
        """Indices into `judged_S`, least overlap first; among equals the least among all K.

        What is still equal stands in a random order, always the same: rows of one folder, and so
        often of one kind, would else fill the first page.
        """
        mixed_S = permutation(len(self.judged_S), "moved most")
        return np.lexsort((mixed_S, self.overlap(self.most), self.overlap(k)))

    def by_label(self, labels_N: pd.Series, k: int) -> pd.DataFrame:
        """`label`, `images` and mean `overlap`, least first; `labels_N`: of the first gallery."""
        rows_S = self.match.first_C[self.judged_S]
        table = pd.DataFrame({"label": labels_N.iloc[rows_S].to_numpy(object)})
        groups = table.assign(overlap=self.overlap(k)).dropna().groupby("label")["overlap"]
        told = groups.agg(images="size", overlap="mean").reset_index()
        return told.sort_values(["overlap", "label"], ignore_index=True)


def compare(
    first: Gallery, second: Gallery, match: Match, progress: Progress | None = None
) -> Comparison:
    """Compare two galleries on their common images.

    Raises `UserError` where these are fewer than three, or a gallery cannot be read.
    """
    refuse_few(first, second, match)
    say, k = progress or silent, min(MOST_NEIGHBORS, len(match) - 1)
    notes: list[str] = []
    stored = [_stored(*of, k) for of in ((first, match.first_C), (second, match.second_C))]
    judged_S = np.arange(len(match))
    if len(match) > MOST_SEARCHED and any(one is None for one in stored):
        judged_S = common_sample(len(match), MOST_SEARCHED)
        stored = [None, None]
        notes.append(
            f"Neighbors are compared among {MOST_SEARCHED:,} of the common images, chosen at "
            "random: the galleries hold others besides, and finding neighbors anew among all "
            "would take long."
        )
    lists = []
    for gallery, rows_C, found in zip(
        (first, second), (match.first_C, match.second_C), stored, strict=True
    ):
        if found is not None and "recall" in gallery.info.graph:
            notes.append(
                f"The neighbors of {gallery.name} were found approximately: "
                f"{100 * gallery.info.graph['recall']:.1f} % of the true ones."
            )
        lists.append(_searched(gallery, rows_C, judged_S, k, say) if found is None else found)
    sums = _cka(first, second, match, say)
    if sums.count < len(match):
        notes.append(f"CKA is of {sums.count:,} of the common images, chosen at random.")
    plain, unbiased = sums.value(), sums.value(unbiased=True)
    return Comparison(match, judged_S, lists[0], lists[1], plain, unbiased, tuple(notes))


def refuse_few(first: Gallery, second: Gallery, match: Match) -> None:
    """Raise a `UserError` when two galleries have too little in common."""
    both = f"{first.name} and {second.name}"
    if len(match) == 0:
        raise UserError(
            f"{both} have no image in common, by id or by content; choose a gallery of the same "
            "images, or build one of them with another model"
        )
    if len(match) < FEWEST:
        images = "one image" if len(match) == 1 else f"{len(match)} images"
        raise UserError(
            f"{both} have only {images} in common, too few to have neighbors; choose a gallery "
            f"with at least {FEWEST} of the same images"
        )


@dataclass(frozen=True)
class Figures:
    """What a comparison comes to for one number of neighbors."""

    k: int
    overlap_S: np.ndarray  # float32, of each judged image
    histogram: np.ndarray  # int64 [k + 1]
    order: np.ndarray  # indices into the judged images, what moved most first
    by_label: pd.DataFrame  # label, images, overlap; empty without labels

    @classmethod
    def of(cls, told: Comparison, k: int, labels_N: pd.Series) -> "Figures":
        """Computed once for a k: of a million images it takes seconds."""
        k = min(k, told.most)
        return cls(
            k, told.overlap(k), told.histogram(k), told.moved_most(k), told.by_label(labels_N, k)
        )

    @property
    def mean(self) -> float:
        """Mean overlap, 0 to 1."""
        return float(self.overlap_S.mean())


@dataclass(frozen=True)
class AlignedPair:
    """Maps of common images by both galleries, laid out together."""

    rows_S: np.ndarray  # int64, rows of the first gallery
    first_S2: np.ndarray  # float32, where its map has them
    second_S2: np.ndarray

    def spread(self, count: int, second: bool) -> np.ndarray:
        """One map for all `count` rows of the first gallery, float32 [2, N]; NaN where it is not
        one of these."""
        xy_2N = np.full((2, count), np.nan, np.float32)
        xy_2N[:, self.rows_S] = (self.second_S2 if second else self.first_S2).T
        return xy_2N


def aligned_pair(
    first: Gallery, second: Gallery, match: Match, progress: Progress | None = None
) -> AlignedPair:
    """Aligned maps of at most 5,000 common images, computed once and kept in the first gallery.

    They lie in `comparisons/` under both galleries' manifests, so one that was built anew is
    aligned anew. Where the folder cannot be written they are only returned.
    """
    refuse_few(first, second, match)
    path = _kept_at(first, second)
    if (kept := _kept(path, len(first))) is not None:
        return kept
    some = common_sample(len(match))
    rows_S = match.first_C[some]
    xy = aligned_maps([_features(first, rows_S), _features(second, match.second_C[some])], progress)
    pair = AlignedPair(rows_S, *xy)
    with suppress(UserError):  # a folder that cannot be written, a full disk
        require_there(first.path)
        _forget_older(path)
        with whole_file(path) as aside, aside.open("wb") as file:
            np.savez(file, rows=pair.rows_S, first=pair.first_S2, second=pair.second_S2)
    return pair


def _kept_at(first: Gallery, second: Gallery) -> Path:
    digest = hashlib.blake2b(digest_size=6)
    for gallery in (first, second):
        try:
            digest.update((gallery.path / MANIFEST).read_bytes())
        except OSError:
            raise UserError(f"{gallery.path}: is not there any more; choose another") from None
    return first.path / FOLDER / f"{second.name}-{digest.hexdigest()}.npz"


def _kept(path: Path, count: int) -> AlignedPair | None:
    """What was kept, None where it is not, or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            pair = AlignedPair(file["rows"], file["first"], file["second"])
    except Exception:  # bytes that are no archive can fail in any way
        return None
    shape = (len(pair.rows_S), 2)
    rows_fit = pair.rows_S.ndim == 1 and pair.rows_S.dtype.kind == "i" and len(pair.rows_S)
    if not rows_fit or not 0 <= pair.rows_S.min() <= pair.rows_S.max() < count:
        return None
    return pair if pair.first_S2.shape == pair.second_S2.shape == shape else None


def _forget_older(path: Path) -> None:
    """Remove what was kept of the same two galleries as they were before."""
    named = re.compile(re.escape(path.name[:-16]) + r"[0-9a-f]{12}\.npz")
    if not path.parent.is_dir():
        return
    for one in path.parent.iterdir():
        if named.fullmatch(one.name):
            with suppress(OSError):
                one.unlink()


# -- parts ------------------------------------------------------------------------------------


def _there(table: pd.DataFrame) -> pd.DataFrame:
    """The images that are not gone, their rows kept in a column, ids once."""
    some = table[["id", "content_hash"]].assign(row=np.arange(len(table)))
    some = some[~table["gone"].to_numpy(bool)]
    return some.drop_duplicates("id").reset_index(drop=True)


def _alike(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether both tables are of the same images in the same order, none of them gone."""
    if len(first) != len(second) or first["gone"].any() or second["gone"].any():
        return False
    return all(
        (first[name].reset_index(drop=True) == second[name].reset_index(drop=True)).all()
        for name in ("id", "content_hash")
    )


def _rest(table: pd.DataFrame, matched: np.ndarray) -> pd.Series:
    """The contents of what is not matched yet, each once, by place in the table."""
    return _not_at(table["content_hash"], matched).dropna().drop_duplicates()


def _not_at(values: pd.Series, places: np.ndarray) -> pd.Series:
    left = np.ones(len(values), bool)
    left[places] = False
    return values[left]


def _copies(table: pd.DataFrame, other: pd.DataFrame, matched: np.ndarray) -> int:
    """How many images that are not matched have a picture that the other gallery has."""
    left = _not_at(table["content_hash"], matched).dropna()
    if left.empty:
        return 0
    return int(left.isin(other["content_hash"]).sum())


def _stored(gallery: Gallery, rows_C: np.ndarray, k: int) -> np.ndarray | None:
    """The gallery's own neighbors as positions, int32 [C, k]; None where they are not enough.

    They are, where all of its images are common: no other one is then among them.
    """
    if len(rows_C) < len(gallery) or gallery.info.neighbors < k:
        return None
    try:
        neighbors_NK = gallery.neighbors()[0][:, :k]
    except UserError:  # the features are whole, so they are found anew
        return None
    if np.array_equal(rows_C, np.arange(len(rows_C))):
        return neighbors_NK
    position_N = np.empty(len(gallery), np.int32)
    position_N[rows_C] = np.arange(len(rows_C), dtype=np.int32)
    return position_N[neighbors_NK[rows_C]]


def _searched(
    gallery: Gallery, rows_C: np.ndarray, judged_S: np.ndarray, k: int, say: Progress
) -> np.ndarray:
    """Neighbors among some common images, found anew and exactly: positions, int32 [S, k]."""
    features_SD = _features(gallery, rows_C[judged_S])
    rows_SK, _ = neighbor_graph(features_SD, k, _of(gallery, say))
    return judged_S[rows_SK].astype(np.int32)


def _of(gallery: Gallery, say: Progress) -> Callable[[int, int, str], None]:
    return lambda done, total, _: say(done, total, f"Finding neighbors in {gallery.name}")


def _cka(first: Gallery, second: Gallery, match: Match, say: Progress) -> CkaSums:
    sums, some = CkaSums(), common_sample(len(match), MOST_IN_CKA)
    for start in range(0, len(some), CHUNK):
        say(start, len(some), "Comparing features")
        part = some[start : start + CHUNK]
        sums.add(_features(first, match.first_C[part]), _features(second, match.second_C[part]))
    return sums


def _features(gallery: Gallery, rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(gallery.features[rows])
