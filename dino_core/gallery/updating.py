"""Bringing a gallery up to date: new images are added, gone ones dropped, changed ones redone.

    gallery = update(model, open_source("photos/"), "galleries/photos")
    gallery.news          # "12 added, 3 gone, 1 changed"

An image whose file has the name, size and time it had is not looked at. Of every other the content
is hashed, and where that content was seen before, under whatever name, its features are kept: what
was moved, renamed or touched is never computed again. Only what is left goes through the model.

The new set of files is written aside and put in place at once (`replacing.py`), so the gallery
works as it was until then, killed at any moment; the same call goes on with what was computed.
Neighbors are found anew; features, table and neighbors are those of a gallery built anew. Points of
a UMAP stay where they are: an image that is new on it is placed at the weighted mean of its
neighbors and marked `placed`, and where more than a tenth are, the map is drawn anew.

Shapes: N images of the source, M of the new gallery, O of the old, D dimensions.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.files import whole_file
from dino_core.gallery.approximate import Graph
from dino_core.gallery.building import (
    Wanted,
    build,
    draw,
    features_in,
    settings_of,
    write_graph,
    write_map,
    write_quarantine,
)
from dino_core.gallery.damage import NEIGHBORS
from dino_core.gallery.images import file_facts, images_table, their_columns, write_table
from dino_core.gallery.manifest import UPDATE, GalleryInfo, build_command, said_of_update
from dino_core.gallery.maps import FEWEST_FOR_UMAP, PLACING_NEIGHBORS, place, place_rest
from dino_core.gallery.neighbors import nearest
from dino_core.gallery.opened import Gallery
from dino_core.gallery.partial import (
    FEATURES,
    FEATURES_PART,
    HEADER_BYTES,
    PartialFeatures,
    npy_header,
)
from dino_core.gallery.progress import Progress, silent
from dino_core.gallery.replacing import NEW, replace_by_new
from dino_core.gallery.shares import Agree, Group
from dino_core.models import Model

MOST_GONE = 0.5  # share of a gallery's images that an update drops unasked
MOST_PLACED = 0.1  # share of a map's points; with more of them it is drawn anew
IMAGES_HASH = "images_hash"  # in the plan of an update: which images are computed
CHUNK = 16_384  # rows in memory at a time
SAID_EVERY = 256  # images


def update(
    model: Model,
    source: Source,
    out: str | Path,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
    refit: bool = False,
    shrink: bool = False,
) -> Gallery:
    """Bring the whole gallery in `out` up to date with `source`; `news` tells what was done.

    `source` may be spelled otherwise than when the gallery was built, as after its folder was
    moved. `refit` draws the maps anew on which images were placed, however few. `shrink` lets
    go of more than half of the images. `user/` and `thumbs/` stay; `patches/` are removed where the
    images are others. Raises `UserError` when there is no whole gallery in `out`, it is of another
    model, another process builds there, or (without `shrink`) more than half of its images are
    gone, as when one of the source's disks is not there.
    """
    info = Gallery.open(out).info
    return build(
        model, source, out, kind=info.kind, batch_size=batch_size, workers=workers,
        progress=progress, maps=("pca",), update=True, refit=refit, shrink=shrink,
    )  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """Which of a source's images a gallery knows the features of."""

    known_N: np.ndarray  # int64, a row of the gallery with the same content; -1 where there is none
    gone: int  # images of the gallery that are in the source neither by content nor by name

    @cached_property
    def unknown(self) -> list[int]:
        """The source's images to be computed, ascending."""
        return np.flatnonzero(self.known_N < 0).tolist()

    @property
    def plan(self) -> dict[str, Any]:
        """What tells one half-made update from another."""
        digest = hashlib.blake2b(self.known_N.astype("<i8").tobytes(), digest_size=16)
        return {IMAGES_HASH: digest.hexdigest()}


def survey(out: Path, source: Source, say: Progress = silent) -> Survey:
    """Look for what changed: by name, size and time, and by content where these differ."""
    table = Gallery.open(out).images
    row_of = {id: row for row, id in enumerate(table["id"])}
    by_content = {content: row for row, content in enumerate(table["content_hash"])}
    size_O = table["size"].to_numpy(np.float64, na_value=np.nan)
    mtime_O = table["mtime"].to_numpy(np.float64, na_value=np.nan)
    known_N = np.full(len(source), -1, np.int64)
    stays_O = np.zeros(len(table), bool)
    for index, id in enumerate(source.ids):
        row = row_of.get(id)
        _, size, mtime = file_facts(source, index)
        if row is not None and (size, mtime) == (size_O[row], mtime_O[row]):
            known_N[index] = row
        else:
            content = _content(source, index)
            known_N[index] = by_content.get(content, -1)
            if row is not None and content:  # perhaps changed, but there
                stays_O[row] = True
        if index % SAID_EVERY == 0:
            say(index, len(source), "Looking for what changed")
    stays_O[known_N[known_N >= 0]] = True
    return Survey(known_N, int(np.count_nonzero(~stays_O)))


