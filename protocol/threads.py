"""Threads whose work can wait a little."""

from __future__ import annotations

import os
import threading

_STEPS = 10
_LAST = 19


def give_way() -> None:
    """From now on this thread runs on what others leave of the cores; alone, it is as fast as ever.

    Copying and hashing of weights must not take a core from decoding or training. On Linux niceness is a thread's own.
    """
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + _STEPS, _LAST))
