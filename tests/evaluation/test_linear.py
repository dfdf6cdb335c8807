"""The linear protocol around the heads: what they see, how they are chosen, what is reported."""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from dino_core.data import Source, open_source
from dino_core.errors import UserError
from dino_core.evaluation import (
    linear,
    linear_features,
    linear_published,
    linear_training,
    passes,
)
from dino_core.evaluation.linear_weights import interleaved, read_linear_weights
from dino_core.evaluation.passes import Look, Passing, features
from dino_core.files import held
from dino_core.gallery.features import SourceFeatures
from dino_core.models import Model, ModelInfo, create_backbone, untrained
from dino_core.models.conv import ConvBackbone
from dino_core.rng import permutation

WIDTH = 24
QUICK: dict[str, Any] = {"epochs": 12, "rates": (0.01, 0.1, 1.0), "random_init": False}
HERE = Passing(workers=0)
KEPT = ("whole", "keep")


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

    for module in (linear, linear_training):
        monkeypatch.setattr(module, "features", drawn)
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
    assert sum(one.images for one in result.confusions) == round(24 - right)
    assert sum(one.images for one in result.confusions if one.label == "zebra") == 12
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
    assert f"12 test images, {tmp_path / 'layer.pth'}" in result.table().splitlines()


def saved_layer(path: Path, classes: int, width: int = WIDTH) -> Path:
    """A published layer, which names no classes."""
    draw = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, width, generator=draw)
    torch.save({"linear.weight": weight, "linear.bias": torch.zeros(classes)}, path)
    return path


