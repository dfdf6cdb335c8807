"""Colors of generated scenes: linear light while rendering, sRGB bytes at the end."""

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVELS = 4096


def linear(hue: float, saturation: float, value: float) -> np.ndarray:
    """An HSV color (each in [0, 1], hue wraps) as linear RGB, float32 [3]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) ** np.float32(2.2)


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray | np.floating) -> np.ndarray:
    """Per-pixel blend of two colors ([3] or [3, h, w]) by `share` [h, w] of b: [3, h, w]."""
    return _planes(a) + (_planes(b) - _planes(a)) * share


def _planes(color: np.ndarray) -> np.ndarray:
    return color[:, None, None] if color.ndim == 1 else color


@dataclass(frozen=True)
class Palette:
    """The colors of one object, linear RGB [3] each."""

    main: np.ndarray
    second: np.ndarray
    accent: np.ndarray
    light: np.ndarray
    dark: np.ndarray


def draw_palette(rng: np.random.Generator) -> Palette:
    """Any hue for any class, so that color alone does not give the class away."""
    hue = rng.random()
    apart = rng.choice([0.07, -0.07, 0.12, -0.12, 0.33, 0.5])
    saturation = rng.uniform(0.45, 0.92)
    return Palette(
        main=linear(hue, saturation, rng.uniform(0.55, 0.95)),
        second=linear(hue + apart, rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.95)),
        accent=linear(hue + rng.uniform(0.4, 0.6), rng.uniform(0.6, 0.95), 0.95),
        light=linear(hue + 0.05, rng.uniform(0.05, 0.25), 0.97),
        dark=linear(hue, rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.25)),
    )


@lru_cache(maxsize=1)
def _to_srgb() -> np.ndarray:
    """Bytes for LEVELS equal steps of linear light, with a shoulder that keeps highlights."""
    light = np.arange(LEVELS) / (LEVELS - 1) * 2
    shoulder = np.where(light < 0.7, light, 0.7 + 0.3 * np.tanh((light - 0.7) / 0.3))
    return np.round(255 * np.clip(shoulder, 0, 1) ** (1 / 2.2)).astype(np.uint8)


def develop(light: np.ndarray) -> np.ndarray:
    """Linear light float32 [3, h, w], clipped at 2, to sRGB uint8 [h, w, 3]."""
    codes = np.clip(light * np.float32((LEVELS - 1) / 2), 0, LEVELS - 1).astype(np.uint16)
    return np.ascontiguousarray(_to_srgb()[codes].transpose(1, 2, 0))
