"""The DAVIS protocol: once more in plain steps, its laws, what is left out, resuming, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from dino_core.errors import UserError
from dino_core.evaluation import video as protocol
from dino_core.evaluation.davis import palette
from dino_core.evaluation.passes import Passing
from dino_core.evaluation.propagation import Propagation, propagate_plainly
from dino_core.evaluation.video import evaluate
from dino_core.evaluation.video_frames import resized
from dino_core.models import Model, ModelInfo, create_backbone

HEIGHT, WIDTH = 48, 64


def make_model(patch: int = 8, registers: int = 0) -> Model:
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "reg_tokens": registers}
    info = ModelInfo("vit_tiny_patch16_224", patch, 8 * patch, options=options)
    return Model(create_backbone(info), f"tiny-{patch}", torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


def run(model: Model, root: Path, **options):
    """With small defaults: frames of 48 px, no untrained backbone."""
    return evaluate(model, root, **{"size": HEIGHT, "random_init": False, **options})


def scene(t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two textured boxes moving over noise: uint8 [H, W, 3], and labels uint8 [H, W]."""
    generator = np.random.default_rng(seed)
    world = ndimage.gaussian_filter(generator.normal(size=(HEIGHT, WIDTH, 3)), (3, 3, 0))
    frame = np.clip(128 + 300 * world, 0, 255)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, (top, left) in enumerate([(6, 4 + 3 * t), (24, 40 - 2 * t)], start=1):
        place = (slice(top, top + 18), slice(left, left + 18))
        frame[place] = generator.integers(0, 256, (18, 18, 3)) / 2 + 60 * number
        labels[place] = number
    return frame.astype(np.uint8), labels


def save_mask(path: Path, labels: np.ndarray, gray: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray((labels > 0).astype(np.uint8) * 255 if gray else labels)
    if not gray:
        picture.putpalette(palette().tobytes())
    picture.save(path)


def mask_path(root: Path, name: str, t: int) -> Path:
    return root / "Annotations" / "480p" / name / f"{t:05d}.png"


def frame_path(root: Path, name: str, t: int) -> Path:
    return root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"


def write(root: Path, name: str, frames: int = 5, seed: int = 0, gray: bool = False) -> None:
    for t in range(frames):
        frame, labels = scene(t, seed)
        path = frame_path(root, name, t)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path, quality=95)
        save_mask(mask_path(root, name, t), labels, gray)


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


# --- the protocol once more


