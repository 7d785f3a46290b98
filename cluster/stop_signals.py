"""What SIGINT and SIGTERM mean to a run: the first asks it to stop in order, the second to stop at once."""

from __future__ import annotations

import asyncio
import signal


class StopSignals:
    """Events that the signals set; the signals interrupt nothing. Made inside the running event loop."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.insisted = asyncio.Event()
        self.received: signal.Signals | None = None
        self.install()

    def install(self) -> None:
        """Take the signals; again after Ray has started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        (self.insisted if self.requested.is_set() else self.requested).set()
        self.received = number
