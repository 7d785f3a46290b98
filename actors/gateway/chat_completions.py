"""OpenAI chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from actors.gateway.asks import Answer, Ask, Kind, Refusal, function, tool_call
from actors.gateway.bodies import MOST_TOOLS, Body
from actors.gateway.dialect import event, overridden, pieces

_UNSERVED = {
    "functions": "the older form of tools is not served; use tools",
    "function_call": "the older form of tools is not served; use tools and tool_choice",
    "audio": "only text is served",
    "web_search_options": "nothing here searches the web",
    "best_of": "one answer is sampled",
    "guided_json": "answers are sampled freely, no schema is forced",
    "guided_regex": "answers are sampled freely, no pattern is forced",
    "guided_choice": "answers are sampled freely, no choice is forced",
    "guided_grammar": "answers are sampled freely, no grammar is forced",
    "structured_outputs": "answers are sampled freely, no schema is forced",
    "top_logprobs": "log-probs are those of the sampled tokens alone",
    "prompt_logprobs": "log-probs are those of the sampled tokens alone",
    "echo": "a prompt is not repeated",
}
_BORNE = (
    "metadata",
    "modalities",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
_TYPES: dict[Kind, tuple[str, str | None]] = {
    "invalid": ("invalid_request_error", None),
    "context": ("invalid_request_error", "context_length_exceeded"),
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "ended": ("invalid_request_error", "episode_ended"),
    "missing": ("invalid_request_error", "not_found"),
    "too_large": ("invalid_request_error", "request_too_large"),
    "busy": ("rate_limit_error", "rate_limit_exceeded"),
    "timeout": ("server_error", "timeout"),
    "failed": ("server_error", "server_error"),
}
_FINISH = {"stop": "stop", "stop_string": "stop", "length": "length", "tool_calls": "tool_calls"}
_TEXT_PARTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}


class ChatCompletions:
    """See `Dialect`."""

    name = "chat_completions"
    keep_alive = b": still sampling\n\n"

    def read(self, body: Body) -> Ask:
        """See `Dialect.read`."""
        if body.take("n") not in (None, 1):
            raise body.refuse("n", "one answer is sampled; ask again for another")
        _check_format(body)
        body.unserved(_UNSERVED)
        if (modalities := body.take("modalities")) not in (None, ["text"]):
            raise body.refuse("modalities", f"only text is served, not {str(modalities)[:100]}")
        messages = [_message(message) for message in body.objects("messages")]
        if not messages:
            raise body.refuse("messages", "expected at least one message")
        options = body.object("stream_options")
        most = [count for name in ("max_completion_tokens", "max_tokens") if (count := body.count(name)) is not None]
        ask = Ask(
            model=body.text("model", "default"),
            messages=messages,
            tools=[_tool(tool) for tool in body.objects("tools", MOST_TOOLS)],
            tool_choice=_choice(body),
            parallel=body.flag("parallel_tool_calls", True),
            stop=body.stops("stop"),
            max_tokens=min(most, default=None),
            stream=body.flag("stream"),
            stream_usage=options is not None and options.flag("include_usage"),
            logprobs=body.flag("logprobs"),
            overridden=overridden(body),
        )
        body.note(_BORNE)
        return msgspec.structs.replace(ask, unknown=body.unknown)

    def write(self, ask: Ask, answer: Answer) -> dict[str, Any]:
        """See `Dialect.write`."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "refusal": None}
        if not answer.calls:
            message["content"] = answer.content
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in answer.calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(ask, answer),
            "finish_reason": _FINISH[answer.ended],
        }
        return {**_head(ask, answer, "chat.completion"), "choices": [choice], "usage": _usage(answer)}

    def stream(self, ask: Ask, answer: Answer) -> Iterator[bytes]:
        """See `Dialect.stream`."""
        head = _head(ask, answer, "chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish: str | None = None, logprobs: object = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return event({**head, "choices": [choice]} | ({"usage": None} if ask.stream_usage else {}))

        yield chunk({"role": "assistant", "content": ""}, logprobs=_logprobs(ask, answer))
        for piece in pieces(answer.reasoning):
            yield chunk({"reasoning_content": piece})
        for piece in pieces(answer.content):
            yield chunk({"content": piece})
        for index, call in enumerate(answer.calls):
            yield chunk({"tool_calls": [{"index": index, **_call(call.id, call.name, "")}]})
            for piece in pieces(call.arguments):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield chunk({}, _FINISH[answer.ended])
        if ask.stream_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield b"data: [DONE]\n\n"

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """See `Dialect.error`."""
        kind, code = _TYPES[refusal.kind]
        return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": code}}

    def stream_error(self, refusal: Refusal) -> bytes:
        """See `Dialect.stream_error`."""
        return event(self.error(refusal)) + b"data: [DONE]\n\n"


def text_of(body: Body, name: str) -> str:
    """A message's content: a string, or text parts (joined by newlines). Anything but text is refused."""
    value = body.take(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    texts = []
    for part in body.objects(name):
        kind = part.text("type", "text")
        if kind not in _TEXT_PARTS:
            raise part.refuse("type", f"only text is served, not {kind[:100]}")
        texts.append(part.text(_TEXT_PARTS[kind]))
    return "\n".join(texts)


def _message(body: Body) -> dict[str, Any]:
    role = body.text("role")
    match role:
        case "system" | "developer":
            return {"role": "system", "content": text_of(body, "content")}
        case "user":
            return {"role": "user", "content": text_of(body, "content")}
        case "tool":
            return {"role": "tool", "content": text_of(body, "content"), "tool_call_id": body.text("tool_call_id", "")}
        case "assistant":
            return _assistant(body)
        case _:
            raise body.refuse("role", f"expected system, developer, user, assistant or tool, got {role[:100]!r}")


def _assistant(body: Body) -> dict[str, Any]:
    body.unserved({"function_call": "the older form of tools is not served", "audio": "only text is served"})
    message: dict[str, Any] = {"role": "assistant", "content": text_of(body, "content")}
    reasoning = body.take("reasoning_content") or body.take("reasoning")
    if isinstance(reasoning, str) and reasoning:
        message["reasoning_content"] = reasoning
    calls = [_called(call) for call in body.objects("tool_calls", MOST_TOOLS)]
    return message | ({"tool_calls": calls} if calls else {})


def _called(body: Body) -> dict[str, Any]:
    called = body.object("function")
    if called is None:
        raise body.refuse("function", "expected the function that was called")
    return tool_call(body.text("id", ""), called.text("name"), called.text("arguments", ""))


def _tool(body: Body) -> dict[str, Any]:
    if (kind := body.text("type", "function")) != "function":
        raise body.refuse("type", f"only functions are served, not {kind[:100]}")
    schema = body.object("function")
    if schema is None:
        raise body.refuse("function", "expected the function's schema")
    return function(schema.text("name"), schema.take("description"), schema.take("parameters"))


def _choice(body: Body) -> str:
    value = body.take("tool_choice")
    if value is None or value in ("auto", "none", "required"):
        return value or "auto"
    named = body.object("tool_choice") if isinstance(value, dict) else None
    called = named.object("function") if named is not None else None
    if called is None:
        raise body.refuse("tool_choice", "expected auto, none, required or one function")
    return f"={called.text('name')}"


def _check_format(body: Body) -> None:
    wanted = body.object("response_format")
    if wanted is not None and (kind := wanted.text("type", "text")) != "text":
        raise wanted.refuse("type", f"{kind[:100]} cannot be forced: answers are sampled freely")


def _head(ask: Ask, answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": int(answer.created), "model": ask.model}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.sampled,
        "total_tokens": usage.prompt + usage.sampled,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _logprobs(ask: Ask, answer: Answer) -> dict[str, Any] | None:
    return {"content": token_logprobs(answer)} if ask.logprobs else None


def token_logprobs(answer: Answer) -> list[dict[str, Any]]:
    """Of the sampled tokens, in order."""
    return [
        {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob, "top_logprobs": []}
        for token in answer.logprobs
    ]
