"""One contract, three dialects: the companies' own Python clients against the gateway, streamed and whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import anthropic
import openai
import pytest
from msgspec import Struct

from tests.actors.gateway.conftest import Place
from tests.actors.gateway.history import NotedHistory

CALL = '<tool_call>{"name": "shell", "arguments": {"command": "ls -la"}}</tool_call>'
TWO_CALLS = 'I look.\n<tool_call>{"name": "shell", "arguments": {"command": "ls"}}</tool_call>\n' + (
    '<tool_call>{"name": "shell", "arguments": {"command": "pwd"}}</tool_call>'
)
SHAPE = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


class Got(Struct):
    """A turn as a client gave it."""

    text: str
    calls: list[tuple[str, dict[str, Any]]]
    ended: str  # stop, length, calls, stop_string
    prompt: int
    sampled: int
    reasoning: str = ""
    logprobs: list[float] = []


class Talk(Protocol):
    """A conversation through one client: what is said is added to what is sent the next time."""

    async def say(self, said: str, **options: Any) -> Got: ...

    async def results(self, outputs: list[str]) -> Got: ...


class Chat:
    """`openai`, chat completions."""

    status_error = openai.APIStatusError

    def __init__(self, url: str, key: str, stream: bool) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        self.stream, self.history, self.calls = stream, [{"role": "developer", "content": "be brief"}], []
        self.tools = [{"type": "function", "function": {"name": "shell", "description": "runs", "parameters": SHAPE}}]

    async def say(self, said: str, **options: Any) -> Got:
        self.history.append({"role": "user", "content": [{"type": "text", "text": said}]})
        return await self._ask(**options)

    async def results(self, outputs: list[str]) -> Got:
        for call, output in zip(self.calls, outputs, strict=True):
            self.history.append({"role": "tool", "tool_call_id": call.id, "content": output})
        return await self._ask()

    async def _ask(
        self, tools: bool = True, most: int | None = None, stop: Any = None, choice: Any = None, **extra: Any
    ) -> Got:
        options = {"max_completion_tokens": most, "stop": stop, "tool_choice": choice, **extra}
        options = {name: value for name, value in options.items() if value is not None}
        if tools:
            options["tools"] = self.tools
        if not self.stream:
            whole = await self.client.chat.completions.create(model="m", messages=self.history, **options)
        else:
            async with self.client.chat.completions.stream(
                model="m", messages=self.history, stream_options={"include_usage": True}, **options
            ) as events:
                try:
                    whole = await events.get_final_completion()
                except openai.LengthFinishReasonError as cut:  # how this client says it
                    whole = cut.completion
        choice = whole.choices[0]
        self.calls = choice.message.tool_calls or []
        self.history.append(choice.message.model_dump(exclude_none=True, exclude={"parsed"}))
        return Got(
            text=choice.message.content or "",
            calls=[(call.function.name, json.loads(call.function.arguments)) for call in self.calls],
            ended={"tool_calls": "calls"}.get(choice.finish_reason, choice.finish_reason),
            prompt=whole.usage.prompt_tokens,
            sampled=whole.usage.completion_tokens,
            reasoning=getattr(choice.message, "reasoning_content", "") or "",
            logprobs=[token.logprob for token in choice.logprobs.content] if choice.logprobs else [],
        )


class Responses:
    """`openai`, Responses."""

    status_error = openai.APIStatusError

    def __init__(self, url: str, key: str, stream: bool) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        self.stream, self.history, self.calls = stream, [], []
        self.tools = [
            {"type": "function", "name": "shell", "description": "runs", "parameters": SHAPE, "strict": False}
        ]

    async def say(self, said: str, **options: Any) -> Got:
        self.history.append({"role": "user", "content": [{"type": "input_text", "text": said}]})
        return await self._ask(**options)

    async def results(self, outputs: list[str]) -> Got:
        for call, output in zip(self.calls, outputs, strict=True):
            self.history.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
        return await self._ask()

    async def _ask(
        self, tools: bool = True, most: int | None = None, stop: Any = None, choice: Any = None, **extra: Any
    ) -> Got:
        if extra.pop("logprobs", None):
            extra["include"] = ["message.output_text.logprobs"]
        options = {"max_output_tokens": most, "tool_choice": choice, **extra}
        options = {name: value for name, value in options.items() if value is not None}
        if tools:
            options["tools"] = self.tools
        request = {"model": "m", "input": self.history, "instructions": "be brief", **options}
        if not self.stream:
            whole = await self.client.responses.create(**request)
        else:
            whole = None
            async for event in await self.client.responses.create(**request, stream=True):
                if event.type in ("response.completed", "response.incomplete"):
                    whole = event.response
            assert whole is not None
        self.history += [item.model_dump(exclude_none=True) for item in whole.output]
        self.calls = [item for item in whole.output if item.type == "function_call"]
        ended = "length" if whole.status == "incomplete" else "calls" if self.calls else "stop"
        texts = [part for item in whole.output if item.type == "message" for part in item.content]
        thoughts = [part.text for item in whole.output if item.type == "reasoning" for part in item.content]
        return Got(
            text=whole.output_text,
            calls=[(call.name, json.loads(call.arguments)) for call in self.calls],
            ended=ended,
            prompt=whole.usage.input_tokens,
            sampled=whole.usage.output_tokens,
            reasoning="".join(thoughts),
            logprobs=[token.logprob for part in texts for token in part.logprobs or []],
        )


class Claude:
    """`anthropic`, Messages."""

    status_error = anthropic.APIStatusError

    def __init__(self, url: str, key: str, stream: bool) -> None:
        self.client = anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
        self.stream, self.history, self.calls = stream, [], []
        self.tools = [{"name": "shell", "description": "runs", "input_schema": SHAPE}]

    async def say(self, said: str, **options: Any) -> Got:
        self.history.append({"role": "user", "content": [{"type": "text", "text": said}]})
        return await self._ask(**options)

    async def results(self, outputs: list[str]) -> Got:
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": output}]}
            for call, output in zip(self.calls, outputs, strict=True)
        ]
        self.history.append({"role": "user", "content": results})
        return await self._ask()

    async def _ask(
        self, tools: bool = True, most: int | None = 900, stop: Any = None, choice: Any = None, **extra: Any
    ) -> Got:
        options = {"stop_sequences": [stop] if isinstance(stop, str) else stop, "tool_choice": choice, **extra}
        options = {name: value for name, value in options.items() if value is not None}
        if tools:
            options["tools"] = self.tools
        request = {"model": "m", "system": "be brief", "messages": self.history, "max_tokens": most, **options}
        if not self.stream:
            whole = await self.client.messages.create(**request)
        else:
            async with self.client.messages.stream(**request) as events:
                whole = await events.get_final_message()
        self.history.append(
            {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]}
        )
        self.calls = [block for block in whole.content if block.type == "tool_use"]
        reasons = {"end_turn": "stop", "max_tokens": "length", "tool_use": "calls", "stop_sequence": "stop_string"}
        return Got(
            text="".join(block.text for block in whole.content if block.type == "text"),
            calls=[(call.name, call.input) for call in self.calls],
            ended=reasons[whole.stop_reason],
            prompt=whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0),
            sampled=whole.usage.output_tokens,
            reasoning="".join(block.thinking for block in whole.content if block.type == "thinking"),
        )


Opener = Callable[..., contextlib.AbstractAsyncContextManager[Place]]
CLIENTS = [Chat, Responses, Claude]
EVERY = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__.lower())
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def open_talk(open_place: Opener) -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    @contextlib.asynccontextmanager
    async def start(
        client: Any, stream: bool, texts: Any, **terms: Any
    ) -> AsyncIterator[tuple[Any, NotedHistory, Place]]:
        async with open_place(texts) as place:
            _, history, key = place.seat(**terms)
            talk = client(place.gateway.url, key, stream)
            try:
                yield talk, history, place
            finally:
                await talk.client.close()

    return start


@EVERY
@BOTH
async def test_a_text_is_given_with_the_tokens_that_were_counted(open_talk: Any, client: Any, stream: bool) -> None:
    async with open_talk(client, stream, ["hello there", "again"]) as (talk, history, _):
        got = await talk.say("hi")
        prompt, sampled, message = history.noted[0]
        assert got.text == "hello there" and got.ended == "stop" and not got.calls
        assert (got.prompt, got.sampled) == (len(prompt.token_ids), len(sampled.token_ids))
        assert message == {"role": "assistant", "content": "hello there"}
        assert prompt.messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
        assert (await talk.say("and?")).text == "again"
        assert [each["role"] for each in history.noted[1][0].messages] == ["system", "user", "assistant", "user"]
        assert history.noted[1][0].messages[2] == message


@EVERY
@BOTH
async def test_several_calls_of_one_turn_come_back_as_they_were_recorded(
    open_talk: Any, client: Any, stream: bool
) -> None:
    async with open_talk(client, stream, [TWO_CALLS, "done"]) as (talk, history, _):
        got = await talk.say("look")
        assert got.calls == [("shell", {"command": "ls"}), ("shell", {"command": "pwd"})]
        assert got.ended == "calls" and got.text == "I look."
        assert (await talk.results(["a.py", "/testbed"])).text == "done"
        messages = history.noted[1][0].messages
        assert messages[2] == history.noted[0][2]  # the very message that was recorded
        assert [(each["role"], each["content"]) for each in messages[3:]] == [("tool", "a.py"), ("tool", "/testbed")]
        assert [each["tool_call_id"] for each in messages[3:]] == [call["id"] for call in messages[2]["tool_calls"]]
        assert history.noted[0][0].tools[0]["function"]["name"] == "shell"


@BOTH
async def test_arguments_that_are_no_object_are_shown_and_come_back(open_talk: Any, stream: bool) -> None:
    """Anthropic's inputs are objects."""
    texts = ['<tool_call>{"name": "shell", "arguments": "ls -"}</tool_call>', "done"]
    async with open_talk(Claude, stream, texts) as (talk, history, _):
        assert (await talk.say("look")).calls == [("shell", {"unreadable_arguments": "ls -"})]
        await talk.results(["what?"])
        assert history.noted[1][0].messages[2] == history.noted[0][2]
        assert not any(history.drift.values())


