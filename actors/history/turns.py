"""What is kept of a turn, and how a request's messages name it."""

from __future__ import annotations

import hashlib

import numpy as np
from msgspec import Struct

from actors.history.matching import Message


class Turn(Struct, frozen=True, kw_only=True):
    """One that was recorded."""

    message: Message
    start: int  # sampled tokens of the tree
    end: int
    given: list[Message]  # messages that came since the turn that it goes on from
    sampled_ids: np.ndarray
    last_sampled: int | None  # None: it was cut
    prompt_length: int  # characters of its prompt's text
    prompt_digest: bytes

    def was_asked_by(self, text: str) -> bool:
        """Whether a conversation's text begins with the whole prompt that the turn was sampled after."""
        return len(text) >= self.prompt_length and digest_of(text[: self.prompt_length]) == self.prompt_digest


class Said(Struct, frozen=True):
    """A message of a request, and the turn that it repeats."""

    message: Message
    turn: Turn | None
    in_place: bool  # the turn was sampled after these very messages


def digest_of(text: str) -> bytes:
    """A short name for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
