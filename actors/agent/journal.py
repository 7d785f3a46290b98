"""What the loop writes down as it happens, so that another process can go on at the same turn.

A turn is written before its command is carried out, its answer afterwards: a turn without an answer is a command of
which nobody knows what it did. The process that goes on says so to the model, and does not run it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from actors.agent.files import OpenFile
from actors.policy import Sampled
from protocol.messages import EndReason, FinishReason


class Entry(Struct, frozen=True, kw_only=True, tag=True):
    """Something that happened in an episode."""


class Opened(Entry, frozen=True, kw_only=True):
    """The prompt."""

    token_ids: bytes  # int32


class Turned(Entry, frozen=True, kw_only=True):
    """A model turn, as sampled. Its command is carried out next."""

    token_ids: bytes  # int32 [n]
    logprobs: bytes  # float32 [n]
    versions: bytes  # int32 [n]
    finish_reason: FinishReason
    is_last: bool  # the context ends with it
    cached_version: int | None
    generate_s: float
    elapsed_s: float  # of the episode's wall time
    experts: bytes = b""  # uint8 or uint16 [m, layers, experts of a token]
    experts_shape: list[int] = []
    at: float = 0.0  # seconds since the epoch

    @staticmethod
    def of(
        sampled: Sampled,
        *,
        is_last: bool,
        cached_version: int | None,
        generate_s: float,
        elapsed_s: float,
        at: float = 0.0,
    ) -> Turned:
        """The entry of a turn."""
        return Turned(
            token_ids=np.asarray(sampled.token_ids, np.int32).tobytes(),
            logprobs=np.asarray(sampled.logprobs, np.float32).tobytes(),
            versions=np.asarray(sampled.versions, np.int32).tobytes(),
            finish_reason=sampled.finish_reason,
            is_last=is_last,
            cached_version=cached_version,
            generate_s=generate_s,
            elapsed_s=elapsed_s,
            experts=b"" if sampled.experts is None else sampled.experts.tobytes(),
            experts_shape=[] if sampled.experts is None else list(sampled.experts.shape),
            at=at,
        )

    @property
    def sampled(self) -> Sampled:
        """The turn. How much of its prompt was cached is not kept: `cached_version` says what counts."""
        return Sampled(
            token_ids=np.frombuffer(self.token_ids, np.int32),
            logprobs=np.frombuffer(self.logprobs, np.float32),
            versions=np.frombuffer(self.versions, np.int32),
            finish_reason=self.finish_reason,
            experts=self._experts(),
        )

    def _experts(self) -> np.ndarray | None:
        if not self.experts:
            return None
        kind = np.uint8 if len(self.experts) == math.prod(self.experts_shape) else np.uint16
        return np.frombuffer(self.experts, kind).reshape(self.experts_shape)


class Answered(Entry, frozen=True, kw_only=True):
    """What the turn's command said, and the tools' state after it."""

    text: str
    format_error: bool
    submitted: bool
    execute_s: float
    elapsed_s: float
    open_file: OpenFile | None


class Over(Entry, frozen=True, kw_only=True):
    """The episode has ended."""

    reason: EndReason


class Journal(Protocol):
    """Of one episode. `past`: what an earlier process wrote."""

    @property
    def past(self) -> Sequence[Entry]: ...

    def add(self, entry: Entry) -> None:
        """Write down an entry: from now on it outlives this process."""
        ...


class _NoJournal:
    """For episodes that nobody will go on with."""

    past: Sequence[Entry] = ()

    def add(self, entry: Entry) -> None:
        """See `Journal.add`."""


NO_JOURNAL = _NoJournal()
