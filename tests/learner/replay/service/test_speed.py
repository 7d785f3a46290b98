"""Figures over the last ten seconds."""

import pytest

from learner.replay.service.speed import Speed


def test_old_answers_are_forgotten():
    speed = Speed(now=100.0)
    for i in range(50):
        speed.submission(100 + i / 10)
    assert speed.measure(105.0)["submissions_per_s"] == pytest.approx(10)
    assert speed.measure(112.45)["submissions_per_s"] == pytest.approx(2.5)
    assert speed.measure(120.0)["submissions_per_s"] == 0


def test_the_slow_answers_are_in_the_tail():
    speed = Speed(now=0.0)
    for i in range(100):
        speed.lease(received=1.0, now=1.5 if i == 50 else 1.001)
    measured = speed.measure(2.0)
    assert measured["lease_p50_ms"] == pytest.approx(1)
    assert measured["lease_p99_ms"] == pytest.approx(500)
    assert speed.measure(12.0)["lease_p99_ms"] == 0
