"""What of a run is full first at 100, 1,000 and 10,000 sandbox hosts: arithmetic over what one core was measured to do.

A host has 64 cores and plays 62 episodes at once, as the plan of the 72B recipe gives it; an episode lasts as in
`benchmarks.simulate`. What every host asks of the one replay buffer and the one launcher is held against what
`benchmarks.replay` and `benchmarks.loop` measured. A share over 1 is full.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.report import parser, report
from benchmarks.simulate import MEDIAN_S, SIGMA

HOSTS = (100, 1_000, 10_000)
EPISODES_A_HOST, PROCESSES_A_HOST = 62, 16
BEAT_S = 20.0  # an actor process tells the buffer of its leases
_RESULTS = Path(__file__).parent / "results"


def load(hosts: int, measured: dict[str, float]) -> dict[str, float]:
    """Share of what each can do, by what it is.

    Args:
        measured: figures of `benchmarks.replay`.
    """
    mean_s = MEDIAN_S * math.exp(SIGMA**2 / 2)
    finished_per_s = hosts * EPISODES_A_HOST / mean_s
    beats_per_s = hosts * PROCESSES_A_HOST / BEAT_S
    return {
        "journal": finished_per_s / measured["submissions_per_s"],
        "leases_and_beats": (finished_per_s + beats_per_s) / measured["leases_per_s"],
        "launcher_beats": hosts / measured["leases_per_s"],
    }


def saved(name: str) -> dict[str, Any]:
    """Figures of a saved result."""
    found: dict[str, Any] = json.loads((_RESULTS / f"{name}.json").read_text())["figures"]
    return found


def main() -> None:
    """Print the table and report."""
    flags = parser(__doc__)
    flags.parse_args()
    measured = saved("replay")
    figures: dict[str, float | None] = {}
    print(f"{'hosts':>7} {'episodes':>9}   share of what was measured to be possible")
    for hosts in HOSTS:
        shares = load(hosts, measured)
        first = max(shares, key=lambda name: shares[name])
        said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"{hosts:7} {hosts * EPISODES_A_HOST:9}   {said}; first: {first}")
        figures |= {f"{name}_share_{hosts}": share for name, share in shares.items()}
    figures["hosts_of_a_full_journal"] = 1 / load(1, measured)["journal"]
    report("scale", figures, {"episodes_a_host": EPISODES_A_HOST, "processes_a_host": PROCESSES_A_HOST})


if __name__ == "__main__":
    main()
