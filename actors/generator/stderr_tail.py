"""Keeps the last lines that this process and its children write to standard error, so that an error can quote them."""

from __future__ import annotations

import os
import re
import select
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
        self._rest = b""
        self._before = os.dup(2)
        self._read, write = os.pipe()
        self._taking = threading.Lock()
        self._is_over = False
        os.dup2(write, 2)
        os.close(write)
        threading.Thread(target=self._pass_on, daemon=True, name="standard error").start()

    def close(self) -> None:
        """Give this process its standard error back."""
        os.dup2(self._before, 2)

    def last_error(self) -> str:
        """The last line that names an exception, without what logging put before it; empty if there is none.

        Everything that was written before this call counts, whether the thread has come to it or not.
        """
        self._take()
        for line in reversed(list(self._lines)):
            if found := _ERROR_LINE.search(line):
                return found.group(1).strip()
        return ""

    def _pass_on(self) -> None:
        """Waits for lines until every process that writes here has ended."""
        while not self._is_over:
            self._wait(None)
            self._take()
        with self._taking:
            os.close(self._read)
            os.close(self._before)

    def _take(self) -> None:
        """Pass on what is there."""
        with self._taking:
            while not self._is_over and self._wait(0):
                data = os.read(self._read, 1 << 16)
                self._is_over = not data
                if data:
                    os.write(self._before, data)
                *lines, self._rest = (self._rest + data).split(b"\n")
                self._lines.extend(line.decode(errors="replace") for line in lines)

    def _wait(self, milliseconds: float | None) -> bool:
        """Whether there are bytes, or nobody is left to write any; None: until one of both holds."""
        waiting = select.poll()
        waiting.register(self._read, select.POLLIN)
        return bool(waiting.poll(milliseconds))
