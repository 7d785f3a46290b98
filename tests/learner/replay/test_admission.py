"""Places and due dates against brute force; the concurrency controller against made-up loads."""

import itertools
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from learner.replay.admission import Concurrency, Places


def can_all_be_trained(due_dates, step):
    """Whether items of one place fit into steps `step`, `step + 1`, ..., one a step, none later than it is due."""

    @cache
    def place(left, at):
        if not left:
            return True
        return any(due >= at and place(left[:i] + left[i + 1 :], at + 1) for i, due in enumerate(left))

    return place(tuple(sorted(due_dates)), step)


@given(
    max_staleness=st.integers(0, 3),
    open_versions=st.lists(st.integers(3, 6), max_size=3),
    ready_versions=st.lists(st.integers(3, 6), min_size=1, max_size=3),
    data=st.data(),
)
def test_a_batch_waits_exactly_when_an_open_group_would_come_late(max_staleness, open_versions, ready_versions, data):
    step = 7
    places = Places(batch=1, max_staleness=max_staleness)
    places.open.update(open_versions)
    places.ready.update(ready_versions)
    due_dates = [places.due(v) for v in open_versions + ready_versions]
    if not can_all_be_trained(due_dates, step):
        return  # admission does not let it come to this
    chosen = data.draw(st.sampled_from(ready_versions))
    after = list(due_dates)
    after.remove(places.due(chosen))
    ready_only = sorted(ready_versions)
    if chosen != ready_only[0]:
        return  # the oldest ready item goes first
    assert (places.overtaken(step, {chosen: 1}) is None) == can_all_be_trained(after, step + 1)


def test_admission_counts_every_place_of_the_run():
    places = Places(batch=4, max_staleness=2)
    assert places.bound(served=0, last_step=100) == 12
    assert places.bound(served=5, last_step=100) == 32
    assert places.bound(served=5, last_step=6) == 24
    assert Places(batch=4, max_staleness=0).bound(served=5, last_step=100) == 24


def test_concurrency_settles_where_the_fullest_thing_is_just_not_full():
    control = Concurrency(most=512, interval_s=1)
    limits = []
    for second in range(400):
        running = control.limit
        control.report("g0.kv_cache", running / 200, second)
        control.report("h0.memory", running / 900, second)
        control.adjust(running, second)
        limits.append(control.limit)
    settled = limits[100:]
    assert 140 <= min(settled) <= max(settled) <= 220
    assert control.held_back_by == "g0.kv_cache"


def test_concurrency_comes_back_when_the_pressure_is_gone():
    control = Concurrency(most=100, interval_s=1)
    control.report("g0.kv_cache", 2.0, 0)
    control.adjust(running=100, now=0)
    assert control.limit == 75
    for second in itertools.count(1):
        control.adjust(running=control.limit, now=second)
        if control.limit == 100:
            break
    assert second < 40
    assert control.held_back_by == ""


def test_an_unused_limit_does_not_grow():
    control = Concurrency(most=100, interval_s=1)
    control.report("x", 1.5, 0)
    control.adjust(running=20, now=0)
    for second in range(1, 10):
        control.report("x", 0.1, second)
        control.adjust(running=3, now=second)
    assert control.limit == 15
