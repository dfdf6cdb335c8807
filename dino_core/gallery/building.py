"""Building a gallery: features, table, neighbors, maps, manifest; each step whole or not at all.

A build that was stopped or killed at any moment goes on where it was when it is started again.
`gallery.json` is written last, so whoever sees one sees a whole gallery. Where the images of a
whole gallery changed it is brought up to date (`updating.py`); where a file of it is damaged that
file is made again, and what follows from it.
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
from dino_core.gallery.damage import NEIGHBORS, Damaged, map_file
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
from dino_core.gallery.manifest import BUILDING, MANIFEST, UPDATE, GalleryInfo, require_there
from dino_core.gallery.maps import UmapSettings, pca_map, umap_map
from dino_core.gallery.opened import Gallery
from dino_core.gallery.partial import FACTS_PART, FEATURES, FEATURES_PART, PartialFeatures
from dino_core.gallery.progress import Progress
from dino_core.gallery.replacing import PATCHES, QUARANTINE, move_on
from dino_core.gallery.shares import PARTS, Agree, Compute, Group, take_part
from dino_core.models import Model

GRAPH_NEIGHBORS = 30
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
    update: bool = False,
    refit: bool = False,
    shrink: bool = False,
    agree: Agree | None = None,
) -> Gallery:
    """Make the gallery `out` of what `model` sees in `source`, or finish making it.

    maps      which maps to draw, of "umap" and "pca"; "pca" is always drawn
    umap      other settings of the UMAP than the usual; it is then called `umap.name`
    workers   decoding processes; None chooses by machine (see `default_workers`)
    redo      start over what is there with another model or other images; `user/` stays
    update    bring up to date what is there of other data, too, e.g. of a folder that was moved
    refit     draw anew the maps on which updates placed images, however few these are
    shrink    let go of more than half of a gallery's images where so many are gone
    agree     of the first of several processes, where all others call `help_build`: gives all of
              them the JSON value that the first one gave

    A whole gallery of the same features is brought up to date where images of the same data
    changed (see `updating`), and opened as it is where none did, with the maps it lacks and the
    files that are damaged made from what it holds; `news` of what is returned tells which. Images
    that cannot be read are left out and listed in `quarantine.jsonl`. Raises `UserError` when `out`
    holds another gallery (without `redo`) or other files, would lose more than half of its images
    (without `shrink`), is being built by another process, or cannot be written.
    """
    at_least(1, batch_size=batch_size)
    at_least(0, workers=workers)
    out = Path(out)
    with reported(out, progress, {"model": model.spec, "data": source.spec}) as say:
        return build_here(
            model, source, out, say, kind=kind, batch_size=batch_size, workers=workers,
            maps=maps, umap=umap, redo=redo, update=update, refit=refit, shrink=shrink,
            agree=agree,
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
    from dino_core.gallery import updating

    out, order = Path(out), agree(None)
    if order is None:
        return
    plan = plan_of(model, source, kind).of_features()
    compute = features_in(model, source, kind, batch_size, workers)
    if updating.IMAGES_HASH in order["plan"]:
        survey = updating.survey(out, source)
        out, plan = out / UPDATE, plan | survey.plan
        compute = features_in(model, source, kind, batch_size, workers, survey.unknown)
    take_part(out, plan, feature_dim(model, kind), lambda _: order, compute)


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
    update: bool = False,
    refit: bool = False,
    shrink: bool = False,
    agree: Agree | None = None,
) -> Gallery:
    """`build`, by whoever already holds the folder (see `jobs.reported`)."""
    from dino_core.gallery import updating  # it builds on this module

    wanted = _maps_wanted(maps, umap)
    info = plan_of(model, source, kind)
    move_on(out)
    stands = _compared(out, info, redo, update)
    if stands == "same":
        if agree is not None:
            agree(None)  # nothing to share
        return _as_it_is(out, wanted, refit, say)
    if stands == "changed":
        return updating.bring_up_to_date(
            model, source, out, info, wanted, say,
            batch_size=batch_size, workers=workers, refit=refit, shrink=shrink, agree=agree,
        )  # fmt: skip
    _clear(out)
    theirs = their_columns(source)  # what is odd in a table shows before hours of computing
    part = PartialFeatures(out, info.of_features(), feature_dim(model, kind), redo=redo)
    try:
        compute = features_in(model, source, kind, batch_size, workers)
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
    gallery = Gallery.open(out)
    gallery.news = stands
    return gallery


def plan_of(model: Model, source: Source, kind: str) -> GalleryInfo:
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


def _compared(out: Path, info: GalleryInfo, redo: bool, update: bool) -> str:
    """What is in `out` beside what `info` plans: "same" features of the same images; "changed"
    images; or nothing to go on from, "" or a sentence why. Another gallery is refused.
    """
    if not (out / MANIFEST).is_file():
        return ""
    try:
        there = GalleryInfo.read(out)
    except UserError:
        if redo:
            return ""
        raise
    same_features = there.feature_hash == info.feature_hash
    same_images = there.source_hash == info.source_hash
    if same_features and (same_images or not redo):
        if there.data != info.data and not (same_images or update):
            raise UserError(
                f"{out}: holds the images of {there.data}, not of {info.data}; give another --out, "
                "--update to keep what it knows of those that are the same, or --redo to start over"
            )
        try:
            Gallery.open(out).images  # noqa: B018  # read it
        except Damaged:
            return "its features or its table were damaged, so it was built again"
        as_planned = (there.data, there.root) == (info.data, info.root)
        return "same" if same_images and as_planned else "changed"
    if redo:
        return ""
    what = f"holds {there.kind} features of {there.model}, not {info.kind} of {info.model}"
    if there.model == info.model and there.kind == info.kind:
        what = f"was made with other weights of {info.model} than are there now"
    raise UserError(f"{out}: {what}; give another --out, or --redo to build it again")


def _clear(out: Path) -> None:
    """Remove what another whole gallery left, the manifest first; what people added stays.

    What is half made is kept for whoever computes the same.
    """
    if not (out / MANIFEST).exists():
        return
    for name in (MANIFEST, BUILDING, FEATURES, FEATURES_PART, FACTS_PART, IMAGES, NEIGHBORS):
        (out / name).unlink(missing_ok=True)
    (out / QUARANTINE).unlink(missing_ok=True)
    for name in ("maps", PARTS, PATCHES, UPDATE):
        shutil.rmtree(out / name, ignore_errors=True)


def features_in(
    model: Model,
    source: Source,
    kind: str,
    batch_size: int,
    workers: int | None,
    chosen: Sequence[int] | None = None,
) -> Compute:
    """What computes the features of a range of the source's images, batch by batch.

    `chosen`: of a range among these of its images.
    """

    def compute(images: range) -> Generator[Batch, None, None]:
        these = images if chosen is None else chosen[images.start : images.stop]
        return model_batches(model, source, these, kind, batch_size, workers, fingerprints=True)

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
    quarantined = write_quarantine(out, source, facts)
    write_table(out, table)
    features_ND = np.empty((0, info.dim), np.float32)
    if len(table):
        features_ND = np.load(out / FEATURES, mmap_mode="r", allow_pickle=False)
    graph = write_graph(out, features_ND, say)
    drawn = {
        name: draw(out, name, settings, features_ND, graph, say)
        for name, settings in ({"pca": None} | wanted).items()
    }
    return replace(
        info,
        count=len(table),
        quarantined=quarantined,
        neighbors=graph.rows_NK.shape[1],
        graph=graph.how,
        maps=drawn,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_quarantine(out: Path, source: Source, facts: list[dict[str, Any]]) -> int:
    """Tell of the images that could not be read; returns how many there are."""
    quarantine = Quarantine()
    quarantine.add(
        Quarantined(source.ids[one["index"]], one["bad"]) for one in facts if "bad" in one
    )
    if len(quarantine):
        quarantine.write(out / QUARANTINE)
    return len(quarantine)


def write_graph(out: Path, features_ND: np.ndarray, say: Progress) -> Graph:
    """Find every image's neighbors, and keep them."""
    graph = graph_of_all(features_ND, GRAPH_NEIGHBORS, say)
    with whole_file(out / NEIGHBORS) as aside, open(aside, "wb") as file:
        np.savez(file, rows=graph.rows_NK, scores=graph.scores_NK)
    return graph


