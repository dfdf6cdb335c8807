"""Building a gallery: features, table, neighbors, maps, manifest; each step whole or not at all.

A build that was stopped or killed at any moment goes on where it was when it is started again.
`gallery.json` is written last, so whoever sees one sees a whole gallery.
"""

import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dino_core.data import Quarantine, Quarantined, Source
from dino_core.errors import UserError, at_least
from dino_core.files import whole_file
from dino_core.gallery.approximate import Graph, graph_of_all
from dino_core.gallery.extraction import Batch
from dino_core.gallery.features import feature_dim, model_batches, model_feature_hash, preprocessing
from dino_core.gallery.images import (
    IMAGES,
    images_table,
    source_hash,
    their_columns,
    write_table,
)
from dino_core.gallery.jobs import reported
from dino_core.gallery.manifest import BUILDING, MANIFEST, GalleryInfo
from dino_core.gallery.maps import UmapSettings, pca_map, umap_map
from dino_core.gallery.opened import NEIGHBORS, Gallery
from dino_core.gallery.partial import FACTS_PART, FEATURES, FEATURES_PART, PartialFeatures
from dino_core.gallery.progress import Progress
from dino_core.gallery.shares import PARTS, Agree, Compute, Group, take_part
from dino_core.models import Model

GRAPH_NEIGHBORS = 30
QUARANTINE = "quarantine.jsonl"
MAPS = ("umap", "pca")
Wanted = dict[str, UmapSettings | None]  # maps by name; None is the PCA


def build(
    model: Model,
    source: Source,
    out: str | Path,
    *,
    kind: str = "cls",
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
    maps: Sequence[str] = ("umap",),
    umap: UmapSettings | None = None,
    redo: bool = False,
    agree: Agree | None = None,
) -> Gallery:
    """Make the gallery `out` of what `model` sees in `source`, or finish making it.

    maps      which maps to draw, of "umap" and "pca"; "pca" is always drawn
    umap      other settings of the UMAP than the usual; it is then called `umap.name`
    workers   decoding processes; None chooses by machine (see `default_workers`)
    redo      build again what is there with another model or other images; `user/` stays
    agree     of the first of several processes, where all others call `help_build`: gives all of
              them the JSON value that the first one gave

    A whole gallery of the same features of the same images is opened as it is, with the maps it
    lacks drawn from what it holds. Images that cannot
    be read are left out and listed in `quarantine.jsonl`. Raises `UserError` when `out` holds
    another gallery (without `redo`) or other files, is being built by another process, or cannot
    be written.
    """
    at_least(1, batch_size=batch_size)
    at_least(0, workers=workers)
    out = Path(out)
    with reported(out, progress) as say:
        return build_here(
            model, source, out, say, kind=kind, batch_size=batch_size, workers=workers,
            maps=maps, umap=umap, redo=redo, agree=agree,
        )  # fmt: skip


def help_build(
    model: Model,
    source: Source,
    out: str | Path,
    agree: Agree,
    *,
    kind: str = "cls",
    batch_size: int = 64,
    workers: int | None = None,
) -> None:
    """Compute this process's share of the features while the first process calls `build`.

    Returns when that is done, or at once where the gallery is whole.
    """
    compute = _features_in(model, source, kind, batch_size, workers)
    take_part(
        Path(out),
        _plan(model, source, kind).of_features(),
        feature_dim(model, kind),
        agree,
        compute,
    )


def build_here(
    model: Model,
    source: Source,
    out: Path,
    say: Progress,
    *,
    kind: str = "cls",
    batch_size: int = 64,
    workers: int | None = None,
    maps: Sequence[str] = ("umap",),
    umap: UmapSettings | None = None,
    redo: bool = False,
    agree: Agree | None = None,
) -> Gallery:
    """`build`, by whoever already holds the folder (see `jobs.reported`)."""
    wanted = _maps_wanted(maps, umap)
    info = _plan(model, source, kind)
    if (out / MANIFEST).is_file():
        if _is_made_of(out, info, redo):
            if agree is not None:
                agree(None)  # nothing to share
            return _with_maps(Gallery.open(out), wanted, say)
        _clear(out)
    theirs = their_columns(source)  # what is odd in a table shows before hours of computing
    part = PartialFeatures(out, info.of_features(), feature_dim(model, kind), redo=redo)
    try:
        compute = _features_in(model, source, kind, batch_size, workers)
        Group(part, len(source), agree).compute(compute, say)
        facts = part.facts()
        part.finish()
    finally:
        part.close()
    info = _write_derived(
        out, info, source, images_table(source, facts, theirs), facts, wanted, say
    )
    info.write(out)
    for name in (BUILDING, FACTS_PART):
        (out / name).unlink(missing_ok=True)
    return Gallery.open(out)


def _plan(model: Model, source: Source, kind: str) -> GalleryInfo:
    """The manifest as far as it is known before any image was read."""
    on_disk = Path(source.spec).exists()
    return GalleryInfo(
        model=model.spec,
        model_hash=model.hash,
        kind=kind,
        preprocessing=preprocessing(model),
        feature_hash=model_feature_hash(model, kind),
        data=str(Path(source.spec).resolve()) if on_disk else source.spec,
        source_hash=source_hash(source),
        root=None if source.root is None else str(Path(source.root).resolve()),
        classes=list(source.classes),
        generated=source.generated,
        dim=feature_dim(model, kind),
    )


