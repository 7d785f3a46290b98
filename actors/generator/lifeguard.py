"""Kills what a process left behind: `python -I -S lifeguard.py PID MARK`, started by `actors/generator/lifeline.py`.

Waits for the end of process PID, however it ends; then every process whose environment held MARK when it was started is
killed. It imports nothing but the standard library, because it has to be there before its charge starts anything.
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

_ROUNDS = 5
_PAUSE_S = 0.2


def main(pid: int, mark: bytes) -> None:
    """See the module. Looks a few times: a process may just be starting another one."""
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])
    for _ in range(_ROUNDS):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid() and _has_mark(entry, mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(_PAUSE_S)


def _has_mark(entry: Path, mark: bytes) -> bool:
    try:
        return mark in (entry / "environ").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, or another user's
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), os.fsencode(sys.argv[2]))
