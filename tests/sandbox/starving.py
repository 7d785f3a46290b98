"""Others that want a processor: processes outside that are preferred on one of them, and code inside that wants it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

CPU = max(os.sched_getaffinity(0))
AT_A_DISADVANTAGE = f"import os; os.sched_setaffinity(0, {{{CPU}}}); os.nice(19)\n"
"""Python after which a process gets what is left of that processor: next to nothing beside the others."""
_NUM = 4
_BUSY = f"""
import contextlib, os
os.sched_setaffinity(0, {{{CPU}}})
with contextlib.suppress(OSError):  # a sandbox, and a session, may have a share of its own, however nice who is in it
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    with open("/proc/self/autogroup", "w") as file:
        file.write("-20")
os.write(1, b"x")
parent = os.getppid()
while os.getppid() == parent: pass
"""


@contextlib.contextmanager
def busy() -> Iterator[Callable[[], None]]:
    """Processes that want that processor all the time, until the end or until what this gives is called."""
    if os.geteuid() != 0:
        pytest.skip("only root may have processes that are preferred to a sandbox")
    command = [sys.executable, "-S", "-c", _BUSY]
    burners = [subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) for _ in range(_NUM)]

    def end() -> None:
        for burner in burners:
            burner.kill()
            burner.wait()
            assert burner.stdout is not None
            burner.stdout.close()

    try:
        for burner in burners:  # their interpreters take as long to start as they please
            assert burner.stdout is not None and burner.stdout.read(1) == b"x"
        yield end
    finally:
        end()
