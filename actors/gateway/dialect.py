"""What one API's file gives the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from actors.gateway.asks import Answer, Ask, Refusal
from actors.gateway.bodies import Body

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
)
"""What agents may ask for and the run's settings decide."""
PIECE = 512  # characters of one streamed piece


class Dialect(Protocol):
    """One API. Stateless."""

    name: str
    keep_alive: bytes
    """What a stream carries while nothing is there yet; clients skip it."""

    def read(self, body: Body) -> Ask:
        """A request. Raises `Refusal`."""
        ...

    def write(self, ask: Ask, answer: Answer) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def stream(self, ask: Ask, answer: Answer) -> Iterator[bytes]:
        """The answer as server-sent events."""
        ...

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """The body of an error."""
        ...

    def stream_error(self, refusal: Refusal) -> bytes:
        """An error in a stream that has begun."""
        ...


def event(data: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def pieces(text: str) -> Iterator[str]:
    """A text as it is streamed."""
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


def overridden(body: Body) -> tuple[str, ...]:
    """The sampling fields that a request names."""
    return body.given(SAMPLING_FIELDS)
