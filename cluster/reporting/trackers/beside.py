"""The processes that send a run's metrics to trackers while it works. It hands them nothing and waits for nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.reporting.trackers.table import asked
from cluster.reporting.trackers.tracker import Status
from protocol.config import MetricsSettings

_ROOT = Path(__file__).parents[3]
STOP_S = 15.0
"""So long they may go on sending when the run has ended."""


class Trackers:
    """What the trackers are told at the end.

    Attributes:
        status: how the run ended; killed until somebody says more.
    """

    def __init__(self) -> None:
        self.status: Status = "KILLED"


@contextlib.contextmanager
def trackers_beside(settings: MetricsSettings, directory: Path, say: Callable[[str], None]) -> Iterator[Trackers]:
    """Send until the block ends, however it ends. A tracker that fails costs the run a line."""
    trackers = Trackers()
    processes = {name: _start(name, where, directory, say) for name, where in asked(settings).items()}
    try:
        yield trackers
    finally:
        for process in processes.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended already
                process.stdin.write(trackers.status)
                process.stdin.close()
        until = time.monotonic() + STOP_S
        for name, process in processes.items():
            _stop(name, process, until, directory, say)


def _start(name: str, where: str, directory: Path, say: Callable[[str], None]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.front_door", "track", str(directory), f"--{name}", where, "--until-eof"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *os.environ.get("PYTHONPATH", "").split()])}
    with (directory / "logs" / f"tracker-{name}.log").open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is the run's; and what a library starts goes with it
        )
    threading.Thread(target=_repeat, args=(process, say), name=f"what {name} says", daemon=True).start()
    return process


def _repeat(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    """Waits for lines; the end of the process ends it."""
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            say(line.rstrip())


def _stop(name: str, process: subprocess.Popen[str], until: float, directory: Path, say: Callable[[str], None]) -> None:
    try:
        process.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        say(f"{name} has not taken everything within {STOP_S:.0f} s: longhaul track {directory} sends the rest")
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_S)
