"""Generated features for benchmarks of collections: unit vectors, in groups or in no order."""

from pathlib import Path

import numpy as np

from dino_core.rng import generator

GROUPS = 100
WITHIN = 12  # dimensions that a group's images differ in
CHUNK = 16_384


def write_features(path: Path, images: int, dim: int, kind: str = "clustered") -> Path:
    """Write float32 [images, dim], L2-normalized, as a .npy file; returns `path`.

    "clustered": a hundred groups, each a flat piece of twelve dimensions and some noise, as classes
    seen by a trained model are. "random": from the sphere; every image as far from the rest, the
    hardest there is for a search that is not exact.
    """
    if kind not in ("clustered", "random"):
        raise ValueError(f"kind {kind!r}: clustered or random")
    random = generator(0, "benchmark features", kind)
    centers_GD = random.standard_normal((GROUPS, dim))
    pieces_GWD = random.standard_normal((GROUPS, WITHIN, dim))
    file = np.lib.format.open_memmap(path, "w+", np.float32, (images, dim))
    for start in range(0, images, CHUNK):
        count = min(CHUNK, images - start)
        part = random.standard_normal((count, dim))
        if kind == "clustered":
            group = random.integers(0, GROUPS, count)
            part = 0.3 * part + centers_GD[group]
            for one in range(GROUPS):
                rows = np.flatnonzero(group == one)
                part[rows] += 0.3 * random.standard_normal((len(rows), WITHIN)) @ pieces_GWD[one]
        file[start : start + count] = part / np.linalg.norm(part, axis=1, keepdims=True)
    file.flush()
    return path
