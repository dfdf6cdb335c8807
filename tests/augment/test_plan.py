"""Plans: functions of their key, inside the image, distributed as torchvision draws them."""

import itertools
import math
import time
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from dino_core.augment import MultiCrop, ViewPlan, plan_view, plan_views
from dino_core.augment.plan import JITTER, RATIO, TRIES, _box, reduction

CONFIG = MultiCrop()
SIDES = st.integers(1, 3000)
SIGMAS = 4.5  # how far a frequency may lie from its probability, in standard deviations


@pytest.fixture(scope="module")
def many() -> list[list[ViewPlan]]:
    """The plans of 1,000 images."""
    return [plan_views(CONFIG, 0, 0, index, height=375, width=500) for index in range(1000)]


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 999), index=st.integers(0, 2**31))
def test_plan_depends_on_its_key_alone(seed: int, epoch: int, index: int) -> None:
    together = plan_views(CONFIG, seed, epoch, index, height=300, width=400)
    order = list(range(CONFIG.views))
    Random(seed).shuffle(order)
    alone = {v: plan_view(CONFIG, seed, epoch, index, view=v, height=300, width=400) for v in order}
    assert [alone[view] for view in range(CONFIG.views)] == together


def test_every_part_of_the_key_matters() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    boxes = {plan.box for key in keys for plan in plan_views(CONFIG, *key, height=900, width=900)}
    assert len(boxes) == len(keys) * CONFIG.views


@pytest.mark.parametrize(
    ("off", "touched"),
    [
        ({"flip": 0.0}, "flip"),
        ({"jitter": 0.0}, "jitter"),
        ({"grayscale": 0.0}, "grayscale"),
        ({"blur": (0.0, 0.0, 0.0)}, "blur_sigma"),
        ({"solarize": (0.0, 0.0, 0.0)}, "solarize"),
        ({"global_scale": (0.9, 1.0), "local_scale": (0.9, 1.0)}, "box"),
    ],
)
def test_one_decision_leaves_the_others_alone(off: dict, touched: str) -> None:
    for index in range(20):
        full = plan_views(CONFIG, 0, 0, index, height=300, width=400)
        less = plan_views(replace(CONFIG, **off), 0, 0, index, height=300, width=400)
        for before, after in zip(full, less, strict=True):
            assert replace(before, **{touched: getattr(after, touched)}) == after


def test_the_first_two_views_are_global() -> None:
    plans = plan_views(CONFIG, 0, 0, 0, height=300, width=400)
    assert [plan.view for plan in plans] == list(range(10))
    assert [plan.size for plan in plans] == [224] * 2 + [96] * 8


@given(height=SIDES, width=SIDES, index=st.integers(0, 10**6))
def test_boxes_lie_inside_the_image(height: int, width: int, index: int) -> None:
    for plan in plan_views(CONFIG, 0, 0, index, height=height, width=width):
        box = plan.box
        assert box.height >= 1 and box.width >= 1 and box.top >= 0 and box.left >= 0
        assert box.top + box.height <= height and box.left + box.width <= width


@given(height=st.integers(1, 6000), width=st.integers(1, 6000), index=st.integers(0, 10**6))
def test_a_reduced_image_still_holds_every_crop(height: int, width: int, index: int) -> None:
    factor = reduction(CONFIG, height, width)
    assert factor in (1, 2, 4, 8)
    if factor > 1:  # as libjpeg rounds
        reduced = {"height": -(-height // factor), "width": -(-width // factor)}
        for plan in plan_views(CONFIG, 0, 0, index, **reduced):
            assert min(plan.box.height, plan.box.width) >= plan.size - 1  # boxes are rounded


def test_how_far_photos_are_reduced() -> None:
    sizes = [(375, 500), (1200, 1600), (3000, 4000), (6000, 8000), (300, 9000)]
    assert [reduction(CONFIG, *size) for size in sizes] == [1, 2, 4, 8, 1]
    assert reduction(MultiCrop(local_count=0), 3000, 4000) == 8


def test_boxes_keep_to_scale_and_ratio(many: list[list[ViewPlan]]) -> None:
    for plan in itertools.chain.from_iterable(many):
        box = plan.box
        low, high = CONFIG.scale(plan.view)
        slack = 1 + 1.1 / min(box.height, box.width)  # sides are rounded to whole pixels
        assert low / slack <= box.height * box.width / (375 * 500) <= high * slack
        assert RATIO[0] / slack <= box.width / box.height <= RATIO[1] * slack


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(375, 500, (0.4, 1.0)), (375, 500, (0.05, 0.4)), (64, 64, (0.05, 0.4)), (90, 260, (0.4, 1.0))],
)
def test_boxes_are_distributed_as_torchvision_draws_them(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    n = 3000
    config = MultiCrop(global_scale=scale)
    boxes = [plan_view(config, 0, 0, i, view=0, height=height, width=width).box for i in range(n)]
    ours = np.array([(box.top, box.left, box.height, box.width) for box in boxes])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.empty(3, height, width)
        theirs = [RandomResizedCrop.get_params(blank, list(scale), list(RATIO)) for _ in range(n)]
    for name, measure in {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
    }.items():
        distance = kolmogorov_smirnov(measure(ours), measure(np.array(theirs)))
        assert distance < 1.95 * math.sqrt(2 / n), name  # p = 0.001


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (1, 7)])
def test_hopeless_shapes_get_torchvisions_central_box(height: int, width: int) -> None:
    too_large = [0.999, 0.5, 0.5, 0.5] * TRIES
    scale = (0.9, 1.0)
    box = _box(too_large, scale, height, width)
    blank = torch.empty(3, height, width)
    expected = RandomResizedCrop.get_params(blank, list(scale), list(RATIO))
    assert (box.top, box.left, box.height, box.width) == expected


