"""Schedules against the published arrays, exactly."""

from pathlib import Path

import numpy as np
import pytest

from dino_core.training.schedules import cosine_schedule, teacher_temperature

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "schedules.npz")


@pytest.mark.parametrize("i", range(len(GOLDEN["cases"])))
def test_published_schedule(i):
    base, final, epochs, iterations, warmup_epochs, start = GOLDEN["cases"][i]
    steps, warmup = int(epochs * iterations), int(warmup_epochs * iterations)
    schedule = cosine_schedule(base, final, steps, warmup, start)
    np.testing.assert_array_equal(schedule, GOLDEN[f"schedule_{i}"])


def test_learning_rate_starts_at_zero_and_repeats_its_peak():
    schedule = cosine_schedule(0.5, 0.1, 20, 5)
    assert schedule[0] == 0
    assert schedule[4] == schedule[5] == 0.5
    assert np.all(np.diff(schedule[5:]) < 0)
    assert schedule[-1] > 0.1  # the cosine's last value is a little above its end


def test_teacher_temperature_reaches_its_end_in_the_last_warmup_epoch():
    temperatures = [teacher_temperature(epoch, 0.04, 0.07, 4) for epoch in range(6)]
    np.testing.assert_allclose(temperatures, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(0, 0.04, 0.07, 0) == 0.07
