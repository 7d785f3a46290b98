"""What is lost when anything is killed at any time? A fault every few seconds, in two kinds of runs, in turn.

    python -m benchmarks.chaos [--quick] [--seconds 600] [--every 3] [--compare 40] [--whole 900] [--seed 0] [--save]

`parts.py`: real episodes in real sandboxes without a model, so that there are many faults. Before them it works, in
turn, without any and with one every ten seconds, for `--compare` seconds each, twice. `whole.py`: what `launch.py`
starts, with engines, ranks and Ray, for `--whole` seconds.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.chaos.bad_hours import small_disk
from benchmarks.chaos.parts import Chaos
from benchmarks.chaos.whole import WholeRun
from benchmarks.report import parser, report

_OF_BOTH = ("faults", "kinds", "episodes_leased", "lost", "trained_twice", "orphans")


def main() -> None:
    """Run, and report."""
    arguments = parser(__doc__, quick="25 s of faults in parts of a run, nothing compared, no whole run")
    arguments.add_argument("--seconds", type=float, default=600, help="how long faults go on (default: %(default)s)")
    arguments.add_argument("--every", type=float, default=3, help="seconds between faults (default: %(default)s)")
    arguments.add_argument("--compare", type=float, default=40, help="seconds of each calm and each struck time")
    arguments.add_argument("--whole", type=float, default=900, help="how long a whole run is struck; 0: not at all")
    arguments.add_argument("--only", action="append", default=[], help="of the whole run, a kind of stroke by its name")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = arguments.parse_args()
    seconds, compare_s, whole_s = (
        (25.0, 0.0, 0.0) if options.quick else (options.seconds, options.compare, options.whole)
    )
    figures: dict[str, float | None] = {}
    recoveries: dict[str, list[float]] = {}
    kinds: dict[str, int] = {}
    if seconds:
        with tempfile.TemporaryDirectory(prefix="longhaul-chaos-") as directory, small_disk(Path(directory)):
            chaos = Chaos(Path(directory), options.seed)
            figures = chaos.figures(asyncio.run(chaos.run(seconds, options.every, compare_s)))
        recoveries, kinds = dict(chaos.recoveries), dict(chaos.kinds)
    if whole_s:
        with tempfile.TemporaryDirectory(prefix="longhaul-chaos-") as directory:
            whole = WholeRun(Path(directory), options.seed)
            whole.run(whole_s, options.only)
            figures = _together(figures, whole.figures())
        kinds |= {f"whole run: {kind}": count for kind, count in whole.kinds.items()}
        for role, found in whole.recoveries.items():
            recoveries[role] = recoveries.get(role, []) + found
    figures |= {f"recovery_p50_s_{role}": statistics.median(found) for role, found in recoveries.items() if found}
    figures["recovery_max_s"] = max((seconds for found in recoveries.values() for seconds in found), default=None)
    settings = {"seconds": seconds, "every_s": options.every, "compare_s": compare_s, "whole_s": whole_s}
    details = {"kinds": kinds, "recoveries_s": {r: [round(s, 1) for s in found] for r, found in recoveries.items()}}
    report("chaos", figures, settings | {"seed": options.seed}, details=details, save=options.save)


def _together(parts: Mapping[str, float | None], whole: Mapping[str, float | None]) -> dict[str, float | None]:
    sums = {name: (parts.get(name) or 0) + (whole[name] or 0) for name in _OF_BOTH}
    return {**parts, **whole, **sums}


if __name__ == "__main__":
    main()
