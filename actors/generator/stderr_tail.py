"""Keeps the last lines that this process and its children write to standard error, so that an error can quote them."""

from __future__ import annotations

import os
import re
import threading
from collections import deque

_KEPT_LINES = 200
_ERROR_LINE = re.compile(r"(?:^|[\s\]])((?:\w+\.)*\w*(?:Error|Exception): .+)$")


class StderrTail:
    """While it is open, standard error passes through here on its way to where it went before.

    Children that are started meanwhile keep writing through it; a thread passes their lines on until the last one ends.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._before = os.dup(2)
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        threading.Thread(target=self._pass_on, args=(read,), daemon=True, name="standard error").start()

    def close(self) -> None:
        """Give this process its standard error back."""
        os.dup2(self._before, 2)

    def last_error(self) -> str:
        """The last line that names an exception, without what logging put before it; empty if there is none."""
        for line in reversed(list(self._lines)):
            if found := _ERROR_LINE.search(line):
                return found.group(1).strip()
        return ""

    def _pass_on(self, read: int) -> None:
        """Waits for lines until every process that writes here has ended."""
        with os.fdopen(read, "rb", buffering=0) as source:
            rest = b""
            while data := source.read(1 << 16):
                os.write(self._before, data)
                *lines, rest = (rest + data).split(b"\n")
                self._lines.extend(line.decode(errors="replace") for line in lines)
        os.close(self._before)
