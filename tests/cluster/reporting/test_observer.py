import pytest

from cluster.reporting.observer import Observer


def statuses(tokens, running):
    return {
        "generator": [
            {"generated_tokens": tokens / 2, "running": running, "waiting": 0.0},
            {"generated_tokens": tokens / 2, "running": 0.0, "waiting": 0.0},
        ],
        "actors": [{"episodes_finished": 3.0, "reward_mean": 0.5}, {"episodes_finished": 4.0, "reward_mean": 0.0}],
    }


def test_rates_and_shares_come_from_differences_between_samples():
    observer = Observer()
    observer.sample(statuses(0, 1.0), now=10.0, num_stalled=0)
    observer.sample(statuses(100, 1.0), now=12.0, num_stalled=0)
    observer.sample(statuses(400, 0.0), now=14.0, num_stalled=1)
    system = observer.sample(statuses(400, 2.0), now=18.0, num_stalled=0)
    assert system["generator.tok_s"] == 0
    assert system["generator.wait_share"] == pytest.approx(2 / 8)
    assert system["actors.episodes_finished"] == 7
    assert system["actors.reward_mean"] == 0.25


def test_a_generator_that_has_not_begun_does_not_count_as_waiting():
    observer = Observer()
    for now in range(5):
        system = observer.sample(statuses(0, 0.0), now=float(now), num_stalled=0)
    assert "generator.wait_share" not in system
