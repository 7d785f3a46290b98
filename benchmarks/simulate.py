"""How busy is the bottleneck stage under each bound on staleness? The real state machine in simulated worlds.

512 actors with episodes of minutes to tens of minutes (log-normal, median 5 min, cut at 40 min: "heavy-tailed") or of
equal mean within a fifth ("light"), and a learner that takes 10 minutes a step over 256 trajectories, which makes it
the bottleneck; with a learner of 1 minute the actors are. 2% of the episodes fail and are run again. `busy` is the
share of the time after the first batch in which the bottleneck works; the other stage is in the table.

No batch may hold a token older than the bound, and no episode is thrown away for being long. So a step takes at least
the longest episode / (max_staleness + 1), whatever the machines: the table shows where that law bites.
"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.report import parser, report
from learner.replay.simulator import Outcome, Simulation, World, heavy_tailed, light
from protocol.config import Settings
from protocol.messages import TaskRef

STALENESS = (0, 1, 2, 4, 8)
MEDIAN_S, SIGMA, LONGEST_S = 300.0, 0.8, 2400.0
TASKS = [TaskRef(task_id=f"t{i}", source="simulated", repository=f"r{i % 12}") for i in range(300)]


def simulate(max_staleness: int, heavy: bool, step_s: float, steps: int) -> Outcome:
    """One simulated run of 512 actors."""
    mean_s = MEDIAN_S * math.exp(SIGMA**2 / 2)
    world = World(
        durations=heavy_tailed(MEDIAN_S, SIGMA, LONGEST_S) if heavy else light(mean_s),
        step_s=step_s,
        publish_s=10,
        pass_rate=0.4,
        fail_share=0.02,
        hosts=4,
        poll_s=5,
        beat_s=50,
    )
    replay = {"group_size": 8, "batch": 256, "lease_s": 120}
    settings = Settings(num_actors=512, steps=steps, max_staleness=max_staleness, replay=replay)
    return Simulation(settings, TASKS, world).run()


def rate(outcome: Outcome) -> float:
    """Trained trajectories a minute of virtual time."""
    return outcome.trained / outcome.virtual_s * 60


def plot(path: Path, busy: dict[str, list[float]]) -> None:
    """Busy share of the bottleneck against the bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, values in busy.items():
        axes.plot(range(len(STALENESS)), [100 * v for v in values], marker="o", label=name)
    axes.set_xticks(range(len(STALENESS)), [str(s) for s in STALENESS])
    axes.set_xlabel("max_staleness")
    axes.set_ylabel("bottleneck busy, %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the table and report."""
    flags = parser(__doc__)
    flags.add_argument("--plot", type=Path, help="write a picture of the table")
    flags.add_argument("--save", action="store_true", help="write benchmarks/results/simulate.json")
    arguments = flags.parse_args()
    steps = 8 if arguments.quick else 20
    worlds = {
        "heavy-tailed": (True, 600.0),
        "light": (False, 600.0),
        "heavy-tailed, actors are the bottleneck": (True, 60.0),
    }
    if arguments.quick:
        del worlds["heavy-tailed, actors are the bottleneck"]
    figures: dict[str, float | None] = {}
    busy: dict[str, list[float]] = {}
    print(f"{'durations':42} {'staleness':>9} {'learner':>8} {'actors':>8} {'a minute':>9} {'mean age':>9}")
    for name, (heavy, step_s) in worlds.items():
        outcomes = {s: simulate(s, heavy, step_s, steps) for s in STALENESS}
        actors_bound = step_s < 100
        busy[name] = [o.actors_busy_share if actors_bound else o.learner_busy_share for o in outcomes.values()]
        for s, o in outcomes.items():
            print(
                f"{name:42} {s:9} {o.learner_busy_share:8.1%} {o.actors_busy_share:8.1%} {rate(o):9.1f} "
                f"{o.staleness_mean:9.2f}",
                flush=True,
            )
        suffix = {"heavy-tailed": "", "light": "_light"}.get(name, "_actors_bound")
        figures |= {f"bottleneck_busy{suffix}_staleness_{s}": b for s, b in zip(STALENESS, busy[name], strict=True)}
        figures[f"async_over_sync{suffix}_x"] = rate(outcomes[4]) / rate(outcomes[0])
    if arguments.plot:
        plot(arguments.plot, busy)
    settings = {"num_actors": 512, "batch": 256, "group_size": 8, "steps": steps, "step_s": 600, "median_s": MEDIAN_S}
    report("simulate", figures, settings, save=arguments.save)


if __name__ == "__main__":
    main()
