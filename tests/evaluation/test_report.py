"""The report: what shares a column, what is said of it, and that a page is safe and alone.

Files that lack fields, lie or attack are made by hand; pictures are checked by their colors.
"""

import base64
import dataclasses
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import attention, objects, report, saliency
from dino_core.evaluation.attentive import AttentiveResult
from dino_core.evaluation.classes import Confusion
from dino_core.evaluation.copies import CopiesResult
from dino_core.evaluation.davis import write_labels
from dino_core.evaluation.knn import KnnResult
from dino_core.evaluation.linear import LinearResult
from dino_core.evaluation.low_shot import LowShotResult
from dino_core.evaluation.masks import Truth, find_masks
from dino_core.evaluation.passes import Passing
from dino_core.evaluation.report import mask_cards, opening
from dino_core.evaluation.report import page as pages
from dino_core.evaluation.report.board import board_of
from dino_core.evaluation.report.protocols import PROTOCOLS
from dino_core.evaluation.report.terminal import written
from dino_core.evaluation.report.values import confusions
from dino_core.evaluation.retrieval import RetrievalResult
from dino_core.evaluation.unlabeled import MEASURES, UnlabeledResult
from dino_core.evaluation.video import VideoResult
from dino_core.gallery.images import source_hash
from dino_core.gallery.progress import silent
from dino_core.lenses import attention as lens
from dino_core.models import Model, ModelInfo, create_backbone