def _is_made_of(out: Path, info: GalleryInfo, redo: bool) -> bool:
    """Whether the gallery in `out` is what `info` plans; another is refused without `redo`."""
    try:
        there = GalleryInfo.read(out)
    except UserError:
        if redo:
            return False
        raise
    same_features = there.feature_hash == info.feature_hash
    same_images = there.source_hash == info.source_hash
    if (same_features and same_images) or redo:
        return same_features and same_images
    if not same_features:
        what = f"holds {there.kind} features of {there.model}, not {info.kind} of {info.model}"
        if there.model == info.model and there.kind == info.kind:
            what = f"was made with other weights of {info.model} than are there now"
    elif there.data != info.data:
        what = f"holds the images of {there.data}, not of {info.data}"
    else:
        what = f"was made before the images of {info.data} changed"
    raise UserError(f"{out}: {what}; give another --out, or --redo to build it again")


def _clear(out: Path) -> None:
    """Remove what a build makes, the manifest first; what people added in `user/` stays."""
    for name in (MANIFEST, BUILDING, FEATURES, FEATURES_PART, FACTS_PART, IMAGES, NEIGHBORS):
        (out / name).unlink(missing_ok=True)
    (out / QUARANTINE).unlink(missing_ok=True)
    for name in ("maps", PARTS):
        shutil.rmtree(out / name, ignore_errors=True)


def _features_in(
    model: Model, source: Source, kind: str, batch_size: int, workers: int | None
) -> Compute:
    """What computes the features of a range of the source's images, batch by batch."""

    def compute(images: range) -> Generator[Batch, None, None]:
        return model_batches(model, source, images, kind, batch_size, workers, fingerprints=True)

    return compute


def _write_derived(
    out: Path,
    info: GalleryInfo,
    source: Source,
    table: pd.DataFrame,
    facts: list[dict[str, Any]],
    wanted: Wanted,
    say: Progress,
) -> GalleryInfo:
    """Everything that follows from the features; returns the manifest, completed."""
    quarantine = Quarantine()
    quarantine.add(
        Quarantined(source.ids[one["index"]], one["bad"]) for one in facts if "bad" in one
    )
    if len(quarantine):
        quarantine.write(out / QUARANTINE)
    write_table(out, table)
    features_ND = np.empty((0, info.dim), np.float32)
    if len(table):
        features_ND = np.load(out / FEATURES, mmap_mode="r", allow_pickle=False)
    graph = graph_of_all(features_ND, GRAPH_NEIGHBORS, say)
    with whole_file(out / NEIGHBORS) as aside, open(aside, "wb") as file:
        np.savez(file, rows=graph.rows_NK, scores=graph.scores_NK)
    drawn = {
        name: _draw_map(out, name, settings, features_ND, graph, say)
        for name, settings in ({"pca": None} | wanted).items()
    }
    return replace(
        info,
        count=len(table),
        quarantined=len(quarantine),
        neighbors=graph.rows_NK.shape[1],
        graph=graph.how,
        maps=drawn,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def draw_map(
    gallery: Gallery, settings: UmapSettings | None = None, progress: Progress | None = None
) -> Gallery:
    """The gallery with a UMAP of other settings, drawn from its stored neighbors if it lacks it.

    It is called `settings.name`. Raises `UserError` for more neighbors than the gallery holds.
    """
    with reported(gallery.path, progress) as say:
        return _with_maps(Gallery.open(gallery.path), _maps_wanted(("umap",), settings), say)


def _maps_wanted(maps: Sequence[str], umap: UmapSettings | None) -> Wanted:
    """The maps asked for, by the name each will have."""
    unknown = sorted(set(maps) - set(MAPS))
    if unknown:
        raise UserError(f"map {unknown[0]!r} is unknown; there are {', '.join(MAPS)}")
    umap = umap or UmapSettings()
    if umap.n_neighbors > GRAPH_NEIGHBORS + 1:
        raise UserError(
            f"n_neighbors {umap.n_neighbors}: a gallery holds {GRAPH_NEIGHBORS} neighbors of each "
            f"image, so at most {GRAPH_NEIGHBORS + 1}, the image itself included"
        )
    wanted: Wanted = {"pca": None} if "pca" in maps else {}
    return wanted | ({umap.name: umap} if "umap" in maps else {})


def _with_maps(gallery: Gallery, wanted: Wanted, say: Progress) -> Gallery:
    """The whole gallery, with those of the maps that it lacks drawn from what it holds."""
    missing = {name: wanted[name] for name in wanted if name not in gallery.info.maps}
    if not missing:
        return gallery
    graph = Graph(*gallery.neighbors(), gallery.info.graph)
    drawn = {
        name: _draw_map(gallery.path, name, settings, gallery.features, graph, say)
        for name, settings in missing.items()
    }
    replace(gallery.info, maps=gallery.info.maps | drawn).write(gallery.path)
    return Gallery.open(gallery.path)


def _draw_map(
    out: Path,
    name: str,
    settings: UmapSettings | None,
    features_ND: np.ndarray,
    graph: Graph,
    say: Progress,
) -> dict[str, Any]:
    """Draw and write one map, without settings the PCA; returns how it was made."""
    if settings is None:
        xy_N2, made = pca_map(features_ND), {"method": "pca"}
    else:
        pca_N2 = pd.read_parquet(out / "maps" / "pca.parquet").to_numpy()  # always drawn first
        xy_N2, made = umap_map(features_ND, graph.rows_NK, graph.scores_NK, say, settings, pca_N2)
    _write_map(out, name, xy_N2)
    return made


def _write_map(out: Path, name: str, xy_N2: np.ndarray) -> None:
    with whole_file(out / "maps" / f"{name}.parquet") as aside:
        pd.DataFrame(xy_N2, columns=["x", "y"]).to_parquet(aside, index=False)
