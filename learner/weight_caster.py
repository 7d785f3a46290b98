"""Sends versions to the generators that ask for a broadcast: a pair (`protocol/broadcast.py`) and a thread for each, so
that a slow or dead one keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from learner.weight_buffers import WeightBuffers
from protocol.broadcast import Meeting, Pair, call_meeting
from protocol.errors import WeightsError
from protocol.messages import Manifest, WeightsCall
from protocol.threads import give_way
from protocol.weights import num_buckets

_log = logging.getLogger(__name__)


class WeightCaster:
    """Belongs to the publisher's thread.

    Args:
        host: where generators reach this process.
        timeout_s: deadline of a meeting and of every bucket.
    """

    def __init__(self, buffers: WeightBuffers, host: str, timeout_s: float) -> None:
        self._buffers = buffers
        self._host = host
        self._timeout_s = timeout_s
        self._pairs: dict[str, Pair] = {}  # by generator, while nothing is being sent to it
        self._lock = threading.Lock()
        self.sent_bytes = 0

    async def begin(self, call: WeightsCall, manifest: Manifest) -> bytes:
        """Begin to send `manifest`'s version to a generator. Name of the meeting, empty if both have met before.

        Raises `WeightsError` if it says that they have, and they have not.
        """
        with self._lock:
            pair = self._pairs.pop(call.generator, None)
        if call.has_met and pair is None:
            raise WeightsError(f"{call.generator} has not met this publisher", kind="pair")
        meeting = None
        if not call.has_met:
            if pair is not None:
                pair.close()
            pair, meeting = None, await asyncio.to_thread(call_meeting, self._host)
        threading.Thread(
            target=self._send, args=(call.generator, manifest, pair, meeting), name="weight broadcast", daemon=True
        ).start()
        return meeting.name if meeting else b""

    def close(self) -> None:
        """Part from all."""
        with self._lock:
            pairs, self._pairs = list(self._pairs.values()), {}
        for pair in pairs:
            pair.close()

    def _send(self, generator: str, manifest: Manifest, pair: Pair | None, meeting: Meeting | None) -> None:
        give_way()
        try:
            if pair is None:
                assert meeting is not None
                pair = meeting.meet(self._timeout_s)
            for bucket in range(num_buckets(manifest)):
                data = self._buffers.view(manifest, bucket)
                pair.send(data)
                self.sent_bytes += len(data)
        except WeightsError as error:  # the generator notices by its own deadline, and asks again
            _log.warning("version %d to %s: %s", manifest.version, generator, error)
            if pair is not None:
                pair.close()
            return
        with self._lock:
            self._pairs[generator] = pair
