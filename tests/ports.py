"""A port for whoever can't listen at one of the kernel's choice."""

from __future__ import annotations

import random
import socket

_BELOW_THE_KERNELS = range(20_000, 30_000)


def free_port() -> int:
    """One of loopback where nobody listens. The kernel itself gives none of these away: one of its own range may be
    somebody's connection by the time that it is listened at."""
    for port in random.SystemRandom().sample(_BELOW_THE_KERNELS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
