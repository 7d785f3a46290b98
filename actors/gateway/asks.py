"""What an agent asks and is answered, in no API's words: every dialect reads into `Ask` and writes from `Answer`."""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any, Literal

import msgspec
from msgspec import Struct

from actors.history.matching import too_deep

Ended = Literal["stop", "length", "tool_calls", "stop_string"]
Kind = Literal["invalid", "context", "unauthorized", "ended", "missing", "too_large", "busy", "timeout", "failed"]
STATUS: dict[Kind, int] = {
    "invalid": 400,
    "context": 400,
    "unauthorized": 401,
    "ended": 403,
    "missing": 404,
    "too_large": 413,
    "busy": 429,
    "timeout": 504,
    "failed": 500,
}


class Refusal(Exception):
    """A request that is not answered; each dialect says it in its own words.

    Args:
        param: the field that is at fault.
        retry_after_s: when to ask again, where that helps.
    """

    def __init__(
        self, kind: Kind, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]


class Call(Struct, frozen=True, kw_only=True):
    """One tool call. `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class Ask(Struct, frozen=True, kw_only=True):
    """One request for a turn.

    `messages` and `tools` are as chat templates take them (`actors/agent/chat.py`); arguments of earlier tool calls are
    objects where they were JSON objects. `tool_choice` is auto, none, required, or `=NAME` of one tool.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    tool_choice: str = "auto"
    parallel: bool = True
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    stream: bool = False
    stream_usage: bool = True
    logprobs: bool = False
    previous: str | None = None  # id of an earlier answer that the messages go on from
    is_stored: bool = False  # whether its answer may be gone on from by its id
    details: dict[str, Any] = {}  # what the dialect needs again to write the answer
    overridden: tuple[str, ...] = ()  # fields whose values the run's own settings replace
    unknown: tuple[str, ...] = ()  # fields that no API of this dialect has

    def fingerprint(self) -> bytes:
        """The same for a request sent again, streamed or not."""
        what = (self.messages, self.tools, self.tool_choice, self.stop, self.max_tokens, self.previous)
        return hashlib.blake2b(msgspec.json.encode(what), digest_size=16).digest()


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one turn, counted, not estimated."""

    prompt: int
    cached: int  # of the prompt, those whose KV was reused
    sampled: int
    reasoning: int  # of the sampled


class TokenLogprob(Struct, frozen=True, kw_only=True):
    """One sampled token."""

    text: str
    logprob: float


class Answer(Struct, frozen=True, kw_only=True):
    """One turn as the agent sees it."""

    content: str
    reasoning: str
    calls: list[Call]
    ended: Ended
    usage: Usage
    stop_string: str | None = None
    logprobs: list[TokenLogprob] = []
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    created: float = msgspec.field(default_factory=time.time)

    def message(self) -> dict[str, Any]:
        """The turn as the message that the agent sends back later."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [tool_call(call.id, call.name, call.arguments) for call in self.calls]
        return message


def tool_call(call_id: str, name: str, arguments: object) -> dict[str, Any]:
    """One tool call of a message; arguments that are the text of a JSON object become that object."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": _object(arguments)}}


def object_of(arguments: str) -> dict[str, Any] | None:
    """Arguments as an object; None where they are none, or one that is too deep."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) and not too_deep(value) else None


def function(name: str, description: object, parameters: object) -> dict[str, Any]:
    """A tool's schema as chat templates take it."""
    schema: dict[str, Any] = {"name": name, "description": description if isinstance(description, str) else ""}
    schema["parameters"] = parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}}
    return {"type": "function", "function": schema}


def _object(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    value = object_of(arguments)
    return arguments if value is None else value
