"""What a model sees in MANY images: features, exact search, a neighbor graph, maps.

A gallery is a folder that a person can open (`docs/formats.md` says each field):

    galleries/NAME/
        gallery.json      the model, its hash, preprocessing, data; written last: there, it is whole
        images.parquet    one row an image: stable id, path, label, sizes, the user's own columns
        features.npy      float32 [n, D], L2-normalized; search runs straight on it, memory-mapped
        neighbors.npz     each image's nearest others: what map, duplicates and clusters share
        maps/NAME.parquet x, y
        patches/          of those that were asked to hold patches: a search among parts of images
        quarantine.jsonl  files that could not be read, and why
        user/             what people add: tags, names, reviews; no build ever touches it
        thumbs/           a cache that may be deleted at any time
        status.json       what a running build says, or how the last one ended

Names are imported on first use, so that listing galleries needs neither torch nor FAISS.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_core.gallery.building import build, draw_map, help_build
    from dino_core.gallery.features import Features, embed, features_of
    from dino_core.gallery.jobs import build_status, start_build, stop_build
    from dino_core.gallery.listing import GalleryEntry, list_galleries
    from dino_core.gallery.manifest import GalleryInfo
    from dino_core.gallery.maps import UmapSettings
    from dino_core.gallery.opened import Gallery, Hits
    from dino_core.gallery.patch_building import PatchPlan, build_patches, plan_patches
    from dino_core.gallery.patches import Patches, PatchFeatures, PatchHits, patch_features
    from dino_core.gallery.queries import filtered, region_features

_HOME = {
    "Features": "features",
    "Gallery": "opened",
    "GalleryEntry": "listing",
    "GalleryInfo": "manifest",
    "Hits": "opened",
    "PatchFeatures": "patches",
    "PatchHits": "patches",
    "PatchPlan": "patch_building",
    "Patches": "patches",
    "UmapSettings": "maps",
    "build": "building",
    "build_patches": "patch_building",
    "build_status": "jobs",
    "draw_map": "building",
    "embed": "features",
    "features_of": "features",
    "filtered": "queries",
    "help_build": "building",
    "list_galleries": "listing",
    "patch_features": "patches",
    "plan_patches": "patch_building",
    "region_features": "queries",
    "start_build": "jobs",
    "stop_build": "jobs",
}

__all__ = [
    "Features",
    "Gallery",
    "GalleryEntry",
    "GalleryInfo",
    "Hits",
    "PatchFeatures",
    "PatchHits",
    "PatchPlan",
    "Patches",
    "UmapSettings",
    "build",
    "build_patches",
    "build_status",
    "draw_map",
    "embed",
    "features_of",
    "filtered",
    "help_build",
    "list_galleries",
    "patch_features",
    "plan_patches",
    "region_features",
    "start_build",
    "stop_build",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
