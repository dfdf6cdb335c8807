"""The linear protocol around the heads: what they see, how they are chosen, what is reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from dino_core.data import Source, open_source
from dino_core.errors import UserError
from dino_core.evaluation import linear, linear_features
from dino_core.evaluation.classes import most_confused, per_class_accuracy
from dino_core.evaluation.linear_weights import interleaved
from dino_core.evaluation.passes import Look, Passing, features
from dino_core.gallery.features import SourceFeatures
from dino_core.models import Model, ModelInfo, create_backbone
from dino_core.models.conv import ConvBackbone

TINY = ModelInfo(
    architecture="vit_tiny_patch16_224",
    patch_size=16,
    image_size=32,
    options={"depth": 2, "embed_dim": 24, "num_heads": 2},
)
WIDTH = 24
QUICK = {"epochs": 12, "rates": (0.01, 0.1, 1.0), "random_init": False}
COLORS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}
HERE = Passing(workers=0)


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(create_backbone(TINY), "tiny", torch.device("cpu"))


def write_colors(folder: Path, classes: str, each: int = 12) -> Path:
    """Class folders of noisy colors."""
    for name in classes:
        random = np.random.default_rng(len(folder.name) + ord(name))
        (folder / name).mkdir(parents=True)
        for index in range(each):
            noise = random.integers(-60, 60, (40, 50, 3))
            pixels = np.clip(np.array(COLORS.get(name, (90, 90, 90))) + noise, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:02}.png")
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_colors(tmp_path / "train", "abc")


@pytest.fixture(name="test")
def held_out(tmp_path: Path) -> Path:
    return write_colors(tmp_path / "test", "bc", each=6)


def test_features_are_class_tokens_by_block_then_the_mean_patch_token(model: Model) -> None:
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        found = linear_features.block_tokens(model.backbone, x, blocks=2, avgpool=True)
        vit = model.backbone.vit
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        after = []
        for block in vit.blocks:
            tokens = block(tokens)
            after.append(vit.norm(tokens))
    expected = [after[0][:, 0], after[1][:, 0], after[1][:, 1:].mean(1)]
    torch.testing.assert_close(found, torch.cat(expected, dim=1))


def test_columns_are_those_of_a_look_at_just_these_features(model: Model) -> None:
    x = torch.randn(2, 3, 32, 32)
    whole = linear_features.block_tokens(model.backbone, x, blocks=2, avgpool=True)
    for blocks in (1, 2):
        for avgpool in (False, True):
            where = linear_features.columns(linear_features.Seen(blocks, avgpool), 2, WIDTH)
            alone = linear_features.block_tokens(model.backbone, x, blocks=blocks, avgpool=avgpool)
            torch.testing.assert_close(whole[:, where], alone)


def test_features_are_raw(model: Model, train: Path) -> None:
    found = features(model, open_source(train), linear_features.look_at(model, 2, True), HERE)
    images = [model.preprocess(open_source(train).image(int(i))) for i in found.rows[:5]]
    with torch.inference_mode():
        expected = linear_features.block_tokens(model.backbone, torch.stack(images), 2, True)
    np.testing.assert_allclose(found.array[:5], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "options", "blocks", "avgpool"),
    [
        ("vit_small_patch16_224", {}, 4, False),
        ("vit_base_patch16_224", {}, 1, True),
        ("resnet50", {}, 1, False),
    ],
)
def test_each_architecture_has_its_published_features(
    architecture: str, options: dict[str, int], blocks: int, avgpool: bool
) -> None:
    patch = 1 if architecture == "resnet50" else 16
    with torch.device("meta"):
        backbone = create_backbone(ModelInfo(architecture, patch, 224, options=options))
    assert isinstance(backbone, ConvBackbone) == (patch == 1)
    seen = linear_features.published_features(Model(backbone, architecture, torch.device("meta")))
    assert seen == linear_features.Seen(blocks, avgpool)


def test_it_is_as_good_as_logistic_regression(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(model: Model, source: Source, look: Look, passing: Passing) -> SourceFeatures:
        """Overlapping clouds around a center a class, far from the origin as class tokens are."""
        assert source.labels is not None
        centers = np.random.default_rng(0).normal(size=(len(source.classes), look.dim))
        noise = np.random.default_rng(len(source)).normal(size=(len(source), look.dim))
        spread = np.linspace(0.2, 2, look.dim)
        array = 5 + spread * (0.35 * centers[source.labels] + noise)
        return SourceFeatures(array.astype(np.float32), "", rows=np.arange(len(source)))

    monkeypatch.setattr(linear, "features", drawn)
    train, test = open_source("scenes:1500"), open_source("scenes:1500-5000")
    assert train.classes == test.classes
    result = linear.evaluate(
        model, train, test, n_blocks=[1], avgpool="no", random_init=False, epochs=30, passing=HERE
    )
    look = linear_features.look_at(model, 1, False)
    seen, asked = (drawn(model, source, look, HERE).array for source in (train, test))
    theirs = LogisticRegression(max_iter=5000).fit(seen, train.labels)
    reference = 100 * theirs.score(asked, test.labels)
    assert 40 < reference < 95  # neither hopeless nor trivial
    assert abs(result.top1 - reference) <= 0.5


def test_figures_and_the_saved_head_are_of_the_same_head(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    shutil.copytree(train / "a", test / "zebra")
    result = linear.evaluate(
        model, open_source(train), open_source(test), n_blocks=[1, 2], avgpool="both",
        save=tmp_path / "head.safetensors", passing=HERE, **QUICK,
    )  # fmt: skip
    again = linear.evaluate(
        model, None, open_source(test), weights=tmp_path / "head.safetensors", passing=HERE
    )
    assert (again.top1, again.top5, again.per_class, again.confusions) == (
        result.top1, result.top5, result.per_class, result.confusions,
    )  # fmt: skip
    assert (again.n_blocks, again.avgpool) == (result.n_blocks, result.avgpool)
    assert again.random_init is None and "without random" in again.notes[-1]
    counts = {"b": 6, "c": 6, "zebra": 12}
    assert result.per_class["zebra"] == 0 and set(result.per_class) == set(counts)
    right = sum(result.per_class[name] / 100 * count for name, count in counts.items())
    assert result.top1 == pytest.approx(100 * right / 24)
    wrong = sum(count for _, _, count in result.confusions)
    assert (
        wrong == round(24 - right) and sum(c for a, _, c in result.confusions if a == "zebra") == 12
    )
    assert result.notes == ["1 test classes are not in train (zebra): they count as wrong"]
    assert len(result.sweep) == 4 * 3
    best = max(one["held_out"] for one in result.sweep)
    head = (result.n_blocks, result.avgpool, result.lr)
    chosen = [one for one in result.sweep if (one["n_blocks"], one["avgpool"], one["lr"]) == head]
    assert [one["held_out"] for one in chosen] == [result.held_out]
    assert (
        best >= chosen[0]["held_out"] >= best - 50 / np.sqrt(3)
    )  # of 3 images, one standard error
    assert chosen[0]["epoch"] == result.epoch and 1 <= result.epoch <= 12


def test_a_published_layer_is_judged_with_its_columns_in_order(
    model: Model, test: Path, tmp_path: Path
) -> None:
    source = open_source(test)
    found = features(model, source, linear_features.look_at(model, 1, True), HERE)
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, 2 * WIDTH, generator=draw), torch.randn(2, generator=draw)
    torch.save(
        {"state_dict": {"module.linear.weight": weight, "module.linear.bias": bias}},
        tmp_path / "layer.pth",
    )
    taken = (interleaved(torch.from_numpy(found.array)) @ weight.T + bias).argmax(1).numpy()
    labels = source.labels[found.rows]
    result = linear.evaluate(model, None, source, weights=tmp_path / "layer.pth", passing=HERE)
    assert result.top1 == pytest.approx(100 * (taken == labels).mean())
    assert result.weights.endswith("layer.pth") and (result.lr, result.epoch) == (0, 0)
    others = open_source(write_colors(tmp_path / "others", "abc", each=1))
    with pytest.raises(UserError, match=r"tells 2 classes apart, but .*others has 3"):
        linear.evaluate(model, others, source, weights=tmp_path / "layer.pth", passing=HERE)


def test_random_initialization_is_judged_in_the_same_call(
    model: Model, train: Path, test: Path
) -> None:
    result = linear.evaluate(
        model, open_source(train), open_source(test), passing=HERE, **QUICK | {"random_init": True}
    )
    assert result.random_init is not None
    assert result.random_init.model_hash != result.model_hash == model.hash
    assert result.notes == ["class tokens are those of 2 blocks, the model gives no more"]
    saved = json.loads(json.dumps(result.as_dict()))
    assert saved["random_init"]["top1"] == result.random_init.top1
    assert f"{result.random_init.top1:.2f}" in result.table() and "untrained" in result.table()


def test_random_crops_are_keyed_and_as_published(train: Path, model: Model) -> None:
    source = open_source(train)
    crops = linear_features.RandomCrops(source, TINY, view=1, seed=0)
    again = linear_features.RandomCrops(source, TINY, view=1, seed=0)
    assert all(np.array_equal(crops.image(i), again.image(i)) for i in (5, 0, 7))
    first = crops.image(0)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    for view, seed in ((2, 0), (1, 1)):
        other = linear_features.RandomCrops(source, TINY, view=view, seed=seed)
        assert not np.array_equal(other.image(0), first)


def test_a_random_crop_is_a_part_of_the_image_half_of_them_flipped(tmp_path: Path) -> None:
    # Red grows to the right, green downwards: corners tell the box, and the order the flip.
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None], np.arange(200)[:, None]
    (tmp_path / "ramps").mkdir()
    for i in range(200):
        Image.fromarray(ramp).save(tmp_path / "ramps" / f"{i}.png", compress_level=1)
    crops = linear_features.RandomCrops(open_source(tmp_path / "ramps"), TINY, view=1, seed=0)
    images = [crops.image(i).astype(float) for i in range(200)]
    across = np.array([image[16, -1, 0] - image[16, 0, 0] for image in images]) * 32 / 31
    down = np.array([image[-1, 16, 1] - image[0, 16, 1] for image in images]) * 32 / 31
    assert 0.38 < (across < 0).mean() < 0.62
    share = np.abs(across) * down / 200**2
    assert 0.06 < share.min() < 0.2 and 0.85 < share.max() < 1.1  # 8 to 100 %
    assert 0.42 < share.mean() < 0.56  # 0.54, less the boxes that would not fit
    ratio = np.abs(across) / down
    assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.42  # 3:4 to 4:3


def test_views_are_passes_that_are_kept_and_found_again(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    passing = Passing(
        keep=tmp_path / "keep",
        workers=0,
        progress=lambda done, total, message: said.append(message),
    )
    run = lambda how: linear.evaluate(  # noqa: E731
        model, open_source(train), open_source(test), views=2, passing=how, **QUICK
    )
    kept, alone = run(passing), run(HERE)
    assert kept.as_dict() == alone.as_dict() and kept.views == 2
    passes = sum("Features" in message for message in dict.fromkeys(said))
    assert passes == 3  # the two messages of train and test, center crop, are alike
    assert len(list((tmp_path / "keep").iterdir())) == 4
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "keep").rglob("*.npy")}
    assert run(passing).as_dict() == kept.as_dict()
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_as_published_is_one_rate_on_new_crops_and_the_best_epoch_on_test(
    model: Model, train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[int] = []
    image = linear_features.RandomCrops.image

    def counted(self: linear_features.RandomCrops, i: int) -> np.ndarray:
        views.append(self.view)
        return image(self, i)

    monkeypatch.setattr(linear_features.RandomCrops, "image", counted)
    ranked: list[float] = []
    accuracy = linear.ranking_accuracy
    monkeypatch.setattr(
        linear, "ranking_accuracy", lambda *a: ranked.append(accuracy(*a).top1) or accuracy(*a)
    )
    result = linear.evaluate(
        model, open_source(train), open_source(test), as_published=True, epochs=3,
        random_init=False, passing=HERE,
    )  # fmt: skip
    assert views == [view for view in (1, 2, 3) for _ in range(36)]
    assert len(ranked) == 4 and result.top1 == max(ranked[:3]) == ranked[3]
    assert result.epoch == 1 + ranked.index(max(ranked))
    assert (result.lr, result.held_out, result.sweep, result.standardized) == (
        0.001,
        None,
        [],
        False,
    )


def test_unlabeled_and_unreadable_images_are_left_out(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    (train / "a" / "00.png").write_bytes(b"nothing")
    (test / "b" / "00.png").write_bytes(b"nothing")
    rows = ["path,label"]
    for place, path in enumerate(sorted(train.rglob("*.png"))):
        rows.append(f"{path.relative_to(tmp_path)},{'' if place % 9 == 4 else path.parent.name}")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    result = linear.evaluate(
        model, open_source(tmp_path / "train.csv"), open_source(test), passing=HERE, **QUICK
    )
    assert (result.train_images, result.test_images) == (36 - 1 - 4, 11)
    assert result.notes[-1] == "2 unreadable images were left out"


def test_classes_of_one_image_are_learned_but_not_chosen_on(
    model: Model, test: Path, tmp_path: Path
) -> None:
    single = open_source(write_colors(tmp_path / "single", "abc", each=1))
    result = linear.evaluate(model, single, open_source(test), passing=HERE, **QUICK)
    assert (result.lr, result.epoch, result.held_out) == (0.001, 12, None)
    assert any("no class has two images" in note for note in result.notes)


def test_a_stratified_share_is_of_each_class_and_never_all_of_it() -> None:
    labels = np.repeat([0, 1, 2, 3, -1], [40, 10, 2, 1, 5])
    chosen = linear.stratified(labels, 0.1, 0, "key")
    assert [int(chosen[labels == label].sum()) for label in (0, 1, 2, 3, -1)] == [4, 1, 1, 0, 0]
    assert np.array_equal(chosen, linear.stratified(labels, 0.1, 0, "key"))
    assert not np.array_equal(chosen, linear.stratified(labels, 0.1, 1, "key"))
    assert linear.stratified(labels, 1.0, 0)[labels == 1].sum() == 9


def test_confusions_and_class_accuracies_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    taken = np.array([0, 1, 1, 1, 0, 0, 0])
    names = ["a", "b", "c"]
    assert per_class_accuracy(taken, labels, names) == pytest.approx(
        {"a": 100 / 3, "b": 50, "c": 0}
    )
    expected = [("a", "b", 2), ("b", "a", 1), ("c", "a", 1)]
    assert most_confused(taken, labels, names) == expected
    assert most_confused(taken, labels, names, most=1) == expected[:1]


@pytest.mark.parametrize(
    ("images", "picked"),
    [
        (100, 1),  # half a standard error is 2.4: the first two are as good
        (25, 2),  # 4.9: the first three
        (1_000_000, 0),
    ],
)
def test_of_the_best_within_half_a_standard_error_the_lowest_loss_is_picked(
    images: int, picked: int
) -> None:
    top1, loss = np.array([60.0, 58.0, 56.0, 10.0]), np.array([1.5, 1.4, 1.3, 0.1])
    assert linear.pick(top1, loss, images) == picked


@pytest.mark.parametrize(
    ("images", "batch"), [(10, 32), (3200, 100), (9469, 295), (1_281_167, 1024)]
)
def test_few_images_come_in_smaller_batches(images: int, batch: int) -> None:
    assert linear.default_batch(images) == batch


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_blocks": []}, "at least one number of blocks"),
        ({"rates": (0.0,)}, "at least one rate"),
        ({"epochs": 0}, "an epoch"),
        ({"avgpool": "maybe"}, "choose no, yes or both"),
    ],
)
def test_settings_that_mean_nothing_are_sentences(
    model: Model, train: Path, test: Path, options: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        linear.evaluate(model, open_source(train), open_source(test), **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda train, test: (train, train), "is both train and test"),
        (lambda train, test: (open_source(train.root / "a"), test), "has no labels"),
        (lambda train, test: (None, test), "name images to learn from"),
    ],
)
def test_what_cannot_be_judged_is_a_sentence(
    model: Model, train: Path, test: Path, sentence: str,
    change: Callable[[Source, Source], tuple[Source | None, Source]],
) -> None:  # fmt: skip
    with pytest.raises(UserError, match=sentence):
        linear.evaluate(model, *change(open_source(train), open_source(test)), passing=HERE)


def test_one_class_is_nothing_to_tell_apart(model: Model, test: Path, tmp_path: Path) -> None:
    one = write_colors(tmp_path / "one", "bc")
    for path in (one / "c").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="fewer than two classes"):
        linear.evaluate(model, open_source(one), open_source(test), passing=HERE)
