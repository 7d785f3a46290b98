"""Ties the life of processes to that of the one that started them."""

from __future__ import annotations

import os
import secrets
import select
import signal
import sys
import threading
from pathlib import Path

_MARK = "LONGHAUL_STARTED_BY"
_LIFEGUARD = Path(__file__).with_name("lifeguard.py")


def guard_children() -> None:
    """Everything that this process starts from now on is killed when it ends, however it ends.

    A watch inside the children would not do: vLLM's engine process imports for seconds before any code of ours runs.
    """
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    os.environ[_MARK] = mark
    command = [sys.executable, "-I", "-S", str(_LIFEGUARD), str(os.getpid()), f"{_MARK}={mark}"]
    silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in range(3)]
    # a session of its own: a signal to this process's group leaves it its work
    os.posix_spawn(command[0], command, {}, file_actions=silent, setsid=True)


def die_with_parent() -> None:
    """Kill this process as soon as its parent is gone, however the parent ended."""
    parent = os.getppid()
    _die_with(parent)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_guarded() -> None:
    """Kill this process as soon as the one is gone that called `guard_children` and, through others, started it.

    The lifeguard alone would not do: Ray kills the children of a worker that ends, and so the lifeguard and the fork
    server, but not what the fork server has started.
    """
    if (mark := os.environ.get(_MARK)) is not None:
        _die_with(int(mark.partition("-")[0]))


def _die_with(pid: int) -> None:
    """Waits, in a thread, on a process's descriptor for ever; only the end of that process unblocks it."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:  # gone already
        os.kill(os.getpid(), signal.SIGKILL)
        raise

    def watch() -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name=f"watch of process {pid}").start()