def test_classes_that_a_file_does_not_name_are_the_sorted_ones(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    shuffled = open_source(train)  # not all collections name their classes in order
    shuffled.classes = ["c", "a", "b"]
    shuffled.labels = (shuffled.labels + 1) % 3
    path, wanted = saved_layer(tmp_path / "layer.pth", 3), open_source(test)
    state = torch.load(path)
    found = features(model, wanted, linear_features.look_at(model, 1, False), HERE)
    taken = (torch.from_numpy(found.array) @ state["linear.weight"].T).argmax(1).numpy()
    truth = wanted.labels + 1  # b and c of a, b, c
    for source in (open_source(train), shuffled):
        result = linear.evaluate(model, source, wanted, weights=path, passing=HERE)
        assert result.top1 == pytest.approx(100 * (taken == truth).mean())
        assert (result.classes, result.train, result.train_images) == (3, source.spec, 0)
        assert (result.batch, result.epochs, result.standardized) == (0, 0, False)
    alone = linear.evaluate(model, None, open_source(train), weights=path, passing=HERE)
    assert (alone.classes, alone.train) == (3, "")


def test_fewer_classes_than_the_head_s_need_a_train_set_that_names_them(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    path = saved_layer(tmp_path / "layer.pth", 1000)
    for source, named, count in ((None, test, 2), (open_source(train), train, 3)):
        sentence = f"tells 1,000 classes apart and does not name them, but {named} has {count};"
        with pytest.raises(UserError, match=sentence):
            linear.evaluate(model, source, open_source(test), weights=path, passing=HERE)


@pytest.mark.parametrize(
    "options",
    [{"rates": (0.1,)}, {"views": 1}, {"epochs": 3}, {"as_published": True}, {"save": Path("a")}],
)
def test_a_given_head_is_not_trained(
    model: Model, test: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = saved_layer(tmp_path / "layer.pth", 2)
    with pytest.raises(UserError, match=f"{next(iter(options))}: nothing is trained"):
        linear.evaluate(model, None, open_source(test), weights=path, passing=HERE, **options)


def test_only_the_first_process_writes_the_head(
    model: Model, train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.safetensors"
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        linear.evaluate(
            model, open_source(train), open_source(test), save=path, passing=HERE, **QUICK
        )
        assert path.exists() == (rank == "0")


def test_a_head_that_cannot_be_saved_is_not_trained(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    passing = replace(HERE, progress=lambda done, total, message: said.append(message))
    (tmp_path / "folder.safetensors").mkdir()
    for name, sentence in (
        ("folder.safetensors", "is a folder"),
        ("head.pth", r"head\.pth: a head is saved as safetensors; let the name end in \.safeten"),
        ("head", r"let the name end in \.safetensors"),
    ):
        with pytest.raises(UserError, match=sentence):
            linear.evaluate(
                model, open_source(train), open_source(test), save=tmp_path / name,
                passing=passing, **QUICK,
            )  # fmt: skip
    assert not said


def test_a_head_that_learned_from_another_model_is_judged_with_a_note(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    path, source = tmp_path / "head.safetensors", open_source(test)
    linear.evaluate(model, open_source(train), source, save=path, passing=HERE, **QUICK)
    other = untrained(model)
    own, others = (
        linear.evaluate(one, None, source, weights=path, passing=HERE).notes
        for one in (model, other)
    )
    assert not any("another model" in note for note in own)
    (note,) = (note for note in others if "another model" in note)
    assert note.startswith(
        f"{path}: learned from features of another model ({model.hash[:8]}) than tiny "
        f"(random init) ({other.hash[:8]}), "
    )


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
    crops = linear_features.RandomCrops(source, model.info, view=1, seed=0)
    again = linear_features.RandomCrops(source, model.info, view=1, seed=0)
    assert all(np.array_equal(crops.image(i), again.image(i)) for i in (5, 0, 7))
    first = crops.image(0)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    for view, seed in ((2, 0), (1, 1)):
        other = linear_features.RandomCrops(source, model.info, view=view, seed=seed)
        assert not np.array_equal(other.image(0), first)


def test_a_random_crop_is_a_part_of_the_image_half_of_them_flipped(
    model: Model, tmp_path: Path
) -> None:
    # Red grows to the right, green downwards: corners tell the box, and the order the flip.
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None], np.arange(200)[:, None]
    (tmp_path / "ramps").mkdir()
    for i in range(200):
        Image.fromarray(ramp).save(tmp_path / "ramps" / f"{i}.png", compress_level=1)
    source = open_source(tmp_path / "ramps")
    crops = linear_features.RandomCrops(source, model.info, view=1, seed=0)
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
    assert passes == 4  # train's center crop and two others, test's center crop
    assert len(list((tmp_path / "keep").iterdir())) == 4
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "keep").rglob("*.npy")}
    assert run(passing).as_dict() == kept.as_dict()
    assert written == {path: path.stat().st_mtime_ns for path in written}


class Crops:
    """Counts which crops are cut, and can stop a run in the middle of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.views: list[int] = []
        self.stop_at = -1
        image = linear_features.RandomCrops.image

        def counted(crops: linear_features.RandomCrops, i: int) -> np.ndarray:
            if len(self.views) == self.stop_at:
                raise KeyboardInterrupt
            self.views.append(crops.view)
            return image(crops, i)

        monkeypatch.setattr(linear_features.RandomCrops, "image", counted)


def as_published(
    model: Model, train: Path, test: Path, passing: Passing, epochs: int = 4
) -> linear.LinearResult:
    return linear.evaluate(
        model, open_source(train), open_source(test), as_published=True, epochs=epochs,
        random_init=False, passing=passing,
    )  # fmt: skip


def test_as_published_is_one_rate_on_new_crops_and_the_best_epoch_on_test(
    model: Model, train: Path, test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, ranked = Crops(monkeypatch), []
    accuracy = linear_published.ranking_accuracy

    def noted(*arguments: Any) -> Any:
        ranked.append(accuracy(*arguments).top1)
        return accuracy(*arguments)

    monkeypatch.setattr(linear_published, "ranking_accuracy", noted)
    result = as_published(model, train, test, HERE, epochs=3)
    assert crops.views == [view for view in (1, 2, 3) for _ in range(36)]
    assert len(ranked) == 3 and result.top1 == max(ranked)
    assert result.epoch == 1 + ranked.index(max(ranked))
    assert (result.lr, result.held_out, result.sweep) == (0.001, None, [])
    assert result.as_published and not result.standardized
    assert f"epoch {result.epoch} of 3, the best on test" in result.table()
    assert (result.train_images, result.test_images, result.batch) == (36, 12, 32)


def plain_as_published(
    model: Model, train: Source, test: Source, epochs: int
) -> list[tuple[float, torch.Tensor]]:
    """Top-1 and weights after each epoch, of one torch layer and torch's own optimizer."""
    look = linear_features.look_at(model, 2, False)
    asked = torch.from_numpy(features(model, test, look, HERE).array)
    cut = linear_features.look_at(model, 2, False, "crops")
    layer, found = torch.nn.Linear(2 * WIDTH, 3), []
    with torch.no_grad():
        layer.weight.copy_(linear.Heads([0.0], 2 * WIDTH, 3).weight_RCD[0])
        layer.bias.zero_()
    rate = 0.001 * 32 / 256
    optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    for epoch in range(epochs):
        crops = linear_features.RandomCrops(train, model.info, epoch + 1, 0)
        seen = torch.from_numpy(features(model, crops, cut, HERE).array)
        order = torch.as_tensor(permutation(len(seen), 0, "linear order", epoch))
        for some in order.split(32):
            optimizer.zero_grad()
            labels = torch.as_tensor(train.labels)[some]
            torch.nn.functional.cross_entropy(layer(seen[some]), labels).backward()
            optimizer.step()
        schedule.step()
        taken = layer(asked).argmax(1).numpy()
        top1 = 100 * float((taken == test.labels + 1).mean())
        found.append((top1, layer.weight.detach().clone()))
    return found


def test_as_published_is_a_torch_layer_with_the_published_optimizer(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    plain = plain_as_published(model, open_source(train), open_source(test), 4)
    path = tmp_path / "head.safetensors"
    result = linear.evaluate(
        model, open_source(train), open_source(test), as_published=True, epochs=4, save=path,
        random_init=False, passing=HERE,
    )  # fmt: skip
    best = int(np.argmax([top1 for top1, _ in plain]))
    assert (result.top1, result.epoch) == (pytest.approx(plain[best][0]), best + 1)
    weight = read_linear_weights(path, model).weight_CD
    torch.testing.assert_close(weight, plain[best][1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(plain[0][1], plain[1][1], rtol=1e-3)  # an epoch makes a difference


@pytest.mark.parametrize("stop_at", [20, 36 + 5, 3 * 36 - 1])
def test_a_stopped_run_goes_on_at_its_epoch_and_ends_the_same(
    model: Model, train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:  # fmt: skip
    crops = Crops(monkeypatch)
    whole = as_published(model, train, test, Passing(keep=tmp_path / "whole", workers=0))
    passing = Passing(keep=tmp_path / "keep", workers=0, batch_size=4)
    crops.views, crops.stop_at = [], stop_at
    with pytest.raises(KeyboardInterrupt):
        as_published(model, train, test, passing)
    (place,) = (tmp_path / "keep").glob("linear-as-published-*")
    at_work = stop_at // 36 + 1
    assert [path.name for path in place.glob("crop-*")] == [f"crop-{at_work}"]
    crops.views, crops.stop_at = [], -1
    again = as_published(model, train, test, passing)
    assert again.as_dict() == whole.as_dict()
    ends = [load_file(next((tmp_path / name).rglob("head.safetensors"))) for name in KEPT]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0] | ends[1])
    assert set(crops.views) == set(range(at_work, 5))
    assert crops.views.count(at_work) <= 36 - (stop_at % 36 - 3)  # what whole batches had is kept
    assert not list(place.glob("crop-*"))
    crops.views = []
    assert as_published(model, train, test, passing).as_dict() == whole.as_dict()
    assert not crops.views


def test_a_run_that_was_stopped_between_two_writes_is_tidied(
    model: Model, train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of an epoch is written, its crops are still there."""
    passing = Passing(keep=tmp_path / "keep", workers=0)
    whole = as_published(model, train, test, HERE)
    with monkeypatch.context() as patch:
        patch.setattr(linear_published.NewCrops, "forget", lambda *_: raise_interrupt())
        with pytest.raises(KeyboardInterrupt):
            as_published(model, train, test, passing)
    (place,) = (tmp_path / "keep").glob("linear-as-published-*")
    assert (place / "crop-1").is_dir() and (place / "head.safetensors").is_file()
    seen: list[list[str]] = []
    compute = linear_published.NewCrops.compute

    def noted(crops: linear_published.NewCrops, view: int) -> SourceFeatures:
        seen.append(sorted(path.name for path in place.glob("crop-*")))
        return compute(crops, view)

    monkeypatch.setattr(linear_published.NewCrops, "compute", noted)
    assert as_published(model, train, test, passing).as_dict() == whole.as_dict()
    assert seen == [[], [], []]  # before epochs 2, 3 and 4


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_a_finished_run_is_only_read(
    model: Model, train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it may lie on a disk that cannot be written, and its lock be held by somebody."""
    passing = Passing(keep=tmp_path / "keep", workers=0)
    once = as_published(model, train, test, passing, 2)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "keep").rglob("*")}

    def write(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be written")

    with monkeypatch.context() as patch:
        for module, name in ((passes, "held"), (passes, "write_json"), (Path, "mkdir")):
            patch.setattr(module, name, write)
        patch.setattr(linear_published, "whole_file", write)
        patch.setattr(linear_published, "_tidy", write)
        again = as_published(model, train, test, passing, 2)
    assert again.as_dict() == once.as_dict()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "keep").rglob("*")} == written


@pytest.mark.parametrize("finished", [True, False])
def test_a_second_start_waits_for_the_first(
    model: Model, train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    finished: bool,
) -> None:  # fmt: skip
    """What the first one leaves, finished or stopped, is found when its lock is free."""
    crops, elsewhere = Crops(monkeypatch), Passing(keep=tmp_path / "elsewhere", workers=0)
    crops.stop_at = -1 if finished else 36 + 5
    with contextlib.suppress(KeyboardInterrupt):
        as_published(model, train, test, elsewhere, 2)
    (made,) = (tmp_path / "elsewhere").glob("linear-as-published-*")
    place = tmp_path / "keep" / made.name
    lock, said = contextlib.ExitStack(), []
    lock.enter_context(held(place / passes.LOCK, "held twice"))

    def ended(_: float) -> None:
        shutil.copytree(made, place, dirs_exist_ok=True)
        lock.close()

    monkeypatch.setattr(passes.time, "sleep", ended)
    crops.views, crops.stop_at = [], -1
    passing = Passing(
        tmp_path / "keep", workers=0, progress=lambda done, total, message: said.append(message)
    )
    found = as_published(model, train, test, passing, 2)
    assert set(crops.views) == (set() if finished else {2})
    waiting = f"Training as published: {passes.WAITING.format(place)}"
    assert said.count(waiting) == 1
    assert found.as_dict() == as_published(model, train, test, HERE, 2).as_dict()


def test_other_data_or_settings_are_another_run(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    passing = Passing(keep=tmp_path / "keep", workers=0)
    places = lambda: len(list((tmp_path / "keep").glob("linear-as-published-*")))  # noqa: E731
    for count, epochs in enumerate((1, 2), start=1):
        as_published(model, train, test, passing, epochs)
        assert places() == count
    shutil.rmtree(train / "a")
    as_published(model, train, test, passing, 1)
    assert places() == 3


def test_a_damaged_state_is_a_sentence(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    passing = Passing(keep=tmp_path / "keep", workers=0)
    as_published(model, train, test, passing, 1)
    (state,) = (tmp_path / "keep").glob("linear-as-published-*/head.safetensors")
    save_file({"weight": torch.zeros(2)}, state, {"done": "{}"})
    with pytest.raises(UserError, match=r"head\.safetensors: is damaged .* delete it"):
        as_published(model, train, test, passing, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rates": (0.1, 0.2)}, r"rates \(0\.1, 0\.2\): as published there is one head"),
        ({"views": 2}, "views 2: as published"),
        ({"n_blocks": (1, 2)}, r"n_blocks \(1, 2\): as published"),
        ({"avgpool": "both", "views": 1}, "views 1, avgpool both: as published"),
    ],
)
def test_what_training_as_published_would_leave_undone_is_refused(
    model: Model, train: Path, test: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        linear.evaluate(
            model, open_source(train), open_source(test), as_published=True, passing=HERE,
            **options,
        )  # fmt: skip


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
    named = result.notes[-1]
    assert named.startswith("2 images cannot be read and are left out: train/a/00.png (")
    assert ", b/00.png (" in named


def test_classes_of_one_image_are_learned_but_not_chosen_on(
    model: Model, test: Path, tmp_path: Path, write_colors: Callable[..., Path]
) -> None:
    single = open_source(write_colors(tmp_path / "single", dict.fromkeys("abc", 1)))
    result = linear.evaluate(model, single, open_source(test), passing=HERE, **QUICK)
    assert (result.lr, result.epoch, result.held_out) == (0.001, 12, None)
    assert any("no class has two images" in note for note in result.notes)


def test_a_stratified_share_is_of_each_class_and_never_all_of_it() -> None:
    labels = np.repeat([0, 1, 2, 3, -1], [40, 10, 2, 1, 5])
    chosen = linear_training.stratified(labels, 0.1, 0, "key")
    assert [int(chosen[labels == label].sum()) for label in (0, 1, 2, 3, -1)] == [4, 1, 1, 0, 0]
    assert np.array_equal(chosen, linear_training.stratified(labels, 0.1, 0, "key"))
    assert not np.array_equal(chosen, linear_training.stratified(labels, 0.1, 1, "key"))
    assert linear_training.stratified(labels, 1.0, 0)[labels == 1].sum() == 9


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
    assert linear_training.pick(top1, loss, images) == picked


@pytest.mark.parametrize(
    ("images", "batch"), [(10, 32), (3200, 100), (9469, 295), (1_281_167, 1024)]
)
def test_few_images_come_in_smaller_batches(images: int, batch: int) -> None:
    assert linear_training.default_batch(images) == batch


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_blocks": []}, "at least one number of blocks"),
        ({"rates": (0.0,)}, "at least one rate"),
        ({"epochs": 0}, "--epochs 0"),
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


@pytest.mark.parametrize("as_published", [False, True])
def test_one_class_is_nothing_to_tell_apart(
    model: Model, train: Path, test: Path, as_published: bool
) -> None:
    for path in [*(train / "a").iterdir(), *(train / "c").iterdir()]:
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="fewer than two classes"):
        linear.evaluate(
            model, open_source(train), open_source(test), as_published=as_published, passing=HERE
        )
