"""A seat that goes on for a process that was killed: the same bytes over the same connections, and nothing twice."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from actors.episodes.episode_journal import EpisodeJournal
from actors.gateway import server, turns
from actors.gateway.asks import Refusal
from actors.gateway.dialect import Dialect
from actors.gateway.seat import Seat
from actors.policies.scripted import ScriptedPolicy
from protocol.errors import DeadlineError, GeneratorError
from protocol.messages import Sampling
from tests.actors.episodes.scripted_replay import make_lease
from tests.actors.gateway.conftest import Place
from tests.actors.gateway.test_server import Failing, Held
from tests.waiting import LONG_S, until

TOOL = {"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}
PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/messages"]
DATE = re.compile(rb"\r\nDate: [^\r]{29}\r\n")


class Episode:
    """One whose gateway's process changes."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.journal = EpisodeJournal.begin(folder, make_lease(0, "task"), 0.0, "recipe")
        self.key: str | None = None

    def sit_down(self, policy: Any = None, **terms: Any) -> Seat:
        self.seat, self.history, self.key = self.place.seat(policy, self.journal, self.key, **terms)
        return self.seat

    async def change_process(self, policy: Any = None, **terms: Any) -> Seat:
        """Killed: what is under way is lost, and so are its connections on this side."""
        assert self.key is not None
        self.place.gateway.close(self.key)
        await self.seat.close()
        self.journal.leave()
        (path,) = self.folder.glob("*.journal")
        read = EpisodeJournal.read(path, "recipe")
        assert read is not None
        self.journal = read
        return self.sit_down(policy, **terms)

    async def connect(self, number: int, body: Any, path: str = PATHS[0]) -> tuple[socket.socket, asyncio.Task[bytes]]:
        """A connection from inside with a request; what comes back over it."""
        assert self.key is not None
        ours, theirs = socket.socketpair()
        await self.place.gateway.accept(self.key)(theirs, number)
        reader, writer = await asyncio.open_connection(sock=ours)
        data = msgspec.json.encode(body)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nx-api-key: {self.key}\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)

        async def hear() -> bytes:
            try:
                async with asyncio.timeout(LONG_S):
                    said = await reader.read()
            except ConnectionError:
                said = b""
            writer.close()
            return DATE.sub(b"\r\nDate: now\r\n", said)

        return ours, asyncio.create_task(hear())

    async def ask(self, number: int, body: Any, path: str = PATHS[0]) -> bytes:
        """Over a connection of that number, to its end."""
        return await (await self.connect(number, body, path))[1]


@pytest.fixture
def episode_of(tmp_path: Path) -> Callable[[Place], Episode]:
    return lambda place: Episode(place, tmp_path)


def asks(text: str = "hi", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"model": "m", "messages": [message], "input": [message], "max_tokens": 500, **more}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_same_connection_gets_the_same_bytes(
    open_place: Any, episode_of: Any, path: str, stream: bool
) -> None:
    async with open_place(lambda *_: f"hello {len(asked)}") as place:
        asked: list[int] = []
        episode = episode_of(place)
        first = episode.sit_down()
        said = await episode.ask(5, asks(stream=stream), path)
        assert b"hello" in said and b"Connection: close" in said
        asked.append(1)
        second = await episode.change_process()
        assert first.turns.done == second.turns.done
        assert await episode.ask(5, asks(stream=stream), path) == said
        assert len(second.turns.done) == 1, "nothing is sampled again"
        assert b"hello 1" in await episode.ask(6, asks(stream=stream), path), "another connection is another request"


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_waits_is_gone_on_with_to_the_byte(
    open_place: Any, episode_of: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.02)
    async with open_place(lambda *_: "hello") as place:
        episode = episode_of(place)
        policy = Held(place.policy)
        episode.sit_down(policy)
        ours, hearing = await episode.connect(5, asks(stream=True), path)
        await until(lambda: episode.journal._path.read_bytes().count(b"KeptAlive") > 3)
        seat = await episode.change_process(policy)
        before = await hearing
        assert before.startswith(b"HTTP/1.1 200") and b"hello" not in before
        _, hearing = await episode.connect(5, asks(stream=True), path)
        await until(lambda: policy.num_asked == 2)
        policy.let.set()
        whole = await hearing
        assert whole.startswith(before) and b"hello" in whole
        third = await episode.change_process(policy)
        assert await episode.ask(5, asks(stream=True), path) == whole
        assert len(third.turns.done) == 1 and seat.kept_alive(5) > 3
        ours.close()


async def test_a_refused_stream_is_refused_again_in_the_stream(
    open_place: Any, episode_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.02)
    async with open_place(lambda *_: "no call") as place:
        episode = episode_of(place)
        policy = Held(place.policy)
        episode.sit_down(policy)
        body = asks(stream=True, tools=[TOOL], tool_choice="required")
        _, hearing = await episode.connect(5, body)
        await until(lambda: episode.journal._path.read_bytes().count(b"KeptAlive") > 1)
        policy.let.set()
        said = await hearing
        assert said.startswith(b"HTTP/1.1 200") and b"did not call a tool" in said
        seat = await episode.change_process(policy)
        assert await episode.ask(5, body) == said
        assert len(seat.turns.done) == 1 and seat.turns.done[0].missed_call


