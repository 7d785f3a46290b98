"""Does any decoder break on what it is sent?

    python -m benchmarks.fuzz [--quick] [--seconds 600] [--seed 0] [--only NAME ...]

Every decoder in turn is fed inputs made of valid ones under a seed, for its share of the time. An input that broke one
is written to `fuzz/` below the system's temporary files; the exit status is 1 if any did. `python -m
benchmarks.fuzz.guided` lets a coverage-guided fuzzer feed one of them.
"""

from __future__ import annotations

import logging
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from benchmarks.fuzz.inputs import feed, next_input
from benchmarks.fuzz.targets import Target, targets
from benchmarks.report import parser, report

_MEMORY_BYTES = 8 << 30
_SLOW_S = 2.0


def main() -> int:
    """Feed everything, and report."""
    flags = parser(__doc__, quick="2 s a decoder")
    flags.add_argument("--seconds", type=float, default=600.0, help="for all decoders together")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--only", nargs="*", default=[], help="names of decoders")
    flags.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = flags.parse_args()
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))  # a blow-up is an error, not a dead host
    chosen = [target for target in targets() if not options.only or target.name in options.only]
    share_s = 2.0 if options.quick else options.seconds / len(chosen)
    counts: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    for target in chosen:
        slowest[target.name] = _feed_for(target, random.Random(options.seed), share_s, counts)
        print(f"{target.name}: {counts[target.name]} inputs, slowest {slowest[target.name]:.2f} s", file=sys.stderr)
    figures = {
        "decoders": float(len(chosen)),
        "inputs": float(sum(counts[target.name] for target in chosen)),
        "refused": float(counts["refused"]),
        "broke": float(counts["broke"]),
        "slower_than_2_s": float(counts["slow"]),
        "slowest_s": max(slowest.values()),
    }
    settings = {"seconds": share_s * len(chosen), "seed": options.seed}
    report("fuzz", figures, settings, details={"slowest_s": slowest}, save=options.save)
    return 1 if counts["broke"] or counts["slow"] else 0


def _feed_for(target: Target, rng: random.Random, seconds: float, counts: Counter[str]) -> float:
    """Feed one decoder; its slowest answer in seconds."""
    slowest, told, until = 0.0, set[str](), time.monotonic() + seconds
    while time.monotonic() < until:
        data = next_input(target, rng)
        began = time.monotonic()
        try:
            counts["refused"] += not feed(target, data)
        except Exception as error:
            counts["broke"] += 1
            where = traceback.format_tb(error.__traceback__)[-1]
            if where not in told:
                told.add(where)
                print(f"{target.name} broke on {_kept(target, data)}: {error!r}\n{where}", file=sys.stderr)
        took_s = time.monotonic() - began
        if took_s > _SLOW_S:
            counts["slow"] += 1
            print(f"{target.name} took {took_s:.1f} s over {_kept(target, data)}", file=sys.stderr)
        slowest = max(slowest, took_s)
        counts[target.name] += 1
    return slowest


def _kept(target: Target, data: bytes) -> Path:
    folder = Path(tempfile.gettempdir()) / "fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / f"{target.name.replace(' ', '-')}-{abs(hash(data)):x}"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
