"""How full the host of this process is: what the replay buffer hears before it lets more episodes run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

_WAITING_PER_CORE = 32.0
"""Programs that wait for one core when it is called full: more of them only pass it around."""


_STALLED_FULL = 10.0
"""Percent of ten seconds in which every program waited for memory: called full: long before the kernel kills."""
_PRESSURE = (Path("/sys/fs/cgroup/memory.pressure"), Path("/proc/pressure/memory"))  # this container's, else the host's


def host_load(pressure: Sequence[Path] = _PRESSURE) -> dict[str, float]:
    """Shares of memory and of CPU that are taken, memory by what is used or by how much programs wait for it, whichever
    is more; both may be over 1."""
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    used = psutil.virtual_memory().percent / 100
    return {
        "host_memory_share": max(used, memory_pressure(pressure)),
        "host_cpu_share": waiting / _WAITING_PER_CORE,
    }


def memory_pressure(files: Sequence[Path] = _PRESSURE) -> float:
    """How much programs wait for memory, 1 being the most they should; 0 where the kernel does not tell."""
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        for line in lines:  # "full avg10=0.00 avg60=0.02 avg300=0.01 total=254196"
            kind, _, rest = line.partition(" avg10=")
            if kind == "full" and rest:
                try:
                    return float(rest.split()[0]) / _STALLED_FULL
                except ValueError:
                    continue
    return 0.0
