"""Retrieval on a small made-up benchmark, against the protocol once more in plain loops."""

import json
import pickle
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


def test_kept_passes_are_found_again_and_settings_keep_apart(model, benchmark, result, tmp_path):
    source = open_source(benchmark)
    alone = replace(result, random_init=None)
    said: list[str] = []
    passing = Passing(keep=tmp_path, progress=lambda done, total, message: said.append(message))
    assert evaluate(model, source, size=SIZE, random_init=False, passing=passing) == alone
    assert said
    said.clear()
    assert evaluate(model, source, size=SIZE, random_init=False, passing=passing) == alone
    assert not said
    evaluate(model, source, size=SIZE, as_published=True, random_init=False, passing=passing)
    assert said  # queries are whole now, so they are others


def test_published_settings_go_with_the_name(model, benchmark, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(retrieval, "_figures", lambda *args: looked.append(args[2]) or FIGURES)
    for name, size, scales in (("roxford5k", 224, 1), ("rparis6k", 512, 3), ("mine", 224, 1)):
        truth = tmp_path / f"gnd_{name}.pkl"
        truth.write_bytes((benchmark / "gnd_roxford5k.pkl").read_bytes())
        result = evaluate(model, open_source(benchmark), truth, random_init=False)
        assert (result.size, result.multiscale) == (size, scales == 3)
        assert looked[-1].settings["size"] == size and len(looked[-1].settings["scales"]) == scales


FIGURES = {
    **{f"map_{name}": 1.0 for name in ("easy", "medium", "hard")},
    **{f"mp{k}_{name}": 1.0 for k in (1, 5, 10) for name in ("easy", "medium", "hard")},
    "queries": 1,
    "images": 1,
    "answers": [],
    "notes": [],
}


def test_missing_and_unreadable_images_are_left_out_and_named(model, benchmark, tmp_path):
    folder = tmp_path / "roxford5k"
    (folder / "jpg").mkdir(parents=True)
    for path in (benchmark / "jpg").iterdir():
        (folder / "jpg" / path.name).write_bytes(path.read_bytes())
    truth = folder / "gnd_roxford5k.pkl"
    truth.write_bytes((benchmark / "gnd_roxford5k.pkl").read_bytes())
    (folder / "jpg" / "hard_1.png").write_bytes(b"")
    (folder / "jpg" / "query_2.png").unlink()
    result = evaluate(model, open_source(folder), size=SIZE, random_init=False)
    assert (result.queries, result.images) == (2, 10)
    assert result.notes == [
        "1 image is not there and is left out: query_2",
        "1 image cannot be read and is left out: jpg/hard_1.png",
    ]
    # an image that cannot be read is not looked for
    assert [one.ap_hard for one in result.answers] == [None, None]
    assert result.map_hard is None and "-" in result.table().splitlines()[1]
    assert all(one.ap_easy == one.ap_medium for one in result.answers[1:])


def test_mistakes_are_sentences(model, benchmark, tmp_path):
    source = open_source(benchmark)
    with pytest.raises(UserError, match=r"--size 7: tiny needs images of 8 px or more"):
        evaluate(model, source, size=7)
    with pytest.raises(UserError, match="no ground truth there"):
        evaluate(model, open_source("scenes:3"))
    path = tmp_path / "gnd_x.json"
    entry = {"easy": [0], "hard": [], "junk": []}
    path.write_text(json.dumps({"imlist": ["none"], "qimlist": ["query_1"], "gnd": [entry]}))
    with pytest.raises(UserError, match=r"has no image of x \(such as none\)"):
        evaluate(model, source, path)
    path.write_text(json.dumps({"imlist": ["easy_1"], "qimlist": ["none"], "gnd": [entry]}))
    with pytest.raises(UserError, match=r"has no query of x \(such as none\)"):
        evaluate(model, source, path)


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


def test_several_scales_are_normalized_each_image_by_itself(model):
    """The published division by the batch's norm is right for one image, and leaves directions."""
    x = torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    each = torch.cat([multi_scale(model.backbone, one[None]) for one in x])
    torch.testing.assert_close(multi_scale(model.backbone, x), each)
    torch.testing.assert_close(each.norm(dim=1), torch.ones(3))
    whole = multi_scale(model.backbone, x, as_published=True)
    torch.testing.assert_close(whole.norm(), torch.tensor(1.0))
    torch.testing.assert_close(F.normalize(whole, dim=1), each)
    alone = multi_scale(model.backbone, x[:1], as_published=True)
    torch.testing.assert_close(alone, each[:1])


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
