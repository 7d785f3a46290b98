"""OpenAI Responses: `POST /v1/responses`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from actors.gateway.asks import Answer, Ask, Call, Refusal, object_of
from actors.gateway.bodies import Body
from actors.gateway.chat_completions import ChatCompletions, token_logprobs
from actors.gateway.dialect import event, overridden, pieces
from actors.gateway.response_items import INPUT, read_input, read_tools, seal

_UNSERVED = {
    "background": "a request is answered while it is open",
    "conversation": "conversations are not kept; send the input, or previous_response_id",
    "prompt": "stored prompts are not served",
    "top_logprobs": "log-probs are those of the sampled tokens alone",
    "context_management": "the agent's own history is not rewritten here",
}
_BORNE = (
    "client_metadata",
    "max_tool_calls",
    "metadata",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "stream_options",
    "truncation",
    "user",
)
_LOGPROBS = "message.output_text.logprobs"
_CHAT = ChatCompletions()  # the same company's, the same words for errors


class Responses:
    """See `Dialect`."""

    name = "responses"
    keep_alive = b": still sampling\n\n"

    def read(self, body: Body) -> Ask:
        """See `Dialect.read`."""
        body.unserved(_UNSERVED)
        _check_format(body)
        tools, details = read_tools(body)
        messages = read_input(body)
        if not messages:
            raise body.refuse("input", "expected something to answer")
        ask = Ask(
            model=body.text("model", "default"),
            messages=messages,
            tools=tools,
            tool_choice=_choice(body),
            parallel=body.flag("parallel_tool_calls", True),
            max_tokens=body.count("max_output_tokens"),
            stream=body.flag("stream"),
            logprobs=_LOGPROBS in body.items("include"),
            previous=body.text("previous_response_id", "") or None,
            is_stored=body.take("store") is not False,
            details=details | {"tools": body.take("tools") or [], "tool_choice": body.take("tool_choice") or "auto"},
            overridden=overridden(body),
        )
        body.note(_BORNE)
        return msgspec.structs.replace(ask, unknown=body.unknown)

    def write(self, ask: Ask, answer: Answer) -> dict[str, Any]:
        """See `Dialect.write`."""
        cut = answer.ended == "length"
        return _head(ask, answer, "incomplete" if cut else "completed") | {
            "output": _items(ask, answer),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": _usage(answer),
        }

    def stream(self, ask: Ask, answer: Answer) -> Iterator[bytes]:
        """See `Dialect.stream`."""
        numbers = itertools.count()

        def said(kind: str, **fields: Any) -> bytes:
            return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        opening = _head(ask, answer, "in_progress") | {"output": [], "usage": None}
        yield said("response.created", response=opening)
        yield said("response.in_progress", response=opening)
        for index, item in enumerate(_items(ask, answer)):
            begun, parts = _begun(item)
            yield said("response.output_item.added", output_index=index, item=begun)
            for kind, fields in parts:
                yield said(kind, item_id=item["id"], output_index=index, **fields)
            yield said("response.output_item.done", output_index=index, item=item)
        whole = self.write(ask, answer)
        yield said(f"response.{whole['status']}", response=whole)

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """See `Dialect.error`."""
        return _CHAT.error(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        """See `Dialect.stream_error`."""
        told = self.error(refusal)["error"]
        code = told["code"] or told["type"]
        failed: dict[str, Any] = {"id": "resp_failed", "object": "response", "status": "failed", "output": []}
        failed["error"] = {"code": code, "message": str(refusal)}
        return event({"type": "response.failed", "sequence_number": 0, "response": failed}, "response.failed")


def _check_format(body: Body) -> None:
    text = body.object("text")
    form = None if text is None else text.object("format")
    if form is not None and (kind := form.text("type", "text")) != "text":
        raise form.refuse("type", f"{kind[:100]} cannot be forced: answers are sampled freely")


def _choice(body: Body) -> str:
    value = body.take("tool_choice")
    if value is None or value in ("auto", "none", "required"):
        return value or "auto"
    named = body.object("tool_choice") if isinstance(value, dict) else None
    if named is None or named.text("type", "") not in ("function", "custom"):
        raise body.refuse("tool_choice", "expected auto, none, required or one function")
    return f"={named.text('name')}"


def _items(ask: Ask, answer: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    status = "incomplete" if answer.ended == "length" else "completed"
    if answer.reasoning:
        thought = [{"type": "reasoning_text", "text": answer.reasoning}]
        item = {"type": "reasoning", "id": f"rs_{answer.id}", "summary": [], "content": thought}
        items.append(item | {"encrypted_content": seal(answer.reasoning)})
    if answer.content or not answer.calls:
        text: dict[str, Any] = {"type": "output_text", "text": answer.content, "annotations": []}
        text["logprobs"] = token_logprobs(answer) if ask.logprobs else []
        message = {"type": "message", "id": f"msg_{answer.id}", "role": "assistant", "status": status}
        items.append(message | {"content": [text]})
    return items + [_call(ask, call) for call in answer.calls]


def _call(ask: Ask, call: Call) -> dict[str, Any]:
    item: dict[str, Any] = {"id": f"fc_{call.id}", "call_id": call.id, "name": call.name, "status": "completed"}
    if call.name in ask.details["custom"]:
        given = (object_of(call.arguments) or {}).get(INPUT)
        return item | {"type": "custom_tool_call", "input": given if isinstance(given, str) else call.arguments}
    if call.name in ask.details["spaces"]:
        space, name = ask.details["spaces"][call.name]
        item |= {"namespace": space, "name": name}
    return item | {"type": "function_call", "arguments": call.arguments}


def _begun(item: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """An item as its stream starts, and the events that fill it."""
    match item["type"]:
        case "message":
            part, where = item["content"][0], {"content_index": 0}
            begun = item | {"content": [], "status": "in_progress"}
            empty, logprobs = part | {"text": "", "logprobs": []}, part["logprobs"]
            deltas = [
                ("response.output_text.delta", where | {"delta": piece, "logprobs": []})
                for piece in pieces(part["text"])
            ]
            return begun, [
                ("response.content_part.added", where | {"part": empty}),
                *deltas,
                ("response.output_text.done", where | {"text": part["text"], "logprobs": logprobs}),
                ("response.content_part.done", where | {"part": part}),
            ]
        case "reasoning":
            thought = item["content"][0]["text"]
            return item | {"content": []}, _filled("response.reasoning_text", "text", thought, {"content_index": 0})
        case "custom_tool_call":
            begun = item | {"input": "", "status": "in_progress"}
            return begun, _filled("response.custom_tool_call_input", "input", item["input"], {})
        case _:
            begun = item | {"arguments": "", "status": "in_progress"}
            done = {"name": item["name"]}
            return begun, _filled("response.function_call_arguments", "arguments", item["arguments"], {}, done)


def _filled(
    kind: str, field: str, text: str, where: dict[str, Any], done: dict[str, Any] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    deltas = [(f"{kind}.delta", where | {"delta": piece}) for piece in pieces(text)]
    return [*deltas, (f"{kind}.done", where | {field: text} | (done or {}))]


def _head(ask: Ask, answer: Answer, status: str) -> dict[str, Any]:
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": ask.max_tokens,
        "metadata": {},
        "model": ask.model,
        "parallel_tool_calls": ask.parallel,
        "previous_response_id": ask.previous,
        "temperature": None,
        "tool_choice": ask.details["tool_choice"],
        "tools": ask.details["tools"],
        "top_p": None,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.sampled,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.sampled,
    }
