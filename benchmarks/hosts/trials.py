"""What one run over three hosts goes through, one figure after the other."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import ledger
from benchmarks.hosts.network import Host, start_ray, stop_ray
from benchmarks.hosts.run import OURS, RUN_DIR, HostedRun
from benchmarks.hosts.scan import scanned

_WARM = 2
"""Steps before anything is measured."""
_WAIT_S = 900.0
_CLEAR_S = 30.0


def trained_per_min(run: HostedRun, steps: int) -> float:
    """Episodes a minute over the next steps, those that warm up left out."""
    run.take_steps(_WARM, _WAIT_S)
    before = len(run.records("step"))
    run.take_steps(steps, _WAIT_S)
    first, *rest = run.records("step")[before - 1 : before + steps]
    return 60 * sum(record["num_trajectories"] for record in rest) / float(rest[-1]["time"] - first["time"])


class Trials:
    """Of a run that begins on the first two hosts of a network of three.

    Attributes:
        figures: as far as it came.
        processes: generators and sandbox actors, when `trained_per_min_3` was measured.
    """

    def __init__(self, run: HostedRun, folder: Path) -> None:
        self._run, self._folder = run, folder
        self.figures: dict[str, float | None] = {}
        self.details: dict[str, object] = {}
        self.processes = (1, 1)

    def run(self, steps: int, parted_s: float, pairs: int) -> None:
        """Everything in turn. Raises `RuntimeError` where the run does not bear it."""
        hosts = self._run.network.hosts
        self._run.take_steps(1, _WAIT_S)
        self._measure("join_to_first_episode_s", self._join(hosts[2]))
        found = self._fleet()
        self.processes = (_count(found, "generator"), _count(found, "sandbox-actor"))
        self.details["placement"] = self._run.read("placement.txt").splitlines()
        self._measure("trained_per_min_3", trained_per_min(self._run, steps))
        self.details["load_3"] = round(os.getloadavg()[0], 1)
        listening = [one for host in hosts for one in scanned(host, next(h for h in hosts if h is not host))]
        self.details["listeners"] = len(listening)
        self._measure("unprotected_listeners", sum(said.startswith("none") for _, said in listening))
        self._measure("replay_restart_s", self._kill_buffer())
        self._part_pairs(parted_s, pairs)
        self._measure("drain_s", self._drain(hosts[2]))
        self._measure("host_death_recovery_s", self._kill_host(hosts[1]))
        self._end([hosts[0], hosts[2]])

    def _measure(self, name: str, value: float) -> None:
        self.figures[name] = value
        print(f"{name} {value:.4g}", file=sys.stderr, flush=True)

    def _join(self, host: Host) -> float:
        start_ray(self._run.network, self._folder, hosts=[host])

        def has_episode() -> bool:
            return any(_is_on(one, host) and one["doing"] == "runs episodes" for one in self._fleet())

        seconds = self._run.wait_until(has_episode, f"episode on {host.name}", _WAIT_S)
        self._run.wait_until(self._all_work, "work of all parts", _WAIT_S)
        return seconds

    def _kill_buffer(self) -> float:
        (buffer,) = self._run.host.running("ray::ReplayBuffer")
        back = "replay-buffer is ready again"
        before = self._run.text().count(back)
        buffer.kill()
        seconds = self._run.wait_until(lambda: self._run.text().count(back) > before, back, _WAIT_S)
        self._run.take_steps(1, _WAIT_S)
        return seconds

    def _part_pairs(self, parted_s: float, pairs: int) -> None:
        before = self._run.text().count("is started again")
        steps = []
        for one, other in list(itertools.combinations(self._run.network.hosts, 2))[:pairs]:
            self._run.network.part(one, other)
            time.sleep(parted_s)
            self._run.network.rejoin(one, other)
            steps.append(round(self._run.take_steps(1, _WAIT_S), 1))
        self.details["step_after_partition_s"] = steps
        self.details["restarts_by_partitions"] = self._run.text().count("is started again") - before

    def _drain(self, host: Host) -> float:
        words = ["-m", "cluster.front_door", "drain", host.name, RUN_DIR]
        self._run.host.run(sys.executable, *words, env=os.environ | OURS)
        drained = re.compile(rf"{host.name}/\w+ is drained")
        return self._run.wait_until(lambda: drained.search(self._run.text()), f"{host.name} drained", _WAIT_S)

    def _kill_host(self, host: Host) -> float:
        began = time.monotonic()
        host.kill()

        def is_over() -> bool:
            return self._all_work() and not any(_is_on(one, host) for one in self._fleet())

        self._run.wait_until(is_over, f"parts of {host.name} elsewhere", _WAIT_S)
        self._run.take_steps(1, _WAIT_S)
        return time.monotonic() - began

    def _end(self, hosts: list[Host]) -> None:
        self._run.signal(signal.SIGTERM)
        status = self._run.wait_for_end()
        stop_ray(self._run.network, self._folder, hosts[1:])  # it was not up there when the run began
        left = self._run.wait_until_clear(_CLEAR_S, hosts)
        self.details |= {"status": status, "left": left, "steps": len(self._run.records("step"))}
        self._measure("left_behind", len(left))
        state = ledger.state_of(self._run.directory)
        self.details["episodes_leased"] = state.tally.leased
        self._measure("partition_lost", ledger.lost(state))
        self._measure("partition_duplicated", ledger.trained_twice(self._run.directory))

    def _fleet(self) -> list[dict[str, Any]]:
        text = self._run.read("fleet.json")
        found: list[dict[str, Any]] = json.loads(text)["processes"] if text else []
        return found

    def _all_work(self) -> bool:
        return all(one["state"] == "working" for one in self._fleet())


def _is_on(process: dict[str, Any], host: Host) -> bool:
    return str(process["host"]).startswith(f"{host.name}/")


def _count(fleet: list[dict[str, Any]], name: str) -> int:
    return sum(str(process["name"]).startswith(name) for process in fleet)
