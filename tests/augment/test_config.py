"""MultiCrop: the published defaults, and refusal of what cannot be."""

from typing import Any

import pytest

from dino_core.augment import MultiCrop
from dino_core.errors import UserError


def test_defaults_are_published_ones() -> None:
    config = MultiCrop()
    assert [config.size(view) for view in range(config.views)] == [224] * 2 + [96] * 8
    assert [config.scale(view) for view in (0, 1, 2, 9)] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 2
    assert (config.flip, config.jitter, config.grayscale) == (0.5, 0.8, 0.2)
    assert (config.brightness, config.contrast, config.saturation, config.hue) == (
        *(0.4, 0.4, 0.2),
        0.1,
    )
    assert config.blur == (1.0, 0.1, 0.5) and config.blur_sigma == (0.1, 2.0)
    assert config.solarize == (0.0, 0.2, 0.0)


@pytest.mark.parametrize(
    "field",
    [
        {"global_size": 0},
        {"local_size": -96},
        {"local_count": -1},
        {"global_scale": (0.0, 1.0)},
        {"global_scale": (0.4, 1.1)},
        {"local_scale": (0.4, 0.05)},
        {"local_scale": (float("nan"), 0.4)},
        {"flip": 1.5},
        {"jitter": -0.1},
        {"grayscale": float("nan")},
        {"brightness": -0.4},
        {"contrast": float("inf")},
        {"hue": 0.6},
        {"blur": (1.0, 0.1)},
        {"blur": (1.0, 0.1, 2.0)},
        {"solarize": (0.0, -0.2, 0.0)},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (2.0, 0.1)},
    ],
    ids=str,
)
def test_impossible_value_is_refused_by_name(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(UserError, match=f"^{name} is .* must be "):
        MultiCrop(**field)


def test_no_local_crops_are_allowed() -> None:
    assert MultiCrop(local_count=0).views == 2
