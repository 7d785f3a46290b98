"""Tells the replay buffer which version every generator serves, from a thread of its own."""

from __future__ import annotations

import logging
import threading

from protocol.errors import DeadlineError, WireError
from protocol.messages import VersionReady
from protocol.sockets import BlockingClient, Keys

_log = logging.getLogger(__name__)
_REQUEST_S = 5.0
_PAUSE_S = 0.5


class VersionAnnouncer:
    """`announce` returns at once; the newest version is sent until the buffer has acknowledged it.

    The weight publisher calls it from its event loop, which must not wait for a buffer that is being restarted.
    """

    def __init__(self, replay_endpoint: str, keys: Keys | None = None) -> None:
        self._client = BlockingClient(replay_endpoint, keys)
        self._newest = -1
        self._acknowledged = -1
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="version announcer", daemon=True)
        self._thread.start()

    def announce(self, version: int) -> None:
        """Every generator serves `version`."""
        with self._changed:
            self._newest = max(self._newest, version)
            self._changed.notify()

    def close(self) -> None:
        """Stop; what was not acknowledged yet is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_REQUEST_S + _PAUSE_S)
        self._client.close()

    def _run(self) -> None:
        """Waits for a version that was not acknowledged yet; `announce` and `close` unblock it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._newest > self._acknowledged)
                if self._closing:
                    return
                version = self._newest
            try:
                self._client.request(VersionReady(version=version), _REQUEST_S)
            except (DeadlineError, WireError) as error:
                _log.warning("version %d is not announced yet: %s", version, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _PAUSE_S)
                continue
            self._acknowledged = version