def test_probabilities(many: list[list[ViewPlan]]) -> None:
    views = list(itertools.chain.from_iterable(many))
    assert_frequency([plan.flip for plan in views], 0.5)
    assert_frequency([bool(plan.jitter) for plan in views], 0.8)
    assert_frequency([plan.grayscale for plan in views], 0.2)
    for kind, (blur, solarize) in enumerate(zip(CONFIG.blur, CONFIG.solarize, strict=True)):
        of_kind = [plan for plan in views if min(plan.view, 2) == kind]
        assert_frequency([plan.blur_sigma > 0 for plan in of_kind], blur)
        assert_frequency([plan.solarize for plan in of_kind], solarize)


def test_decisions_are_independent(many: list[list[ViewPlan]]) -> None:
    local = [plan for plans in many for plan in plans[2:]]
    decisions = [[p.flip, bool(p.jitter), p.grayscale, p.blur_sigma > 0] for p in local]
    places = [
        [
            p.box.top / (375 - p.box.height),
            p.box.left / (500 - p.box.width),
            p.box.height * p.box.width,
            p.box.width / p.box.height,
        ]
        for p in local
    ]
    columns = np.hstack([np.array(decisions, dtype=float), np.array(places)])
    correlation = np.corrcoef(columns.T) - np.eye(8)
    assert np.abs(correlation).max() < SIGMAS / math.sqrt(len(local))


def test_jitter_factors_are_independent(many: list[list[ViewPlan]]) -> None:
    jitters = [dict(plan.jitter) for plans in many for plan in plans if plan.jitter]
    factors = np.array([[jitter[name] for name in JITTER] for jitter in jitters])
    correlation = np.corrcoef(factors.T) - np.eye(4)
    assert np.abs(correlation).max() < SIGMAS / math.sqrt(len(jitters))


def test_jitter_factors_are_uniform(many: list[list[ViewPlan]]) -> None:
    steps = [step for plans in many for plan in plans for step in plan.jitter]
    limits = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in limits.items():
        factors = np.array([factor for operation, factor in steps if operation == name])
        even = np.linspace(low, high, 20_000)
        assert kolmogorov_smirnov(factors, even) < 1.95 / math.sqrt(len(factors)), name


def test_blur_sigma_is_uniform(many: list[list[ViewPlan]]) -> None:
    sigmas = np.array([plan.blur_sigma for plans in many for plan in plans if plan.blur_sigma])
    assert kolmogorov_smirnov(sigmas, np.linspace(0.1, 2, 20_000)) < 1.95 / math.sqrt(len(sigmas))


def test_jitter_orders_are_equally_likely(many: list[list[ViewPlan]]) -> None:
    orders = Counter(
        tuple(name for name, _ in plan.jitter) for plans in many for plan in plans if plan.jitter
    )
    assert set(orders) == set(itertools.permutations(JITTER))
    expected = orders.total() / 24
    chi_square = sum((count - expected) ** 2 / expected for count in orders.values())
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001


def test_jitter_of_no_strength_is_left_out_and_factors_are_never_negative() -> None:
    config = MultiCrop(jitter=1, hue=0, contrast=0, brightness=3)
    for index in range(50):
        jitter = dict(plan_view(config, 0, 0, index, view=0, height=64, width=64).jitter)
        assert set(jitter) == {"brightness", "saturation"}
        assert 0 <= jitter["brightness"] <= 4


def test_planning_is_cheap() -> None:
    """0.04 ms a view on one core; the bound is ten times the mark of 0.3 ms."""
    start = time.perf_counter()
    for index in range(20):
        plan_views(CONFIG, 0, 0, index, height=375, width=500)
    assert (time.perf_counter() - start) / (20 * CONFIG.views) < 3e-3


def assert_frequency(outcomes: list[bool], probability: float) -> None:
    """The share of True lies within `SIGMAS` standard deviations of `probability`."""
    tolerance = SIGMAS * math.sqrt(probability * (1 - probability) / len(outcomes))
    assert abs(np.mean(outcomes) - probability) <= tolerance


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between two samples' cumulative distributions."""
    values = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), values, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), values, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())
