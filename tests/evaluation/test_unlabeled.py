"""Judging without labels: each figure from the features by another way, and what they are not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.data import BadImage, Source, open_source
from dino_core.errors import UserError
from dino_core.evaluation import unlabeled
from dino_core.evaluation.corruptions import corrupt, key_of, middle_square
from dino_core.evaluation.passes import Passing
from dino_core.evaluation.unlabeled import Search, UnlabeledResult, evaluate
from dino_core.gallery import features_of
from dino_core.measures import neighbor_consistency
from dino_core.measures.rankme import rankme
from dino_core.models import Model, ModelInfo, create_backbone, untrained

TINY = ModelInfo(
    "vit_tiny_patch16_224", 16, 32, options={"depth": 1, "embed_dim": 24, "num_heads": 2}
)
COUNT = 14
HERE = Passing(batch_size=8, workers=0)


def tiny(seed: int, spec: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(create_backbone(TINY), spec, torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(1, "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    """Photograph-like and small, so that they are quickly read."""
    folder, scenes = tmp_path_factory.mktemp("pictures"), open_source(f"scenes:{COUNT}")
    for i in range(COUNT):
        Image.fromarray(scenes.image(i)).resize((90, 72)).save(folder / f"{i:02}.png")
    return open_source(folder)


@pytest.fixture(scope="module")
def result(model: Model, source: Source) -> UnlabeledResult:
    return evaluate(
        model, source, other=[tiny(2, "second"), tiny(3, "tiny")], views=3, k=4,
        corruptions=("gaussian_noise", "rotation"), severities=(5, 2), passing=HERE,
    )  # fmt: skip


def unit(model: Model, images: list[np.ndarray]) -> np.ndarray:
    """Features of images, one at a time."""
    with torch.inference_mode():
        found = [model.backbone(model.preprocess(image)[None])[0].numpy() for image in images]
    return np.stack([one / np.linalg.norm(one) for one in found])


def pairwise(features: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs of different rows."""
    return np.array(
        [
            float(((x - y) ** 2).sum())
            for i, x in enumerate(features.astype(float))
            for y in features[:i].astype(float)
        ]
    )


def squares(source: Source) -> list[np.ndarray]:
    return [middle_square(source.image(i)) for i in range(len(source))]


def test_rankme_is_of_features_as_they_are(model, source, result) -> None:
    with torch.inference_mode():
        raw = torch.stack(
            [model.backbone(model.preprocess(source.image(i))[None])[0] for i in range(COUNT)]
        )
    assert result.rankme == pytest.approx(rankme(raw), rel=1e-4)
    assert result.dim == 24 and result.images == COUNT


def test_uniformity_is_the_loop_over_pairs(model, source, result) -> None:
    squared = pairwise(features_of(model, source).array)
    assert result.uniformity == pytest.approx(np.log(np.exp(-2 * squared).mean()), abs=1e-5)
    assert result.uniformity_error == 0
    share = result.alignment / squared.mean()
    assert result.alignment_share == pytest.approx(share, rel=1e-3)


def test_alignment_is_the_mean_over_pairs_of_views(model, source, result) -> None:
    views = []  # they have the model's size, which its preprocessing would enlarge and cut
    for number in range(3):
        crops = [unlabeled.view(source.image(i), TINY, number, seed=0) for i in range(COUNT)]
        with torch.inference_mode():
            x_BCHW = torch.stack([model.normalize(crop.numpy()) for crop in crops])
            views.append(torch.nn.functional.normalize(model.backbone(x_BCHW)).numpy())
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([((views[a] - views[b]) ** 2).sum(1).mean() for a, b in pairs])
    assert result.alignment == pytest.approx(expected, rel=1e-3)


def test_overlap_with_each_other_model_and_the_untrained(model, source, result) -> None:
    own = features_of(model, source).array
    others = {
        "second": tiny(2, ""),
        "tiny (2)": tiny(3, ""),
        "untrained": untrained(model),
    }
    assert result.overlap.keys() == others.keys()
    for name, other in others.items():
        theirs = features_of(other, source).array
        assert result.overlap[name] == pytest.approx(neighbor_consistency(own, theirs, 4))
    assert result.overlap_by_chance == pytest.approx(4 / (COUNT - 1))
    assert result.random_init.overlap["tiny"] == result.overlap["untrained"]


