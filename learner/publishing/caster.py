"""Sends versions to the generators that ask for a broadcast (`protocol/weights/broadcast.py`): a pair and a thread for
each, so that a slow or dead one keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from learner.publishing.buffers import WeightBuffers
from protocol.errors import WeightsError
from protocol.messages import Manifest, WeightsCall
from protocol.threads import give_way
from protocol.weights.broadcast import Meeting, Pair, call_meeting
from protocol.weights.manifest import num_buckets

_log = logging.getLogger(__name__)
_LAST_MOMENT_S = 2.0


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
        self._sending: dict[str, threading.Thread] = {}  # the newest of each generator
        self._lock = threading.Lock()
        self.sent_bytes = 0

    async def begin(self, call: WeightsCall, manifest: Manifest) -> bytes:
        """Begin to send `manifest`'s version to a generator. Name of the meeting, empty if both have met before.

        Raises `WeightsError` if it says that they have, and they have not.
        """
        meeting = None if call.has_met else await asyncio.to_thread(call_meeting, self._host)
        pair = await asyncio.to_thread(self._take_pair, call.generator)
        if call.has_met and pair is None:
            raise WeightsError(f"{call.generator} has not met this publisher", kind="pair")
        if pair is not None and meeting is not None:
            await asyncio.to_thread(pair.close)
        thread = threading.Thread(
            target=self._send, args=(call.generator, manifest, meeting or pair), name="weight broadcast", daemon=True
        )
        self._sending[call.generator] = thread
        thread.start()
        return meeting.name if meeting else b""

    def close(self) -> None:
        """Part from all."""
        with self._lock:
            pairs, self._pairs = list(self._pairs.values()), {}
        for pair in pairs:
            pair.close()

    def _take_pair(self, generator: str) -> Pair | None:
        """The pair of a generator that has all that was sent to it; its sender may have a moment still to go."""
        if (sending := self._sending.get(generator)) is not None:
            sending.join(_LAST_MOMENT_S)
        with self._lock:
            return self._pairs.pop(generator, None)

    def _send(self, generator: str, manifest: Manifest, to: Meeting | Pair) -> None:
        give_way()
        pair = None
        try:
            pair = to.meet(self._timeout_s) if isinstance(to, Meeting) else to
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
            is_newest = self._sending.get(generator) is threading.current_thread()
            if is_newest:
                self._pairs[generator] = pair
        if not is_newest:
            pair.close()