def draw_map(
    gallery: Gallery,
    settings: UmapSettings | None = None,
    progress: Progress | None = None,
    *,
    redo: bool = False,
) -> Gallery:
    """The gallery with a UMAP of other settings, drawn from its stored neighbors if it lacks it.

    It is called `settings.name`. `redo` draws it anew, so that images which updates have placed on
    it become part of it. Raises `UserError` for more neighbors than the gallery holds.
    """
    require_there(gallery.path)
    with reported(gallery.path, progress) as say:
        return draw_map_here(gallery.path, settings, say, redo=redo)


def draw_map_here(
    path: Path, settings: UmapSettings | None, say: Progress, *, redo: bool = False
) -> Gallery:
    """`draw_map`, by whoever already holds the folder (see `jobs.reported`)."""
    move_on(path)
    wanted = _maps_wanted(("umap",), settings)
    return _with_maps(Gallery.open(path), wanted, list(wanted) if redo else [], say)


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


def _as_it_is(out: Path, wanted: Wanted, refit: bool, say: Progress) -> Gallery:
    """The whole gallery; what of it is damaged, or wanted and not there, made from its features."""
    gallery = Gallery.open(out)
    mended = []
    try:
        gallery.neighbors()
    except Damaged:
        graph = write_graph(out, gallery.features, say)
        replace(gallery.info, neighbors=graph.rows_NK.shape[1], graph=graph.how).write(out)
        gallery = Gallery.open(out)
        mended.append(NEIGHBORS)
    again = [name for name in gallery.info.maps if not _is_whole(gallery, name)]
    mended += [map_file(name) for name in again]
    if refit:
        again += [name for name, made in gallery.info.maps.items() if made.get("placed_since")]
    gallery = _with_maps(gallery, wanted, list(dict.fromkeys(again)), say)
    gallery.news = f"made again, for they were damaged: {', '.join(mended)}" if mended else ""
    return gallery


