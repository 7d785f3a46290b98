"""Keys, retries, broken connections, floods: what reaches the gateway is anybody's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from actors.gateway import seat as seats
from actors.gateway import server, turns
from actors.gateway.asks import Refusal
from actors.gateway.keys import KeyRing
from actors.policies.scripted import ScriptedPolicy
from actors.policy import Request, Sampled
from protocol.errors import DeadlineError, GeneratorError
from protocol.messages import Sampling
from tests.actors.deadlines import Deadlines
from tests.waiting import LONG_S, until

HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@contextlib.asynccontextmanager
async def session(url: str, key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(url, headers=headers) as opened:
        yield opened


async def ask(url: str, key: str | None, body: Any = HI, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    async with session(url, key) as client, client.post(path, json=body) as response:
        return response.status, await response.json()


class Held:
    """A policy that answers when it is let."""

    def __init__(self, inner: ScriptedPolicy) -> None:
        self.inner = inner
        self.let = asyncio.Event()
        self.num_asked = self.num_cancelled = 0

    async def generate(self, request: Request) -> Sampled:
        self.num_asked += 1
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return await self.inner.generate(request)

    async def close(self) -> None:
        """Nothing to drop."""


class Failing:
    """A policy that fails so often, and then does not."""

    def __init__(self, inner: ScriptedPolicy, *errors: Exception) -> None:
        self.inner = inner
        self.errors = list(errors)

    async def generate(self, request: Request) -> Sampled:
        if self.errors:
            raise self.errors.pop(0)
        return await self.inner.generate(request)

    async def close(self) -> None:
        """Nothing to drop."""


async def test_a_key_opens_its_own_episode_until_that_is_over(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        _, one, key = place.seat(episode_id="one")
        _, two, other = place.seat(episode_id="two")
        for made in (None, "lh-guess", f"{key}x"):
            status, body = await ask(place.gateway.url, made)
            assert status == 401 and body["error"]["code"] == "invalid_api_key"
        assert (await ask(place.gateway.url, other))[0] == 200
        assert len(one.noted) == 0 and len(two.noted) == 1
        async with session(place.gateway.url, None) as client:
            for headers in ({"x-api-key": key}, {"api-key": key}):
                async with client.post("/v1/chat/completions", json=HI, headers=headers) as response:
                    assert response.status == 200
            async with client.post(f"/k/{key}/v1/chat/completions", json=HI) as response:
                assert response.status == 200
        place.gateway.close(key)
        assert (await ask(place.gateway.url, key, path="/v1/messages"))[1]["error"]["type"] == "authentication_error"
        status = place.gateway.status()
        assert [status[f"gateway_keys_{reason}"] for reason in ("missing", "wrong", "expired")] == [1, 2, 1]


def test_only_its_own_key_comes_out_of_a_sandbox() -> None:
    ring: KeyRing[str] = KeyRing()
    mine, yours = ring.make("mine"), ring.make("yours")
    assert ring.find(mine, home=mine) == "mine"
    with pytest.raises(Refusal):
        ring.find(yours, home=mine)
    with pytest.raises(Refusal):
        ring.find("lh-\udcff", home=mine)  # a header of bytes that are no text
    assert ring.refused == {"foreign": 2} and len(ring) == 2


async def test_the_same_request_while_the_first_runs_is_sampled_once(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        policy = Held(place.policy)
        seat, history, key = place.seat(policy)
        asked = [asyncio.create_task(ask(place.gateway.url, key, HI | {"stream": False})) for _ in range(3)]
        await until(lambda: seat.turns.counts["retries_joined"] == 2)
        policy.let.set()
        answers = [body for _, body in await asyncio.gather(*asked)]
        assert policy.num_asked == 1 == len(history.noted)
        assert len({body["id"] for body in answers}) == 1
        await ask(place.gateway.url, key)  # the answer was given: asked again, it is another turn
        assert policy.num_asked == 2 == len(history.noted)


async def test_who_breaks_off_and_comes_back_gets_the_turn_that_ran(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        policy = Held(place.policy)
        _, history, key = place.seat(policy)
        gone = asyncio.create_task(ask(place.gateway.url, key))
        await until(lambda: policy.num_asked == 1)
        gone.cancel()
        await until(lambda: place.gateway.status().get("gateway_disconnects") == 1)
        policy.let.set()
        await until(lambda: history.noted)
        status, _ = await ask(place.gateway.url, key)
        assert status == 200 and policy.num_asked == 1 == len(history.noted)


async def test_a_turn_that_nobody_waits_for_is_cancelled(open_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "LINGER_S", 0.05)
    async with open_place(lambda *_: "hello") as place:
        policy = Held(place.policy)
        seat, history, key = place.seat(policy)
        gone = asyncio.create_task(ask(place.gateway.url, key, HI | {"stream": True}))
        await until(lambda: policy.num_asked == 1)
        gone.cancel()
        await until(lambda: policy.num_cancelled == 1)
        assert not history.noted and seat.turns.counts["turns_abandoned"] == 1 and seat.fault is None


async def test_our_failures_are_told_from_the_agent_s_and_forgotten_once_a_retry_went_well(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        full = GeneratorError("full", kind="full", retry_after_s=3.2)
        errors = [full, DeadlineError("late", kind="generate"), RuntimeError("a bug")]
        seat, _, key = place.seat(Failing(place.policy, *errors))
        async with session(place.gateway.url, key) as client:
            async with client.post("/v1/chat/completions", json=HI) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "4")
                assert (await response.json())["error"]["type"] == "rate_limit_error"
            async with client.post("/v1/chat/completions", json=HI) as response:
                assert response.status == 504
            async with client.post("/v1/chat/completions", json=HI) as response:
                assert response.status == 500
            assert seat.fault is not None and seat.fault.label == "longhaul.bug"
            async with client.post("/v1/chat/completions", json=HI) as response:
                assert response.status == 200
        assert seat.fault is None


async def test_who_asks_in_other_words_got_over_a_failure_and_who_was_asked_before_it_did_not(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        policy = Held(place.policy)
        seat, *_, key = place.seat(policy)
        before = asyncio.create_task(ask(place.gateway.url, key))
        await until(lambda: policy.num_asked == 1)
        policy.inner = Failing(place.policy, GeneratorError("gone", kind="lost"))  # type: ignore[assignment]
        seat.turns._policy = policy.inner
        other = {"messages": [{"role": "user", "content": "other"}]}
        assert (await ask(place.gateway.url, key, other))[0] == 500
        policy.let.set()
        assert (await before)[0] == 200 and seat.fault is not None  # it was begun before
        assert (await ask(place.gateway.url, key, {"messages": [{"role": "user", "content": "sorry?"}]}))[0] == 200
        assert seat.fault is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", ["read", "write"])
async def test_a_bug_of_ours_is_said_in_the_api_s_own_shape(
    open_place: Any, monkeypatch: pytest.MonkeyPatch, step: str, stream: bool
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("a bug")

    for name in ("read",) if step == "read" else ("write", "stream"):
        monkeypatch.setattr(server.Messages, name, fail)
    async with open_place(lambda *_: "hello") as place:
        seat, *_, key = place.seat()
        body = HI | {"max_tokens": 5, "stream": stream}
        async with session(place.gateway.url, key) as client, client.post("/v1/messages", json=body) as response:
            assert b'"type":"error","error":{"type":"api_error"' in await response.read()
            assert response.status == (200 if stream and step == "write" else 500)
        assert seat.fault is not None and seat.fault.label == "longhaul.bug"


async def test_a_call_that_was_demanded_and_missed_is_a_format_error_of_the_turn(open_place: Any) -> None:
    tool = {"type": "function", "function": {"name": "shell"}}
    async with open_place(lambda *_: "no call") as place:
        seat, history, key = place.seat()
        assert (await ask(place.gateway.url, key, HI | {"tools": [tool], "tool_choice": "required"}))[0] == 400
        assert (await ask(place.gateway.url, key, HI | {"tools": [tool]}))[0] == 200
        assert [turn.missed_call for turn in seat.turns.done] == [True, False] and len(history.noted) == 2
        assert seat.fault is None


async def test_more_turns_at_once_than_are_left_have_to_wait(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        policy = Held(place.policy)
        seat, history, key = place.seat(policy, max_turns=2)
        bodies = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(3)]
        asked = [asyncio.create_task(ask(place.gateway.url, key, body)) for body in bodies]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert done.pop().result()[0] == 429 and seat.turns.ended is None
        policy.let.set()
        assert sorted(status for status, _ in await asyncio.gather(*asked)) == [200, 200, 429]
        assert len(history.noted) == 2


async def test_the_wall_clock_ends_an_episode(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        seat, history, key = place.seat(Held(place.policy), wall_time_s=0.2)
        status, body = await ask(place.gateway.url, key)
        assert status == 403 and "wall_time" in body["error"]["message"]
        assert seat.turns.ended == "wall_time" and seat.turns.over.is_set() and not history.noted and seat.fault is None


async def test_a_stream_is_kept_alive_and_says_what_went_wrong(
    open_place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.05)
    deadlines = Deadlines.of(turns, monkeypatch)
    async with open_place(lambda *_: "hello") as place:
        ends = {
            "/v1/chat/completions": b'"code":"episode_ended"',
            "/v1/responses": b"response.failed",
            "/v1/messages": b'"type":"permission_error"',
        }
        for path, end in ends.items():
            *_, key = place.seat(Held(place.policy))
            body = HI | {"stream": True, "input": "hi", "max_tokens": 100}
            async with session(place.gateway.url, key) as client, client.post(path, json=body) as response:
                said = b""
                while said.count(b": still sampling") + said.count(b"event: ping") < 2:
                    assert not response.content.at_eof()
                    said += await response.content.readany()
                deadlines.pass_by()  # the wall time
                said += await response.read()
                assert response.status == 200 and end in said


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b'{"messages": 3}',
        b'{"messages": [3]}',
        b'{"messages": [{"role": "wizard", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": [1]}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": true}',
        b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": 3}',
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "assistant", "tool_calls": [{"function": 1}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "metadata": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
    ids=range(17),
)
async def test_a_body_that_is_none_is_refused(open_place: Any, body: bytes) -> None:
    async with open_place(["never"]) as place:
        _, history, key = place.seat()
        async with session(place.gateway.url, key) as client:
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
                async with client.post(path, data=body) as response:
                    told = await response.json()
                    assert response.status == 400 and told["error"]["message"]
        assert not history.noted


async def test_text_that_no_encoding_holds_and_control_tokens_are_data(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        *_, key = place.seat()
        body = b'{"messages": [{"role": "user", "content": "\\ud800 <|im_end|> \\u0000"}]}'
        async with (
            session(place.gateway.url, key) as client,
            client.post("/v1/chat/completions", data=body) as response,
        ):
            assert response.status == 200


@pytest.mark.parametrize(
    "arguments",
    ['{"n": 123456789012345678901234567890}', '{"a": ' * 300 + "1" + "}" * 300, '{"a": ' * 5000 + "1" + "}" * 5000],
    ids=["long number", "deep", "deeper than any reader goes"],
)
async def test_arguments_of_any_form_are_no_fault_of_ours(open_place: Any, arguments: str) -> None:
    async with open_place(lambda *_: "hello") as place:
        seat, history, key = place.seat(max_context=200_000)
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        messages = [*HI["messages"], said, {"role": "tool", "tool_call_id": "c", "content": "done"}]
        status, _ = await ask(place.gateway.url, key, {"messages": messages})
        assert (status, seat.fault, len(history.noted)) == (200, None, 1)


async def test_floods_are_bounded(open_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):  # 100 MB
            sent += 1 << 18
            yield b"x" * (1 << 18)

    async with open_place(lambda *_: "hello") as place:
        *_, key = place.seat()
        url = place.gateway.url
        async with session(url, key) as client:
            with contextlib.suppress(aiohttp.ClientError):  # cut off while it still sends, or told
                async with client.post("/v1/chat/completions", data=endless()) as response:
                    assert response.status == 413 and (await response.json())["error"]["code"] == "request_too_large"
            assert sent < 100 << 20
        with socket.create_connection(url.removeprefix("http://").split(":")) as half_open:  # type: ignore[arg-type]
            half_open.setblocking(False)
            loop = asyncio.get_running_loop()
            monkeypatch.setattr(server, "READ_S", 0.3)
            head = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\nContent-Length: 50\r\n\r\n{{"
            await loop.sock_sendall(half_open, head.encode())
            async with asyncio.timeout(LONG_S):
                assert b"504" in await loop.sock_recv(half_open, 4096)
        monkeypatch.undo()
        assert (await ask(url, key))[0] == 200


async def test_an_answer_that_is_never_read_holds_nothing_up(open_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_S", 0.2)
    async with open_place(lambda *_: "word " * 100_000) as place:
        wide = {"max_turn_tokens": 1 << 22, "max_context": 1 << 23, "sampling": Sampling(max_tokens=1 << 22)}
        _, history, key = place.seat(**wide)
        deaf, theirs = socket.socketpair()
        for end in (deaf, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await place.gateway.accept(key)(theirs, 1)
        body = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true}'
        head = f"POST /k/{key}/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        await until(lambda: place.gateway.status().get("gateway_answers_not_taken") == 1)
        deaf.close()
        assert len(history.noted) == 1


async def test_an_unknown_path_is_said_to_be_one(open_place: Any) -> None:
    async with open_place(["never"]) as place:
        *_, key = place.seat()
        assert (await ask(place.gateway.url, key, path="/v1/embeddings"))[0] == 404
        async with session(place.gateway.url, None) as client, client.head("/") as response:
            assert response.status == 200


async def _said_over(ours: socket.socket, key: str) -> bytes:
    """What is answered to one request over a connection that was accepted."""
    reader, writer = await asyncio.open_connection(sock=ours)
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    async with asyncio.timeout(LONG_S):
        said = await reader.read()
    writer.close()
    return said


async def test_a_sandbox_s_connection_takes_its_own_key_alone_and_ends_with_it(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        *_, mine = place.seat(episode_id="mine")
        *_, yours = place.seat(episode_id="yours")

        async def through(key: str) -> bytes:
            ours, theirs = socket.socketpair()
            await place.gateway.accept(mine)(theirs, 1)
            return await _said_over(ours, key)

        assert b"200 OK" in await through(mine)
        assert b"401" in await through(yours)
        assert place.gateway.status()["gateway_keys_foreign"] == 1
        ours, theirs = socket.socketpair()
        await place.gateway.accept(mine)(theirs, 1)
        ours.setblocking(False)
        place.gateway.close(mine)
        async with asyncio.timeout(LONG_S):
            assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
        ours.close()


async def test_connections_that_come_at_the_same_moment_are_each_their_own_sandbox_s(open_place: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        *_, mine = place.seat(episode_id="mine")
        *_, yours = place.seat(episode_id="yours")
        pairs = [socket.socketpair() for _ in range(3)]
        take = place.gateway.accept(mine)
        await asyncio.gather(*(take(theirs, number) for number, (_, theirs) in enumerate(pairs)))
        said = [await _said_over(ours, key) for (ours, _), key in zip(pairs, (yours, mine, yours), strict=True)]
        assert [b"401" in each for each in said] == [True, False, True]


async def test_a_connection_that_comes_while_its_episode_ends_opens_nothing(open_place: Any) -> None:
    async with open_place(["never"]) as place:
        *_, mine = place.seat(episode_id="mine")
        ours, theirs = socket.socketpair()
        taking = asyncio.ensure_future(place.gateway.accept(mine)(theirs, 1))
        await asyncio.sleep(0)  # it has begun, and waits for the loop
        place.gateway.close(mine)
        await taking
        ours.setblocking(False)
        async with asyncio.timeout(LONG_S):
            assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
        ours.close()
