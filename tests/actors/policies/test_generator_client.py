"""The client against scripted engines: token i of every continuation is its absolute position."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from actors.policies import generator_client
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from protocol.config import GeneratorSettings
from protocol.errors import DeadlineError, GeneratorError
from protocol.messages import Cancel, Generate, GeneratorStatus, GeneratorStatusRequest, Refused, Sampling, Tokens
from protocol.sockets import Peer, Server
from tests.actors.deadlines import Deadlines
from tests.waiting import LONG_S, until

SETTINGS = GeneratorSettings()
CHUNK = 4


class ScriptedEngine:
    """Answers like a generator, four tokens at a time, until it is told to be full, deaf or dead."""

    def __init__(self, endpoint: str, version: int = 0, step_s: float = 0.002) -> None:
        self.server = Server(endpoint)
        self.version = version
        self.step_s = step_s
        self.full_times = 0
        self.deaf = False
        self.silent_after: int | None = None  # sends so many chunks, then nothing
        self.num_silent = 0  # generations that it left in their middle
        self.seen: list[Generate] = []
        self.holds: list[int] = []
        self.cancelled: list[str] = []
        self._serving = asyncio.create_task(self._serve())
        self._running: dict[str, asyncio.Task[None]] = {}

    async def _serve(self) -> None:
        async for peer, message in self.server:
            if self.deaf:
                continue
            match message:
                case GeneratorStatusRequest():
                    self.holds.append(message.holds)
                    await self.server.send(peer, self._status())
                case Cancel():
                    self.cancelled.append(message.request_id)
                    if task := self._running.pop(message.request_id, None):
                        task.cancel()
                    await self.server.send(peer, tokens(message, [], 0, "cancelled"))
                case Generate():
                    self.seen.append(message)
                    if self.full_times:
                        self.full_times -= 1
                        await self.server.send(peer, Refused(kind="generator.full", reason="full", retry_after_s=0.02))
                    elif message.token_ids.max() > 9000:
                        await self.server.send(peer, Refused(kind="generator.refused", reason="outside the vocabulary"))
                    else:
                        self._running[message.request_id] = asyncio.create_task(self._generate(peer, message))

    def _status(self) -> GeneratorStatus:
        n = len(self._running)
        return GeneratorStatus(version=self.version, running=n, waiting=0, kv_used_share=0.0, generated_tokens=0)

    async def _generate(self, peer: Peer, message: Generate) -> None:
        start = len(message.token_ids)
        end = start + message.sampling.max_tokens
        for chunk, first in enumerate(range(start, end, CHUNK)):
            if self.deaf or (self.silent_after is not None and chunk >= self.silent_after):
                self.num_silent += 1
                return
            await asyncio.sleep(self.step_s)
            ids = list(range(first, min(first + CHUNK, end)))
            await self.server.send(peer, tokens(message, ids, self.version, "length" if ids[-1] == end - 1 else None))
        self._running.pop(message.request_id, None)

    def close(self) -> None:
        self.deaf = True
        self._serving.cancel()
        for task in self._running.values():
            task.cancel()
        self.server.close()


def tokens(message: Generate | Cancel, ids: list[int], version: int, finish: str | None) -> Tokens:
    return Tokens(
        request_id=message.request_id,
        token_ids=np.asarray(ids, np.int32),
        logprobs=-np.asarray(ids, np.float32),
        versions=np.full(len(ids), version, np.int32),
        finish_reason=finish,  # type: ignore[arg-type]
    )


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[ScriptedEngine]]:
    running = [ScriptedEngine(f"ipc://{tmp_path}/{i}", version=i) for i in range(3)]
    yield running
    for engine in running:
        engine.close()
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def client_of(engines: list[ScriptedEngine]) -> AsyncIterator[GeneratorClient]:
    client = GeneratorClient([e.server.endpoint for e in engines], SETTINGS)
    try:
        yield client
    finally:
        await client.close()


def generate(client: GeneratorClient, episode: str, max_tokens: int = 10, timeout_s: float = LONG_S):
    prompt = np.arange(5, dtype=np.int32)
    return client.generate(
        Request(
            episode_id=episode,
            token_ids=prompt,
            sampling=Sampling(max_tokens=max_tokens),
            stop_token_ids=[9999],
            cache_salt="0",
            timeout_s=timeout_s,
        )
    )


def is_whole(sampled, max_tokens: int) -> bool:
    expected = list(range(5, 5 + max_tokens))
    return (
        sampled.token_ids.tolist() == expected
        and sampled.logprobs.tolist() == [-float(i) for i in expected]
        and len(sampled.versions) == max_tokens
    )


async def test_the_turns_of_an_episode_stay_together_and_episodes_spread(engines):
    async with client_of(engines) as client:
        for _ in range(3):
            await asyncio.gather(*(generate(client, f"e{i}") for i in range(12)))
    seen = [len(e.seen) for e in engines]
    assert sum(seen) == 36
    assert min(seen) >= 6
    assert all(n % 3 == 0 for n in seen)


async def test_a_continuation_goes_on_elsewhere_from_the_tokens_received(engines, received):
    dying, other = engines[:2]
    dying.silent_after = 2
    async with client_of([dying]) as client:
        running = asyncio.create_task(generate(client, "e", max_tokens=20))
        await until(lambda: len(received) == 8)
        client.update_endpoints([other.server.endpoint])
        sampled = await running
        assert is_whole(sampled, 20)
        assert sampled.versions.tolist() == [0] * 8 + [1] * 12
        [resumed] = other.seen
        assert resumed.token_ids.tolist() == list(range(13))
        assert resumed.sampling.max_tokens == 12
        assert client.status()["num_failovers"] == 1
        assert client.status()["resumed_tokens"] == 8


async def test_an_engine_that_stops_answering_is_noticed_and_used_again_when_it_does(engines, received):
    dead, alive = engines[:2]
    dead.silent_after = 1
    async with client_of([dead]) as client:
        running = asyncio.create_task(generate(client, "e"))
        await until(lambda: len(received) == CHUNK)
        dead.deaf = True
        client.update_endpoints([dead.server.endpoint, alive.server.endpoint])
        assert is_whole(await running, 10)
        assert client.status()["num_generators_up"] == 1
        dead.deaf, dead.silent_after = False, None
        await until(lambda: client.status()["num_generators_up"] == 2)


async def test_a_full_engine_is_asked_again(engines):
    engines[0].full_times = 3
    async with client_of(engines[:1]) as client:
        assert is_whole(await generate(client, "e"), 10)
        assert client.status()["num_full"] == 3


async def test_everything_survives_losing_an_engine_in_the_middle(engines):
    engines[0].silent_after = 5
    async with client_of(engines) as client:
        running = [asyncio.create_task(generate(client, f"e{i}", max_tokens=100)) for i in range(64)]
        await until(lambda: engines[0].num_silent > 10)
        engines[0].close()
        client.update_endpoints([e.server.endpoint for e in engines[1:]])
        sampled = await asyncio.gather(*running)
        assert all(is_whole(s, 100) for s in sampled)
        assert client.status()["num_failovers"] > 10


async def test_bad_requests_come_back_as_typed_errors(engines):
    async with client_of(engines) as client:
        with pytest.raises(GeneratorError, match="outside the vocabulary") as caught:
            await client.generate(
                Request(
                    episode_id="e",
                    token_ids=np.asarray([9500], np.int32),
                    sampling=Sampling(),
                    stop_token_ids=[],
                    cache_salt="0",
                    timeout_s=LONG_S,
                )
            )
        assert caught.value.kind == "refused"


async def test_a_deadline_names_what_was_received_and_stops_the_engine(engines, received, monkeypatch):
    deadlines = Deadlines.of(generator_client, monkeypatch)
    engines[0].silent_after = 2
    async with client_of(engines[:1]) as client:
        running = asyncio.create_task(generate(client, "e"))
        await until(lambda: len(received) == 8)
        deadlines.pass_by()
        with pytest.raises(DeadlineError, match=r"e was not done within 60 s \(8 tokens received, 1 of 1"):
            await running
        await until(lambda: engines[0].cancelled)
        assert engines[0].cancelled == [engines[0].seen[0].request_id]


async def test_cancelling_a_continuation_stops_the_engine(engines):
    async with client_of(engines[:1]) as client:
        running = asyncio.create_task(generate(client, "e", max_tokens=1 << 20))
        await until(lambda: engines[0].seen)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: engines[0].cancelled)
        assert engines[0].cancelled == [engines[0].seen[0].request_id]


async def test_nobody_there_is_a_deadline_error(tmp_path):
    client = GeneratorClient([f"ipc://{tmp_path}/nobody"], SETTINGS)
    with pytest.raises(DeadlineError, match="0 tokens received"):
        await generate(client, "e", timeout_s=0.5)
    await client.close()


async def test_every_engine_hears_which_version_is_to_be_held(
    engines: list[ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator_client, "_PING_EVERY_S", 0.02)
    async with client_of(engines) as client:
        await generate(client, "trains")
        assert all(set(engine.holds) <= {-1} for engine in engines)
        for version in (4, 3):
            sampling = Sampling(max_tokens=4, version=version)
            prompt = np.arange(5, dtype=np.int32)
            await client.generate(
                Request(
                    episode_id=f"scored {version}",
                    token_ids=prompt,
                    sampling=sampling,
                    stop_token_ids=[],
                    cache_salt="s",
                    timeout_s=LONG_S,
                )
            )
        assert [e.seen[-1].sampling.version for e in engines if e.seen and e.seen[-1].sampling.version >= 0]
        await until(lambda: all(engine.holds[-1:] == [4] for engine in engines))
