"""`launch.py` on the first host of a network, with Ray over all of them, seen from this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.hosts.network import CREDENTIALS, RAY, Host, Network

ROOT = Path(__file__).parents[2]
RUN_DIR, MODEL = "/tmp/run", "/tmp/model"  # of each host its own
OURS = {"PYTHONPATH": str(ROOT)}
"""Environment of whatever runs this code on a host."""
_FLAGS = {
    "--model.path": MODEL,
    "--tasks.cache-dir": "/run/cache",
    "--run-dir": RUN_DIR,
    "--num-actors": 24,
    "--replay.batch": 8,
    "--replay.group-size": 4,
    "--tasks.count": 32,
    "--steps": 10**6,
    "--start-timeout-s": 540,  # hosts share the cores of one machine
    "--learner.ranks": 1,
    "--checkpoint.every": 0,
    "--sandbox.backend": "namespace",
}
# what is to last, the place of all owners' directories included, whatever user's runs were on a host
_LASTING = {f"file: {path}" for path in (RUN_DIR, MODEL, "/run/cache", "/run/longhaul", "/tmp/ray", CREDENTIALS)}
_LOOK_S = 0.2


class HostedRun:
    """A run; several may follow each other on one network, in one run directory.

    Args:
        address: of the network's Ray; empty: the run starts its own, on its host alone.
        output: file to which what it says is appended.
        flags: of `launch.py`, beside those that all have.
    """

    def __init__(self, network: Network, address: str, output: Path, flags: Mapping[str, object]) -> None:
        self.network, self._output = network, output
        self.host = network.hosts[0]
        self.before = {host.name: host.traces() for host in network.hosts}
        if not self.host.path(MODEL).exists():  # no other host has it
            shutil.copytree(ROOT / "assets" / "tiny", self.host.path(MODEL))
        joined = {"--ray-address": address, "--network.bind": "0.0.0.0"} if address else {}
        words = [str(word) for pair in (_FLAGS | joined | dict(flags)).items() for word in pair]
        self._told_before = self._whole_output()
        with output.open("ab") as file:
            self.process = self.host.start(
                *(sys.executable, str(ROOT / "launch.py"), *words),
                env=os.environ | RAY | OURS,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def directory(self) -> Path:
        """Its run directory, as this machine reaches it."""
        return self.host.path(RUN_DIR)

    def read(self, name: str) -> str:
        """A file of the run directory, so far."""
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Whole records of one kind in its metrics, of runs before it in the same directory, too."""
        lines = self.read("metrics.jsonl").splitlines(keepends=True)
        return [record for line in lines if line.endswith("\n") and (record := json.loads(line))["kind"] == kind]

    def text(self) -> str:
        """What it has said."""
        return self._whole_output().removeprefix(self._told_before)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 540) -> float:
        """Seconds until `condition` held. Raises `RuntimeError`, with what the run said, if it ends before, or time
        does."""
        began = time.monotonic()
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended with {self.process.returncode}, waiting for {what}:\n{self.text()}")
            if time.monotonic() > began + timeout_s:
                raise RuntimeError(f"no {what} within {timeout_s:.0f} s:\n{self.text()}")
            time.sleep(_LOOK_S)
        return time.monotonic() - began

    def take_steps(self, count: int, timeout_s: float = 540) -> float:
        """Wait for so many more steps; seconds."""
        target = len(self.records("step")) + count
        return self.wait_until(lambda: len(self.records("step")) >= target, f"{count} more steps", timeout_s)

    def signal(self, how: signal.Signals) -> None:
        """Of the launcher itself."""
        launchers = [one for one in self.host.running(str(ROOT / "launch.py")) if one.name().startswith("python")]
        # its own children show the same command line for as long as they are forks
        min(launchers, key=lambda process: process.create_time()).send_signal(how)

    def wait_for_end(self, timeout_s: float = 300) -> int:
        """Its exit status. Raises `subprocess.TimeoutExpired`."""
        return self.process.wait(timeout_s)

    def left(self, host: Host) -> list[str]:
        """What is there now that was not before the run, but for what is to last."""
        return sorted(host.traces() - self.before[host.name] - _LASTING)

    def wait_until_clear(self, timeout_s: float, hosts: list[Host] | None = None) -> list[str]:
        """What is left on hosts, after waiting at most so long for nothing to be."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [f"{host.name}: {trace}" for host in hosts or self.network.hosts for trace in self.left(host)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(_LOOK_S)

    def placed_on(self, host: Host) -> list[str]:
        """Lines of its placement that name parts on a host."""
        return re.findall(rf"^{host.name}/.*$", self.read("placement.txt"), re.MULTILINE)

    def close(self) -> None:
        """End it, as it may."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _whole_output(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""
