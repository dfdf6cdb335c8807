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
        ("attention", "ViT-S/16, DINO", "jaccard", 0.459),
        ("attention", "ViT-S/8, not trained", "jaccard", 0.218),
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


def test_architectures_are_those_of_timm():
    assert set(TIMM_NAMES) <= set(timm.list_models())
    assert architecture_named("vit_small_patch16_224.dino") == "ViT-S/16"
    assert architecture_named("vit_small_patch16_384") is None
    assert set(TIMM_NAMES.values()) <= {one.architecture for one in FIGURES}