def test_robustness_image_by_image(model, source, result) -> None:
    clean = unit(model, squares(source))
    between = 1 - pairwise(clean).mean() / 2
    expected = [("gaussian_noise", 2), ("gaussian_noise", 5), ("rotation", 2), ("rotation", 5)]
    assert [(one.corruption, one.severity) for one in result.robustness] == expected
    total = np.zeros(COUNT)
    for one in result.robustness:
        changed = unit(
            model,
            [corrupt(im, one.corruption, one.severity, index=key_of(im)) for im in squares(source)],
        )
        similarity = changed @ clean.T
        cosine = np.diagonal(similarity)
        total += cosine / 4
        assert one.cosine == pytest.approx(cosine.mean(), abs=1e-5)
        assert one.kept == pytest.approx((cosine.mean() - between) / (1 - between), abs=1e-3)
        again = similarity.argmax(axis=1) == np.arange(COUNT)
        assert one.retrieval == pytest.approx(again.mean())
    assert result.cosine == pytest.approx(total.mean(), abs=1e-5)
    assert result.retrieval == pytest.approx(np.mean([one.retrieval for one in result.robustness]))
    order = [source.ids[i] for i in np.argsort(total)]
    assert [one.id for one in result.moved_most] == order[: unlabeled.SHOWN]
    assert [one.id for one in result.moved_least] == order[::-1][: unlabeled.SHOWN]


def test_the_untrained_is_judged_by_the_same(model, source, result) -> None:
    alone = evaluate(
        untrained(model), source, corruptions=("gaussian_noise", "rotation"), severities=(2, 5),
        views=3, k=4, random_init=False, passing=HERE,
    )  # fmt: skip
    chance = result.random_init
    for name in ("rankme", "alignment", "uniformity", "cosine", "kept", "retrieval", "moved_most"):
        assert getattr(chance, name) == getattr(alone, name)
    assert (chance.model, alone.overlap, alone.random_init) == ("tiny (random init)", {}, None)


def test_where_the_untrained_is_ahead_is_said_in_the_words_of_the_table(result) -> None:
    chance = result.random_init
    told = [note for note in result.notes if note.startswith("The untrained backbone is ahead in")]
    ahead = told[0].partition(" ahead in ")[2].partition(":")[0].split(", ") if told else []
    assert ("alignment" in ahead) == (chance.alignment < result.alignment)
    assert ("alignment as a share" in ahead) == (chance.alignment_share < result.alignment_share)
    assert ("RankMe" in ahead) == (chance.rankme > result.rankme)
    assert ("uniformity" in ahead) == (chance.uniformity < result.uniformity)
    assert ("cosine after corruption" in ahead) == (chance.cosine > result.cosine)
    assert ("kept after corruption" in ahead) == (chance.kept > result.kept)
    assert ("% found again" in ahead) == (chance.retrieval > result.retrieval)
    assert 0 < len(ahead) < 7  # so that either side of these is met
    lines = result.table().splitlines()
    for title in ahead:
        assert [line for line in lines if line.startswith(f"{title}  ")]


def test_json_and_table(result) -> None:
    figures = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert figures["random_init"]["rankme"] == result.random_init.rankme
    assert figures["robustness"][0]["retrieval"] == result.robustness[0].retrieval
    lines = result.table().splitlines()
    assert lines[0].split() == ["tiny", "untrained"]
    again = [f"{100 * one.retrieval:.1f}" for one in (result, result.random_init)]
    assert ["%", "found", "again", *again] in map(str.split, lines)
    again = [100 * one.robustness[3].retrieval for one in (result, result.random_init)]
    assert ["rotation,", "5", *(f"{share:.1f}" for share in again)] in map(str.split, lines)
    assert f"{result.overlap['second']:.1%} of the 4 nearest neighbors are shared with second" in (
        lines
    )


def test_kept_passes_are_found_again_and_workers_make_no_difference(
    model, source, result, tmp_path: Path
) -> None:
    def run(workers: int) -> tuple[UnlabeledResult, dict[str, int]]:
        found = evaluate(
            model, source, corruptions=("gaussian_noise",), severities=(5,), k=4, random_init=False,
            passing=Passing(keep=tmp_path, batch_size=7, workers=workers),
        )  # fmt: skip
        passes = tmp_path.glob("*/features.npy")
        return found, {path.parent.name: path.stat().st_mtime_ns for path in passes}

    first, written = run(2)
    assert len(written) == 5  # as they are, two views, middle squares and these with noise
    assert any(name.startswith("gaussian-noise-5") for name in written)
    assert run(0) == (first, written)
    assert first.robustness[0].cosine == pytest.approx(result.robustness[1].cosine, abs=1e-5)


def test_a_picture_is_spoiled_alike_in_any_folder(model, tmp_path: Path) -> None:
    for folder, names in (("few", "bc"), ("more", "abcd")):
        (tmp_path / folder).mkdir()
        for name in names:
            pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    few, more = (
        evaluate(
            model, open_source(tmp_path / folder), corruptions=("gaussian_noise",), severities=(4,),
            k=1, random_init=False, passing=Passing(batch_size=1, workers=0),
        )
        for folder in ("few", "more")
    )  # fmt: skip
    of_more = {one.id: one.cosine for one in more.moved_most}
    for one in few.moved_most:
        assert of_more[one.id] == pytest.approx(one.cosine, abs=1e-6)
    assert len(set(of_more.values())) == 4