def plain_masks(model: Model, root: Path, name: str, how: Propagation) -> list[np.ndarray]:
    """What is found in frames 1 to the last, by plain steps; frames are fed as they are."""
    paths = sorted((root / "JPEGImages" / "480p" / name).iterdir())
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    features = []
    for path in paths:
        with Image.open(path) as picture:
            x_HWC = (np.asarray(picture) / 255 - mean) / std
        x_BCHW = torch.from_numpy(x_HWC).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            tokens = model.backbone.tokens(x_BCHW)[0, 1:]
        features.append(F.normalize(tokens, dim=1).reshape(HEIGHT // 8, WIDTH // 8, -1))
    with Image.open(root / "Annotations" / "480p" / name / "00000.png") as picture:
        small = picture.resize((WIDTH // 8, HEIGHT // 8), Image.Resampling.NEAREST)
        first = np.array(small)
    first = np.minimum(first, 1) if first.max() == 255 else first
    soft = [torch.eye(int(first.max()) + 1)[torch.from_numpy(first).long()]]
    found = []
    for t in range(1, len(paths)):
        context = [0, *range(max(1, t - how.frames), t)]
        sources, labels = (torch.stack([one[i] for i in context]) for one in (features, soft))
        soft.append(propagate_plainly(features[t], sources, labels, how))
        large = F.interpolate(soft[-1].permute(2, 0, 1)[None], scale_factor=8, mode="bilinear")[0]
        for channel in large:
            if channel.max() > channel.min():
                channel -= channel.min().clone()
                channel /= channel.max().clone()
        found.append(large.argmax(0).numpy())
    return found


def plain_f(found: np.ndarray, true: np.ndarray) -> float:
    """The boundary measure by distances; one pixel of tolerance at 48 x 64."""
    edges = []
    for mask in (found, true):
        wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        edges.append((mask ^ wide[1:, :-1]) | (mask ^ wide[:-1, 1:]) | (mask ^ wide[1:, 1:]))
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    p, r = ((ndimage.distance_transform_edt(~b)[a] <= 1).mean() for a, b in (edges, edges[::-1]))
    return 2 * p * r / (p + r) if p + r else 0.0


def test_the_protocol_once_more_in_plain_steps(model, tmp_path):
    write(tmp_path, "two", frames=7)
    write(tmp_path, "one", frames=6, seed=1, gray=True)
    how = Propagation(frames=2, radius=2, topk=3, temperature=0.2)
    settings = {"frames": 2, "radius": 2, "topk": 3, "temperature": 0.2}
    result = run(model, tmp_path, **settings)

    expected = {}
    for name, objects in (("one", [1]), ("two", [1, 2])):
        found = plain_masks(model, tmp_path, name, how)
        for number in objects:
            j, f = [], []
            for t in range(1, len(found)):  # neither the first nor the last frame
                true = read_mask(mask_path(tmp_path, name, t))
                true = true > 0 if name == "one" else true == number
                mask = found[t - 1] == number
                j.append((mask & true).sum() / (mask | true).sum())
                f.append(plain_f(mask, true))
            expected[name, number] = (j, f)
    assert [(s.name, s.object) for s in result.per_sequence] == list(expected)
    for score in result.per_sequence:
        j, f = expected[score.name, score.object]
        assert score.frames == len(j)
        assert (score.j, score.f) == pytest.approx((np.mean(j), np.mean(f)), abs=1e-9)
        assert score.j_recall == np.mean(np.array(j) > 0.5)
        assert score.worst_frame == f"{1 + int(np.argmin(j)):05d}"
    js, fs = ([np.mean(pair[i]) for pair in expected.values()] for i in (0, 1))
    assert 0.05 < np.mean(js) < 0.95  # figures that say something
    assert result.j_mean == pytest.approx(np.mean(js))  # over objects, not over videos
    assert result.f_mean == pytest.approx(np.mean(fs))
    assert result.jf_mean == pytest.approx((np.mean(js) + np.mean(fs)) / 2)
    assert result.f_recall == np.mean([np.mean(np.array(f) > 0.5) for _, f in expected.values()])
    # Of frames 1 to 5 the outer quarters are (1, 2) and (4, 5), of 1 to 4 (1, 2) and (3, 4).
    decays = [np.mean(j[:2]) - np.mean(j[-2:]) for j, _ in expected.values()]
    assert result.j_decay == pytest.approx(np.mean(decays))
    assert (result.videos, result.objects, result.frames) == (2, 3, 4 + 5 + 5)
    assert set(result.best) == {"one", "two"} and result.worst == result.best[::-1]
    assert result.settings == how and result.notes == []


def test_a_frame_repeated_keeps_the_mask(model, tmp_path):
    """Masks of whole patches, lost at most around their corners."""
    write(tmp_path, "still", frames=6)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[8:32, 8:40] = 1
    for t in range(6):
        shutil.copy(frame_path(tmp_path, "still", 0), frame_path(tmp_path, "still", t + 1))
        save_mask(mask_path(tmp_path, "still", t), labels)
    (score,) = run(model, tmp_path, topk=1).per_sequence
    assert score.j > 0.95 and score.f > 0.9 and score.j_decay == pytest.approx(0)


def test_objects_in_another_order_have_the_same_scores(model, tmp_path):
    write(tmp_path / "a", "v")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for t in range(5):
        labels = read_mask(mask_path(tmp_path / "b", "v", t))
        save_mask(mask_path(tmp_path / "b", "v", t), np.array([0, 7, 4], np.uint8)[labels])
    first, second = (run(model, tmp_path / side).per_sequence for side in "ab")
    assert [score.object for score in second] == [4, 7]
    scores = [(s.j, s.f, s.j_decay) for s in first]
    assert scores == [(s.j, s.f, s.j_decay) for s in second[::-1]]


def test_neither_the_first_nor_the_last_mask_is_scored(model, tmp_path):
    write(tmp_path, "v")
    before = run(model, tmp_path)
    save_mask(mask_path(tmp_path, "v", 4), np.zeros((HEIGHT, WIDTH), np.uint8))
    after = run(model, tmp_path)
    assert after.per_sequence == before.per_sequence and after.data_hash != before.data_hash
    assert {score.frames for score in after.per_sequence} == {3}


def test_the_untrained_backbone_is_scored_beside_it(model, tmp_path):
    write(tmp_path, "v")
    result = run(model, tmp_path, random_init=True)
    other = result.random_init
    assert other is not None and other.random_init is None
    assert other.model_hash != result.model_hash and other.jf_mean != result.jf_mean
    assert other.data_hash == result.data_hash
    plain = json.loads(json.dumps(result.as_dict()))
    assert plain["j_mean"] == result.j_mean
    assert plain["random_init"]["per_sequence"][1]["object"] == 2
    assert plain["settings"] == {"frames": 7, "radius": 12, "topk": 5, "temperature": 0.1}
    table = result.table()
    assert "tiny-8" in table and "untrained" in table and f"{result.jf_mean:.1%}" in table
    assert "2 objects in 1 video" in table


# --- pixels and networks


def test_void_is_not_scored_unless_as_published(model, tmp_path):
    """All that was found is void in the masks: nothing to miss, or nothing but mistakes."""
    write(tmp_path, "v")
    for t in range(1, 5):
        save_mask(mask_path(tmp_path, "v", t), np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert run(model, tmp_path).j_mean == 1
    published = run(model, tmp_path, as_published=True)
    assert published.j_mean == 0 and published.as_published


@pytest.mark.parametrize("kind", ["registers", "patch 14", "resnet"])
def test_any_network_with_a_grid(tmp_path, kind):
    if kind == "resnet":
        torch.manual_seed(0)
        other = Model(create_backbone(ModelInfo("resnet18", 1, 64)), "r", torch.device("cpu"))
    else:
        other = make_model(14) if kind == "patch 14" else make_model(8, registers=4)
    write(tmp_path, "v", frames=3)
    size = 128 if kind == "resnet" else 56
    result = run(other, tmp_path, size=size)
    assert result.objects == 2 and 0 < result.j_mean < 1


# --- what is left out


def test_everything_left_out_is_said(model, tmp_path):
    write(tmp_path, "whole", frames=6)
    write(tmp_path, "sparse", frames=7)
    for t in (2, 4):
        mask_path(tmp_path, "sparse", t).unlink()
    mask_path(tmp_path, "sparse", 3).write_bytes(b"text")
    write(tmp_path, "broken", frames=6)
    frame_path(tmp_path, "broken", 2).write_bytes(b"")
    save_mask(mask_path(tmp_path, "broken", 3), np.zeros((4, 4), np.uint8))
    write(tmp_path, "short", frames=2)
    write(tmp_path, "single", frames=1)
    write(tmp_path, "empty", frames=4)
    save_mask(mask_path(tmp_path, "empty", 0), np.zeros((HEIGHT, WIDTH), np.uint8))
    write(tmp_path, "unmasked", frames=3)
    shutil.rmtree(tmp_path / "Annotations" / "480p" / "unmasked")

    result = run(model, tmp_path)
    frames = {score.name: score.frames for score in result.per_sequence}
    assert frames == {"whole": 4, "sparse": 2, "broken": 2}
    assert result.notes == [
        "4 videos are left out: empty (its first mask is empty), short (no mask between the first "
        "and the last), single (no mask between the first and the last), ...",
        "1 unreadable frame is left out: broken/00002.jpg (empty file)",
        "1 unreadable mask is not scored: sparse/00003.png (not an image (begins with b'text'))",
        "1 mask of another size than its video's first is not scored: broken/00003.png",
        "1 video has frames without a mask, which are not scored: sparse (2 frames)",
    ]


@pytest.mark.parametrize("shape", [(24, 32), (60, 50)])
def test_a_frame_of_another_size_is_resized_and_said(model, tmp_path, shape):
    """Smaller, or of another shape: the same as if it had the first frame's size in the file."""
    for side in "ab":
        write(tmp_path / side, "v")
        odd = frame_path(tmp_path / side, "v", 2)
        image = resized(scene(2)[0], *shape)
        Image.fromarray(resized(image, HEIGHT, WIDTH) if side == "b" else image).save(
            odd.with_suffix(".png")
        )
        odd.unlink()
    first, second = (run(model, tmp_path / side) for side in "ab")
    assert first.per_sequence == second.per_sequence and second.notes == []
    assert first.notes == [
        "1 frame of another size than its video's first is resized to it: "
        f"v/00002.png ({shape[1]} x {shape[0]} px)"
    ]


def test_a_first_mask_of_another_shape_leaves_its_video_out(model, tmp_path):
    for name in "ab":
        write(tmp_path, name)
    save_mask(mask_path(tmp_path, "a", 0), scene(0)[1][: HEIGHT // 2])
    found = run(model, tmp_path)
    assert {one.name for one in found.per_sequence} == {"b"}
    assert found.notes == [
        "1 video is left out: a (its first mask has another shape "
        f"({WIDTH} x {HEIGHT // 2} px, but its frame {WIDTH} x {HEIGHT}))"
    ]


def test_later_and_lost_objects_and_late_starts_are_said(model, tmp_path):
    write(tmp_path, "v", frames=6)
    mask_path(tmp_path, "v", 0).unlink()
    labels = read_mask(mask_path(tmp_path, "v", 1))
    labels[0, 0] = 9  # one pixel, in no patch's center
    save_mask(mask_path(tmp_path, "v", 1), labels)
    labels = read_mask(mask_path(tmp_path, "v", 3))
    labels[40:, 40:] = 5
    save_mask(mask_path(tmp_path, "v", 3), labels)
    result = run(model, tmp_path)
    assert [score.object for score in result.per_sequence] == [1, 2, 9]
    assert {score.frames for score in result.per_sequence} == {3}  # frames 2, 3 and 4
    assert result.per_sequence[2].j == 1  # neither there nor found
    assert result.notes == [
        "1 video begins with frames without a mask, which are left out: v",
        "1 object appears after the first mask and is not scored: v object 5",
        "1 object is lost between the patches of its first frame: v object 9",
    ]


def test_a_frame_that_cannot_be_read_leaves_the_rest_as_without_it(model, tmp_path):
    write(tmp_path / "a", "v", frames=7)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    frame_path(tmp_path / "a", "v", 3).write_bytes(b"")
    frame_path(tmp_path / "b", "v", 3).unlink()
    first, second = (run(model, tmp_path / side).per_sequence for side in "ab")
    assert first == second and first[0].frames == 4


# --- found masks, kept scores


def test_found_masks_are_written_and_score_the_same(model, tmp_path):
    write(tmp_path / "in", "v")
    result = run(model, tmp_path / "in", out=tmp_path / "out", random_init=True)
    files = sorted((tmp_path / "out" / "v").iterdir())
    assert [path.name for path in files] == [f"{t:05d}.png" for t in range(5)]
    first = read_mask(mask_path(tmp_path / "in", "v", 0))
    np.testing.assert_array_equal(read_mask(files[0]), first)
    for score in result.per_sequence:
        overlaps = []
        for t in (1, 2, 3):
            true = read_mask(mask_path(tmp_path / "in", "v", t)) == score.object
            found = read_mask(files[t]) == score.object
            overlaps.append((true & found).sum() / (true | found).sum())
        assert score.j == pytest.approx(np.mean(overlaps))
    with Image.open(files[2]) as picture:
        assert picture.mode == "P" and picture.getpalette()[3:6] == [128, 0, 0]


def test_a_video_is_not_computed_again(model, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write(tmp_path / "in", name, frames=4)
    passing = Passing(keep=tmp_path / "kept")
    expected = run(model, tmp_path / "in")
    asked, score_video = [], protocol.score_video

    def killed_in_the_second(model, video, *rest):
        asked.append(video.name)
        if asked == ["a", "b"]:
            raise KeyboardInterrupt
        return score_video(model, video, *rest)

    monkeypatch.setattr(protocol, "score_video", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "in", passing=passing)
    assert run(model, tmp_path / "in", passing=passing) == expected
    assert asked == ["a", "b", "b", "c"]
    assert run(model, tmp_path / "in", passing=passing) == expected and len(asked) == 4
    run(model, tmp_path / "in", passing=passing, topk=4)  # other settings, other scores
    assert asked[4:] == ["a", "b", "c"]
    save_mask(mask_path(tmp_path / "in", "c", 1), np.zeros((HEIGHT, WIDTH), np.uint8))
    run(model, tmp_path / "in", passing=passing)  # other data
    assert asked[7:] == ["a", "b", "c"]


def test_masks_that_went_after_their_scores_were_kept_are_missed(model, tmp_path):
    write(tmp_path / "in", "v", frames=3)
    options = {"passing": Passing(keep=tmp_path / "kept"), "out": tmp_path / "out"}
    assert run(model, tmp_path / "in", **options).notes == []
    shutil.rmtree(tmp_path / "out")
    (note,) = run(model, tmp_path / "in", **options).notes
    assert "lacks v, whose scores were kept; name another folder" in note


def test_progress_counts_frames(model, tmp_path):
    for name in ("a", "b"):
        write(tmp_path, name, frames=4)
    said = []
    run(model, tmp_path, passing=Passing(progress=lambda *one: said.append(one)))
    done = [one[0] for one in said]
    assert {one[1:] for one in said} == {(8, "Videos of tiny-8")}
    assert done == sorted(done) and done[0] == 0 and done[-1] == 8 and len(set(done)) > 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 7}, "size 7: smaller than one patch of 8 px"),
        ({"frames": -1}, "frames -1: must be 0 or more"),
        ({"radius": -1}, "radius -1: must be 0 or more"),
        ({"topk": 0}, "topk 0: must be 1 or more"),
        ({"temperature": 0.0}, "temperature 0.0: must be above 0"),
        ({"temperature": float("nan")}, "must be above 0"),
        ({"size": 20_000}, "make more than 65,536 patches of 8 px at size 20000"),
        ({"videos": ["dog"]}, "has no video dog; there are v"),
    ],
)
def test_refusals(model, tmp_path, options, says):
    write(tmp_path, "v", frames=3)
    with pytest.raises(UserError, match=says):
        run(model, tmp_path, **options)


def test_nothing_to_score_is_refused(model, tmp_path):
    write(tmp_path, "v", frames=2)
    with pytest.raises(UserError, match=r"nothing there can be scored; 1 video is left out: v"):
        run(model, tmp_path)
