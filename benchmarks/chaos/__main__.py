"""What is lost when anything is killed at any time? A fault every few seconds, in three kinds of runs, in turn.

    python -m benchmarks.chaos [--quick] [--seconds 660] [--every 3] [--compare 40] [--containers 200] [--whole 900]
                               [--seed 0] [--save]

`parts.py`: real episodes in real sandboxes without a model, so that there are many faults. Before them it works, in
turn, without any and with one every ten seconds, for `--compare` seconds each, twice. The same in containers for
`--containers` seconds, where the Docker daemon goes away, too. `whole.py`: what `launch.py`
starts, with engines, ranks and Ray, for `--whole` seconds.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.chaos.bad_hours import small_disk
from benchmarks.chaos.boxes import ContainerBoxes
from benchmarks.chaos.parts import Chaos
from benchmarks.chaos.whole import WholeRun
from benchmarks.report import parser, report

_ADDED = ("faults", "kinds", "episodes_leased", "lost", "trained_twice", "orphans")
_ADDED_OF_PARTS = (*_ADDED, "untold", "fake_zero_rewards", "turns_repeated", "turns_lost")
Figures = dict[str, float | None]


def main() -> None:
    """Run, and report."""
    arguments = parser(__doc__, quick="25 s of faults in parts of a run, nothing compared, no containers, no whole run")
    arguments.add_argument("--seconds", type=float, default=660, help="how long faults go on (default: %(default)s)")
    arguments.add_argument("--every", type=float, default=3, help="seconds between faults (default: %(default)s)")
    arguments.add_argument("--compare", type=float, default=40, help="seconds of each calm and each struck time")
    arguments.add_argument("--containers", type=float, default=200, help="how long, in containers; 0: not at all")
    arguments.add_argument("--whole", type=float, default=900, help="how long a whole run is struck; 0: not at all")
    arguments.add_argument("--only", action="append", default=[], help="of the whole run, a kind of stroke by its name")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = arguments.parse_args()
    if options.quick:
        options.seconds, options.compare, options.containers, options.whole = 25.0, 0.0, 0.0, 0.0
    figures: Figures = {}
    recoveries: dict[str, list[float]] = {}
    kinds: dict[str, int] = {}

    def keep(where: str, struck: Chaos | WholeRun) -> None:
        kinds.update({f"{where}{kind}": count for kind, count in struck.kinds.items()})
        for role, found in struck.recoveries.items():
            recoveries[role] = recoveries.get(role, []) + found

    if options.seconds:
        with tempfile.TemporaryDirectory(prefix="longhaul-chaos-") as directory, small_disk(Path(directory)):
            chaos = Chaos(Path(directory), options.seed)
            figures = chaos.figures(asyncio.run(chaos.run(options.seconds, options.every, options.compare)))
        keep("", chaos)
    if options.containers:
        with tempfile.TemporaryDirectory(prefix="longhaul-chaos-") as directory, small_disk(Path(directory)):
            chaos = Chaos(Path(directory), options.seed, ContainerBoxes(Path(directory)))
            found = chaos.figures(asyncio.run(chaos.run(options.containers, options.every)))
        figures = found | figures | _sums(_ADDED_OF_PARTS, figures, found)
        figures["continued_share_containers"] = found["continued_share"]
        keep("in containers: ", chaos)
    if options.whole:
        with tempfile.TemporaryDirectory(prefix="longhaul-chaos-") as directory:
            whole = WholeRun(Path(directory), options.seed)
            whole.run(options.whole, options.only)
            found = whole.figures()
        figures = figures | found | _sums(_ADDED, figures, found)
        keep("whole run: ", whole)
    figures |= {f"recovery_p50_s_{role}": statistics.median(found) for role, found in recoveries.items() if found}
    figures["recovery_max_s"] = max((seconds for found in recoveries.values() for seconds in found), default=None)
    names = ("seconds", "every", "compare", "containers", "whole", "seed")
    details = {"kinds": kinds, "recoveries_s": {r: [round(s, 1) for s in found] for r, found in recoveries.items()}}
    report("chaos", figures, {name: getattr(options, name) for name in names}, details=details, save=options.save)


def _sums(names: Iterable[str], one: Figures, other: Figures) -> Figures:
    return {name: (one.get(name) or 0) + (other.get(name) or 0) for name in names}


if __name__ == "__main__":
    main()
