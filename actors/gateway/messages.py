"""Anthropic Messages: `POST /v1/messages`, and `count_tokens`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from actors.gateway.asks import Answer, Ask, Kind, Refusal, function, object_of, tool_call
from actors.gateway.bodies import MOST_TOOLS, Body
from actors.gateway.dialect import event, overridden, pieces

_UNSERVED = {
    "mcp_servers": "nothing here speaks to other servers",
    "container": "nothing here runs code for a request",
    "output_format": "answers are sampled freely, no schema is forced",
}
_BORNE = (
    "cache_control",
    "context_management",
    "diagnostics",
    "inference_geo",
    "metadata",
    "service_tier",
    "speed",
    "thinking",
    "betas",
)
_TYPES: dict[Kind, str] = {
    "invalid": "invalid_request_error",
    "context": "invalid_request_error",
    "unauthorized": "authentication_error",
    "ended": "permission_error",
    "missing": "not_found_error",
    "too_large": "request_too_large",
    "busy": "rate_limit_error",
    "timeout": "timeout_error",
    "failed": "api_error",
}
_STOPPED = {"stop": "end_turn", "stop_string": "stop_sequence", "length": "max_tokens", "tool_calls": "tool_use"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Messages:
    """See `Dialect`."""

    name = "messages"
    keep_alive = event({"type": "ping"}, "ping")

    def read(self, body: Body) -> Ask:
        """See `Dialect.read`."""
        most = body.count("max_tokens")
        if most is None:
            raise body.refuse("max_tokens", "field required")
        return self._read(body, most)

    def read_count(self, body: Body) -> Ask:
        """A request whose tokens are to be counted. Raises `Refusal`."""
        return self._read(body, body.count("max_tokens"))

    def _read(self, body: Body, most: int | None) -> Ask:
        body.unserved(_UNSERVED)
        wanted = body.object("output_config")
        if wanted is not None:
            wanted.unserved({"format": "no schema can be forced: answers are sampled freely"})
        system = _text(body, "system")
        messages = [{"role": "system", "content": system}] if system else []
        for message in body.objects("messages"):
            messages += _read_message(message)
        if not messages:
            raise body.refuse("messages", "at least one message is required")
        if messages[-1]["role"] == "assistant":
            raise body.refuse("messages", "the last message is the assistant's; an answer cannot be begun for it")
        choice, parallel = _choice(body)
        ask = Ask(
            model=body.text("model", "default"),
            messages=messages,
            tools=[_tool(tool) for tool in body.objects("tools", MOST_TOOLS)],
            tool_choice=choice,
            parallel=parallel,
            stop=body.stops("stop_sequences"),
            max_tokens=most,
            stream=body.flag("stream"),
            overridden=overridden(body),
        )
        body.note(_BORNE)
        return msgspec.structs.replace(ask, unknown=body.unknown)

    def write(self, ask: Ask, answer: Answer) -> dict[str, Any]:
        """See `Dialect.write`."""
        return _head(ask, answer) | {
            "content": [_whole(block) for block in _blocks(answer)],
            "stop_reason": _STOPPED[answer.ended],
            "stop_sequence": answer.stop_string,
            "usage": _usage(answer),
        }

    def stream(self, ask: Ask, answer: Answer) -> Iterator[bytes]:
        """See `Dialect.stream`."""
        start = _head(ask, answer) | {"content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message=start | {"usage": _usage(answer) | {"output_tokens": 0}})
        for index, (empty, deltas) in enumerate(_blocks(answer)):
            yield _event("content_block_start", index=index, content_block=empty)
            for delta in deltas:
                yield _event("content_block_delta", index=index, delta=delta)
            yield _event("content_block_stop", index=index)
        ended = {"stop_reason": _STOPPED[answer.ended], "stop_sequence": answer.stop_string}
        yield _event("message_delta", delta=ended, usage=_usage(answer))
        yield _event("message_stop")

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """See `Dialect.error`."""
        return {"type": "error", "error": {"type": _TYPES[refusal.kind], "message": str(refusal)}}

    def stream_error(self, refusal: Refusal) -> bytes:
        """See `Dialect.stream_error`."""
        return event(self.error(refusal), "error")


UNREADABLE = "unreadable_arguments"
"""An input must be an object: arguments that are none are shown, and come back, as the one text of this name."""

Block = tuple[dict[str, Any], list[dict[str, Any]]]
"""A content block: how its stream starts, and what is added to it."""


def _blocks(answer: Answer) -> list[Block]:
    blocks: list[Block] = []
    if answer.reasoning:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(answer.reasoning)]
        signed = {"type": "signature_delta", "signature": answer.id}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]))
    if answer.content or not answer.calls:
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(answer.content)]
        blocks.append(({"type": "text", "text": ""}, deltas))
    for call in answer.calls:
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(_input(call.arguments))]
        blocks.append(({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, deltas))
    return blocks


def _whole(block: Block) -> dict[str, Any]:
    empty, deltas = block
    match empty["type"]:
        case "thinking":
            thinking = "".join(delta.get("thinking", "") for delta in deltas)
            return empty | {"thinking": thinking, "signature": deltas[-1]["signature"]}
        case "text":
            return empty | {"text": "".join(delta["text"] for delta in deltas)}
        case _:
            return empty | {"input": object_of("".join(delta["partial_json"] for delta in deltas))}


def _input(arguments: str) -> str:
    """The text of an object: the arguments, or one that holds them."""
    readable = object_of(arguments) is not None
    return (arguments or "{}") if readable else msgspec.json.encode({UNREADABLE: arguments}).decode()


def _arguments(given: object) -> object:
    """What `_input` was made of."""
    if isinstance(given, dict) and given.keys() == {UNREADABLE} and isinstance(given[UNREADABLE], str):
        return given[UNREADABLE]
    return given or {}


def _read_message(body: Body) -> list[dict[str, Any]]:
    match body.text("role"):
        case "user":
            return _user(body)
        case "assistant":
            return [_assistant(body)]
        case "system":
            return [{"role": "system", "content": _text(body, "content")}]
        case role:
            raise body.refuse("role", f"expected user or assistant, got {role[:100]!r}")


def _user(body: Body) -> list[dict[str, Any]]:
    """A message's tool results, each a message of its own, and its texts, in their order."""
    if isinstance(body.take("content"), str):
        return [{"role": "user", "content": body.text("content")}]
    messages: list[dict[str, Any]] = []
    for block in body.objects("content"):
        match block.text("type"):
            case "text" if messages and messages[-1]["role"] == "user":
                messages[-1]["content"] += f"\n{block.text('text')}"
            case "text":
                messages.append({"role": "user", "content": block.text("text")})
            case "tool_result":
                result = {"role": "tool", "content": _text(block, "content"), "tool_call_id": block.text("tool_use_id")}
                messages.append(result)
            case kind:
                raise block.refuse("type", f"only text and tool_result are served, not {kind[:100]}")
    return messages