def test_without_corruptions_there_is_no_robustness(model, source) -> None:
    plain = evaluate(model, source, corruptions=(), random_init=False, passing=HERE)
    assert (plain.robustness, plain.moved_most, plain.cosine, plain.retrieval) == (
        [],
        [],
        None,
        None,
    )
    assert "corruption" not in plain.table()


def test_bad_images_are_left_out_and_k_is_cut(model, tmp_path: Path) -> None:
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (1, 1, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "aa.png").write_bytes(b"nothing")
    source = open_source(tmp_path)
    with pytest.raises(BadImage) as bad:
        source.image(source.ids.index("aa.png"))
    reason = bad.value.reason
    result = evaluate(
        model, source, corruptions=("jpeg",), severities=(1,), random_init=False, passing=HERE
    )
    assert (result.images, result.k, result.overlap_by_chance) == (3, 2, 1.0)
    assert result.notes == [
        f"1 image cannot be read and is left out: aa.png ({reason})",
        "k = 10 counts as 2: there are no more other images",
    ]
    assert {one.id for one in result.moved_most} == {"a.png", "b.png", "c.png"}


def test_equal_images_are_found_by_chance_alone(model, tmp_path: Path) -> None:
    """Features that are all equal keep every cosine at 1, and are no use."""
    for name in "abcd":
        Image.new("RGB", (40, 40), (90, 120, 30)).save(tmp_path / f"{name}.png")
    result = evaluate(
        model, open_source(tmp_path), corruptions=("jpeg",), severities=(1,), random_init=False,
        passing=HERE,
    )  # fmt: skip
    assert result.retrieval == pytest.approx(1 / 4)
    assert (result.kept, result.alignment_share) == (0, 1)
    assert result.uniformity == pytest.approx(0, abs=1e-5)


def test_found_again_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(unlabeled, "MOST_COSINES", 10)  # two images at a time
    clean = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8], [-1, 0]], np.float32)
    changed = np.array([[0.8, 0.6], [0, 1], [0.6, 0.8], [0.6, 0.8], [0, 1]], np.float32)
    search = Search(clean, torch.device("cpu"))
    # The first lies nearer to the third (0.96 against 0.8); the third and fourth are copies.
    assert search.found_again(changed, np.arange(5)).tolist() == [0, 1, 0.5, 0.5, 0]
    assert search.found_again(changed, np.array([1, 4, 2])).tolist() == [1, 0, 0.5]


def test_of_many_images_a_sample_is_asked(model, source, result, monkeypatch) -> None:
    monkeypatch.setattr(unlabeled, "MOST_ASKED", 5)
    monkeypatch.setattr(unlabeled, "MOST_IN_PAIRS", 6)
    some = evaluate(
        model, source, k=4, corruptions=("gaussian_noise",), severities=(5,), passing=HERE
    )
    assert "neighbors were searched of 5 images, among all" in some.notes
    assert some.robustness[0].retrieval in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert 0 < some.uniformity_error < 0.01
    assert abs(some.uniformity - result.uniformity) < 4 * some.uniformity_error
    assert round(some.overlap["untrained"] * 20, 4) % 1 == 0  # of 5 images with 4 neighbors each


def test_images_without_color_cannot_lose_it(tmp_path: Path) -> None:
    gray = ModelInfo(
        "vit_tiny_patch16_224", 16, 32, channels=1, mean=(0.5,), std=(0.25,),
        options={"depth": 1, "embed_dim": 24, "num_heads": 2},
    )  # fmt: skip
    model = Model(create_backbone(gray), "gray", torch.device("cpu"))
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 50), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    source = open_source(tmp_path)
    with pytest.raises(UserError, match="for a model of 1 channels"):
        evaluate(model, source, random_init=False, passing=HERE)
    result = evaluate(
        model, open_source(tmp_path, channels=1), severities=(5,), random_init=False, passing=HERE
    )
    assert "grayscale" not in result.corruptions and len(result.corruptions) == 9
    assert "grayscale is left out: images of 1 channels have no color" in result.notes


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"k": 0}, "--k 0: must be 1 or more"),
        ({"views": 1}, "--views 1: must be 2 or more"),
        ({"corruptions": ("fog",)}, "corruption 'fog' is unknown"),
        ({"severities": (0,)}, "severity 0 of gaussian_noise"),
        ({"severities": ()}, "severities: name at least one"),
    ],
)
def test_mistakes_are_sentences(model, source, how, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        evaluate(model, source, passing=HERE, **how)


def test_one_image_has_nothing_to_compare_with(model) -> None:
    with pytest.raises(UserError, match="fewer than two readable images"):
        evaluate(model, open_source("scenes:1"), random_init=False, passing=HERE)
