"""The published figures: as the papers' tables have them, under the names of our results."""

from dataclasses import fields

import pytest
import timm

from dino_core.evaluation.attention import AttentionResult
from dino_core.evaluation.copies import CopiesResult
from dino_core.evaluation.knn import KnnResult
from dino_core.evaluation.linear import LinearResult
from dino_core.evaluation.published import (
    FIGURES,
    KNOWN_BY,
    TIMM_NAMES,
    architecture_named,
    other_settings,
    published,
    recognized,
)
from dino_core.evaluation.retrieval import RetrievalResult
from dino_core.evaluation.video import VideoResult

RESULTS = {
    "knn": KnnResult,
    "linear": LinearResult,
    "attention": AttentionResult,
    "video": VideoResult,
    "retrieval": RetrievalResult,
    "copies": CopiesResult,
}
IMAGENET = {"train_images": 1_281_167, "test_images": 50_000}
IMAGENET["per_class"] = {f"n{i}": 50.0 for i in range(1000)}


def figure(protocol, model, name, data=None):
    (found,) = [one for one in published(protocol, data) if one.model == model]
    return found.figures[name]


@pytest.mark.parametrize(
    ("protocol", "model", "name", "value"),
    [
        ("knn", "ViT-S/8, DINO", "top1", 78.3),  # these two stand in the paper's abstract
        ("linear", "ViT-B/8, DINO", "top1", 80.1),
        ("attention", "ViT-S/16, DINO", "image_jaccard", 0.459),
        ("attention", "ViT-S/8, not trained", "image_jaccard", 0.218),
        ("video", "ViT-B/8, DINO", "jf_mean", 0.714),
        ("copies", "ViT-B/8, DINO, 320 px", "map", 85.5),
    ],
)
def test_figures_of_the_paper(protocol, model, name, value):
    assert figure(protocol, model, name) == value


def test_retrieval_tells_oxford_from_paris():
    model = "ViT-S/16, DINO on Google Landmarks v2"
    assert figure("retrieval", model, "map_medium", "revisited Oxford") == 51.5
    assert figure("retrieval", model, "map_medium", "revisited Paris") == 75.3


def test_j_and_f_is_their_mean():
    for one in published("video"):
        mean = (one.figures["j_mean"] + one.figures["f_mean"]) / 2
        assert one.figures["jf_mean"] == pytest.approx(mean, abs=0.0006)  # each rounded by itself


def test_figures_order_as_they_must():
    linear = {one.model: one.figures["top1"] for one in published("linear")}
    knn = {one.model: one.figures["top1"] for one in published("knn")}
    assert knn.keys() == linear.keys()
    assert all(knn[model] < linear[model] for model in knn)
    assert all(
        one.figures["map_hard"] < one.figures["map_medium"] for one in published("retrieval")
    )


def test_figures_bear_the_names_and_the_scale_of_our_results():
    for one in FIGURES:
        assert one.figures.keys() <= {field.name for field in fields(RESULTS[one.protocol])}
        shares = one.protocol in ("attention", "video")
        assert all(
            (0 < value < 1) if shares else (1 < value < 100) for value in one.figures.values()
        )


def test_each_figure_stands_once_and_names_its_source():
    keys = [(one.protocol, one.model, one.data) for one in FIGURES]
    assert len(set(keys)) == len(keys)
    assert all(
        "facebookresearch/dino" in one.source or "2104.14294" in one.source for one in FIGURES
    )


def test_data_are_recognized_by_fields_that_results_have():
    for protocol, known in KNOWN_BY.items():
        names = {field.name for field in fields(RESULTS[protocol])}
        for data, wanted in known:
            assert wanted.keys() <= names
            assert published(protocol, data), "recognized, but nothing was published on it"


