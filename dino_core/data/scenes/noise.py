"""Natural-looking noise, cheap enough to use everywhere.

A few tileable textures are made once per process (white noise shaped in the Fourier domain to a
1/f^slope amplitude, as clouds, rock and soil have it) and every image cuts its own pieces out of
them: a slice costs next to nothing where fresh noise would cost a millisecond per octave.
"""

from functools import lru_cache

import numpy as np

from dino_core.rng import generator

SIDE = 512


@lru_cache(maxsize=8)
def texture(slope: float) -> np.ndarray:
    """Tileable noise, float32 [SIDE, SIDE], mean 0 and deviation 1; steeper slopes are softer."""
    white = generator("scenes", "texture", str(slope)).standard_normal((SIDE, SIDE))
    fy = np.fft.fftfreq(SIDE)[:, None] * SIDE
    fx = np.fft.rfftfreq(SIDE)[None] * SIDE
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf  # no mean
    # Waves longer than a sixth of the tile would make one side of every piece dark.
    amplitude = np.maximum(frequency, 6) ** -slope
    amplitude[0, 0] = 0
    shaped = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(SIDE, SIDE))
    shaped = ((shaped - shaped.mean()) / shaped.std()).astype(np.float32)
    shaped.setflags(write=False)
    return shaped


def smooth() -> np.ndarray:
    """Folds, ripples."""
    return texture(2.8)


def soft() -> np.ndarray:
    """Clouds, stains, large stones."""
    return texture(1.9)


def rough() -> np.ndarray:
    """Sand, soil, foliage."""
    return texture(1.0)


def patch(tile: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A piece of `tile` at a random place, mirrored or transposed at random."""
    top, left, turn = (int(v) for v in rng.integers(0, (SIDE - height, SIDE - width, 8)))
    size = (height, width)
    if turn & 4:
        tile = tile.T
    piece = tile[top : top + size[0], left : left + size[1]]
    return piece[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]


def lookup(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`tile` at texel coordinates (u right, v down), bilinear, repeating without seams."""
    column, row = np.floor(u), np.floor(v)
    fu, fv = u - column, v - row
    x0 = column.astype(np.int32) & (SIDE - 1)
    y0 = row.astype(np.int32) & (SIDE - 1)
    x1, y1 = (x0 + 1) & (SIDE - 1), (y0 + 1) & (SIDE - 1)
    top = tile[y0, x0] * (1 - fu) + tile[y0, x1] * fu
    bottom = tile[y1, x0] * (1 - fu) + tile[y1, x1] * fu
    return top * (1 - fv) + bottom * fv


def stretched(
    tile: np.ndarray, rng: np.random.Generator, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """`lookup` at coordinates moved by a random offset."""
    du, dv = rng.integers(0, SIDE, 2)
    return lookup(tile, u + np.float32(du), v + np.float32(dv))
