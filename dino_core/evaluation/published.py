"""The figures that were published with DINO, and on which data they were measured.

    for one in published("knn"):
        one.model, one.data, one.figures["top1"], one.source
    recognized("knn", result.as_dict())     # "ImageNet", or None: then no published figure is near
    other_settings(one, result.as_dict())   # ["temperature 0.07 (here 0.1)"], or []: held against

Figures bear the names, and are on the scale, of the fields of our results: shares of images in
percent, overlaps from 0 to 1. A figure can be held against one of ours only where ours was measured
on the same images with the same settings. Data sets are recognized by how much of everything they
have; settings are those that results name and that move a figure. Where it was not told what a
figure was measured with, the source says so. That our defaults mend slips of the published code
(red divided by 0.228, a covariance that is not centered) parts nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PAPER = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294"
README = "README of the published code, facebookresearch/dino, at 7c446df"

IMAGENET, VOC, DAVIS = "ImageNet", "VOC 2012", "DAVIS 2017"
OXFORD, PARIS, COPYDAYS = "revisited Oxford", "revisited Paris", "Copydays, strong copies"
TIMM_NAMES = {  # of architectures that figures were published for, without what follows a dot
    "vit_small_patch16_224": "ViT-S/16",
    "vit_small_patch8_224": "ViT-S/8",
    "vit_base_patch16_224": "ViT-B/16",
    "vit_base_patch8_224": "ViT-B/8",
    "resnet50": "ResNet-50",
    "xcit_small_12_p16_224": "XCiT-S-12/16",
    "xcit_small_12_p8_224": "XCiT-S-12/8",
    "xcit_medium_24_p16_224": "XCiT-M-24/16",
    "xcit_medium_24_p8_224": "XCiT-M-24/8",
}


@dataclass(frozen=True)
class Setting:
    """What some fields of a result have to hold for a published figure to be near it."""

    told: str  # how it was published: "temperature 0.07"
    fields: tuple[str, ...]  # of a result; "settings.radius" is a field of a field
    holds: Callable[..., bool]  # of the values of these fields
    unset: str = "default"  # what None means

    def difference(self, result: Mapping[str, Any]) -> str | None:
        """`temperature 0.07 (here 0.1)`; None where the setting is the published one."""
        values = {name: _field(result, name) for name in self.fields}
        if self.holds(*values.values()):
            return None
        told = {name: self._plain(value) for name, value in values.items() if value != ""}
        if len(told) == 1:
            return f"{self.told} (here {next(iter(told.values()))})"
        named = (f"{name.replace('_', ' ')} {text}" for name, text in told.items())
        return f"{self.told} (here {', '.join(named)})"

    def _plain(self, value: Any) -> str:
        if value is None:
            return self.unset
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Published:
    """What one model reached under one protocol."""

    protocol: str  # as `scripts/evaluate.py` calls it
    architecture: str  # "ViT-S/16"
    training: str  # "DINO", "supervised", "not trained", and what else matters
    data: str  # that it was judged on
    figures: Mapping[str, float]  # by the names of our results, on their scale
    source: str
    settings: tuple[Setting, ...] = ()  # that it was measured with

    @property
    def model(self) -> str:
        """Architecture and training as one name."""
        return f"{self.architecture}, {self.training}"


def published(protocol: str, data: str | None = None) -> list[Published]:
    """All figures of a protocol, of one data set where it is named."""
    return [
        one for one in FIGURES if one.protocol == protocol and (data is None or one.data == data)
    ]


def architecture_named(timm_name: str) -> str | None:
    """The published name of a `ModelInfo.architecture`; None where no figure was published for it.

    The name alone decides: a model whose `options` or patch size differ from it is another one.
    """
    return TIMM_NAMES.get(timm_name.partition(".")[0])


def recognized(protocol: str, result: Mapping[str, Any]) -> str | None:
    """The published data set that a result, as `as_dict` gives it, was measured on, if any.

    By numbers of images, classes, objects and queries, of which a chance agreement is not to be
    feared; a copy that lacks a single image is not recognized.
    """
    for data, wanted in KNOWN_BY.get(protocol, ()):
        if all(_agrees(_amount(result, name), value) for name, value in wanted.items()):
            return data
    return None


def other_settings(entry: Published, result: Mapping[str, Any]) -> list[str]:
    """How a result's settings differ from the published ones: `size 480 (here 160)`; [] if not.

    `result` as `as_dict` gives it, of the protocol of `entry`.
    """
    found = (setting.difference(result) for setting in entry.settings)
    return [difference for difference in found if difference is not None]


def _field(result: Mapping[str, Any], path: str) -> Any:
    value: Any = result
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _amount(result: Mapping[str, Any], name: str) -> Any:
    """A field, or how many it holds where it is a table or a list."""
    value = result.get(name)
    return len(value) if isinstance(value, Mapping | list) else value


def _agrees(amount: Any, wanted: Any) -> bool:
    return amount in wanted if isinstance(wanted, range) else bool(amount == wanted)


def _is(name: str, value: Any, told: str = "", unset: str = "default") -> Setting:
    """A field that has to have one value."""
    words = told or f"{name.rpartition('.')[2].replace('_', ' ')} {value}"
    return Setting(words, (name,), lambda ours: ours == value, unset)


KNN = (
    _is("temperature", 0.07),
    Setting("k of 10, 20, 100 or 200", ("k",), lambda k: k in (10, 20, 100, 200)),
)


def _features(architecture: str) -> tuple[int, bool]:
    """Of how many blocks the linear layer saw class tokens, and whether the mean patch token."""
    return {"ViT-S": (4, False), "ViT-B": (1, True)}.get(architecture[:5], (1, False))


def _linear(architecture: str) -> tuple[Setting, ...]:
    """What a linear figure of an architecture was measured with."""

    def seen(blocks: Any, mean: Any, model: Any) -> bool:
        """Whether the features are those of the model's own architecture where its name tells it,
        of the figure's where it does not."""
        named = architecture_named(model.removeprefix("timm:")) if isinstance(model, str) else None
        return (blocks, mean) == _features(named or architecture)

    return (
        _trained("new crops in each epoch and the best epoch on test, --as-published",
                 "as_published", True),
        _trained("epochs 100", "epochs", 100),
        _trained("batch 1024", "batch", 1024),
        Setting(
            "4 blocks of ViT-S, 1 and the mean patch token of ViT-B, 1 of others",
            ("n_blocks", "avgpool", "model"),
            seen,
        ),
    )  # fmt: skip