def test_imagenet_is_recognized_whole_and_not_when_one_image_is_missing():
    assert recognized("knn", IMAGENET) == "ImageNet"
    assert recognized("knn", IMAGENET | {"test_images": 49_999}) is None
    assert recognized("knn", IMAGENET | {"per_class": {"dog": 1.0}}) is None
    assert recognized("knn", {}) is None
    assert recognized("low-shot", IMAGENET) is None  # nothing known was published


def test_oxford_is_told_by_its_ground_truth():
    oxford = {"ground_truth": "roxford5k", "queries": 70, "images": 4993}
    assert recognized("retrieval", oxford) == "revisited Oxford"
    assert recognized("retrieval", oxford | {"ground_truth": "mine"}) is None


def test_imagenet_is_recognized_for_a_given_layer_which_nothing_was_trained_for():
    assert recognized("linear", IMAGENET | {"train_images": 0}) == "ImageNet"
    assert recognized("knn", IMAGENET | {"train_images": 0}) is None


@pytest.mark.parametrize(
    ("images", "objects", "data"),
    [(1449, 3417, "VOC 2012"), (1449, 3427, "VOC 2012"), (1448, 3417, None),
     (1449, 2148, None), (1449, 1449, None), (1449, None, None)],
)  # fmt: skip
def test_voc_is_told_by_its_objects_and_masks_of_classes_are_not_it(images, objects, data):
    assert recognized("attention", {"images": images, "objects": objects}) == data


