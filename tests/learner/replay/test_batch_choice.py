"""Which groups go into a batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.replay.batch_choice import choose, used_share
from learner.replay.state import Item
from tiny.trajectories import finished_member

BUDGET = 1000


def item(group, oldest, *lengths):
    finished = [
        finished_member(i, group=group, oldest_version=oldest, num_tokens=length) for i, length in enumerate(lengths)
    ]
    return Item(group=group, task_id="t", oldest=oldest, places=len(lengths), finished=finished)


def groups(items):
    return [each.group for each in items]


def test_the_group_that_fills_the_micro_batches_goes_first():
    ready = {0: [item(0, 0, 600, 400), item(1, 0, 500, 100), item(2, 0, 500, 500)]}
    assert groups(choose(ready, 4, BUDGET)) == [0, 2], "two full micro-batches rather than 1600 tokens in two"
    assert groups(choose(ready, 6, BUDGET)) == [0, 1, 2]


def test_as_few_micro_batches_as_the_lengths_really_allow():
    """Two of 700 do not fit together, though their sum is not over two thirds of two micro-batches more."""
    ready = {0: [item(0, 0, 700, 300), item(1, 0, 700, 700), item(2, 0, 600, 400)]}
    assert groups(choose(ready, 4, BUDGET)) == [0, 2]


def test_no_group_overtakes_an_older_version():
    ready = {3: [item(0, 3, 10, 10), item(1, 3, 500, 500)], 2: [item(2, 2, 10, 10)]}
    assert groups(choose(ready, 2, BUDGET)) == [2]
    assert groups(choose(ready, 4, BUDGET)) == [2, 1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, BUDGET), st.integers(1, BUDGET)), min_size=4, max_size=20))
def test_never_staler_and_never_worse_than_first_come_first_served(drawn):
    ready = {}
    for group, (version, *lengths) in enumerate(drawn):
        ready.setdefault(version, []).append(item(group, version, *lengths))
    in_order = [each for version in sorted(ready) for each in ready[version]][:4]
    chosen = choose(ready, 8, BUDGET)
    assert sorted(each.oldest for each in chosen) == [each.oldest for each in in_order]
    assert len(set(groups(chosen))) == 4
    assert used_share(chosen, BUDGET) >= used_share(in_order, BUDGET)


@pytest.mark.parametrize("num_groups", [2, 12_500])
def test_a_batch_of_any_size_is_chosen(num_groups):
    ready = {0: [item(i, 0, *[900] * 8) for i in range(num_groups + 3)]}
    assert len(choose(ready, num_groups * 8, BUDGET)) == num_groups