def _trained(told: str, name: str, value: Any) -> Setting:
    """A setting of the training, which a layer that was given has had elsewhere."""
    return Setting(told, (name, "weights"), lambda ours, weights: ours == value or bool(weights))


ATTENTION = (
    _is("keep", 0.6),
    Setting("the last layer", ("layer",), lambda layer: layer in (-1, 11)),
    # No size was published with the figure. This one is of the script that draws such masks.
    _is("size", 480, "size 480 as the published visualization feeds, for the figure tells none"),
)
VIDEO = (
    _is("size", 480),
    _is("settings.frames", 7),
    _is("settings.radius", 12),
    _is("settings.topk", 5),
    _is("settings.temperature", 0.1),
)
WHOLE_QUERIES = _is("as_published", True, "queries that are whole images, --as-published")
RETRIEVAL = {
    OXFORD: (_is("size", 224), _is("multiscale", False, "one scale"), WHOLE_QUERIES),
    PARIS: (_is("size", 512), _is("multiscale", True, "three scales"), WHOLE_QUERIES),
}
WHITENED = (
    Setting("whitened", ("whitening",), bool, "not"),
    _is("whitening_dim", None, "whitening that keeps all axes"),
)
# VOC's validation images have masks of objects, of which the figure's author speaks, and of classes
# (SegmentationClass), in which all objects of a class are one. It gives no number of objects for
# them alone (6,929 with the training images), and counts by others part by a few around 3,420.
# Of classes an image has one or two, about 2,150 together.
VOC_OBJECTS = range(3001, 4001)

# By fields of results; a range where no single amount is known.
KNOWN_BY: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "knn": ((IMAGENET, {"train_images": 1_281_167, "test_images": 50_000, "per_class": 1000}),),
    "linear": (
        (IMAGENET, {"train_images": 1_281_167, "test_images": 50_000, "per_class": 1000}),
        (IMAGENET, {"train_images": 0, "test_images": 50_000, "per_class": 1000}),  # a given layer
    ),
    "attention": ((VOC, {"images": 1449, "objects": VOC_OBJECTS}),),
    "video": ((DAVIS, {"videos": 30, "objects": 61}),),  # validation
    "retrieval": (
        (OXFORD, {"ground_truth": "roxford5k", "queries": 70, "images": 4993}),
        (PARIS, {"ground_truth": "rparis6k", "queries": 70, "images": 6322}),
    ),
    # 157 originals among 10,000 distractors
    "copies": ((COPYDAYS, {"matched_by": "Copydays", "queries": 229, "images": 10_157}),),
}


