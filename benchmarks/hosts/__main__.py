"""What does it cost to be on several hosts, and what becomes of a run when one of them comes, goes or falls silent?

    python -m benchmarks.hosts [--quick] [--save]

Three hosts made of namespaces share this machine's cores and nothing else; two begin a run, the third joins it. Then it
is measured, its listeners are asked by a stranger, its buffer is killed, each pair of hosts is parted for a while, a
host is drained, another one dies, and SIGTERM ends it. Afterwards one host alone, with as many processes of each kind
and the same cores, by sockets and memory of its own: the difference is the price of distance. Every kind of time is
from the stroke; `join_to_first_episode_s` from when Ray is up on the host that joins, `host_death_recovery_s` until
every part works again and a step was taken, after the host's lease (`--hosts.unreachable-s`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.hosts.network import CannotMakeHosts, Network, start_ray
from benchmarks.hosts.pushes import tcp_gb_s, weights_gb_s
from benchmarks.hosts.run import HostedRun
from benchmarks.hosts.trials import Trials, trained_per_min
from benchmarks.report import parser, report
from protocol.config import HostSettings

NUM_HOSTS = 3
FIGURES = (
    *("hosts", "trained_per_min_1", "trained_per_min_3", "partition_lost", "partition_duplicated", "left_behind"),
    *("replay_restart_s", "host_death_recovery_s", "join_to_first_episode_s", "drain_s", "unprotected_listeners"),
    *("weights_gb_s_between_hosts", "tcp_gb_s_between_hosts"),
)
_WEIGHTS = 256 << 20


def main() -> None:
    """Run, and report."""
    arguments = parser(__doc__, quick="two steps where ten are measured, one pair of hosts parted, for 5 s")
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/hosts.json")
    options = arguments.parse_args()
    steps, parted_s, pairs = (2, 5.0, 1) if options.quick else (10, 20.0, 3)
    settings = {"steps": steps, "parted_s": parted_s, "pairs": pairs, "weights_bytes": _WEIGHTS}
    settings["unreachable_s"] = HostSettings().unreachable_s
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    missing: dict[str, str] = {}
    details: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="bench-hosts-") as directory:
        folder = Path(directory)
        try:
            with Network(NUM_HOSTS) as network, _said(missing):
                figures["hosts"] = len(network.hosts)
                pushes = 3 if options.quick else 8
                figures["weights_gb_s_between_hosts"] = weights_gb_s(*network.hosts[:2], _WEIGHTS, pushes)
                figures["tcp_gb_s_between_hosts"] = tcp_gb_s(*network.hosts[:2], 4 * _WEIGHTS)
                address = start_ray(network, folder, hosts=network.hosts[:2])
                run = HostedRun(network, address, folder / "three.txt", {})
                trials = Trials(run, folder)
                try:
                    trials.run(steps, parted_s, pairs)
                finally:
                    run.close()
                    figures |= trials.figures
                    details |= trials.details
            if figures["trained_per_min_3"] is not None:
                generators, actors = trials.processes
                details["processes"] = {"generators": generators, "sandbox actors": actors}
                figures["trained_per_min_1"] = one_host(folder, steps, generators, actors, missing)
                details["load_1"] = round(os.getloadavg()[0], 1)  # of all that this machine does
        except CannotMakeHosts as error:
            missing = dict.fromkeys(FIGURES, f"no hosts can be made here: {error}")
    missing = {name: why for name, why in missing.items() if figures[name] is None}
    report("hosts", figures, settings, missing, details=details, save=options.save)


def one_host(folder: Path, steps: int, generators: int, actors: int, missing: dict[str, str]) -> float | None:
    """Episodes trained a minute by so many processes on one host, by itself."""
    counts = {"--generator.count": generators, "--actors.processes": actors, "--network.dashboard-port": 0}
    with Network(1) as network, _said(missing):
        run = HostedRun(network, "", folder / "one.txt", counts)
        try:
            return trained_per_min(run, steps)
        finally:
            run.close()
    return None


@contextlib.contextmanager
def _said(missing: dict[str, str]) -> Iterator[None]:
    """What breaks costs the figures that were to come, and is their reason."""
    try:
        yield
    except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        said = str(error).strip().splitlines()
        missing |= dict.fromkeys(FIGURES, f"not measured: {said[0] if said else type(error).__name__}")


if __name__ == "__main__":
    main()
