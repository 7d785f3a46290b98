"""The pool and the sampler."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.replay.curriculum import FLOOR_SHARE, Curriculum, PassRate, WeightTree, signal, tasks_to_drop

TASKS = [f"t{i}" for i in range(20)]


def curriculum(rates=None, adaptive=True, seed=0, tasks=TASKS):
    return Curriculum(tasks, rates or {}, group_size=8, seed=seed, adaptive=adaptive)


def test_stage_two_drops_never_solved_and_mostly_solved_tasks():
    rates = {
        "never": PassRate(num_runs=10, num_resolved=0),
        "mostly": PassRate(num_runs=9, num_resolved=6),
        "half": PassRate(num_runs=10, num_resolved=5),
        "new": PassRate(),
    }
    assert tasks_to_drop(rates, 2 / 3, True) == ["never", "mostly"]
    assert tasks_to_drop(rates, 1.0, False) == []


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.data())
def test_the_weight_tree_finds_what_a_plain_scan_finds(weights, data):
    tree = WeightTree([1] * len(weights))
    for i in data.draw(st.permutations(range(len(weights)))):
        tree.set(i, weights[i])
    assert tree.total == sum(weights)
    point = data.draw(st.integers(0, sum(weights) - 1))
    scanned = next(i for i in range(len(weights)) if point < sum(weights[: i + 1]))
    assert tree.find(point) == scanned


@given(st.floats(0, 1), st.integers(2, 5))
def test_signal_is_the_chance_of_two_different_members(rate, group_size):
    brute = 0.0
    for outcomes in range(1 << group_size):
        solved = outcomes.bit_count()
        if 0 < solved < group_size:
            brute += rate**solved * (1 - rate) ** (group_size - solved)
    assert signal(rate, group_size) == pytest.approx(brute, abs=1e-9)


def test_draws_follow_the_stated_probabilities_and_keep_a_floor():
    rates = {"t0": PassRate(num_runs=1000), "t1": PassRate(num_runs=1000, num_resolved=500)}
    sampler = curriculum(rates, tasks=TASKS[:4])
    drawn = Counter(sampler.draw(i) for i in range(20_000))
    for task in TASKS[:4]:
        assert drawn[task] / 20_000 == pytest.approx(sampler.probability(task), abs=0.01)
        assert sampler.probability(task) >= FLOOR_SHARE / 4
    assert drawn["t1"] > 5 * drawn["t0"]


def test_a_rebuilt_sampler_draws_what_the_old_one_would_have_drawn():
    rates = {task: PassRate() for task in TASKS}
    changed = curriculum(rates)
    for i, task in enumerate(TASKS):
        rates[task] = PassRate(num_runs=7 + i, num_resolved=i)
        changed.update(task, rates[task])
    rebuilt = curriculum(rates)
    assert [changed.draw(i) for i in range(500)] == [rebuilt.draw(i) for i in range(500)]
    assert [rebuilt.draw(i) for i in range(50)] != [curriculum(rates, seed=1).draw(i) for i in range(50)]


def test_without_adaption_every_round_is_a_shuffle_of_the_pool():
    sampler = curriculum(adaptive=False)
    rounds = [[sampler.draw(r * 20 + i) for i in range(20)] for r in range(3)]
    assert all(sorted(r) == sorted(TASKS) for r in rounds)
    assert rounds[0] != rounds[1]