def _imagenet() -> list[Published]:
    """Top-1 in percent: k-NN and linear."""
    rows = [
        ("ViT-S/16", "DINO", 74.5, 77.0),
        ("ViT-S/8", "DINO", 78.3, 79.7),
        ("ViT-B/16", "DINO", 76.1, 78.2),
        ("ViT-B/8", "DINO", 77.4, 80.1),
        ("ResNet-50", "DINO", 67.5, 75.3),
        ("XCiT-S-12/16", "DINO", 76.0, 77.8),
        ("XCiT-S-12/8", "DINO", 77.1, 79.2),
        ("XCiT-M-24/16", "DINO", 76.4, 78.8),
        ("XCiT-M-24/8", "DINO", 77.9, 80.3),
        ("ViT-S/16", "DINO, 100 epochs, 8 GPUs", 69.3, 74.0),
        ("ViT-S/16", "DINO, 300 epochs, 16 GPUs", 73.3, 76.0),
    ]
    return [
        Published(protocol, architecture, training, IMAGENET, {"top1": top1}, README, settings)
        for protocol, place in (("knn", 0), ("linear", 1))
        for architecture, training, *both in rows
        for top1 in (both[place],)
        for settings in (KNN if protocol == "knn" else _linear(architecture),)
    ]


def _attention() -> list[Published]:
    """Mean overlap of the best head with each object."""
    rows = [
        ("ViT-S/16", "DINO", 0.459),
        ("ViT-S/16", "supervised", 0.273),
        ("ViT-S/16", "not trained", 0.220),
        ("ViT-S/8", "DINO", 0.447),
        ("ViT-S/8", "supervised", 0.237),
        ("ViT-S/8", "not trained", 0.218),
    ]
    return [
        Published(
            "attention", architecture, training, VOC, {"image_jaccard": iou},
            f"{PAPER}, figure 4, which tells no image size", ATTENTION,
        )
        for architecture, training, iou in rows
    ]  # fmt: skip


def _video() -> list[Published]:
    """Mean of J and F, and each."""
    rows = [
        ("ViT-S/16", 0.618, 0.602, 0.634), ("ViT-S/8", 0.699, 0.666, 0.731),
        ("ViT-B/16", 0.623, 0.607, 0.639), ("ViT-B/8", 0.714, 0.679, 0.749),
    ]  # fmt: skip
    names = ("jf_mean", "j_mean", "f_mean")
    return [
        Published(
            "video", architecture, "DINO", DAVIS, dict(zip(names, figures, strict=True)),
            f"{PAPER}, table 5", VIDEO,
        )
        for architecture, *figures in rows
    ]  # fmt: skip


def _retrieval() -> list[Published]:
    """mAP in percent, medium and hard."""
    rows = [
        ("ViT-S/16", "DINO on ImageNet", (41.8, 13.7), (63.1, 34.4)),
        ("ViT-S/16", "DINO on Google Landmarks v2", (51.5, 24.3), (75.3, 51.6)),
        ("ResNet-50", "DINO on ImageNet", (35.4, 11.1), (55.9, 27.5)),
        ("ViT-S/16", "supervised on ImageNet", (33.5, 8.9), (63.0, 37.2)),
        ("ResNet-101 with R-MAC", "supervised on ImageNet", (49.8, 18.5), (74.0, 52.1)),
    ]
    return [
        Published(
            "retrieval", architecture, training, data,
            {"map_medium": figures[0], "map_hard": figures[1]}, f"{PAPER}, table 3",
            RETRIEVAL[data],
        )
        for architecture, training, *both in rows
        for data, figures in zip((OXFORD, PARIS), both, strict=True)
    ]  # fmt: skip


def _copies() -> list[Published]:
    """mAP in percent, whitened, among 10,000 distractors; the size is the model's, so named."""
    rows = [
        ("ViT-B/16", "DINO", 224, 81.7),
        ("ViT-B/8", "DINO", 320, 85.5),
        ("ViT-B/16", "supervised", 224, 76.4),
        ("ResNet-50", "MultiGrain", 800, 82.5),
    ]
    return [
        Published(
            "copies", architecture, f"{training}, {size} px", COPYDAYS, {"map": figure},
            f"{PAPER}, table 4", (_is("size", size), *WHITENED),
        )
        for architecture, training, size, figure in rows
    ]  # fmt: skip


FIGURES = (*_imagenet(), *_attention(), *_video(), *_retrieval(), *_copies())