@EVERY
@BOTH
async def test_reasoning_is_told_apart_and_comes_back(open_talk: Any, client: Any, stream: bool) -> None:
    async with open_talk(client, stream, ["<think>so it is</think>yes", "ok"]) as (talk, history, _):
        got = await talk.say("is it?")
        assert (got.text, got.reasoning) == ("yes", "so it is")
        await talk.say("sure?")
        assert history.noted[1][0].messages[2] == history.noted[0][2]
        assert history.noted[0][2]["reasoning_content"] == "so it is"


@EVERY
@BOTH
async def test_a_turn_ends_at_its_most_tokens(open_talk: Any, client: Any, stream: bool) -> None:
    async with open_talk(client, stream, ["one two three four five six seven"]) as (talk, history, _):
        got = await talk.say("count", most=3)
        assert got.ended == "length" and got.sampled == 3 == len(history.noted[0][1].token_ids)


@pytest.mark.parametrize("client", [Chat, Claude], ids=["chat", "claude"])
@BOTH
async def test_a_stop_string_cuts_tokens_and_text(open_talk: Any, client: Any, stream: bool) -> None:
    async with open_talk(client, stream, ["before STOP after"]) as (talk, history, place):
        got = await talk.say("go", stop="STOP")
        kept = place.tokenizer.decode(history.noted[0][1].token_ids)
        assert got.text == "before " and kept.startswith("before STOP") and "after" not in kept
        assert got.ended == ("stop_string" if client is Claude else "stop")
        assert len(history.noted[0][1].logprobs) == got.sampled