async def test_refusals_stay_what_they_were(open_place: Any, episode_of: Any) -> None:
    texts = ["no call", "word " * 300]
    async with open_place(lambda *_: texts.pop(0)) as place:
        episode = episode_of(place)
        episode.sit_down(max_context=300)
        missed = asks(tools=[TOOL], tool_choice="required")
        said = [await episode.ask(1, missed), await episode.ask(2, asks("again")), await episode.ask(3, asks("more"))]
        assert [each[9:12] for each in said] == [b"400", b"400", b"403"]
        seat = await episode.change_process(max_context=300)
        assert seat.turns.ended == "context" and seat.turns.over.is_set() and seat.fault is None
        assert [await episode.ask(n, body) for n, body in ((1, missed), (2, asks("again")), (3, asks("more")))] == said
        assert len(seat.turns.done) == 2


@pytest.mark.parametrize("error", [GeneratorError("gone", kind="lost"), DeadlineError("slow", kind="request")])
async def test_a_failure_of_ours_is_got_over_by_a_later_turn_alone(
    open_place: Any, episode_of: Any, error: Exception
) -> None:
    async with open_place(lambda *_: "hello") as place:
        episode = episode_of(place)
        episode.sit_down(Failing(place.policy, error))
        await episode.ask(1, asks("before"))
        first = episode.seat.fault
        seat = await episode.change_process()
        assert seat.fault is not None and seat.fault is not first
        assert (type(seat.fault), seat.fault.label, str(seat.fault)) == (type(error), first.label, str(error))
        assert b"hello" in await episode.ask(2, asks("after"))
        assert seat.fault is None
        assert (await episode.change_process()).fault is None


async def test_a_retry_gets_what_was_not_delivered_and_a_new_request_a_new_turn(
    open_place: Any, episode_of: Any
) -> None:
    texts = ["one", "two", "three"]
    async with open_place(lambda *_: texts.pop(0)) as place:
        episode = episode_of(place)
        seat = episode.sit_down()
        chat: Dialect = server.CHAT
        ask = chat.read(server.Body.parse(msgspec.json.encode(asks())))
        answer = await seat.answer(ask, 1)  # and the process is killed before it sends it
        seat = await episode.change_process()
        assert await seat.answer(ask, 2) == answer, "the client broke off and comes back over another connection"
        seat.delivered(ask)
        assert (await seat.answer(ask, 3)).content == "two"
        seat = await episode.change_process()
        assert [(await seat.answer(ask, number)).content for number in (1, 2, 3)] == ["one", "one", "two"]
        seat.delivered(ask)
        seat = await episode.change_process()
        assert (await seat.answer(ask, 4)).content == "three"
        assert [turn.text for turn in seat.turns.done] == ["one", "two", "three"]


async def test_the_wall_time_stands_still_while_nobody_is_there_and_limits_hold(
    open_place: Any, episode_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0

    def takes_seven_seconds(*_: Any) -> str:
        nonlocal now
        now += 7.0
        return "hello"

    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    async with open_place(takes_seven_seconds) as place:
        episode = episode_of(place)
        seat = episode.sit_down(max_turns=2)
        await episode.ask(1, asks("one"))
        assert seat.turns.time_left_s == seat.turns.terms.wall_time_s - 7
        now += 1000.0
        seat = await episode.change_process(max_turns=2)
        assert seat.turns.time_left_s == seat.turns.terms.wall_time_s - 7
        assert b"200" in (await episode.ask(2, asks("two")))[:12]
        seat = await episode.change_process(max_turns=2)
        with pytest.raises(Refusal):
            seat.turns.check_open()
        assert seat.turns.ended == "max_turns"


async def test_a_stored_answer_is_gone_on_from_by_its_id(open_place: Any, episode_of: Any) -> None:
    async with open_place(lambda *_: "hello") as place:
        episode = episode_of(place)
        episode.sit_down()
        said = await episode.ask(1, asks("one"), PATHS[1])
        name = msgspec.json.decode(said.partition(b"\r\n\r\n")[2])["id"]
        further = {"model": "m", "input": [{"role": "user", "content": "two"}], "previous_response_id": name}
        await episode.change_process()
        said = await episode.ask(2, further, PATHS[1])
        name = msgspec.json.decode(said.partition(b"\r\n\r\n")[2])["id"]
        seat = await episode.change_process()
        assert b"200" in (await episode.ask(3, further | {"previous_response_id": name}, PATHS[1]))[:12]
        assert [turn.num_prompt for turn in seat.turns.done] == sorted({turn.num_prompt for turn in seat.turns.done})
        assert len(episode.history.tree.branches.leaves()) == 1
        unkept = msgspec.json.decode(
            (await episode.ask(4, asks("one", store=False), PATHS[1])).partition(b"\r\n\r\n")[2]
        )
        assert b"404" in (await episode.ask(5, further | {"previous_response_id": unkept["id"]}, PATHS[1]))[:12]


async def test_seeds_go_on(open_place: Any, episode_of: Any, tools_tokenizer: Any) -> None:
    seeds: list[int | None] = []

    class Noting(ScriptedPolicy):
        async def generate(self, request: Any) -> Any:
            seeds.append(request.sampling.seed)
            return await super().generate(request)

    async with open_place(lambda *_: "hello") as place:
        policy = Noting(tools_tokenizer, lambda *_: "hello")
        episode = episode_of(place)
        terms = {"sampling": Sampling(max_tokens=1000, seed=70)}
        episode.sit_down(policy, **terms)
        await episode.ask(1, asks("one"))
        await episode.change_process(policy, **terms)
        await episode.ask(2, asks("two"))
        assert seeds == [70, 71]
