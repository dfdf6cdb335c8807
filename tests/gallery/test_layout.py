"""The layout: a plain twin, any number of threads, a compiled form that outlives the process."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy.sparse import csr_array

from dino_core.gallery import layout as module
from dino_core.gallery.fuzzy import fuzzy_graph
from dino_core.gallery.layout import compiled_move, curve, force_tables, layout
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.rng import generator


def graph_and_start(count: int = 90) -> tuple[csr_array, np.ndarray]:
    features = generator(0, "layout test").standard_normal((count, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows, scores = neighbor_graph(features, 10)
    return fuzzy_graph(rows, 1 - scores), features[:, :2]


def test_the_curve_is_umap_learns() -> None:
    """Its values for the usual settings, as its documentation and many programs state them."""
    np.testing.assert_allclose(curve(0.1), (1.576943, 0.895061), atol=1e-5)
    np.testing.assert_allclose(curve(0.5), (0.583030, 1.334167), atol=1e-5)


@pytest.mark.parametrize("exponent", [-20.0, -3.0, 0.0, 1.7, 9.0])
def test_tables_are_the_formula_between_their_places_too(exponent: float) -> None:
    a, b = curve(0.1)
    squared = np.float32(2**exponent * 1.01)
    pull, push = (module._looked_up.py_func(table, squared) for table in force_tables(a, b))
    denominator = 1 + a * squared**b
    np.testing.assert_allclose(pull, -2 * a * b * squared ** (b - 1) / denominator, rtol=1e-3)
    np.testing.assert_allclose(push, 2 * b / ((0.001 + squared) * denominator), rtol=1e-3)


def plain_epoch(graph, here, random, rate, a, b, due):
    """One epoch as the paper writes it: no table, no threads; `due`: which entries' turn it is."""
    there = here.astype(np.float64)
    for point in range(len(here)):
        state = int(random[point])
        for entry in range(graph.indptr[point], graph.indptr[point + 1]):
            if not due[entry]:
                continue
            apart = there[point] - here[graph.indices[entry]]
            d2 = float(apart @ apart)
            if d2 > 0:
                pull = -2 * a * b * d2 ** (b - 1) / (1 + a * d2**b)
                there[point] += 2 * rate * np.clip(pull * apart, -4, 4)
            for _ in range(5):
                state ^= (state << 13) & 0xFFFFFFFF
                state ^= state >> 17
                state ^= (state << 5) & 0xFFFFFFFF
                other = state * len(here) >> 32
                if other != point:
                    apart = there[point] - here[other]
                    d2 = float(apart @ apart)
                    push = 2 * b / ((0.001 + d2) * (1 + a * d2**b))
                    there[point] += rate * np.clip(push * apart, -4, 4)
    return there


def test_an_epoch_is_the_plain_one() -> None:
    graph, start = graph_and_start()
    a, b = curve(0.1)
    here = np.ascontiguousarray(10 * start, np.float32)
    there = np.empty_like(here)
    period = (graph.data.max() / graph.data).astype(np.float32)
    due = period.copy()
    random = generator(0, "states").integers(1, 2**32, len(here), dtype=np.uint32)
    expected = plain_epoch(graph, here, random, 0.1, a, b, due <= 1)
    compiled_move()(
        0, len(here), graph.indptr.astype(np.int64), graph.indices.astype(np.int32), period, due,
        *force_tables(a, b), random, here, there, np.float32(0.1), np.float32(1),
    )  # fmt: skip
    assert np.abs(there - here).max() > 0.1
    np.testing.assert_allclose(there, expected, atol=0.01)


def test_any_number_of_threads_draws_the_same_map() -> None:
    graph, start = graph_and_start()
    alone = layout(graph, start, 0.1, threads=1)
    assert np.isfinite(alone).all() and alone.dtype == np.float32
    for threads in (2, 5, 200):
        np.testing.assert_array_equal(layout(graph, start, 0.1, threads=threads), alone)


def test_min_dist_keeps_points_apart() -> None:
    graph, start = graph_and_start()

    def nearest_distance(min_dist: float) -> float:
        xy = layout(graph, start, min_dist)
        apart = np.linalg.norm(xy[:, None] - xy, axis=2) + np.diag(np.full(len(xy), np.inf))
        return float(np.median(apart.min(axis=1)))

    assert nearest_distance(0.8) > 2 * nearest_distance(0.0)


def test_progress_is_told_by_epoch() -> None:
    told: list[tuple[int, int]] = []
    layout(*graph_and_start(20), 0.1, on_epoch=lambda done, total: told.append((done, total)))
    assert told == [(epoch, 500) for epoch in range(1, 501)]


def test_where_no_cache_can_be_kept_it_compiles_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def njit(*signature, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.core.decorators.njit(*signature, **options)

    monkeypatch.setattr(module.numba, "njit", njit)
    move = compiled_move.__wrapped__()
    assert move.nopython_signatures and not move.stats.cache_hits


STARTS = """
from dino_core.gallery.layout import compiled_move
move = compiled_move()
print(sum(move.stats.cache_hits.values()), sum(move.stats.cache_misses.values()))
"""


@pytest.mark.soak
def test_the_second_process_compiles_nothing_and_a_damaged_cache_stops_none(
    tmp_path: Path,
) -> None:
    def start() -> str:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-c", STARTS], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return result.stdout.strip()

    assert start() == "0 1"
    assert start() == "1 0"
    for index in tmp_path.rglob("*.nbi"):
        index.write_bytes(b"no index")
    assert start().startswith("0 ")