@pytest.mark.parametrize("client", [Chat, Responses], ids=["chat", "responses"])
async def test_logprobs_are_those_of_the_sampled_tokens(open_talk: Any, client: Any) -> None:
    async with open_talk(client, False, ["hello there"]) as (talk, history, _):
        got = await talk.say("hi", logprobs=True)
        assert got.logprobs == history.noted[0][1].logprobs[:-1].tolist()  # the stop token is no text


@EVERY
async def test_a_call_that_was_not_wanted_is_text_and_one_that_was_demanded_is_missed(
    open_talk: Any, client: Any
) -> None:
    none = {"type": "none"} if client is Claude else "none"
    forced = {"type": "any"} if client is Claude else "required"
    async with open_talk(client, False, [CALL, "no call"]) as (talk, history, _):
        assert CALL in (await talk.say("go", choice=none)).text
        with pytest.raises(client.status_error, match="did not call a tool") as caught:
            await talk.say("go", choice=forced)
        assert caught.value.status_code == 400 and len(history.noted) == 2  # sampled is sampled


@EVERY
async def test_what_cannot_be_served_is_refused_in_the_api_s_own_words(open_talk: Any, client: Any) -> None:
    picture = "data:image/png;base64,AAAA"
    parts = {
        Chat: {"type": "image_url", "image_url": {"url": picture}},
        Responses: {"type": "input_image", "image_url": picture, "detail": "auto"},
        Claude: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    }
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    wishes: list[dict[str, Any]] = {
        Chat: [
            {"extra_body": {"n": 2}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
            {"response_format": {"type": "json_object"}},
            {"logprobs": True, "top_logprobs": 3},
            {"extra_body": {"functions": [{"name": "f"}]}},
        ],
        Responses: [
            {"text": {"format": schema}},
            {"background": True},
            {"extra_body": {"tools": [{"type": "web_search"}]}},
            {"previous_response_id": "resp_unknown"},
        ],
        Claude: [
            {"extra_body": {"output_config": {"format": schema}}},
            {"extra_body": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}},
        ],
    }[client]
    async with open_talk(client, False, ["never"]) as (talk, history, _):
        for wish in wishes:
            with pytest.raises(client.status_error) as caught:
                await talk.say("go", **wish)
            body = caught.value.body
            assert caught.value.status_code in (400, 404), wish
            error = body["error"] if client is Claude else body
            assert error["type"] in ("invalid_request_error",) and error["message"], wish
        talk.history.append({"role": "user", "content": [parts[client]]})
        with pytest.raises(client.status_error, match="only text") as caught:
            await talk._ask()
        assert caught.value.status_code == 400 and not history.noted


