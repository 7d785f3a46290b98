"""The real state machine in a simulated world, its invariants checked after every event."""

import pytest

from learner.replay.simulator import Simulation, World, heavy_tailed
from protocol.config import Settings
from protocol.messages import TaskRef

TASKS = [TaskRef(task_id=f"t{i}", source="micro", repository=f"r{i % 5}") for i in range(200)]


def simulate(num_actors, batch, steps, max_staleness, world, group_size=8, **changes):
    replay = {"group_size": group_size, "batch": batch, "lease_s": 60} | changes.pop("replay", {})
    settings = Settings(num_actors=num_actors, steps=steps, max_staleness=max_staleness, replay=replay, **changes)
    return Simulation(settings, TASKS, world).run()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_ten_actors_with_failures_and_restarts(max_staleness, seed):
    world = World(
        durations=heavy_tailed(60, sigma=1.2),
        step_s=20,
        fail_share=0.1,
        silent_share=0.05,
        restart_every_s=97,
        hosts=3,
        seed=seed,
    )
    outcome = simulate(10, 8, 8, max_staleness, world, group_size=4)
    assert outcome.staleness_max <= max_staleness
    assert 8 * 8 - 16 <= outcome.trained <= 8 * 8


def test_rft_takes_successes_only_and_wastes_none():
    world = World(durations=heavy_tailed(60, sigma=1.2), step_s=20, pass_rate=0.3, restart_every_s=301)
    assert simulate(32, 16, 6, 2, world, phase="rft").trained == 6 * 16


def test_512_actors_stay_busy_through_long_episodes():
    world = World(
        durations=heavy_tailed(300, sigma=0.8, most_s=3600),
        step_s=60,
        fail_share=0.03,
        silent_share=0.01,
        restart_every_s=1500,
    )
    waiting = simulate(512, 128, 8, 0, world)
    asynchronous = simulate(512, 128, 8, 8, world)
    assert waiting.staleness_max == 0
    assert asynchronous.virtual_s < waiting.virtual_s
    assert asynchronous.actors_busy_share > waiting.actors_busy_share


def test_evaluations_run_beside_the_steps_through_failures_and_restarts():
    world = World(
        durations=heavy_tailed(60, sigma=1.2),
        step_s=20,
        fail_share=0.1,
        silent_share=0.05,
        restart_every_s=97,
        hosts=3,
    )
    held_out = [TaskRef(task_id=f"h{i}", source="micro", repository="r") for i in range(6)]
    settings = Settings(
        num_actors=10,
        steps=24,
        max_staleness=2,
        replay={"group_size": 4, "batch": 8, "lease_s": 60},
        eval={"every": 4, "runs_in_training": 2},
    )
    outcome = Simulation(settings, TASKS, world, held_out).run()
    assert outcome.evaluations >= 3
    assert outcome.staleness_max <= 2


def test_the_same_seed_gives_the_same_run():
    world = World(durations=heavy_tailed(60), step_s=20, fail_share=0.1, silent_share=0.05, seed=3)
    assert simulate(32, 16, 5, 2, world) == simulate(32, 16, 5, 2, world)


@pytest.mark.slow
def test_100_000_actors():
    world = World(
        durations=heavy_tailed(400, sigma=0.6, most_s=2400),
        step_s=30,
        fail_share=0.01,
        silent_share=0.001,
        restart_every_s=1700,
        hosts=64,
        poll_s=10,
        beat_s=250,
        pass_rate=1.0,
    )
    outcome = simulate(100_000, 100_000, 1, 0, world, replay={"keep_no_signal": True, "lease_s": 600})
    assert outcome.trained >= 99_900
