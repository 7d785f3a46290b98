"""A run that `launch.py` works on, seen from outside: its processes, its steps, what it says, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.run_files import SHARED_MEMORY

ROOT = Path(__file__).parents[1]
MEASURED = ("time", "wait_s", "train_s", "publish_s", "step_s", "tokens_per_s", "sent_bytes", "delta_share")
"""Fields of a step that say how long it took, not what was computed."""
_LOOK_S = 0.2


class Launched:
    """Starts a run.

    Args:
        arguments: of `launch.py`, with `--run-dir` among them.
        temporary: its TMPDIR, a short path: sockets are in it. What a dead launcher left there the next one removes.
        output: file to which what it says is appended.

    Attributes:
        process: the launcher.
        private: the private directory of every life, named like everything that must vanish with it.
    """

    def __init__(self, run_dir: Path, arguments: Sequence[object], temporary: Path, output: Path) -> None:
        self.run_dir, self.temporary = run_dir, temporary
        self.private: set[Path] = set()
        self._output = output
        self._seen: dict[int, psutil.Process] = {}
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "launch.py", *map(str, arguments)],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(temporary)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def children(self) -> list[psutil.Process]:
        """Every process that was ever seen below the launcher."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:  # it has just ended
            found = []
        self._seen |= {child.pid: child for child in found}
        self.private.update(owner.parent for owner in self.temporary.glob("longhaul-*/owner"))
        return list(self._seen.values())

    def titled(self, title: str) -> list[psutil.Process]:
        """The living processes whose title begins so: workers as Ray shows them, idle helpers of that name left out."""
        return [child for child in self.children() if child.is_running() and title_of(child).startswith(title)]

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = 400.0) -> None:
        """Until `condition` holds. Raises `RuntimeError`, with what the run said, if it ends or time is up before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended with {self.process.returncode}, waiting for {what}:\n{self.text()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {timeout_s:.0f} s:\n{self.text()}")
            self.children()
            time.sleep(_LOOK_S)

    def wait_for_end(self, timeout_s: float = 600.0) -> int:
        """The exit status. Raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self.children()
            time.sleep(_LOOK_S)
        return self.process.wait(timeout=0)

    def steps(self) -> list[dict[str, Any]]:
        """Records of all steps so far, those that were taken again included."""
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
        except OSError:
            return []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if record["kind"] == "step"]

    def text(self) -> str:
        """What it has said; of all runs that share its file."""
        return self._output.read_text(errors="replace")

    def leftovers(self) -> Iterator[str]:
        """What is still there of the run: processes, temporary files, shared memory, mounts, control groups."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=0)
        yield from map(str, alive)
        mounts = Path("/proc/mounts").read_text().splitlines()
        for name in (private.name for private in self.private):
            yield from (line for line in mounts if name in line)
            yield from map(str, SHARED_MEMORY.glob(f"*{name}*"))
            yield from map(str, Path("/sys/fs/cgroup").rglob(f"*{name.removeprefix('longhaul-')}*"))
        yield from map(str, self.temporary.iterdir())

    def close(self) -> None:
        """Let nothing of it live."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self._seen.values():
            if process.is_running():
                process.kill()


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; empty where it is gone."""
    try:
        return str(process.cmdline()[0])
    except (psutil.Error, IndexError):
        return ""