def _refuse_to_empty(old: Gallery, found: Survey, info: GalleryInfo) -> None:
    """What is gone may be on a disk that is not there now, and took days to compute."""
    if found.gone > MOST_GONE * len(old):
        command = build_command(info.model, info.data, old.path)
        raise UserError(
            f"{old.path}: {found.gone:,} of its {len(old):,} images are gone from {info.data}, so "
            "it was left as it is; bring them back if a disk or a folder is missing there, or run "
            f"`{command} --update` to let go of them"
        )


def _content(source: Source, index: int) -> str:
    """The hash of an image's content; "" of one that cannot be read, which computing finds out."""
    try:
        return source.fingerprint(index)
    except (BadImage, OSError):
        return ""


def bring_up_to_date(
    model: Model,
    source: Source,
    out: Path,
    info: GalleryInfo,
    wanted: Wanted,
    say: Progress,
    *,
    batch_size: int,
    workers: int | None,
    refit: bool,
    shrink: bool,
    agree: Agree | None,
) -> Gallery:
    """`update`, by whoever holds the folder; `info` is the manifest as far as it is planned."""
    theirs = their_columns(source)  # what is odd in a table shows before hours of computing
    old, found = Gallery.open(out), survey(out, source, say)
    if not shrink:
        _refuse_to_empty(old, found, info)
    making = out / UPDATE
    making.mkdir(exist_ok=True)
    part = PartialFeatures(making, info.of_features() | found.plan, info.dim, redo=True)
    try:
        compute = features_in(model, source, info.kind, batch_size, workers, found.unknown)
        Group(part, len(found.unknown), agree).compute(compute, say)
        new = _NewSet(old, source, found, part.facts(), theirs)
    finally:
        part.close()
    info = new.write(making / NEW, _computed(making, part.rows, info.dim), info, wanted, refit, say)
    had_patches = replace_by_new(out)
    gallery = Gallery.open(out)
    gallery.news = _news(gallery, had_patches)
    return gallery


def _computed(making: Path, rows: int, dim: int) -> np.ndarray:
    """What the model gave for the images that were not known, float32 [rows, D]."""
    if rows == 0:  # nothing to map
        return np.empty((0, dim), np.float32)
    return np.memmap(making / FEATURES_PART, np.float32, "r", HEADER_BYTES, (rows, dim))


def _news(gallery: Gallery, had_patches: bool) -> str:
    """What was done, for the user; what was placed on maps `manifest.how_made` says."""
    said = [said_of_update(gallery.info.update)]
    said += [f"the map {name} was drawn anew" for name in gallery.info.update["drawn"]]
    if had_patches and not (gallery.path / "patches").exists():
        said.append("its patches were of the images before and are gone; --patches makes new ones")
    return "; ".join(said)


