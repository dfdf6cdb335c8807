"""Retrieval on a small made-up benchmark, against the protocol once more in plain loops."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dino_core.data import BadImage, open_source
from dino_core.errors import UserError
from dino_core.evaluation import retrieval
from dino_core.evaluation.ground_truth import read_ground_truth
from dino_core.evaluation.passes import Passing
from dino_core.evaluation.retrieval import (
    SCALES,
    Asked,
    RetrievalResult,
    evaluate,
    multi_scale,
    thumbnail,
)
from dino_core.gallery.features import SourceFeatures
from dino_core.measures import ranking
from dino_core.models import Model, ModelInfo, create_backbone, untrained

SIZE = 64
PATCH = 8


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
        info = ModelInfo("vit_tiny_patch16_224", PATCH, SIZE, options=options)
        return Model(create_backbone(info), "tiny", torch.device("cpu"))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    """Three scenes; of each a query with a box, an easy, a hard and a junk cut; and two strangers.

    `roxford5k/jpg/*.png` and `roxford5k/gnd_roxford5k.pkl`, as they are published.
    """
    folder = tmp_path_factory.mktemp("data") / "roxford5k"
    (folder / "jpg").mkdir(parents=True)
    scenes = open_source("scenes:5")
    images, queries, entries = [], [], []

    def write(name: str, pixels: np.ndarray) -> str:
        Image.fromarray(pixels).save(folder / "jpg" / f"{name}.png")
        return name

    for i in range(3):
        scene = scenes.image(i)
        height, width = scene.shape[:2]
        queries.append(write(f"query_{i}", scene))
        first = len(images)
        images.append(write(f"easy_{i}", scene[3 : height - 9, 5:]))
        images.append(write(f"hard_{i}", scene[height // 3 :, : width // 2]))
        images.append(write(f"junk_{i}", scene[: height // 4]))
        entries.append(
            {
                "bbx": [10.4, 5.0, width - 20.6, height - 8.0],
                "easy": [first],
                "hard": [first + 1] if i else [],
                "junk": [first + 2],
            }
        )
    images += [write(f"stranger_{i}", scenes.image(3 + i)) for i in range(2)]
    truth = {"imlist": images, "qimlist": queries, "gnd": entries}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, 2))
    return folder


def plain_feature(model: Model, image: np.ndarray, scales) -> np.ndarray:
    """Thumbnail, normalize, each scale cut to whole patches, the mean: as the script has it."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    x = model.normalize(np.asarray(picture))[None]
    total = 0
    for scale in scales:
        y = x
        if scale != 1:
            y = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        rows, columns = (side // PATCH * PATCH for side in y.shape[-2:])
        total = total + model.backbone(y[..., :rows, :columns])[0].detach().numpy() / len(scales)
    return total / np.sqrt((total**2).sum())


def plain_map(order, right, junk) -> float:
    """Average precision as published, counted one by one."""
    order = [image for image in order if image not in junk]
    area, found = 0.0, 0
    for place, image in enumerate(order):
        if image in right:
            before = found / place if place else 1.0
            found += 1
            area += (before + found / (place + 1)) / 2
    return 100 * area / len(right)


def by_hand(model: Model, folder: Path, scales, cropped: bool) -> dict[str, float]:
    """The three means in percent."""
    truth = pickle.loads((folder / "gnd_roxford5k.pkl").read_bytes())  # noqa: S301 (written above)

    def pixels(name: str) -> np.ndarray:
        return np.asarray(Image.open(folder / "jpg" / f"{name}.png"))

    database = [plain_feature(model, pixels(name), scales) for name in truth["imlist"]]
    means: dict[str, list[float]] = {"easy": [], "medium": [], "hard": []}
    for name, entry in zip(truth["qimlist"], truth["gnd"], strict=True):
        image = pixels(name)
        if cropped:
            box = [round(value) for value in entry["bbx"]]
            image = np.asarray(Image.fromarray(image).crop(box))
        query = plain_feature(model, image, scales)
        order = sorted(range(len(database)), key=lambda i: -float(query @ database[i]))
        easy, hard, junk = entry["easy"], entry["hard"], entry["junk"]
        means["easy"].append(plain_map(order, easy, hard + junk))
        means["medium"].append(plain_map(order, easy + hard, junk))
        if hard:
            means["hard"].append(plain_map(order, hard, easy + junk))
    return {name: float(np.mean(values)) for name, values in means.items()}


@pytest.fixture(scope="module")
def result(model, benchmark) -> RetrievalResult:
    """At one scale, with the untrained backbone beside it."""
    return evaluate(model, open_source(benchmark), size=SIZE)


@pytest.mark.parametrize(("multiscale", "as_published"), [(False, False), (True, True)])
def test_the_protocol_once_more_in_plain_loops(model, benchmark, multiscale, as_published):
    result = evaluate(
        model, open_source(benchmark), size=SIZE, multiscale=multiscale,
        as_published=as_published, random_init=False,
    )  # fmt: skip
    scales = (1, 1 / 2**0.5, 1 / 2) if multiscale else (1,)
    expected = by_hand(model, benchmark, scales, cropped=not as_published)
    found = {name: getattr(result, f"map_{name}") for name in expected}
    assert found == pytest.approx(expected)
    assert (result.queries, result.images, result.notes) == (3, 11, [])
    assert result.ground_truth == "roxford5k" and result.multiscale is multiscale


def test_what_every_query_got(result):
    assert [one.query for one in result.answers] == [f"jpg/query_{i}.png" for i in range(3)]
    assert result.answers[0].ap_hard is None  # it has none
    for name in ("easy", "medium", "hard"):
        aps = [getattr(one, f"ap_{name}") for one in result.answers]
        mean = np.mean([ap for ap in aps if ap is not None])
        assert getattr(result, f"map_{name}") == pytest.approx(mean)
    for i, one in enumerate(result.answers):
        wanted = {f"jpg/easy_{i}.png"} | ({f"jpg/hard_{i}.png"} if i else set())
        assert one.right == [name in wanted for name in one.nearest]
        assert f"jpg/junk_{i}.png" not in one.nearest
        assert one.first_wrong not in wanted
        if one.first_wrong_rank <= len(one.nearest):
            assert one.nearest[one.first_wrong_rank - 1] == one.first_wrong
            assert one.right.index(False) == one.first_wrong_rank - 1
    first = np.mean([100.0 * one.right[0] for one in result.answers])
    assert result.mp1_medium == pytest.approx(first)


def test_the_untrained_backbone_beside_it(model, benchmark, result):
    alone = evaluate(untrained(model), open_source(benchmark), size=SIZE, random_init=False)
    assert result.random_init == alone
    told = json.loads(json.dumps(result.as_dict()))
    assert told["random_init"]["map_medium"] == alone.map_medium
    assert "untrained" in result.table() and f"{result.map_hard:.2f}" in result.table()


def test_kept_passes_are_found_again_and_whole_queries_are_others(
    model, benchmark, result, tmp_path
):
    source = open_source(benchmark)
    alone = replace(result, random_init=None)

    def run(as_published: bool) -> tuple[RetrievalResult, dict[Path, int]]:
        found = evaluate(
            model, source, size=SIZE, as_published=as_published, random_init=False,
            passing=Passing(keep=tmp_path),
        )  # fmt: skip
        passes = tmp_path.rglob("features.npy")
        return found, {path: path.stat().st_mtime_ns for path in passes}

    found, written = run(as_published=False)
    assert found == alone and len(written) == 2
    assert run(as_published=False) == (found, written)
    _, after = run(as_published=True)
    assert after.items() > written.items() and len(after) == 3  # images that are searched stay


@pytest.mark.parametrize(
    ("name", "size", "multiscale"),
    [("roxford5k", 224, False), ("rparis6k", 512, True), ("mine", 224, False)],
)
def test_published_settings_go_with_the_name(model, benchmark, tmp_path, name, size, multiscale):
    truth = tmp_path / f"gnd_{name}.pkl"
    truth.write_bytes((benchmark / "gnd_roxford5k.pkl").read_bytes())
    source = open_source(benchmark)
    result = evaluate(model, source, truth, random_init=False)
    assert (result.ground_truth, result.size, result.multiscale) == (name, size, multiscale)
    asked = {"size": size, "multiscale": multiscale, "random_init": False}
    assert result == evaluate(model, source, truth, **asked)
    assert result.answers != evaluate(model, source, truth, **asked | {"size": SIZE}).answers


@pytest.fixture
def another(benchmark, tmp_path) -> Path:
    """A copy of the benchmark, to be spoiled."""
    return Path(shutil.copytree(benchmark, tmp_path / "roxford5k"))


def test_missing_and_unreadable_images_are_left_out_and_named(model, another):
    (another / "jpg" / "hard_1.png").write_bytes(b"")
    (another / "jpg" / "query_2.png").unlink()
    (another / "jpg" / "stranger_1.png").unlink()
    result = evaluate(model, open_source(another), size=SIZE, random_init=False)
    assert (result.queries, result.images) == (2, 9)
    assert result.notes == [
        "1 image of the 3 queries of roxford5k is not there and is left out: query_2",
        "1 image of the 11 images of roxford5k is not there and is left out: stranger_1",
        "1 image cannot be read and is left out: jpg/hard_1.png (empty file)",
    ]
    # an image that cannot be read is not looked for
    assert [one.ap_hard for one in result.answers] == [None, None]
    assert result.map_hard is None and "-" in result.table().splitlines()[1]
    assert all(one.ap_easy == one.ap_medium for one in result.answers[1:])


def test_a_ground_truth_of_other_images_is_a_sentence(model, benchmark, another):
    truth = benchmark / "gnd_roxford5k.pkl"
    others = another / "jpg"
    for path in others.glob("query_*"):
        path.unlink()
    with pytest.raises(UserError) as told:
        evaluate(model, open_source(others), truth, size=SIZE)
    assert str(told.value) == (
        f"{others}: has none of the 3 queries of roxford5k (such as query_0); name the folder that "
        "holds them, or with --ground-truth the file that belongs to these images"
    )
    for path in others.iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(UserError, match=r"none of the 11 images of roxford5k \(such as easy_0\)"):
        evaluate(model, open_source(others), truth, size=SIZE)


def test_mistakes_are_sentences(model, benchmark, another):
    with pytest.raises(UserError, match=r"--size 7: tiny needs images of 8 px or more"):
        evaluate(model, open_source(benchmark), size=7)
    (another / "gnd_roxford5k.pkl").unlink()
    for spec in ("scenes:3", another):
        with pytest.raises(UserError, match=r"no ground truth there .* --ground-truth"):
            evaluate(model, open_source(spec))
    for path in (another / "jpg").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the images can be read"):
        evaluate(model, open_source(another), benchmark / "gnd_roxford5k.pkl", size=SIZE)


def test_a_query_is_cut_to_its_box():
    source = open_source("scenes:2")
    whole = source.image(1)
    width = whole.shape[1]
    boxes = [(2.4, 3.6, 20.5, 31.0), None, (-5, -5, 4, width * 9), (width + 1, 0, width + 9, 9)]
    asked = Asked(source, [1] * 4, boxes)
    np.testing.assert_array_equal(asked.image(0), whole[4:31, 2:20])
    np.testing.assert_array_equal(asked.image(1), whole)
    np.testing.assert_array_equal(asked.image(2), whole[:, :4])
    with pytest.raises(BadImage, match="outside"):
        asked.image(3)


def test_a_thumbnail_keeps_its_shape_and_is_never_enlarged(model):
    wide = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    picture = Image.fromarray(wide)
    picture.thumbnail((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(thumbnail(wide, 64, model.info).numpy(), np.asarray(picture))
    np.testing.assert_array_equal(thumbnail(wide, 300, model.info).numpy(), wide)
    five = replace(model.info, channels=5, mean=(0.5,) * 5, std=(0.2,) * 5)
    bands = np.random.default_rng(1).integers(0, 256, (90, 200, 5), np.uint8)
    assert thumbnail(bands, 64, five).shape == (29, 64, 5)
    with pytest.raises(UserError, match="for a model of 3 channels"):
        thumbnail(bands, 64, model.info)


def test_the_mean_of_several_scales_is_each_image_s_own(model):
    x = torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    means = multi_scale(model.backbone, x)
    for image, mean in zip(x, means, strict=True):
        torch.testing.assert_close(multi_scale(model.backbone, image[None])[0], mean)
    alone = torch.stack([multi_scale(model.backbone, x, (scale,)) for scale in SCALES])
    torch.testing.assert_close(means, alone.mean(0))


def test_pixels_that_fill_no_patch_do_not_count(model):
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x, (0, 5, 0, 7), value=9.0)
    one = multi_scale(model.backbone, x, (1.0,))
    torch.testing.assert_close(multi_scale(model.backbone, padded, (1.0,)), one)
    strip = torch.randn(1, 3, 3, 64, generator=torch.Generator().manual_seed(0))
    assert multi_scale(model.backbone, strip).isfinite().all()  # no row of patches without this


def test_the_ground_truth_decides_not_the_order_of_files(model, benchmark, result, tmp_path):
    """Images named in another order have the same figures."""
    data = pickle.loads((benchmark / "gnd_roxford5k.pkl").read_bytes())  # noqa: S301
    order = np.random.default_rng(0).permutation(len(data["imlist"]))
    at = np.argsort(order)
    mixed = {
        "imlist": [data["imlist"][i] for i in order],
        "qimlist": data["qimlist"],
        "gnd": [
            entry | {key: [int(at[i]) for i in entry[key]] for key in ("easy", "hard", "junk")}
            for entry in data["gnd"]
        ],
    }
    path = tmp_path / "gnd_roxford5k.json"
    path.write_text(json.dumps(mixed))
    mixed = evaluate(model, open_source(benchmark), path, size=SIZE, random_init=False)
    assert mixed.answers == result.answers and mixed.map_medium == result.map_medium
    assert read_ground_truth(path).digest == mixed.ground_truth_hash != result.ground_truth_hash


def test_perfect_features_have_full_marks(model, benchmark, monkeypatch):
    """Features by name: whatever shows scene i, and nothing else, points one way."""

    def known(model, source, look, passing):
        array = np.zeros((len(source), 8), np.float32)
        for row, name in enumerate(source.ids):
            number = int(Path(name).stem[-1])
            array[row, 7 if "stranger" in name else number] = 1
        return SourceFeatures(array, "", rows=np.arange(len(source)))

    monkeypatch.setattr(retrieval, "features", known)
    result = evaluate(model, open_source(benchmark), size=SIZE, random_init=False)
    assert result.map_easy == result.map_medium == result.map_hard == 100
    assert {getattr(result, f"mp{k}_medium") for k in ranking.KS} == {100}