# A result as it is published, and by protocol: one field that differs, and what is said of it.
AS_PUBLISHED = {
    "knn": {"temperature": 0.07, "k": 20},
    "linear": {"as_published": True, "epochs": 100, "batch": 1024, "n_blocks": 4, "avgpool": False,
               "weights": "", "model": "runs/a"},
    "attention": {"keep": 0.6, "layer": -1, "size": 480},
    "video": {
        "size": 480,
        "settings": {"frames": 7, "radius": 12, "topk": 5, "temperature": 0.1},
    },
    "retrieval": {"size": 224, "multiscale": False, "as_published": True},
    "copies": {"size": 320, "whitening": "others", "whitening_dim": None},
}  # fmt: skip
FIRST = {
    protocol: next(
        one for one in FIGURES if one.protocol == protocol and "224 px" not in one.training
    )
    for protocol in AS_PUBLISHED
}
SEEN = "4 blocks of ViT-S, 1 and the mean patch token of ViT-B, 1 of others"
OTHERWISE = [
    ("knn", "temperature", 0.1, "temperature 0.07 (here 0.1)"),
    ("knn", "k", 5, "k of 10, 20, 100 or 200 (here 5)"),
    ("linear", "as_published", False,
     "new crops in each epoch and the best epoch on test, --as-published (here no)"),
    ("linear", "epochs", 30, "epochs 100 (here 30)"),
    ("linear", "batch", 256, "batch 1024 (here 256)"),
    ("linear", "n_blocks", 2, f"{SEEN} (here n blocks 2, avgpool no, model runs/a)"),
    ("linear", "avgpool", True, f"{SEEN} (here n blocks 4, avgpool yes, model runs/a)"),
    ("attention", "keep", 0.5, "keep 0.6 (here 0.5)"),
    ("attention", "layer", 3, "the last layer (here 3)"),
    ("attention", "size", 448,
     "size 480 as the published visualization feeds, for the figure tells none (here 448)"),
    ("video", "size", 160, "size 480 (here 160)"),
    ("video", "settings", {**AS_PUBLISHED["video"]["settings"], "frames": 5},
     "frames 7 (here 5)"),
    ("video", "settings", {**AS_PUBLISHED["video"]["settings"], "radius": 0},
     "radius 12 (here 0)"),
    ("video", "settings", {**AS_PUBLISHED["video"]["settings"], "topk": 1}, "topk 5 (here 1)"),
    ("video", "settings", {**AS_PUBLISHED["video"]["settings"], "temperature": 1.0},
     "temperature 0.1 (here 1.0)"),
    ("retrieval", "size", 512, "size 224 (here 512)"),
    ("retrieval", "multiscale", True, "one scale (here yes)"),
    ("retrieval", "as_published", False,
     "queries that are whole images, --as-published (here no)"),
    ("copies", "size", 224, "size 320 (here 224)"),
    ("copies", "whitening", None, "whitened (here not)"),
    ("copies", "whitening_dim", 256, "whitening that keeps all axes (here 256)"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", list(AS_PUBLISHED))
def test_the_published_settings_are_no_others(protocol):
    assert other_settings(FIRST[protocol], AS_PUBLISHED[protocol]) == []


@pytest.mark.parametrize(("protocol", "field", "value", "said"), OTHERWISE)
def test_each_other_setting_is_said(protocol, field, value, said):
    ours = AS_PUBLISHED[protocol] | {field: value}
    assert other_settings(FIRST[protocol], ours) == [said]


def test_all_that_differs_is_said_and_what_a_result_lacks_differs():
    assert other_settings(FIRST["knn"], {"temperature": 1, "k": 3}) == [
        "temperature 0.07 (here 1)",
        "k of 10, 20, 100 or 200 (here 3)",
    ]
    assert all(other_settings(one, {}) for one in FIGURES)


def test_a_given_linear_layer_was_trained_elsewhere():
    given = {"as_published": False, "epochs": 0, "batch": 0, "weights": "l.pth"}
    given |= {"n_blocks": 4, "avgpool": False}
    assert other_settings(FIRST["linear"], given) == []
    assert other_settings(FIRST["linear"], given | {"n_blocks": 1}), "which features it saw counts"


@pytest.mark.parametrize(
    ("model", "blocks", "mean", "near"),
    [("timm:vit_base_patch16_224.dino", 1, True, {"ViT-S", "ViT-B", "ResNe", "XCiT-"}),
     ("timm:resnet50", 1, False, {"ViT-S", "ViT-B", "ResNe", "XCiT-"}),
     ("timm:vit_base_patch16_224.dino", 4, False, set()),
     ("timm:vit_small_patch16_224.dino", 1, True, set()),
     ("runs/a", 4, False, {"ViT-S"}), ("runs/a", 1, True, {"ViT-B"}),
     ("runs/a", 1, False, {"ResNe", "XCiT-"}), ("runs/a", 4, True, set())],
)  # fmt: skip
def test_features_are_those_of_the_architecture_or_else_of_the_figure(model, blocks, mean, near):
    ours = AS_PUBLISHED["linear"] | {"model": model, "n_blocks": blocks, "avgpool": mean}
    held = {one.architecture[:5] for one in published("linear") if not other_settings(one, ours)}
    assert held == near


def test_a_size_that_was_not_published_is_not_told_as_if_it_were():
    assert all("tells no image size" in one.source for one in published("attention"))


def test_paris_is_asked_at_several_scales_and_each_copy_detector_has_its_size():
    paris = {"size": 512, "multiscale": True, "as_published": True}
    assert all(not other_settings(one, paris) for one in published("retrieval", "revisited Paris"))
    for one in published("copies"):
        (size,) = [int(word) for word in one.training.split() if word.isdigit()]
        assert not other_settings(one, {"size": size, "whitening": "others"})


def test_settings_are_fields_that_results_have():
    for one in FIGURES:
        names = {field.name for field in fields(RESULTS[one.protocol])}
        assert one.settings
        for setting in one.settings:
            assert {name.partition(".")[0] for name in setting.fields} <= names


def test_architectures_are_those_of_timm():
    assert set(TIMM_NAMES) <= set(timm.list_models())
    assert architecture_named("vit_small_patch16_224.dino") == "ViT-S/16"
    assert architecture_named("vit_small_patch16_384") is None
    assert set(TIMM_NAMES.values()) <= {one.architecture for one in FIGURES}
