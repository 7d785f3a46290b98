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
parent = os.getppid()
while os.getppid() == parent: pass
"""


@contextlib.contextmanager
def busy() -> Iterator[Callable[[], None]]:
    """Processes that want that processor all the time, until the end or until what this gives is called."""
    if os.geteuid() != 0:
        pytest.skip("only root may have processes that are preferred to a sandbox")
    burners = [subprocess.Popen([sys.executable, "-S", "-c", _BUSY], start_new_session=True) for _ in range(_NUM)]

    def end() -> None:
        for burner in burners:
            burner.kill()
            burner.wait()

    try:
        yield end
    finally:
        end()
