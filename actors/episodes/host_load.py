"""How full the host of this process is: what the replay buffer hears before it lets more episodes run."""

from __future__ import annotations

import os

import psutil

_WAITING_PER_CORE = 32.0
"""Programs that wait for one core when it is called full: more of them only pass it around."""


def host_load() -> dict[str, float]:
    """Shares of memory and of CPU that are taken; CPU may be over 1."""
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    return {
        "host_memory_share": psutil.virtual_memory().percent / 100,
        "host_cpu_share": waiting / _WAITING_PER_CORE,
    }
