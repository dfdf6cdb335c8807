"""Copy detection on strong edits of scenes, against the protocol once more in plain loops."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import copies as protocol
from dino_core.evaluation.copies import evaluate, matched, open_pairs, squeezed
from dino_core.evaluation.passes import Passing
from dino_core.gallery.features import SourceFeatures
from dino_core.models import Model, ModelInfo, create_backbone

SIZE = 32
PATCH = 8


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
        info = ModelInfo("vit_tiny_patch16_224", PATCH, SIZE, options=options)
        return Model(create_backbone(info), "tiny", torch.device("cpu"))


def cut(picture: Image.Image) -> Image.Image:
    return picture.crop((picture.width // 5, picture.height // 4, picture.width, picture.height))


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(4))


def pressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=3)
    return Image.open(file).convert("RGB")


def painted(picture: Image.Image) -> Image.Image:
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.paste((250, 30, 30), (8, 8, picture.width // 2, picture.height // 3))
    return picture


EDITS = (cut, blurred, pressed, painted)


@pytest.fixture(scope="module")
def copydays(tmp_path_factory) -> Path:
    """`original/200000.png`, ... of five scenes, and four strong copies of each of the first four;
    beside them four distractors, and thirty images that whitening may be learned from."""
    folder = tmp_path_factory.mktemp("copydays")
    for name in ("original", "strong", "distractors", "others"):
        (folder / name).mkdir()
    scenes = open_source("scenes:39")
    pictures = [Image.fromarray(scenes.image(i)) for i in range(39)]
    for i in range(5):
        pictures[i].save(folder / "original" / f"{2000 + i}00.png")
        for j, edit in enumerate(EDITS if i < 4 else ()):
            edit(pictures[i]).save(folder / "strong" / f"{2000 + i}0{j + 1}.png")
    for i in range(5, 9):
        pictures[i].save(folder / "distractors" / f"d{i}.png")
    for i in range(9, 39):
        pictures[i].save(folder / "others" / f"o{i}.png")
    return folder


def plain_feature(model: Model, path: Path) -> np.ndarray:
    """The published steps: squeeze, normalize, CLS, average-pooled fourth powers of the patches."""
    picture = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    with torch.no_grad():
        tokens = model.backbone.tokens(model.normalize(np.asarray(picture))[None])[0]
    side = SIZE // PATCH
    patches = tokens[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).clamp(min=1e-6)
    gem = F.avg_pool2d(patches**4, (side, side)).flatten() ** 0.25
    return torch.cat([tokens[0], gem]).double().numpy()


def by_hand(model: Model, folder: Path, whiten: bool, as_published: bool) -> float:
    """Mean average precision of the strong copies, percent; distractors searched too."""

    def side(name: str) -> tuple[list[str], np.ndarray]:
        paths = sorted((folder / name).iterdir())
        return [path.stem for path in paths], np.array([plain_feature(model, p) for p in paths])

    names, database = side("original")
    others, more = side("distractors")
    database = np.concatenate([database, more])
    asked, queries = side("strong")
    if whiten:
        learned = side("others")[1]
        mean = learned.mean(axis=0)
        around = np.zeros_like(mean) if as_published else mean
        covariance = sum(np.outer(x - around, x - around) for x in learned) / len(learned)
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, values.max() * 1e-5)
        keep = np.argsort(values)[::-1]
        if not as_published:
            keep = keep[: len(learned) - 1]
        turn = vectors[:, keep] / np.sqrt(values[keep])
        database, queries = (database - mean) @ turn, (queries - mean) @ turn
    precisions = []
    for name, query in zip(asked, queries, strict=True):
        cosines = database @ query / np.linalg.norm(database, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosines)[:20]
        place = next((r for r, i in enumerate(order) if (names + others)[i][:4] == name[:4]), None)
        # one original: half the precision before it (1 at the top) and half that with it
        before = 1.0 if place == 0 else 0.0
        precisions.append(0.0 if place is None else (before + 1 / (place + 1)) / 2)
    return 100 * float(np.mean(precisions))


@pytest.fixture(scope="module")
def sides(copydays):
    distractors, others = (open_source(copydays / name) for name in ("distractors", "others"))
    return *open_pairs(copydays), distractors, others


@pytest.mark.parametrize(("whiten", "as_published"), [(False, False), (True, False), (True, True)])
def test_the_protocol_once_more_in_plain_loops(model, copydays, sides, whiten, as_published):
    originals, copies, distractors, others = sides
    result = evaluate(
        model, originals, copies, distractors=distractors, whitening=others if whiten else None,
        size=SIZE, as_published=as_published, random_init=False,
    )  # fmt: skip
    assert result.map == pytest.approx(by_hand(model, copydays, whiten, as_published))
    assert (result.queries, result.images, result.matched_by) == (16, 9, "Copydays")
    assert result.axes == ((48 if as_published else 29) if whiten else None)
    assert result.whitening_dim is None
    assert len(result.notes) == (whiten and not as_published)
    assert np.mean([one.ap for one in result.answers]) == pytest.approx(result.map)
    assert result.top1 == pytest.approx(100 * np.mean([one.rank == 1 for one in result.answers]))


@pytest.mark.parametrize(("asked", "kept"), [(5, 5), (29, 29), (40, 29), (100, 29)])
def test_the_axes_asked_for_are_told_beside_those_kept(model, sides, asked, kept):
    originals, copies, _, others = sides
    result = evaluate(
        model, originals, copies, whitening=others, whitening_dim=asked, size=SIZE,
        random_init=False,
    )  # fmt: skip
    assert (result.whitening_dim, result.axes) == (asked, kept)
    told = f"whitening keeps {kept} axes: 30 images and 48 dimensions have no more"
    assert result.notes == ([told] if kept < asked else [])
    assert f"({kept} axes)" in result.table()


def known(vectors: dict[str, list[float]]):
    """Stands for the pass: features by an image's name."""

    def found(model, source, look, passing):
        array = np.array([vectors[Path(name).stem] for name in source.ids], np.float32)
        return SourceFeatures(array, "", rows=np.arange(len(source)))

    return found


