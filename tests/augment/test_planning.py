"""Plans of a batch: the bits of the plans made one by one, whatever the settings."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_core.augment import MultiCrop, PhotometricBatch, plan_view
from dino_core.augment.planning import Plans, plan_batch

VIVID = MultiCrop(solarize=(0.5, 0.5, 0.5), grayscale=0.5)
CONFIGS = {
    "published": MultiCrop(),
    "vivid": VIVID,
    "no jitter": replace(VIVID, jitter=0),
    "no hue": replace(VIVID, hue=0, brightness=3),
    "only large": replace(VIVID, global_scale=(0.95, 1), local_scale=(0.99, 1)),
}


def together(config: MultiCrop, sizes: list[tuple[int, int]], views: range) -> Plans:
    heights, widths = np.array(sizes).T
    return plan_batch(config, 3, 5, range(100, 100 + len(sizes)), heights, widths, views)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("views", [range(2), range(2, 10)])
@given(sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=6))
@settings(max_examples=10)
def test_each_plan_is_the_one_made_alone(
    name: str, views: range, sizes: list[tuple[int, int]]
) -> None:
    """Panoramas, for which no try fits, among them."""
    sizes = [*sizes, (10, 800)]
    alone = [
        plan_view(CONFIGS[name], 3, 5, 100 + i, view=view, height=height, width=width)
        for view in views
        for i, (height, width) in enumerate(sizes)
    ]
    assert together(CONFIGS[name], sizes, views).unpacked() == alone


@pytest.mark.parametrize("name", CONFIGS)
def test_colors_are_those_gathered_one_by_one(name: str) -> None:
    plans = together(CONFIGS[name], [(90, 120)] * 20, range(2, 10))
    ours, twins = PhotometricBatch.of(plans), PhotometricBatch.collate(plans.unpacked())
    assert ours.counts == twins.counts
    for ours_tensor, twin in [
        (ours.blends, twins.blends),
        (ours.rows, twins.rows),
        (ours.values, twins.values),
    ]:
        assert ours_tensor.dtype == twin.dtype and torch.equal(ours_tensor, twin)


def test_groups_of_images_are_joined_view_by_view() -> None:
    sizes = [(40, 50), (60, 50), (90, 10), (20, 20)]
    heights, widths = np.array(sizes).T
    config, views = MultiCrop(), range(2, 5)
    halves = [
        plan_batch(
            config, 3, 5, range(100 + s, 102 + s), heights[s : s + 2], widths[s : s + 2], views
        )
        for s in (0, 2)
    ]
    assert Plans.joined(halves).unpacked() == together(config, sizes, views).unpacked()


def test_planning_together_is_cheap() -> None:
    """10 microseconds a view on one busy core; the bound is ten times that."""
    sizes = [(375, 500)] * 256
    together(MultiCrop(), sizes, range(2))
    start = time.perf_counter()
    together(MultiCrop(), sizes, range(2, 10))
    assert (time.perf_counter() - start) / (256 * 8) < 100e-6