@EVERY
async def test_what_the_run_decides_is_counted_and_unknown_fields_are_borne(open_talk: Any, client: Any) -> None:
    async with open_talk(client, False, ["fine"]) as (talk, _, place):
        got = await talk.say("go", extra_body={"surprise": 1, "temperature": 0.3})
        status = place.gateway.status()
        assert got.text == "fine"
        assert status["gateway_overridden_temperature"] == 1 and status["gateway_unknown_fields"] == 1


@EVERY
@BOTH
async def test_limits_are_told_in_the_api_s_own_words(open_talk: Any, client: Any, stream: bool) -> None:
    async with open_talk(client, stream, ["a", "b"], max_turns=1) as (talk, history, _):
        await talk.say("go")
        with pytest.raises(client.status_error, match="max_turns") as caught:
            await talk.say("on")
        assert caught.value.status_code == 403 and len(history.noted) == 1
    async with open_talk(client, stream, ["a"], max_context=10) as (talk, history, _):
        with pytest.raises(client.status_error, match="maximum context length") as caught:
            await talk.say("go")
        assert caught.value.status_code == 400 and not history.noted


async def test_tokens_are_counted_before_they_are_asked_for(open_talk: Any) -> None:
    async with open_talk(Claude, False, ["a"]) as (talk, history, _):
        said = [{"role": "user", "content": "hi"}]
        counted = await talk.client.messages.count_tokens(model="m", messages=said, system="be brief", tools=talk.tools)
        await talk.say("hi")
        assert counted.input_tokens == len(history.noted[0][0].token_ids)


async def test_an_earlier_response_is_gone_on_from(open_talk: Any) -> None:
    async with open_talk(Responses, False, ["one", "two"]) as (talk, history, _):
        first = await talk.client.responses.create(model="m", input="hi")
        await talk.client.responses.create(model="m", input="on", previous_response_id=first.id)
        assert [each["content"] for each in history.noted[1][0].messages] == ["hi", "one", "on"]


async def test_free_text_tools_and_namespaces_are_called_as_they_were_given(open_talk: Any) -> None:
    patch = '<tool_call>{"name": "patch", "arguments": {"input": "+ x"}}</tool_call>'
    spawn = '<tool_call>{"name": "team__spawn", "arguments": {"n": 1}}</tool_call>'
    inner = {"type": "function", "name": "spawn", "parameters": {"type": "object", "properties": {}}}
    tools = [
        {"type": "custom", "name": "patch"},
        {"type": "namespace", "name": "team", "description": "t", "tools": [inner]},
    ]
    async with open_talk(Responses, False, [patch + spawn, "ok"]) as (talk, history, _):
        got = await talk.client.responses.create(model="m", input="go", tools=tools)
        assert (got.output[0].type, got.output[0].input) == ("custom_tool_call", "+ x")
        assert (got.output[1].name, got.output[1].namespace) == ("spawn", "team")
        items = [item.model_dump(exclude_none=True) for item in got.output]
        await talk.client.responses.create(model="m", input=[{"role": "user", "content": "go"}, *items], tools=tools)
        assert history.noted[1][0].messages[1] == history.noted[0][2]


@pytest.mark.parametrize("client", [openai.AsyncOpenAI, anthropic.AsyncAnthropic])
async def test_the_model_is_listed(open_place: Opener, client: Any) -> None:
    async with open_place(["a"]) as place:
        *_, key = place.seat()
        base = place.gateway.url if client is anthropic.AsyncAnthropic else f"{place.gateway.url}/v1"
        async with client(base_url=base, api_key=key, max_retries=0) as opened:
            assert [model.id async for model in opened.models.list()] == ["tiny"]
