"""Batches for all ranks: rank 0 asks the replay server and broadcasts what came, in the wire format."""

from __future__ import annotations

import threading
import time

from learner.ranks.group import RankGroup
from protocol.errors import DeadlineError
from protocol.messages import Batch, BatchRequest, BatchWait
from protocol.sockets import BlockingClient
from protocol.wire import Codec, Frame

_STOP: list[Frame] = [b"stop"]
_WAIT: list[Frame] = [b"wait"]
_LONGEST_PAUSE_S = 0.5


class BatchFeed:
    """Hands every rank the same batches.

    Args:
        group: the learner's ranks.
        replay: connection to the replay server; None on ranks other than 0.
        stop: ends the feed on all ranks, when set on rank 0.
        silence_s: the server may be silent (restarting) for so long.
        request_s: longest wait for one answer; the other ranks hear from rank 0 at least so often.
    """

    def __init__(
        self,
        group: RankGroup,
        replay: BlockingClient | None,
        stop: threading.Event,
        *,
        silence_s: float,
        request_s: float = 10.0,
    ) -> None:
        self._group = group
        self._replay = replay
        self._stop = stop
        self._silence_s = silence_s
        self._request_s = request_s
        self._codec = Codec()
        self.waiting_for = ""

    def next(self, version: int) -> Batch | None:
        """The batch that is trained on by the learner of `version`; None to stop.

        Waits until the replay server has a batch or `stop` is set. Ranks other than 0 hear from rank 0 at least every
        few seconds, so their own deadline covers a rank 0 that hangs.

        Raises:
            DeadlineError: the replay server was silent for `silence_s`.
        """
        heard_at = time.monotonic()
        while True:
            told: list[Frame] | None = None
            if self._replay is not None:
                try:
                    told = self._ask(self._replay, version)
                    heard_at = time.monotonic()
                except DeadlineError as error:
                    silent_s = time.monotonic() - heard_at
                    self.waiting_for = f"an answer of the replay server ({silent_s:.0f} s)"
                    if silent_s > self._silence_s:
                        raise DeadlineError(f"the replay server was silent for {silent_s:.0f} s: {error}") from error
                    told = _WAIT
            with self._group.doing("waiting for a batch"):
                answer = self._group.broadcast_frames(told)
            if answer == _STOP:
                return None
            if answer != _WAIT:
                self.waiting_for = ""
                batch = self._codec.decode(answer)
                assert isinstance(batch, Batch)
                return batch

    def _ask(self, replay: BlockingClient, version: int) -> list[Frame]:
        if self._stop.is_set():
            return _STOP
        reply = replay.request(BatchRequest(learner="learner", version=version), self._request_s)
        if isinstance(reply, Batch):
            return self._codec.encode(reply)
        assert isinstance(reply, BatchWait), f"the replay server answered BatchRequest with {type(reply).__name__}"
        self.waiting_for = reply.waiting_for
        self._stop.wait(min(reply.retry_after_s, _LONGEST_PAUSE_S))
        return _WAIT
