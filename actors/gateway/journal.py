"""What a seat writes down as it happens, so that another process can take its place: the agent, which lives in its
sandbox, notices nothing but the time.

A turn is written before anything of its answer is sent, and what else is answered (a refusal, a stream's keep-alives),
too. A request is named by its connection's number, which it keeps whoever listens (`Sandbox.listen`):
told again to the next process, it gets the answer that is written, to the byte, and is not sampled again.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from actors.agent.journal import Entry, Turned
from actors.gateway.asks import Answer, Kind, Refusal
from actors.history.conversation import Place, Prompt
from actors.history.laying import Drift
from protocol.errors import DeadlineError, GeneratorError, LonghaulError
from protocol.messages import EndReason

_FAULTS = {each.boundary: each for each in (DeadlineError, GeneratorError)}


class Seated(Entry, frozen=True, kw_only=True):
    """The key that the agent has."""

    key: str


class Refused(Entry, frozen=True, kw_only=True):
    """A request that is not answered."""

    connection: int
    kind: Kind
    message: str
    param: str | None
    retry_after_s: float | None
    ended: EndReason | None  # the episode, by then

    @staticmethod
    def of(connection: int, refusal: Refusal, ended: EndReason | None) -> Refused:
        """The entry of a refusal."""
        return Refused(
            connection=connection,
            kind=refusal.kind,
            message=str(refusal),
            param=refusal.param,
            retry_after_s=refusal.retry_after_s,
            ended=ended,
        )

    @property
    def refusal(self) -> Refusal:
        """As it was raised."""
        return Refusal(self.kind, self.message, param=self.param, retry_after_s=self.retry_after_s)


class Played(Entry, frozen=True, kw_only=True):
    """A turn, sampled and recorded, with the answer that it became."""

    connection: int | None  # of the request that began it
    fingerprint: bytes  # see `Ask`
    place: Place
    token_ids: bytes  # int32: the prompt behind `place.base`
    drift: dict[Drift, int]
    turned: Turned
    answer: Answer
    refused: Refused | None = None  # in the answer's place
    with_tools: bool
    missed_call: bool
    began_at: float  # monotonic, as of all processes of a host
    finished_at: float
    ended: EndReason | None = None
    messages: list[dict[str, Any]] | None = None  # what may be gone on from by the answer's id
    previous: str | None = None

    @property
    def prompt(self) -> Prompt:
        """What was recorded, and no more of it."""
        place = msgspec.structs.replace(self.place, num_base=0)
        ids = np.frombuffer(self.token_ids, np.int32)
        return Prompt(token_ids=ids, place=place, num_reused=0, drift=self.drift)


class Given(Entry, frozen=True, kw_only=True):
    """The answer of a turn goes to this connection, too (None: it has been delivered, and is not kept for retries)."""

    answer: str  # its id
    connection: int | None


class KeptAlive(Entry, frozen=True, kw_only=True):
    """So many keep-alives have been sent over a stream that waits; the last of them is just about to be."""

    connection: int
    times: int


class Faulted(Entry, frozen=True, kw_only=True):
    """A failure of ours."""

    boundary: str
    kind: str
    message: str
    at: float  # monotonic

    @staticmethod
    def of(error: LonghaulError, at: float) -> Faulted:
        """The entry of an error."""
        return Faulted(boundary=error.boundary, kind=error.kind, message=str(error), at=at)

    @property
    def error(self) -> LonghaulError:
        """As it was."""
        return _FAULTS.get(self.boundary, LonghaulError)(self.message, kind=self.kind)