def _is_whole(gallery: Gallery, name: str) -> bool:
    try:
        gallery.map(name)
    except Damaged:
        return False
    return True


def _with_maps(gallery: Gallery, wanted: Wanted, again: Sequence[str], say: Progress) -> Gallery:
    """The whole gallery, with those of the maps that it lacks drawn, and some drawn `again`."""
    there = gallery.info.maps
    missing = {name: settings_of(name) for name in sorted(again, key=lambda name: name != "pca")}
    missing |= {name: wanted[name] for name in wanted if name not in there}
    if not missing:
        return gallery
    graph = Graph(*gallery.neighbors(), gallery.info.graph)
    drawn = {
        name: draw(gallery.path, name, settings, gallery.features, graph, say)
        for name, settings in missing.items()
    }
    replace(gallery.info, maps=there | drawn).write(gallery.path)
    return Gallery.open(gallery.path)


def settings_of(name: str) -> UmapSettings | None:
    """The settings that a map of this name has; None of the PCA."""
    if name == "pca":
        return None
    words = name.split("-", 2)[1:]
    return UmapSettings(int(words[0]), float(words[1])) if len(words) == 2 else UmapSettings()


def draw(
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
    write_map(out, name, xy_N2)
    return made


def write_map(out: Path, name: str, xy_N2: np.ndarray, placed_N: np.ndarray | None = None) -> None:
    """Write one map; `placed_N`, bool, tells who was not there when it was drawn."""
    frame = pd.DataFrame(xy_N2, columns=["x", "y"])
    if placed_N is not None:
        frame = frame.assign(placed=placed_N)
    with whole_file(out / map_file(name)) as aside:
        frame.to_parquet(aside, index=False, write_page_checksum=True)