class _NewSet:
    """The rows that the updated gallery will have, in the order of the source."""

    def __init__(
        self,
        old: Gallery,
        source: Source,
        found: Survey,
        computed: list[dict[str, Any]],
        theirs: pd.DataFrame | None,
    ) -> None:
        self.old, self.source = old, source
        self.facts = _facts(old.images, found, computed)
        good_M = np.array([one["index"] for one in self.facts if "bad" not in one], np.int64)
        self.old_row_M = found.known_N[good_M]  # -1: computed; those follow one another
        self.table = images_table(source, self.facts, theirs)

    def write(
        self,
        folder: Path,
        computed_PD: np.ndarray,
        info: GalleryInfo,
        wanted: Wanted,
        refit: bool,
        say: Progress,
    ) -> GalleryInfo:
        """Write all files into `folder`, the manifest last."""
        shutil.rmtree(folder, ignore_errors=True)  # of an update that was killed
        folder.mkdir()
        quarantined = write_quarantine(folder, self.source, self.facts)
        write_table(folder, self.table)
        self._write_features(folder, computed_PD, say)
        features_MD = np.empty((0, info.dim), np.float32)
        if len(self.table):
            features_MD = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
        graph = self._graph(folder, features_MD, say)
        drawn, anew = self._maps(folder, wanted, features_MD, graph, refit, say)
        info = replace(
            info,
            count=len(self.table),
            quarantined=quarantined,
            neighbors=graph.rows_NK.shape[1],
            graph=graph.how,
            maps=drawn,
            created=self.old.info.created,
            update=self._changes() | {"drawn": anew},
        )
        info.write(folder)
        return info

    @property
    def _rows_stay(self) -> bool:
        """Whether every row is what it was, as after files were touched or moved."""
        return np.array_equal(self.old_row_M, np.arange(len(self.old)))

    def _write_features(self, folder: Path, computed_PD: np.ndarray, say: Progress) -> None:
        """Old rows and computed ones in their new order."""
        count = len(self.old_row_M)
        computed_row_M = np.cumsum(self.old_row_M < 0) - 1
        with whole_file(folder / FEATURES) as aside, open(aside, "wb") as file:
            file.write(npy_header(count, computed_PD.shape[1]))
            for start in range(0, count, CHUNK):
                rows = self.old_row_M[start : start + CHUNK]
                block_BD = np.empty((len(rows), computed_PD.shape[1]), np.float32)
                block_BD[rows >= 0] = self.old.features[rows[rows >= 0]]
                fresh = computed_row_M[start : start + CHUNK][rows < 0]
                block_BD[rows < 0] = computed_PD[fresh]
                file.write(block_BD.tobytes())
                say(min(start + CHUNK, count), count, "Writing features")

    def _graph(self, folder: Path, features_MD: np.ndarray, say: Progress) -> Graph:
        """Everybody's neighbors: found anew, but where no row changed."""
        if self._rows_stay:
            try:
                graph = Graph(*self.old.neighbors(), self.old.info.graph)
            except UserError:  # damaged
                pass
            else:
                with whole_file(folder / NEIGHBORS) as aside, open(aside, "wb") as file:
                    np.savez(file, rows=graph.rows_NK, scores=graph.scores_NK)
                return graph
        return write_graph(folder, features_MD, say)

    def _maps(
        self,
        folder: Path,
        wanted: Wanted,
        features_MD: np.ndarray,
        graph: Graph,
        refit: bool,
        say: Progress,
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Every map that is there or wanted: how each was made, and which were drawn anew."""
        drawn, anew = {}, []
        for name in dict.fromkeys(["pca", *self.old.info.maps, *wanted]):
            made = None if name == "pca" else self._carried(folder, name, features_MD, graph, refit)
            if made is None:
                settings = wanted[name] if name in wanted else settings_of(name)
                made = draw(folder, name, settings, features_MD, graph, say)
                anew += [name] if name in self.old.info.maps and made["method"] == "umap" else []
            drawn[name] = made
        return drawn, anew

    def _carried(
        self, folder: Path, name: str, features_MD: np.ndarray, graph: Graph, refit: bool
    ) -> dict[str, Any] | None:
        """The old UMAP with what is new placed on it; None where it has to be drawn."""
        made = self.old.info.maps.get(name, {})
        count = len(self.old_row_M)
        if made.get("method") != "umap" or count < FEWEST_FOR_UMAP:
            return None
        try:
            frame = self.old.map(name)
        except UserError:  # damaged
            return None
        xy_M2, placed_M = self._kept_points(frame)
        most = 0 if refit else MOST_PLACED * count
        if placed_M.sum() > most:
            return None
        _place(xy_M2, features_MD, graph)
        write_map(folder, name, xy_M2, placed_M if placed_M.any() else None)
        made = {key: value for key, value in made.items() if key != "placed_since"}
        return made | ({"placed_since": int(placed_M.sum())} if placed_M.any() else {})

    def _kept_points(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of rows that stay, NaN for the others; and who was not there when the map
        was drawn. Of several copies of one image that was there one keeps its point."""
        rows, first = np.unique(self.old_row_M, return_index=True)
        stays = rows >= 0
        xy_M2 = np.full((len(self.old_row_M), 2), np.nan, np.float32)
        xy_M2[first[stays]] = frame[["x", "y"]].to_numpy(np.float32)[rows[stays]]
        placed_M = np.ones(len(self.old_row_M), bool)
        before_O = np.zeros(len(frame), bool)
        if "placed" in frame:
            before_O = frame["placed"].to_numpy(bool)
        placed_M[first[stays]] = before_O[rows[stays]]
        return xy_M2, placed_M

    def _changes(self) -> dict[str, Any]:
        """How many images came, went and changed."""
        before = dict(zip(self.old.images["id"], self.old.images["content_hash"], strict=True))
        pairs = list(zip(self.table["id"], self.table["content_hash"], strict=True))
        there = [before[id] == content for id, content in pairs if id in before]
        return {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "added": len(pairs) - len(there),
            "gone": len(before) - len(there),
            "changed": len(there) - sum(there),
        }


def _facts(
    images: pd.DataFrame, found: Survey, computed: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Facts of all the source's images in order: remembered ones, and those just computed."""
    columns = ("width", "height", "content_hash")
    width, height, content = (images[name].tolist() for name in columns)
    coming = iter(computed)
    facts = []
    for index, row in enumerate(found.known_N.tolist()):
        if row < 0:
            facts.append(next(coming))
            continue
        known = {"width": width[row], "height": height[row], "fingerprint": content[row]}
        facts.append({"index": index} | known)
    return facts


def _place(xy_M2: np.ndarray, features_MD: np.ndarray, graph: Graph) -> None:
    """Fill the coordinates that are NaN from the neighbors on the map, in place."""
    drawn = np.flatnonzero(~np.isnan(xy_M2[:, 0]))
    place_rest(xy_M2, graph.rows_NK, graph.scores_NK)
    lost = np.flatnonzero(np.isnan(xy_M2[:, 0]))  # new groups that know nobody on the map
    if len(lost):
        on_map = np.ascontiguousarray(features_MD[drawn])
        found = nearest(on_map, np.ascontiguousarray(features_MD[lost]), PLACING_NEIGHBORS)
        xy_M2[lost] = place(xy_M2[drawn], *found)