def _assistant(body: Body) -> dict[str, Any]:
    if isinstance(body.take("content"), str):
        return {"role": "assistant", "content": body.text("content")}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in body.objects("content"):
        match block.text("type"):
            case "text":
                texts.append(block.text("text"))
            case "thinking":
                thoughts.append(block.text("thinking"))
            case "tool_use":
                calls.append(tool_call(block.text("id"), block.text("name"), _arguments(block.take("input"))))
            case kind:
                raise block.refuse("type", f"only text, thinking and tool_use are served, not {kind[:100]}")
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message | ({"tool_calls": calls} if calls else {})


def _text(body: Body, name: str) -> str:
    value = body.take(name)
    if value is None or isinstance(value, str):
        return value or ""
    texts = []
    for block in body.objects(name):
        if (kind := block.text("type")) != "text":
            raise block.refuse("type", f"only text is served, not {kind[:100]}")
        texts.append(block.text("text"))
    return "\n".join(texts)


def _tool(body: Body) -> dict[str, Any]:
    if (kind := body.text("type", "custom")) != "custom":
        raise body.refuse("type", f"only tools with a schema of their own are served, not {kind[:100]}")
    return function(body.text("name"), body.take("description"), body.take("input_schema"))


def _choice(body: Body) -> tuple[str, bool]:
    choice = body.object("tool_choice")
    if choice is None:
        return "auto", True
    parallel = not choice.flag("disable_parallel_tool_use")
    kind = choice.text("type")
    if kind == "tool":
        return f"={choice.text('name')}", parallel
    if kind not in _CHOICES:
        raise choice.refuse("type", "expected auto, any, tool or none")
    return _CHOICES[kind], parallel


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _head(ask: Ask, answer: Answer) -> dict[str, Any]:
    return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": ask.model}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.sampled,
    }
