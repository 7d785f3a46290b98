"""Seconds that no step of the system's clock moves."""

from hypothesis import given
from hypothesis import strategies as st

from learner.replay.service.clock import SteadyClock


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1e6, 1e6)), max_size=20))
def test_steps_of_the_clock_both_ways_change_nothing(steps):
    wall, steady = [1.7e9], [50.0]
    clock = SteadyClock(lambda: wall[0], lambda: steady[0])
    assert clock() == 1.7e9
    for passed, step in steps:
        before = clock()
        wall[0] += step
        steady[0] += passed
        assert clock() >= before
        assert abs(clock() - before - passed) < 1e-3