VOID_TAGS = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """A page's tags, attributes and text; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        text = text.replace("<wbr>", "")  # where a name may break
        self.raw, self.open, self.tags, self.words, self.images = text, [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def pixels(self) -> list[np.ndarray]:
        """Of each picture, uint8 [H, W, 3]."""
        coded = [one["src"].removeprefix("data:image/jpeg;base64,") for one in self.images]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in coded]


@pytest.fixture
def made(tmp_path):
    """made(*results) -> the page; each a dict, written as the script would."""

    def make(*results) -> Page:
        files = write(tmp_path, *results)
        return Page(report.build(files, tmp_path / "page.html", device="cpu").read_text("utf-8"))

    return make


def write(folder: Path, *results) -> list[Path]:
    files = [folder / f"{n}.json" for n in range(len(results))]
    for path, result in zip(files, results, strict=True):
        path.write_text(json.dumps(result))
    return files


def knn(model="a", top1=50.0, test_hash="t", twin=40.0, **other):
    """As `KnnResult.as_dict` has it, of data that are nowhere."""
    values = {
        "protocol": "knn", "top1": top1, "top5": 90.0, "k": 10,
        "per_k": {"10": {"top1": top1, "top5": 90.0}, "20": {"top1": 44.4, "top5": 89.0}},
        "per_class": {"cat": 60.0, "dog": 40.0}, "confusions": [["cat", "dog", 3]],
        "model": model, "model_hash": f"hash of {model}", "train": "nowhere/train",
        "train_hash": "r", "test": "nowhere/val", "test_hash": test_hash, "train_images": 20,
        "test_images": 10, "temperature": 0.07, "notes": [], "pixels": None,
    }  # fmt: skip
    values["random_init"] = None if twin is None else {**values, "top1": twin, "model": "untrained"}
    return values | other


def lines(*results, folder) -> list[str]:
    return report.table(write(folder, *results)).splitlines()


def cells(*results, folder) -> list[list[str]]:
    """The table for a terminal in words."""
    return [line.split() for line in lines(*results, folder=folder)]


def test_the_same_data_share_a_column(tmp_path):
    many = {"per_class": {f"{n}": 50.0 for n in range(6)}}
    told = cells(knn("a", 50.0, **many), knn("b", 55.25, **many), folder=tmp_path)
    head, title, top1, top5 = told
    assert head == ["a", "untrained", "b", "untrained"]
    assert title == ["k-NN", "accuracy:", "nowhere/val,", "temperature", "0.07"]
    assert top1 == ["top-1,", "%", "50.0", "40.0", "55.2", "40.0"]
    assert top5 == ["top-5,", "%", "90.0", "90.0", "90.0", "90.0"]


def test_other_data_get_a_column_of_their_own(tmp_path):
    told = cells(knn("a"), knn("b", test_hash="other", twin=None), folder=tmp_path)
    assert [line[2:] for line in told if line[0] == "top-1,"] == [
        ["50.0", "40.0", "-"],
        ["-", "-", "50.0"],
    ]


def test_other_settings_get_a_column_that_says_so(tmp_path):
    told = lines(knn(temperature=0.07), knn(temperature=0.1), folder=tmp_path)
    assert [line for line in told if line.startswith("k-NN")] == [
        "k-NN accuracy: nowhere/val, temperature 0.07",
        "k-NN accuracy: nowhere/val, temperature 0.1",
    ]


def test_shares_become_percent_and_decimals_of_none_are_left_out(tmp_path):
    video = {"protocol": "video", "model": "a", "data": "d", "jf_mean": 0.618, "j_mean": None}
    told = cells(video, folder=tmp_path)
    assert told[2:] == [["J&F,", "%", "61.8"]]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), True, "50", [50.0], None])
def test_what_is_no_finite_number_is_no_figure(tmp_path, odd):
    told = lines(knn(top1=odd), folder=tmp_path)
    assert not [line for line in told if "50.0" in line.split()]
    said = "0.json: top1 is no finite number, so it is left out"
    assert [line for line in told if "finite" in line] == ([] if odd is None else [said])


def test_a_figure_of_the_twin_that_is_no_number_is_said_too(tmp_path):
    told = lines(knn(twin="40"), folder=tmp_path)
    assert told[-1] == "0.json: random_init/top1 is no finite number, so it is left out"


def test_the_same_model_twice_counts_once_and_is_said(tmp_path):
    told = lines(knn(top1=50.0), knn(top1=51.0), folder=tmp_path)
    assert told[2].split()[2] == "51.0"
    assert told[-1] == (
        "0.json and 1.json both hold k-NN accuracy of a: the figures of 1.json count"
    )


def test_of_two_files_the_twin_of_the_one_that_has_it_is_kept(tmp_path):
    raw = {"pixels": {"top1": 30.0}}
    told = cells(knn(top1=50.0, twin=40.0, **raw), knn(top1=51.0, twin=None), folder=tmp_path)
    assert told[0] == ["a", "untrained", "raw", "pixels"]
    assert told[2] == ["top-1,", "%", "51.0", "40.0", "30.0"]
    assert " ".join(told[-1]).endswith(
        "the figures of 1.json count; those of untrained and raw pixels are from 0.json"
    )
    told = cells(knn(top1=50.0, twin=40.0), knn(top1=51.0, twin=20.0), folder=tmp_path)
    assert told[2] == ["top-1,", "%", "51.0", "20.0"]


@pytest.mark.parametrize("classes", [5, 6])
def test_top_5_of_five_classes_is_no_figure(tmp_path, classes):
    """Whichever field says how many there are."""
    for values in (
        knn(per_class={f"{n}": 50.0 for n in range(classes)}),
        knn(classes=classes, per_class={}),
        knn(classes=[f"{n}" for n in range(classes)], per_class={}),
    ):
        told = "\n".join(lines(values, folder=tmp_path))
        assert ("top-5" in told) == (classes > 5)


def test_a_folder_stands_for_the_json_files_in_it(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(knn(name)))
    (tmp_path / "notes.txt").write_text("no figures")
    assert report.table([tmp_path]).split()[:3:2] == ["a", "b"]
    with pytest.raises(UserError, match="name another file"):
        report.build([tmp_path], tmp_path / "a.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: this folder holds no \.json file"):
        report.table([tmp_path / "empty"])


def test_a_page_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "whole_page", lambda *_: pytest.fail("pictures were made"))
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        report.build(write(tmp_path, knn()), tmp_path)


HEADINGS = [
    (knn(), "k-NN accuracy: nowhere/val, temperature 0.07"),
    (knn(test=None), "k-NN accuracy: temperature 0.07"),
    (knn(test=None, temperature=None), "k-NN accuracy"),
    ({"protocol": "linear", "epochs": 1, "views": 0, "standardized": False, "test": "d",
      "as_published": True}, "Linear accuracy: d, as published, 1 epoch, not standardized"),
    ({"protocol": "low-shot", "repeats": 5, "strength": 100.0, "k": 10, "seed": 0},
     "Low-shot accuracy: 5 draws, strength 100, k 10, seed 0"),
    ({"protocol": "attention", "data": "d", "keep": 0.6, "layer": -1, "size": 480},
     "Attention masks: d, keep 0.6, last layer, 480 px"),
    ({"protocol": "saliency", "map": "cut", "tau": 0.2, "size": None, "as_published": False},
     "Saliency: map cut, tau 0.2"),
    ({"protocol": "saliency", "map": "attention", "tau": 0.2}, "Saliency: map attention"),
    ({"protocol": "video", "size": 160, "settings": {"frames": 1, "radius": 12}},
     "Video segmentation: 160 px, 1 frame, radius 12"),
    ({"protocol": "copies", "whitening_dim": 64, "size": 224},
     "Copy detection: 224 px, whitened to 64 dimensions"),
    ({"protocol": "measures", "views": 2, "corruptions": ["a", "b", "c"], "severities": [1, 3]},
     "Measures without labels: 2 views, 3 corruptions, severities 1, 3"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), HEADINGS, ids=lambda one: str(one)[:40])
def test_settings_stand_in_every_heading(tmp_path, made, values, said):
    values = values | {"model": "a", "model_hash": "h"}
    assert lines(values, folder=tmp_path)[1] == said
    (heading,) = re.findall(r"<section id='part-0'><h2>(.*?)</h2>", made(values).raw)
    title, _, rest = said.partition(": ")
    assert heading == (f"{title}<span>{rest}</span>" if rest else title)


def test_settings_that_read_alike_are_told_in_full(tmp_path):
    one = {"protocol": "measures", "model": "a", "corruptions": ["a", "b", "c"]}
    told = lines(one, one | {"corruptions": ["a", "b", "d"]}, folder=tmp_path)
    assert told[1:] == [f"Measures without labels: corruptions a, b, {last}" for last in ("c", "d")]
    linear = {"protocol": "linear", "model": "a", "as_published": True}
    told = lines(linear, linear | {"as_published": False}, folder=tmp_path)
    assert told[1:] == ["Linear accuracy: as published", "Linear accuracy: as published no"]


def test_measures_are_called_as_in_their_own_table(tmp_path):
    values = {"protocol": "measures", "model": "a"} | {one.field: 0.5 for one in MEASURES}
    told = lines(values, folder=tmp_path)[2:]
    for one, line in zip(MEASURES, told, strict=True):
        better = {1: "higher is better", -1: "lower is better"}[one.better]
        assert " ".join(line.split()) == f"{one.title}, {better} {one.scale * 0.5:{one.form}}"


def test_two_models_of_one_name_are_told_apart(tmp_path):
    told = lines(knn(model_hash="11112222333"), knn(model_hash="44445555666"), folder=tmp_path)
    assert "a (11112222)" in told[0] and "a (44445555)" in told[0]


def test_an_unknown_protocol_shows_its_numbers(tmp_path, made):
    luck = {"protocol": "star-gazing", "model": "a", "luck": 0.25, "name": "x", "lucky": True}
    assert [" ".join(line) for line in cells(luck, folder=tmp_path)[1:]] == [
        "Star gazing",
        "luck 0.250",
    ]
    assert "Star gazing" in made(luck).text


RESULTS = {
    "knn": KnnResult,
    "linear": LinearResult,
    "low-shot": LowShotResult,
    "attentive": AttentiveResult,
    "attention": attention.AttentionResult,
    "objects": objects.ObjectsResult,
    "saliency": saliency.SaliencyResult,
    "video": VideoResult,
    "retrieval": RetrievalResult,
    "copies": CopiesResult,
    "measures": UnlabeledResult,
}


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_figures_and_settings_are_fields_of_the_results(name):
    known = {field.name for field in dataclasses.fields(RESULTS[name])}
    assert {figure.path[0] for figure in PROTOCOLS[name].figures} <= known
    assert set(PROTOCOLS[name].settings) <= known


def rows(page: Page, kind: str) -> list[str]:
    return re.findall(rf"<tr class='{kind}'>.*?</tr>", page.raw)


def test_the_best_of_a_column_is_marked_and_a_single_model_is_not(made):
    first, second = rows(made(knn("a", 50.0), knn("b", 55.0)), "model")
    assert "<b class='best'>55.0</b>" in second and "class='best'>50.0" not in first
    (alone,) = rows(made(knn("a", 50.0)), "model")
    assert "best" not in alone


def test_an_untrained_twin_that_wins_does_not_go_unsaid(made):
    (row,) = rows(made(knn(top1=50.0, twin=52.5)), "model")
    assert "<small class='down'>-2.5</small>" in row
    (row,) = rows(made(knn(top1=50.0, twin=40.0)), "model")
    assert "<small class='up'>+10.0</small>" in row


def remarks(page: Page) -> list[str]:
    found = re.findall(r"<div class='remark'>(.*?)</div>", page.raw)
    return [one for box in found for one in re.findall(r"<p>(.*?)</p>", box)]


MASKED = {"protocol": "attention", "data": "d", "model": "a", "jaccard": 0.2}


def test_a_model_behind_its_untrained_twin_is_said_in_words(made, tmp_path):
    better = MASKED | {"random_init": {"jaccard": 0.312}}
    where = "a is behind its untrained twin in Attention masks (IoU 20.0 against 31.2 %)."
    on_masks = report.board.MEANING[True]
    assert remarks(made(better, knn("b", 50.0, twin=40.0))) == [where, on_masks]
    assert lines(better, folder=tmp_path)[-2:] == [where, on_masks]
    worse = knn("b", 39.9, twin=40.0)
    assert remarks(made(better, worse, better | {"data": "other"})) == [
        f"{where[:-1]}, Attention masks (IoU 20.0 against 31.2 %).",
        "b is behind its untrained twin in k-NN accuracy (top-1 39.9 against 40.0 %).",
        on_masks,
        report.board.MEANING[False],
    ]


def test_a_model_level_with_its_twin_or_without_one_gets_no_remark(made):
    assert not remarks(made(knn(top1=40.0, twin=40.0), MASKED))
    measures = {"protocol": "measures", "model": "a", "rankme": 3.0, "random_init": {"rankme": 9.0}}
    assert not remarks(made(measures)), "RankMe orders nothing"


def few(*cells_, twin=(), **other):
    """Low-shot figures: (labels, images, top-1, deviation) of a model and its twin."""
    sides = [
        {name: {"top1": top1, "top1_deviation": by, "images": n} for name, n, top1, by in side}
        for side in (cells_, twin)
    ]
    values = {"protocol": "low-shot", "model": "a", "test": "d", "labels": sides[0]}
    return values | {"random_init": {"labels": sides[1]}} | other


AHEAD = [("5 a class", 15, 50.0, 1.0), ("10 a class", 30, 60.0, 1.0)]
AFTER = [("5 a class", 15, 40.0, 1.0), ("10 a class", 30, 40.0, 1.0)]


def test_within_the_larger_deviation_no_model_is_behind(made):
    same = [("1 a class", 3, 34.0, 4.2), ("1 %", 3, 34.0, 4.2)]
    page = made(few(*same, twin=[("1 a class", 3, 35.3, 2.5), ("1 %", 3, 35.3, 2.5)]))
    assert not remarks(page)
    assert "<small class='level'>-1.3</small>" in page.raw and "class='down'" not in page.raw
    page = made(few(*same, twin=[("1 a class", 3, 38.3, 2.5)]))
    assert remarks(page)[0].endswith(" (with 1 label a class 34.0 against 38.3 %).")


def test_the_same_labels_count_once_and_most_figures_decide_what_is_said(made):
    behind = [("1 a class", 3, 30.0, 1.0), ("1 %", 3, 30.0, 1.0)]
    twin = [("1 a class", 3, 39.0, 1.0), ("1 %", 3, 39.0, 1.0)]
    where = "a is behind its untrained twin in Low-shot accuracy (with 1 label a class 30.0"
    assert remarks(made(few(*behind, *AHEAD, twin=[*twin, *AFTER]))) == [
        f"{where} against 39.0 %)."
    ]
    only = remarks(made(few(*behind, AHEAD[0], twin=[*twin, AFTER[0]])))
    assert len(only) == 1, "one is ahead, one is behind: no more is said"
    more = [("2 a class", 6, 30.0, 1.0), ("10 % of labels", 9, 30.0, 1.0)]
    others = [("2 a class", 6, 39.0, 1.0), ("10 % of labels", 9, 39.0, 1.0)]
    said = remarks(made(few(*behind, *more, AHEAD[0], twin=[*twin, *others, AFTER[0]])))
    assert "; with 2 labels a class 30.0 against 39.0 %; with 10 % of labels" in said[0]
    assert said[1:] == [report.board.MEANING[False]]


def test_few_models_with_many_figures_are_turned(made):
    many = few(*[(f"{n} a class", n, 50.0 + n, 1.0) for n in range(1, 8)])
    page = made(many, many | {"model": "b"})
    assert "class='board turned'" in page.raw
    heads = re.findall(r"<th scope='col' class='model edge'>(.*?)</th>", page.raw)
    assert heads == ["a", "b"]
    (line,) = re.findall(r"<tr><th scope='row'>3 a class .*?</tr>", page.raw)
    assert line.count("<b class='best'>53.0</b><small>± 1.0</small>") == 2
    assert "turned'" not in made(*(many | {"model": name} for name in "abcde")).raw
    assert "turned'" not in made(knn()).raw


def test_measures_without_labels_order_no_models(made):
    one = {"protocol": "measures", "data": "d", "rankme": 9.0, "model": "a"}
    page = made(one, one | {"model": "b", "rankme": 30.0})
    assert "30.0" in rows(page, "model")[1] and "best" not in "".join(rows(page, "model"))


def imagenet(**other):
    classes = {f"n{i:04}": i / 10 for i in range(1000)}
    return knn(train_images=1_281_167, test_images=50_000, per_class=classes, **other)


def test_published_figures_stand_beside_ours_on_the_same_data_alone(made, tmp_path):
    near, far = made(imagenet()), made(knn())
    assert [row for row in rows(near, "published") if "ViT-S/16, DINO<" in row and "74.5" in row]
    assert "published, on ImageNet" not in near.text
    assert not rows(far, "published")
    assert "k-NN accuracy: published, on ImageNet" in far.text and "74.5" in far.text
    for page in (near, far):
        assert "README of the published code, facebookresearch/dino" in page.text
    told = "\n".join(lines(imagenet(), folder=tmp_path))
    assert "published on ImageNet: ViT-S/16, DINO: top-1 74.5 %" in told


def test_published_figures_of_other_settings_stand_apart_and_say_so(made, tmp_path):
    page = made(imagenet(temperature=0.1))
    assert not rows(page, "published")
    said = "measured with other settings: temperature 0.07 (here 0.1)"
    assert page.text.count(said) == 2  # below the table, and where the figures stand
    (apart,) = re.findall(r"<section class='published'.*?</section>", page.raw)
    assert said in apart and "published, on ImageNet" in apart and "74.5" in apart
    told = lines(imagenet(temperature=0.1), folder=tmp_path)
    assert any(line.endswith(said) for line in told)
    assert any("ViT-S/16, DINO: top-1 74.5 %" in line for line in told)


def test_published_figures_stand_beside_the_group_with_their_settings_alone(made):
    page = made(imagenet(), imagenet(model="b", temperature=0.1))
    (row,) = [row for row in rows(page, "published") if "ViT-S/16, DINO<" in row]
    assert re.findall(r"<td[^>]*>(?:<b>)?([\d.]*)", row) == ["74.5", "", "", ""]
    assert page.text.count("measured with other settings") == 1  # nothing stands apart


def test_one_model_with_other_settings_is_enough(made):
    """What is not parted by columns: the number of neighbors."""
    assert rows(made(imagenet(), imagenet(model="b", k=20)), "published")
    page = made(imagenet(), imagenet(model="b", k=5))
    assert not rows(page, "published") and "k of 10, 20, 100 or 200 (here 5)" in page.text


def test_of_many_classes_the_best_and_the_worst_are_shown(made):
    page = made(imagenet(twin=None))
    shown = re.findall(r"<span title='(n\d+)'>", page.raw)
    assert shown == [f"n{i:04}" for i in [*range(999, 979, -1), *range(19, -1, -1)]]
    assert "960 more between" in page.text


def test_shares_of_mistakes_without_the_data(made):
    page = made(knn(top1=40.0, test_images=10, confusions=[["cat", "dog", 3]]))  # 6 mistakes
    assert "3 images, 50% of all mistakes" in page.text
    assert "no pictures: nowhere/val is not here; put it back and build the page" in page.text
    assert "<h4>Most confused classes</h4>" in page.raw, "a title that promises no pictures"


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "JSON"), ("[]", "holds no figures"), ('{"protocol": "knn"}', "holds no figures"),
     ('{"protocol": 3, "model": "a"}', "holds no figures")],
)  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, content, said):
    (tmp_path / "mine.json").write_text(content)
    for call in (lambda files: report.table(files), lambda f: report.build(f, tmp_path / "x.html")):
        with pytest.raises(UserError, match=said) as caught:
            call([tmp_path / "mine.json"])
        assert "mine.json" in str(caught.value)
        assert not re.search(r"line \d|codec|Errno", str(caught.value))
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x89PNG", b"[" * 100_000])
def test_what_is_no_text_or_has_no_end_is_refused_too(tmp_path, content):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.json: cannot be read as JSON; name files"):
        report.table([tmp_path / "mine.json"])


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="no figures given"):
        report.table([])
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        report.table([tmp_path / "gone.json"])
    files = write(tmp_path, knn())
    before = files[0].read_bytes()
    with pytest.raises(UserError, match="name another file"):
        report.build(files, files[0])
    assert files[0].read_bytes() == before


# Any field may be missing or another thing

EVERY = [
    knn(),
    {"protocol": "low-shot", "model": "a", "test": "d", "notes": ["n"], "random_init": None,
     "labels": {"1 %": {"top1": 20.0, "top1_deviation": 1.5, "knn": 18.0, "knn_deviation": 1.0}}},
    {"protocol": "attention", "model": "a", "data": "d", "masks": "m", "jaccard": 0.4,
     "per_head": [0.1, 0.2], "images_scored": [["x.jpg", 0.5], ["y.jpg", 0.1]], "notes": []},
    {"protocol": "video", "model": "a", "data": "d", "jf_mean": 0.5,
     "per_sequence": [{"name": "v", "j": 0.5, "f": 0.25}], "random_init": {"per_sequence": []}},
    {"protocol": "retrieval", "model": "a", "data": "d", "map_medium": 30.0, "answers": [
        {"query": "q", "ap_medium": 5.0, "first_wrong": "w", "first_wrong_rank": 2}]},
    {"protocol": "copies", "model": "a", "data": "d", "originals": "o", "map": 80.0, "answers": [
        {"copy": "c", "originals": ["o"], "ap": 5.0, "rank": None, "first_wrong": "w",
         "is_distractor": True}]},
    {"protocol": "measures", "model": "a", "data": "d", "rankme": 4.0, "overlap": {"b": 0.5},
     "robustness": [{"corruption": "jpeg", "retrieval": 0.5}], "notes": []},
]  # fmt: skip


@pytest.mark.parametrize("whole", EVERY, ids=lambda one: one["protocol"])
def test_a_file_that_lacks_anything_is_shown_as_far_as_it_goes(tmp_path, whole):
    garbage = [None, "text", 3, [3, None], {"a": [None]}, [{"a": 1}], [["x", "y"]]]
    for name in whole.keys() - {"protocol", "model"}:
        for values in [{k: v for k, v in whole.items() if k != name}] + [
            whole | {name: odd} for odd in garbage
        ]:
            board = board_of(write(tmp_path, values))
            Page(pages.whole_page(board, "cpu", silent))
            assert written(board)


HOSTILE = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)>&amp;{{table}}"


def hostile(value):
    """`value` with every text in it, keys of data included, made an attack."""
    if isinstance(value, dict):
        return {
            key if key in FIELDS else f"{key}{HOSTILE}": one if key == "protocol" else hostile(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


FIELDS = {key for one in EVERY for key in one} | {
    "name", "j", "f", "top1", "top1_deviation", "knn", "knn_deviation", "query", "ap_medium",
    "first_wrong", "first_wrong_rank", "copy", "ap", "rank", "is_distractor", "corruption",
    "retrieval", "pixels",
}  # fmt: skip


def test_whatever_a_file_says_is_text_on_the_page(made):
    unknown = {"protocol": HOSTILE, "model": HOSTILE, HOSTILE: 3.0, "data": HOSTILE}
    page = made(*(hostile(one) for one in [knn(), *EVERY]), unknown)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not page.images
    assert page.raw.count("<table class='figures'>") == 1, "a text was taken for a field"
    assert page.text.count("<script>alert('1')</script>") > 40


def test_a_page_asks_for_nothing(made):
    page = made(*EVERY)
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    assert not re.search(r"url\(|@import|https?:|<link|<script", page.raw)
    targets = {attrs["href"][1:] for _, attrs in page.tags if "href" in attrs}
    assert targets <= {attrs["id"] for _, attrs in page.tags if "id" in attrs}


# Pictures

COLORS = {"blue": (20, 40, 230), "green": (30, 200, 40), "red": (230, 30, 20)}


@pytest.fixture
def colored(tmp_path):
    """A folder with a class of each color, and figures of it."""
    for name, color in COLORS.items():
        (tmp_path / "val" / name).mkdir(parents=True)
        for n in range(6):
            Image.new("RGB", (40, 30), color).save(tmp_path / "val" / name / f"{n}.png")
    return judged_anew(tmp_path / "val")


def judged_anew(folder: Path, **other):
    source = open_source(folder)
    wrong = {"confusions": [["red", "blue", 3]]}
    values = wrong | {"test": source.spec, "test_hash": source_hash(source)}
    return source, knn(**values | other)


def means(page: Page) -> np.ndarray:
    return np.array([picture.mean((0, 1)) for picture in page.pixels()])


def test_confused_classes_are_shown_with_their_own_images(colored, made):
    page = made(colored[1])
    expected = [COLORS["red"]] * 4 + [COLORS["blue"]] * 4
    np.testing.assert_allclose(means(page), expected, atol=6)
    assert "3 images, 50% of red" in page.text
    assert "Most confused classes, with examples of each" in page.text
    assert "examples of red" in page.text and "examples of blue" in page.text
    assert "no pictures" not in page.text
    assert not [one for one in page.images if "loading" in one], "a print would lack what is late"


def test_the_images_that_were_confused_are_shown_where_they_are_known(tmp_path, colored, made):
    for name, gray in (("red/2.png", 60), ("red/4.png", 190)):  # unlike all others of their class
        Image.new("RGB", (40, 30), (gray,) * 3).save(tmp_path / "val" / name)
    wrong = ["red", "blue", 2, ["red/4.png", "red/2.png"]]
    page = made(judged_anew(tmp_path / "val", confusions=[wrong])[1])
    expected = [(190,) * 3, (60,) * 3] + [COLORS["blue"]] * 4
    np.testing.assert_allclose(means(page), expected, atol=6)
    assert [one["alt"] for one in page.images[:2]] == [
        "red/4.png, taken for blue",
        "red/2.png, taken for blue",
    ]
    assert "images that were mistaken, above examples of what they were taken for" in page.text
    assert "red, taken for blue" in page.text and "examples of blue" in page.text


def test_confusions_are_read_as_protocols_write_them():
    wrong = Confusion("a", "b", 7, ["a/1.jpg"])
    read = confusions(json.loads(json.dumps([wrong, wrong[:3], wrong[:2], [1, "b", 2, []]])))
    assert read == [wrong, (*wrong[:3], [])]


def test_a_class_that_only_train_has_is_shown_from_there(tmp_path, colored, made):
    (tmp_path / "train" / "violet").mkdir(parents=True)
    (tmp_path / "train" / "red").mkdir()
    Image.new("RGB", (40, 30), (130, 10, 130)).save(tmp_path / "train" / "violet" / "v.png")
    Image.new("RGB", (40, 30), COLORS["red"]).save(tmp_path / "train" / "red" / "r.png")
    train = open_source(tmp_path / "train")
    known = {"train": train.spec, "train_hash": source_hash(train)}
    wrong = ["red", "violet", 1, ["red/0.png"]]
    page = made(judged_anew(tmp_path / "val", confusions=[wrong], **known)[1])
    np.testing.assert_allclose(means(page), [COLORS["red"], (130, 10, 130)], atol=6)


@pytest.mark.parametrize("ids", [["gone.png"], ["../secret.png"], [3], []])
def test_ids_that_the_data_lacks_show_nothing(colored, made, ids):
    values = colored[1] | {"confusions": [["red", "blue", 3, ids]]}
    page = made(values)
    assert "red, taken for blue" not in page.text
    assert len(page.images) == (4 if ids not in ([], [3]) else 8)  # no id: as in older files


@pytest.mark.parametrize("changed", ["one", "hash", "no hash"])
def test_of_data_that_changed_since_nothing_is_read(tmp_path, colored, made, changed, monkeypatch):
    source, values = colored
    if changed == "one":
        Image.new("RGB", (40, 31), (0, 0, 0)).save(source.path(0))
    else:
        values |= {"test_hash": "other" if changed == "hash" else None}
    monkeypatch.setattr(type(source), "image", lambda *_: pytest.fail("an image was read"))
    page = made(values)
    differ = f"no pictures: names, sizes or dates of files in {source.spec} differ from when"
    said = f"do not say by which hash {source.spec} is" if changed == "no hash" else differ
    assert not page.images and said in page.text


def test_what_pictures_lack_is_told_once_for_each_protocol(tmp_path, capsys):
    values = [knn(test=str(tmp_path / "gone")), knn("b", test=str(tmp_path / "gone"))]
    told = []
    files = write(tmp_path, *values, {"protocol": "measures", "model": "a", "rankme": 1.0})
    report.build(files, tmp_path / "p.html", tell=told.append)
    gone = f"{tmp_path / 'gone'} is not here; put it back and build the page again"
    assert told == [f"no pictures for k-NN accuracy: {gone}"]
    report.build(files, tmp_path / "p.html")
    assert capsys.readouterr().err.splitlines() == told


def test_an_image_that_cannot_be_read_is_left_out(tmp_path, colored, made):
    (tmp_path / "val" / "red" / "0.png").write_bytes(b"no image")
    assert len(made(judged_anew(tmp_path / "val")[1]).images) == 7


def test_each_data_set_is_looked_at_once_and_says_how_far_that_is(colored, tmp_path, monkeypatch):
    source, values = colored
    opened, told = [], []
    monkeypatch.setattr(opening, "open_source", lambda spec: opened.append(spec) or source)
    files = write(tmp_path, values, values | {"model": "b"}, values | {"model": "c"})
    report.build(files, tmp_path / "p.html", progress=lambda *step: told.append(step))
    assert opened == [source.spec]
    checked = [(done, total) for done, total, what in told if what == f"Checking {source.spec}"]
    assert checked == [(0, 1)] + [(n, 18) for n in range(1, 19)]
    assert told[-1] == (3, 3, "Report")


def test_pictures_are_bounded_and_what_is_left_out_is_said(colored, made, monkeypatch):
    whole = made(colored[1])
    monkeypatch.setattr(pages, "BYTES", sum(len(one["src"]) for one in whole.images) // 2)
    half = made(colored[1])
    assert 0 < len(half.images) < 8
    assert sum(len(one["src"]) for one in half.images) <= pages.BYTES + 40 * len(half.images)
    assert "further pictures are left out" in half.text
    assert "nowhere/train" not in " ".join(re.findall(r"<li>(.*?)</li>", half.raw)), "not asked for"


def test_cards_without_pictures_leave_their_room_to_others(colored, made, monkeypatch):
    values = colored[1]
    needed = sum(len(one["src"]) for one in made(values).images)
    monkeypatch.setattr(pages, "BYTES", needed)
    without = [one for one in EVERY if one["protocol"] in ("low-shot", "video", "measures")]
    assert len(made(values, *without).images) == 8
    gone = values | {"model": "b", "test": "nowhere", "test_hash": "n"}
    assert len(made(values, gone).images) < 8, "its card might have needed the other half"
    assert len(made(gone, values).images) == 8, "it took nothing"


def test_the_whole_page_stays_below_its_bound():
    assert pages.BYTES < 4_000_000  # and a card without pictures takes some 10 kB


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(3)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    backbone = create_backbone(ModelInfo("vit_tiny_patch16_224", 8, 64, options=options))
    with torch.no_grad():
        for block in backbone.vit.blocks:
            block.attn.qkv.weight.mul_(8)  # heads that are not flat
    return Model(backbone, "tiny", torch.device("cpu"))


@pytest.fixture
def loaded(model, monkeypatch):
    """`load_model` gives the small model, whatever it is asked for."""
    monkeypatch.setattr(opening, "load_model", lambda spec, device: model)
    return model


def judged(protocol, model, name, data="scenes:2", **how):
    how |= {"random_init": False, "passing": Passing(workers=0)}
    size = {} if how.get("as_published") else {"size": 64}
    result = protocol.evaluate(model, open_source(data), **size, **how)
    return {"protocol": name} | json.loads(json.dumps(result.as_dict()))


@pytest.mark.parametrize(
    ("protocol", "name", "how"),
    [(attention, "attention", {"layer": 0}), (objects, "objects", {}),
     (saliency, "saliency", {"map": "cut"}), (saliency, "saliency", {"map": "attention"}),
     (saliency, "saliency", {"map": "eigenvector"}),
     (objects, "objects", {"as_published": True}),
     (saliency, "saliency", {"map": "cut", "as_published": True})],
)  # fmt: skip
def test_masks_drawn_are_those_that_were_scored(model, protocol, name, how):
    values, source = judged(protocol, model, name, **how), open_source("scenes:2")
    require_drawn_as_scored(model, name, values, source, find_masks(source, None))


def require_drawn_as_scored(model, name, values, source, masks):
    for id, score in values["images_scored"]:
        i = list(source.ids).index(id)
        image = source.image(i)
        truth = masks.truth(i, image.shape[:2])
        found = mask_cards.COVERS[name](model, image, truth, values)
        object, counts = truth.labels == 1, truth.labels != 255
        both, either = found & object, (found | object) & counts
        # a level of 1/255 beside one half may fall on either side
        assert both.sum() / either.sum() == pytest.approx(score, abs=0.02)


@pytest.fixture
def void(tmp_path):
    """A folder of scenes, and one of palette masks: 1 is the object, 255 a void frame around all.

    The frame is a fifth of a side: heads that fit it best are others than the object's.
    """
    source = open_source("scenes:2")
    for i in range(2):
        labels = source.mask(i).astype(np.uint8)
        edge = min(labels.shape) // 5
        frame = np.pad(np.zeros(np.subtract(labels.shape, 2 * edge), bool), edge, constant_values=1)
        labels[frame] = 255
        Image.fromarray(source.image(i)).save(folder(tmp_path / "images") / f"{i}.png")
        write_labels(folder(tmp_path / "masks") / f"{i}.png", labels)
    return tmp_path / "images", tmp_path / "masks"


@pytest.mark.parametrize(
    ("protocol", "name", "how"),
    [(attention, "attention", {"layer": 0}), (attention, "attention", {"keep": 0.3}),
     (objects, "objects", {}), (saliency, "saliency", {"map": "cut"})],
)  # fmt: skip
def test_void_is_no_object_where_masks_are_drawn(model, void, protocol, name, how):
    images, where = void
    values, source = judged(protocol, model, name, images, masks=where, **how), open_source(images)
    assert values.get("objects", 2) == 2
    require_drawn_as_scored(model, name, values, source, find_masks(source, where))


def test_the_head_drawn_is_the_best_of_the_pixels_that_count(model, monkeypatch):
    labels = np.array([[1, 1, 255, 255, 255, 255, 0, 0]])
    heads = np.array([[[1, 0, 0, 0, 0, 0, 0, 0]], [[1, 1, 1, 1, 1, 1, 0, 0]]]) > 0  # half; and void
    monkeypatch.setattr(mask_cards, "look", lambda *_, **__: SimpleNamespace(maps=[heads]))
    monkeypatch.setattr(mask_cards, "mass_mask", lambda maps, keep: maps)
    image = np.zeros((1, 8, 3), np.uint8)
    found = mask_cards.COVERS["attention"](model, image, Truth(labels, labels != 255), {})
    np.testing.assert_array_equal(found, heads[1])


def test_masks_of_an_image_too_long_for_the_size_are_drawn_as_scored(model, tmp_path, monkeypatch):
    monkeypatch.setattr(lens, "MAX_TOKENS", 28 * 28)  # the default of a square
    draw = np.random.default_rng(5)
    for name, width in (("long", 832), ("square", 64)):
        photo, labels = draw.integers(0, 256, (64, width, 3), np.uint8), np.zeros((64, width))
        labels[20:50, 10:40] = 1
        Image.fromarray(photo).save(folder(tmp_path / "images") / f"{name}.png")
        write_labels(folder(tmp_path / "masks") / f"{name}.png", labels.astype(np.uint8))
    images, where = tmp_path / "images", tmp_path / "masks"
    values, source = judged(attention, model, "attention", images, masks=where), open_source(images)
    assert len(values["images_scored"]) == 2 and values["size"] == 64
    require_drawn_as_scored(model, "attention", values, source, find_masks(source, where))


def test_void_is_not_outlined(model, void, loaded, made, monkeypatch):
    images, where = void
    values = judged(attention, model, "attention", images, masks=where)
    outlined = []
    drawn = mask_cards.covered
    monkeypatch.setattr(
        mask_cards, "covered", lambda *args: outlined.append(args[2]) or drawn(*args)
    )
    shown = [one["alt"] for one in made(values).images]
    assert len(shown) == len(outlined) == 2
    labels = [np.asarray(Image.open(where / name)) for name in shown]
    for mask, label in zip(outlined, labels, strict=True):
        np.testing.assert_array_equal(mask, label == 1)


@pytest.fixture(scope="module")
def scored(model):
    """Figures of attention on four images."""
    return judged(attention, model, "attention", data="scenes:4")


def test_covered_is_tinted_the_rest_is_gray_and_objects_are_outlined():
    photo = np.full((40, 40, 3), (200, 100, 50), np.uint8)
    found, truth = np.zeros((2, 2), bool), np.zeros((40, 40), bool)
    found[0], truth[10:30, 10:30] = True, True
    drawn = mask_cards.covered(photo, found, truth).astype(int)
    assert np.ptp(drawn[38, 38]) == 0 and drawn[38, 38, 0] < 60  # gray, dark
    assert np.ptp(drawn[2, 2]) > 10 and drawn[2, 2].mean() > 100
    assert tuple(drawn[10, 20]) == mask_cards.TRUE == tuple(drawn[29, 20])


def test_best_and_worst_masks_are_shown(loaded, made, scored):
    page = made(scored)
    ordered = sorted(scored["images_scored"], key=lambda one: -one[1])
    assert [one["alt"] for one in page.images] == [
        *(name for name, _ in ordered[:2]),
        *(name for name, _ in ordered[::-1][:2]),
    ]
    assert f"{100 * ordered[0][1]:.1f}" in page.text


def test_the_worst_masks_have_their_share_of_the_room(loaded, made, monkeypatch, scored):
    whole = made(scored)
    sizes = [len(one["src"]) for one in whole.images]
    monkeypatch.setattr(pages, "BYTES", sizes[0] + sizes[2])  # of two best, two worst
    half = made(scored)
    assert [one["alt"] for one in half.images] == [whole.images[n]["alt"] for n in (0, 2)]
    assert "further pictures are left out" in half.text
    assert whole.images[3]["alt"] not in re.sub(r"<li>.*?</li>", "", half.raw)


def test_another_model_of_that_name_draws_no_masks(loaded, made, scored):
    page = made(scored | {"model_hash": "other"})
    assert not page.images and "is not the model any more that was judged" in page.text


@pytest.mark.parametrize("odd", [{"layer": 99}, {"size": 10**6}, {"size": -3}, {"keep": 9.0}])
def test_settings_that_cannot_be_are_no_end_of_the_report(loaded, made, odd, scored):
    assert "Best masks" in made(scored | odd).text


def test_missing_model_and_masks_are_said(made, tmp_path, loaded, monkeypatch, scored):
    page = made(scored | {"masks": str(tmp_path / "gone")})
    assert not page.images and f"no pictures: {tmp_path / 'gone'} is not here" in page.text

    def gone(spec, device):
        raise UserError(f"{spec}: no such model")

    monkeypatch.setattr(opening, "load_model", gone)
    assert "no pictures: tiny: no such model" in made(scored).text


def test_masks_that_changed_since_are_not_drawn(made, tmp_path, loaded):
    source = open_source("scenes:2")
    for i in range(2):
        Image.fromarray(source.image(i)).save(tmp_path / f"{i}.png")
        Image.fromarray(source.mask(i)).save(folder(tmp_path / "masks") / f"{i}.png")
    data, where = open_source(tmp_path), tmp_path / "masks"
    result = attention.evaluate(
        loaded, data, where, size=64, random_init=False, passing=Passing(workers=0)
    )
    values = {"protocol": "attention"} | json.loads(json.dumps(result.as_dict()))
    values["data_hash"] = source_hash(open_source(tmp_path))
    assert len(made(values).images) == 2
    Image.fromarray(~source.mask(0)).save(where / "0.png")
    os.utime(where / "0.png", (0, 0))
    values["data_hash"] = source_hash(open_source(tmp_path))  # masks lie among the images here
    page = made(values)
    assert not page.images and f"names, sizes or dates of files in {where} differ" in page.text


def folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


AFAR = ["hf:owner/name", " hf:owner/name", "torchvision:stl10", "TIMM:vit", "timm:vit_tiny",
        "https://example.org/a.tar"]  # fmt: skip


@pytest.mark.parametrize("spec", AFAR)
def test_nothing_is_fetched_for_pictures(made, monkeypatch, spec):
    for name in ("open_source", "load_model"):
        monkeypatch.setattr(opening, name, lambda *_, **__: pytest.fail("it was opened"))
    assert "only data on this machine is opened" in made(knn(test=spec)).text
    assert opening.Opening().model(spec, "any")[1].endswith("and weights files are opened")


def test_no_model_is_loaded_before_its_data_are_found(made, loaded, monkeypatch, scored):
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    assert not made(scored | {"data_hash": "other"}).images
    assert not made(scored | {"masks": "nowhere"}).images


def test_the_page_is_made_for_phones_and_for_the_night(made):
    page = made(*EVERY)
    named = {attrs.get("name"): attrs.get("content") for tag, attrs in page.tags if tag == "meta"}
    assert named["viewport"] == "width=device-width, initial-scale=1"
    assert named["color-scheme"] == "light dark" and "prefers-color-scheme: dark" in page.raw
    (board,) = [attrs for tag, attrs in page.tags if attrs.get("aria-label") == "All figures"]
    assert board["tabindex"] == "0" and board["class"] == "scroll"  # keys move it, too


@pytest.mark.soak
@pytest.mark.parametrize("most", [12, 1])  # an upright table, and one that is turned
def test_the_page_fits_a_phone_and_a_desk_by_day_and_by_night(page, tmp_path, colored, most):
    long = knn("runs/" + "long" * 30, confusions=[["x" * 80, "y" * 80, 3]], notes=["z" * 300])
    others = [knn(f"runs/{n}", test_hash=f"{n}") for n in range(most)]
    files = write(tmp_path, colored[1], long, *EVERY, *others)
    out = report.build(files, tmp_path / "page.html")
    page.set_content(out.read_text("utf-8"))
    for width in (390, 1280, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        left, hint = page.evaluate(SCROLLED)
        assert left == pytest.approx(0, abs=1.5), "the models stay in sight"
        if most == 1 and width > 390:
            assert not hint, "turned, all of it is in sight"
        else:
            assert "local" in hint and "scroll" in hint, "a shadow where there is more"
    for scheme, darker in (("light", 1), ("dark", -1)):
        page.emulate_media(color_scheme=scheme)
        ground, ink = page.evaluate(
            "(({backgroundColor, color}) => [backgroundColor, color])"
            "(getComputedStyle(document.body))"
        )
        light = [sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in (ground, ink)]
        assert darker * (light[0] - light[1]) > 150


# How far the first column is from the left of the table's window after that was moved.
SCROLLED = """() => {
  const area = document.querySelector('.board .scroll');
  area.scrollLeft = 200;
  const head = area.querySelector('tbody tr:not(.group) th').getBoundingClientRect().left;
  const shadows = getComputedStyle(area).backgroundAttachment;
  return [head - area.getBoundingClientRect().left, area.scrollLeft ? shadows : ''];
}"""
