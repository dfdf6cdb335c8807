"""A gallery's map, from features on the disk to coordinates, beside umap-learn by itself.

    measure(images=50_000)  ->  the first map of a fresh process, and a second of other settings

Each turn is a fresh process, for most of what umap-learn takes is compiling itself.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from dino_core.benchmarks.features import write_features
from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured, Phases, in_alternation, ratio
from dino_core.errors import at_least
from dino_core.rng import permutation

NEIGHBORS = 30  # in a gallery's graph
OTHER_MIN_DIST = 0.5
FEWEST_GIVEN = 4_096  # below, umap-learn takes no neighbors from elsewhere
JUDGED = 5_000  # images that trustworthiness is computed on

Turn = dict[str, Any]  # what a process says of its turn


def measure(
    images: int = 50_000, dim: int = 384, kind: str = "clustered", rounds: int = 1
) -> list[Measured]:
    """The first map of a process and the second, each beside umap-learn's; see `write_features`.

    A round takes some two minutes at 50,000 images on two cores.
    """
    at_least(2, images=images)
    at_least(1, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder) / "features.npy", images, dim, kind)
        turns: dict[str, list[Turn]] = {"ours": [], "umap_learn": []}
        contenders = {name: _in_fresh_process(name, features, turns[name]) for name in turns}
        in_alternation(contenders, rounds, warmup=0)
        trust = {name: _trustworthiness(features, name) for name in turns}
    what = f"{images:,} x {dim} {kind} features"
    return [_first(what, turns, trust), _second(what, turns)]


def _first(what: str, turns: dict[str, list[Turn]], trust: dict[str, float]) -> Measured:
    ours, theirs = turns["ours"], turns["umap_learn"]
    seconds, cpu = _of("first", turns), _of("cpu", turns)
    return Measured(
        name=f"first map of {what}, fresh process",
        hardware=hardware(torch.device("cpu")),
        milliseconds=1000 * median(seconds["ours"]),
        ratio_to_plain=ratio(seconds["umap_learn"], seconds["ours"]),
        phases={name: median(turn["phases"][name] for turn in ours) for name in ours[0]["phases"]},
        notes=(
            f"umap-learn alone: {median(seconds['umap_learn']):.1f} s",
            f"CPU time of all cores: {median(cpu['ours']):.1f} s, umap-learn alone "
            f"{median(cpu['umap_learn']):.1f} s, {ratio(cpu['umap_learn'], cpu['ours']):.2f} times",
            f"trustworthiness on {min(JUDGED, theirs[0]['images']):,}: {trust['ours']:.4f}, "
            f"umap-learn {trust['umap_learn']:.4f}",
        ),
    )


def _second(what: str, turns: dict[str, list[Turn]]) -> Measured:
    seconds, cpu = _of("second", turns), _of("second cpu", turns)
    layouts = [turn["layout"] for turn in turns["ours"]]
    return Measured(
        name=f"second map of {what}, min_dist {OTHER_MIN_DIST}",
        hardware=hardware(torch.device("cpu")),
        milliseconds=1000 * median(seconds["ours"]),
        ratio_to_plain=ratio(seconds["umap_learn"], seconds["ours"]),
        share_of_limit=ratio(layouts, seconds["ours"]),
        limit=f"the layout alone, {median(layouts):.1f} s",
        notes=(
            f"umap-learn with its neighbors given: {median(seconds['umap_learn']):.1f} s",
            f"CPU time of all cores: {median(cpu['ours']):.1f} s, umap-learn "
            f"{median(cpu['umap_learn']):.1f} s, {ratio(cpu['umap_learn'], cpu['ours']):.2f} times",
        ),
    )


def _of(what: str, turns: dict[str, list[Turn]]) -> dict[str, list[float]]:
    return {name: [turn[what] for turn in turns[name]] for name in turns}


def _in_fresh_process(name: str, features: Path, turns: list[Turn]) -> Callable[[], None]:
    """A turn that starts Python, and keeps what that says."""
    code = f"from dino_core.benchmarks.map import {name}_turn as turn; turn({str(features)!r}, "

    def run() -> None:
        result = subprocess.run(
            [sys.executable, "-c", f"{code}{time.time()!r})"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        turns.append(json.loads(result.stdout.splitlines()[-1]))

    return run


def ours_turn(path: str, started: float) -> None:
    """In a fresh process: our first map and our second; prints a `Turn` as JSON."""
    from dino_core.gallery.approximate import graph_of_all
    from dino_core.gallery.fuzzy import fuzzy_graph
    from dino_core.gallery.layout import compiled_move, layout
    from dino_core.gallery.maps import UmapSettings, pca_map, umap_map

    phases = Phases()
    phases.milliseconds["start and imports"] = 1000 * (time.time() - started)
    features_ND = np.load(path, mmap_mode="r")
    with phases("neighbors"):
        rows_NK, scores_NK, _ = graph_of_all(features_ND, NEIGHBORS)
    with phases("PCA"):
        pca_N2 = pca_map(features_ND)
    with phases("compiling"):
        compiled_move()
    with phases("fuzzy graph and layout"):
        xy_N2, _ = umap_map(features_ND, rows_NK, scores_NK, pca_N2=pca_N2)
    turn = _first_map(path, "ours", xy_N2, started) | {"phases": phases.milliseconds}
    other = UmapSettings(min_dist=OTHER_MIN_DIST)
    turn |= _timed(
        "second",
        lambda: umap_map(features_ND, rows_NK, scores_NK, settings=other, pca_N2=pca_N2),
    )
    near = slice(0, other.n_neighbors - 1)
    graph = fuzzy_graph(rows_NK[:, near], (1 - scores_NK[:, near]).clip(min=0))
    turn |= _timed("layout", lambda: layout(graph, pca_N2, OTHER_MIN_DIST))
    print(json.dumps(turn))


def umap_learn_turn(path: str, started: float) -> None:
    """In a fresh process: umap-learn's first map, and its second with the neighbors of the first.

    It is left at its defaults: all cores, another map each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        features_ND = np.load(path)
        fitted = umap.UMAP(metric="cosine").fit(features_ND)
        turn = _first_map(path, "umap_learn", fitted.embedding_, started)
        given = {}
        if len(features_ND) >= FEWEST_GIVEN:
            given["precomputed_knn"] = (fitted._knn_indices, fitted._knn_dists)
        other = umap.UMAP(metric="cosine", min_dist=OTHER_MIN_DIST, **given)
        turn |= _timed("second", lambda: other.fit(features_ND))
    print(json.dumps(turn))


def _first_map(path: str, name: str, xy_N2: np.ndarray, started: float) -> Turn:
    """What the process took from its start; the coordinates are left beside the features."""
    turn = {"first": time.time() - started, "cpu": time.process_time(), "images": len(xy_N2)}
    np.save(Path(path).with_name(f"{name}.npy"), xy_N2)
    return turn


def _timed(what: str, run: Callable[[], object]) -> Turn:
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return {what: time.perf_counter() - start, f"{what} cpu": time.process_time() - cpu}


def _trustworthiness(features: Path, name: str) -> float:
    """Of a sample, as scikit-learn computes it: 1 where no stranger is a neighbor on the map."""
    from sklearn.manifold import trustworthiness

    features_ND = np.load(features, mmap_mode="r")
    xy_N2 = np.load(features.with_name(f"{name}.npy"))
    rows = np.sort(permutation(len(xy_N2), "trustworthiness")[:JUDGED])
    k = min(15, len(rows) // 2 - 1)
    return float(trustworthiness(features_ND[rows], xy_N2[rows], n_neighbors=k, metric="cosine"))
