"""Label propagation: by hand, against the plain twin, and the laws a tracker must keep."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dino_core.evaluation.propagation import (
    Follower,
    Propagation,
    one_hot,
    propagate,
    propagate_plainly,
    segmented,
    stretched,
)


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random unit vectors, float64 [..., D]."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def soft_labels(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).softmax(dim=-1)


def mask_of(seed: int, height: int = 9, width: int = 14) -> np.ndarray:
    """Two objects, boxes, over background."""
    mask = np.zeros((height, width), np.int64)
    mask[1 + seed : 5 + seed, 2:6] = 1
    mask[3:7, 7 + seed : 11 + seed] = 2
    return mask


def test_one_step_by_hand():
    """Three patches in a row, two context frames; cosines 1, 0.8, 0.6 and 0; the two best count."""
    target = torch.tensor([[[1.0, 0], [0, 1], [1, 0]]], dtype=torch.float64)
    sources = torch.tensor(
        [[[[1.0, 0], [0.8, 0.6], [0, 1]]], [[[0.6, 0.8], [0, 1], [0, -1]]]], dtype=torch.float64
    )
    labels = torch.arange(6, dtype=torch.float64).view(2, 1, 3, 1)
    found = propagate(target, sources, labels, Propagation(radius=0, topk=2, temperature=0.5))
    near, far = np.exp(1 / 0.5), np.exp(0.8 / 0.5)
    first = (0 * near + 1 * far) / (near + far)
    second = (2 + 4) / 2  # both with cosine 1
    np.testing.assert_allclose(found[0, :, 0], [first, second, first])
    # Within one column the last patch sees neither patch 0 nor 3: of 1, 2, 4 and 5 the cosines are
    # 0.8, 0, 0 and 0, and those as like as the second best all count.
    found = propagate(target, sources, labels, Propagation(radius=1, topk=2, temperature=0.5))
    last = (1 * far + 2 + 4 + 5) / (far + 3)
    np.testing.assert_allclose(found[0, :, 0], [first, second, last])


@pytest.mark.parametrize("radius", [0, 1, 3, 12])
@pytest.mark.parametrize(("h", "w", "frames"), [(1, 1, 1), (7, 19, 2), (17, 9, 3), (8, 16, 1)])
def test_tiles_and_the_plain_twin_agree(h, w, frames, radius):
    target, sources = features(h, w, 6), features(frames, h, w, 6, seed=2)
    labels = soft_labels(frames, h, w, 3)
    for topk in (1, 5, 1000):
        how = Propagation(radius=radius, topk=topk)
        found = propagate(target, sources, labels, how)
        torch.testing.assert_close(found, propagate_plainly(target, sources, labels, how))
        torch.testing.assert_close(found.sum(-1), torch.ones(h, w, dtype=torch.float64))


def test_no_label_comes_from_further_than_the_radius():
    h, w, how = 5, 30, Propagation(radius=4, topk=10)
    labels = torch.zeros(1, h, w, 2, dtype=torch.float64)
    labels[..., 0] = 1
    labels[0, 2, 15] = torch.tensor([0.0, 1.0])
    same = F.normalize(torch.ones(1, h, w, 3, dtype=torch.float64), dim=-1)  # all patches alike
    reached = propagate(same[0], same, labels, how)[..., 1] > 0
    expected = torch.zeros(h, w, dtype=torch.bool)
    expected[:, 11:20] = True
    torch.testing.assert_close(reached, expected)


def test_a_small_temperature_does_not_overflow():
    """exp(1 / 0.0001) is no number; the softmax is, and picks the one best patch."""
    target, sources = features(4, 5, 6), features(2, 4, 5, 6, seed=2)
    labels = soft_labels(2, 4, 5, 3)
    found = propagate(target, sources, labels, Propagation(temperature=1e-4))
    best = propagate(target, sources, labels, Propagation(topk=1))
    torch.testing.assert_close(found, best, atol=1e-3, rtol=0)


def follow(frames: torch.Tensor, mask: np.ndarray, how: Propagation) -> list[np.ndarray]:
    """The channel of each patch, of all frames but the first."""
    labels = one_hot(mask, [1, 2], mask.shape).to(frames.dtype)
    follower = Follower(frames[0], labels, how)
    return [segmented(follower.step(f), *mask.shape).numpy() for f in frames[1:]]


def test_a_frame_repeated_keeps_the_mask():
    mask = mask_of(0)
    frames = features(*mask.shape, 32).expand(12, -1, -1, -1)
    for found in follow(frames, mask, Propagation(topk=1)):
        np.testing.assert_array_equal(found, mask)
    for found in follow(frames, mask, Propagation()):  # eight copies of it are the best eight
        np.testing.assert_array_equal(found, mask)


def test_a_shifted_pattern_is_followed():
    """Everything moves one patch to the right each frame; the masks do with it."""
    mask = mask_of(0)
    h, w = mask.shape
    world = features(h, w + 5, 32)
    frames = torch.stack([world[:, 5 - t : 5 - t + w] for t in range(5)])
    for t, found in enumerate(follow(frames, mask, Propagation()), start=1):
        known = slice(t, w)  # what came in at the left was in no frame before
        np.testing.assert_array_equal(found[:, known], mask[:, : w - t])


def test_what_moves_beyond_the_radius_is_lost():
    mask = np.zeros((6, 20), np.int64)
    mask[2:4, 1:4] = 1
    world = features(6, 40, 32)
    frames = torch.stack([world[:, 10:30], world[:, 0:20]])  # ten patches at once
    assert follow(frames, mask, Propagation(radius=12, topk=1))[0][2:4, 11:14].all()
    lost = follow(frames, mask, Propagation(radius=4, topk=1))[0]
    assert not (lost[2:4, 11:14] == 1).any()


def test_objects_in_another_order_give_the_same_masks():
    mask = mask_of(1)
    frames = features(4, *mask.shape, 8)  # unrelated frames: soft labels of all kinds
    swapped = np.choose(mask, [0, 2, 1])
    for found, other in zip(
        follow(frames, mask, Propagation()), follow(frames, swapped, Propagation()), strict=True
    ):
        np.testing.assert_array_equal(np.choose(found, [0, 2, 1]), other)


def test_the_context_is_the_first_frame_and_the_last_few(monkeypatch):
    """Features say which frame they are; only frames of the context can be copied from."""
    seen = []

    def spy(target, sources, labels, how):
        seen.append(sources[:, 0, 0, 0].int().tolist())
        return labels[0]

    monkeypatch.setattr("dino_core.evaluation.propagation.propagate", spy)
    frames = torch.arange(6.0)[:, None, None, None]
    follower = Follower(frames[0], torch.ones(1, 1, 1), Propagation(frames=2))
    for frame in frames[1:]:
        follower.step(frame)
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]


def test_no_last_frames_means_the_first_alone():
    frames = features(4, 3, 3, 8)
    labels = soft_labels(3, 3, 2)
    how = Propagation(frames=0)
    follower = Follower(frames[0], labels, how)
    for frame in frames[1:]:
        expected = propagate_plainly(frame, frames[:1], labels[None], how)
        torch.testing.assert_close(follower.step(frame), expected)


def test_the_first_mask_as_pillow_reduces_it():
    mask = np.random.default_rng(0).integers(0, 4, (48, 85)).astype(np.uint8)
    small = np.asarray(Image.fromarray(mask).resize((10, 6), Image.Resampling.NEAREST))
    found = one_hot(mask, [1, 3], (6, 10)).numpy()
    assert found.shape == (6, 10, 3)
    np.testing.assert_array_equal(found[..., 1], small == 1)
    np.testing.assert_array_equal(found[..., 2], small == 3)
    np.testing.assert_array_equal(found[..., 0], (small == 0) | (small == 2))  # 2 is not followed


def test_stretching_by_hand():
    soft = torch.tensor([[[0.0, 0.2, 0.4]], [[0.5, 0.5, 0.5]], [[0.0, 0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 0.5, 1.0]], [[0.5, 0.5, 0.5]], [[0.0, 0.0, 0.0]]])
    torch.testing.assert_close(stretched(soft), expected)


def test_a_faint_trace_of_an_object_is_found_as_published():
    """At most 10 % anywhere, yet the stretched channel wins where it peaks."""
    soft = torch.zeros(4, 4, 2)
    soft[1, 2, 1] = 0.1
    soft[..., 0] = 1 - soft[..., 1]
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[1, 2] = 1
    torch.testing.assert_close(segmented(soft, 4, 4), expected)
    soft[1, 2] = torch.tensor([1.0, 0.0])  # nothing of it left: all background
    assert not segmented(soft, 4, 4).any()


def test_enlarged_bilinearly():
    """Between the centers of two patches the border lies halfway."""
    soft = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert segmented(soft, 1, 8).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    soft = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert segmented(soft, 2, 12).tolist() == [[0] * 8 + [1] * 4] * 2