@pytest.fixture
def small(tmp_path) -> Path:
    """Two originals a and b, three copies, one distractor: pictures without meaning."""
    for name in ("originals/a", "originals/b", "copies/a_1", "copies/a_2", "copies/b-x", "more/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_counted_by_hand(model, small, monkeypatch):
    vectors = {
        "a": [1, 0], "b": [0, 2], "d": [1, 1],
        "a_1": [5, 1], "a_2": [1, 1.5], "b-x": [3, -1],
    }  # fmt: skip
    monkeypatch.setattr(protocol, "features", known(vectors))
    originals, copies = open_pairs(small)
    result = evaluate(model, originals, copies, random_init=False)
    # a_1: a first: 1. a_2: b, then a: (0 + 1/2) / 2. b-x: a, then b: 1/4.
    assert [one.ap for one in result.answers] == [100, 25, 25]
    assert result.map == 50 and result.top1 == pytest.approx(100 / 3)
    more = open_source(small / "more")
    result = evaluate(model, originals, copies, distractors=more, random_init=False)
    # a_2: d, b, a: (0 + 1/3) / 2; b-x: a, d, b
    assert [one.ap for one in result.answers] == pytest.approx([100, 100 / 6, 100 / 6])
    first, second, third = result.answers
    assert (first.rank, first.first_wrong, first.is_distractor) == (1, "d.png", True)
    assert first.margin == pytest.approx((5 - 6 / 2**0.5) / 26**0.5, abs=1e-6)
    assert (second.rank, second.first_wrong, second.is_distractor) == (3, "d.png", True)
    assert (third.first_wrong, third.is_distractor, third.originals) == ("a.png", False, ["b.png"])


def test_beyond_the_twentieth_nothing_is_found(model, small, monkeypatch):
    monkeypatch.setattr(protocol, "TOP", 1)
    vectors = {"a": [1, 0], "b": [0, 1], "a_1": [0, 1], "a_2": [1, 0], "b-x": [1, 0]}
    monkeypatch.setattr(protocol, "features", known({**vectors, "d": [1, 1]}))
    originals, copies = open_pairs(small)
    result = evaluate(model, originals, copies, random_init=False)
    assert [(one.ap, one.rank) for one in result.answers] == [(0, None), (100, 1), (0, None)]
    assert result.answers[0].first_wrong == "b.png" and result.answers[0].margin is None


def written_at(folder: Path) -> dict[Path, int]:
    """When each kept pass was."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("features.npy")}


def test_the_untrained_backbone_beside_it(model, small, tmp_path):
    originals, copies = open_pairs(small)
    passing = Passing(keep=tmp_path / "kept")
    result = evaluate(model, originals, copies, size=SIZE + 3, passing=passing)
    written = written_at(tmp_path / "kept")
    assert result.random_init is not None
    assert result.random_init.model_hash != result.model_hash
    assert result.size == SIZE and result.notes == ["images are 32 px a side: whole patches"]
    assert "untrained" in result.table() and "not whitened" in result.table()
    assert json.loads(json.dumps(result.as_dict()))["random_init"]["queries"] == 3
    assert evaluate(model, originals, copies, size=SIZE + 3, passing=passing) == result
    assert written_at(tmp_path / "kept") == written and len(written) == 4


class Named:
    """A source of which only names are asked."""

    def __init__(self, *ids: str) -> None:
        self.ids, self.spec = list(ids), "these"


@pytest.mark.parametrize(
    ("originals", "copies", "expected"),
    [
        (["cat.jpg"], ["cat.png", "cat_x.jpg", "cat.blur.png", "a/cat.jpg", "cats.jpg"],
         [[0], [0], [0], [0], []]),
        (["img1.jpg", "img10.jpg", "img1_b.jpg"], ["img1_c.jpg", "img10-2.jpg", "img1_b_c.jpg"],
         [[0], [1], [2]]),
        (["a/1.jpg", "b/1.jpg"], ["a/1_x.jpg", "crops/b/1.jpg", "2.jpg"], [[0], [1], []]),
        (["200000.jpg", "200100.jpg"], ["200001.jpg", "200117.jpg", "200200.jpg"], [[0], [1], []]),
        (["200000.jpg", "200001.jpg"], ["200002.jpg"], [[0, 1]]),
        (["20000.jpg"], ["20000.png", "20001.png"], [[0], []]),  # five digits: plain names
    ],
)  # fmt: skip
def test_copies_belong_by_name(originals, copies, expected):
    belongs, _, unmatched = matched(Named(*copies), Named(*originals))
    assert belongs == expected
    assert unmatched == [n for n, found in zip(copies, expected, strict=True) if not found]


def test_copies_belong_by_table(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("original,copy,how\na.jpg,x/1.jpg,crop\nb,1,blur\na,2.jpg,\na,2.jpg,\n")
    copies, originals = Named("x/1.jpg", "2.jpg", "3.jpg"), Named("a.jpg", "b.jpg")
    assert matched(copies, originals, table) == ([[0, 1], [0, 0], []], "table", ["3.jpg"])
    for text, says in (
        ("copy,original\n9.jpg,a.jpg\n", r"names the copy '9\.jpg', not in these"),
        ("copy,original\n2.jpg,c\n", "names the original 'c', not in these"),
        ("copy,original\n2.jpg\n", "names the original '', not in these"),
        ("a,b\n1,2\n", "needs the columns copy and original"),
        ("", "needs the columns copy and original"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=says):
            matched(copies, originals, table)
    with pytest.raises(UserError, match="cannot be read as a CSV"):
        matched(copies, originals, tmp_path)


def test_what_cannot_be_matched_is_said():
    with pytest.raises(UserError, match=r"no copy there belongs .* x\.jpg and a\.jpg.* --pairs"):
        matched(Named("x.jpg"), Named("a.jpg"))
    with pytest.raises(UserError, match=r"1_x\.jpg may be of a/1\.jpg or of b/1\.jpg"):
        matched(Named("1_x.jpg"), Named("a/1.jpg", "b/1.jpg"))


def test_unmatched_and_unreadable_images_are_left_out_and_named(model, small):
    (small / "originals" / "b.png").write_bytes(b"")
    (small / "copies" / "a_2.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(small / "copies" / "c.png")
    originals, copies = open_pairs(small)
    result = evaluate(model, originals, copies, size=SIZE, random_init=False)
    assert [one.copy for one in result.answers] == ["a_1.png"]
    assert (result.queries, result.images, result.map) == (1, 1, 100)
    assert result.notes == [
        "1 image belongs to no original and is left out: c.png",
        "2 images cannot be read and are left out: a_2.png (empty file), b.png (empty file)",
    ]
    (small / "originals" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="no copy can be read together with its original"):
        evaluate(model, originals, copies, size=SIZE, random_init=False)


def test_mistakes_are_sentences(model, small):
    originals, copies = open_pairs(small)
    with pytest.raises(UserError, match="--size 7: tiny needs images of 8 px or more"):
        evaluate(model, originals, copies, size=7)
    with pytest.raises(UserError, match="--whitening-dim 0: must be 1 or more"):
        evaluate(model, originals, copies, whitening_dim=0)
    with pytest.raises(UserError, match="is both copies and originals"):
        evaluate(model, originals, originals)
    with pytest.raises(UserError, match=r"cannot teach whitening \(1 images cannot tell"):
        evaluate(model, originals, copies, size=SIZE, whitening=open_source(small / "more"))
    with pytest.raises(UserError, match=r"--whitening-dim 8: nothing is whitened; .* --whitening"):
        evaluate(model, originals, copies, whitening_dim=8)
    for folder, says in (
        ("more", "has no folder original or originals; originals lie in `original` or"),
        ("none", "none: no such folder; name one that holds originals and copies"),
    ):
        with pytest.raises(UserError, match=says):
            open_pairs(small / folder)
    shutil.rmtree(small / "copies")
    with pytest.raises(UserError, match="has no folder strong or copies"):
        open_pairs(small)


def test_images_are_squeezed(model):
    image = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    expected = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    found = squeezed(image, SIZE, model.info).numpy()
    np.testing.assert_array_equal(found, np.asarray(expected))
    with pytest.raises(UserError, match="for a model of 3 channels"):
        squeezed(image[..., :2], SIZE, model.info)
