"""A run's metrics as curves, read while they grow."""

import threading

import numpy as np

from dino_core.runs import Run
from dino_core.training.curves import Curves


def test_curves_grow_with_the_run_and_go_back_with_it(tmp_path):
    run = Run(tmp_path)
    curves = Curves(run)
    curves.update()
    assert curves.names == [] and curves.points("loss") == [] and curves.newest("loss") is None

    run.append_metrics([{"step": step, "epoch": 0.1, "loss": 9 - step} for step in range(3)])
    run.append_metrics([{"step": 2, "steps_done": 3, "knn": 31.5}, {"step": 3, "loss": None}])
    curves.update()
    assert curves.names == ["loss", "knn"]
    assert curves.points("loss") == [(0, 9), (1, 8), (2, 7)]
    assert curves.points("knn") == [(2, 31.5)] and curves.newest("knn") == 31.5
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss"')  # being written
    curves.update()
    assert curves.newest("loss") == 7

    run.cut_metrics(1)
    run.append_metrics([{"step": 1, "loss": 5}])
    curves.update()
    assert curves.points("loss") == [(0, 9), (1, 5)] and "knn" not in curves.names


def test_many_points_become_the_means_of_equal_stretches(tmp_path):
    run, values = Run(tmp_path), np.random.default_rng(0).random(1003)
    run.append_metrics([{"step": i, "loss": float(value)} for i, value in enumerate(values)])
    curves = Curves(run)
    curves.update()
    points = np.array(curves.points("loss", most=100))
    assert len(points) <= 100
    by_hand = [values[i : i + 11].mean() for i in range(0, 1003, 11)]
    np.testing.assert_allclose(points[:, 1], by_hand)
    assert points[0, 0] == 5 and points[-1, 0] == np.arange(1001, 1003).mean()


def test_two_visitors_at_once_double_no_point(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.append_metrics([{"step": step, "loss": 1.0} for step in range(50)])
    curves, together = Curves(run), threading.Barrier(2)
    read = curves._tail.read

    def slowly():
        offset, lines = curves._tail.offset, read()
        whole, curves._tail.offset = curves._tail.offset, offset
        threading.Event().wait(0.2)  # time for another to begin at the same place
        curves._tail.offset = whole
        return lines

    monkeypatch.setattr(curves._tail, "read", slowly)

    def visit():
        together.wait()
        curves.update()

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    for one in visitors:
        one.start()
    for one in visitors:
        one.join()
    assert [step for step, _ in curves.points("loss")] == list(range(50))
