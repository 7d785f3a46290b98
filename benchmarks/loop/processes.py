"""What the processes of a run use: processor time by part, and memory.

The keepers of sandboxes are a run's, too, though the launcher is not their parent."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

_PARTS = {  # of whose command line; the first that is found
    "vllm.v1.engine": "generate",
    "ray::Generator": "generate",
    "ray::Learner": "learn",
    "sandbox.keeper": "sandbox",
    "ray::SandboxActor": "actor",
    "ray::ReplayBuffer": "replay",
}


def processes_of(launcher: int, run_dir: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Every living process of a run, and its part; `sandbox` for all inside sandboxes, `other` for what has none."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(launcher)
        for process in [root, *root.children(recursive=True)]:
            yield _part_of(process), process
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "sandbox.keeper" in command and any(word.startswith(f"{run_dir}/") for word in command):
                for one in [process, *process.children(recursive=True)]:
                    yield "sandbox", one


def _part_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        return next((part for told, part in _PARTS.items() if told in command), "other")
    return "other"


def processor_ms(launcher: int, run_dir: Path) -> Counter[str]:
    """Milliseconds of processor time by part, of the living and of those that they have waited for."""
    used: Counter[str] = Counter()
    for part, process in processes_of(launcher, run_dir):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used[part] += round(1000 * (times.user + times.system + times.children_user + times.children_system))
    return used


def memory_bytes(launcher: int, run_dir: Path) -> int:
    """The sum of the proportional set sizes of all."""
    total = 0
    for _, process in processes_of(launcher, run_dir):
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += _proportional_set_size(process.pid)
    return total


def _proportional_set_size(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
