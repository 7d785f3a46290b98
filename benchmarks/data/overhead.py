"""What evaluation while training costs: the real replay buffer in simulated worlds, with and without it."""

from __future__ import annotations

from learner.replay.simulator import Outcome, Simulation, World, heavy_tailed
from protocol.config import Settings
from protocol.messages import TaskRef

EVERY = 10
_SEEDS = range(3)
_TASKS = [TaskRef(task_id=f"t{i}", source="simulated", repository=f"r{i % 12}") for i in range(300)]
_HELD_OUT = [TaskRef(task_id=f"h{i}", source="simulated", repository="held-out") for i in range(64)]
_STEP_S = {"actors": 10.0, "learner": 600.0}  # with the first, 128 actors are what a step waits for


def overhead(bottleneck: str, steps: int) -> float:
    """Share of the training throughput that `--eval.every 10` takes with the default batch of 64 and 64 tasks from a
    run of 128 actors, whose episodes last a median of 5 minutes, cut at 40. Mean over seeds."""
    plain, evaluating = (
        [_simulate(_STEP_S[bottleneck], steps, every, seed) for seed in _SEEDS] for every in (0, EVERY)
    )
    for outcome in evaluating:
        if outcome.evaluations < steps // EVERY - 1:
            raise AssertionError(f"{outcome.evaluations} evaluations in {steps} steps: this measures no overhead")
    return 1 - sum(o.trained / o.virtual_s for o in evaluating) / sum(o.trained / o.virtual_s for o in plain)


def _simulate(step_s: float, steps: int, every: int, seed: int) -> Outcome:
    world = World(
        durations=heavy_tailed(300, 0.8, 2400),
        step_s=step_s,
        publish_s=10,
        pass_rate=0.4,
        fail_share=0.02,
        hosts=4,
        poll_s=5,
        beat_s=50,
        seed=seed,
    )
    settings = Settings(
        num_actors=128,
        steps=steps,
        replay={"lease_s": 120},
        eval={"every": every, "tasks_in_training": len(_HELD_OUT)},
    )
    return Simulation(settings, _TASKS, world, _HELD_OUT if every else ()).run()
