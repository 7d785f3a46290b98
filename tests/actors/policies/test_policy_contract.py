"""What every `Policy` promises: scripted, a foreign endpoint, the generators' client, and real vLLM behind that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from actors.agent.chat import ChatTokenizer
from actors.policies.generator_client import GeneratorClient
from actors.policies.openai_policy import OpenAIPolicy, transcript_tokenizer
from actors.policies.scripted import ScriptedPolicy
from actors.policy import Policy, Request, Sampled
from protocol.config import GeneratorSettings
from protocol.errors import DeadlineError
from protocol.messages import Generate, Sampling
from protocol.sockets import Peer
from tests.actors.policies.test_generator_client import ScriptedEngine
from tests.waiting import LONG_S, until

TEXT = "```command\nls\n```"


class Pace:
    """How long an answer takes, for those who are asked from now on; and who was asked so far."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.num_asked = 0

    async def keep(self) -> None:
        """Take that long."""
        self.num_asked += 1
        await asyncio.sleep(self.latency_s)


Opener = Callable[[Pace], AbstractAsyncContextManager[Policy]]
"""Opens a policy of that pace."""


class PacedPolicy(ScriptedPolicy):
    """A scripted one whose pace may change."""

    def __init__(self, tokenizer: ChatTokenizer, pace: Pace) -> None:
        super().__init__(tokenizer, lambda *_: TEXT)
        self._pace = pace

    async def generate(self, request: Request) -> Sampled:
        """See `ScriptedPolicy.generate`."""
        self._latency_s = self._pace.latency_s
        self._pace.num_asked += 1
        return await super().generate(request)


class PacedEngine(ScriptedEngine):
    """A scripted one whose pace may change."""

    def __init__(self, endpoint: str, pace: Pace) -> None:
        super().__init__(endpoint)
        self._pace = pace

    async def _generate(self, peer: Peer, message: Generate) -> None:
        await self._pace.keep()
        await super()._generate(peer, message)


@contextlib.asynccontextmanager
async def scripted(tokenizer: ChatTokenizer, pace: Pace) -> AsyncIterator[Policy]:
    yield PacedPolicy(tokenizer, pace)


@contextlib.asynccontextmanager
async def foreign(tokenizer: ChatTokenizer, pace: Pace) -> AsyncIterator[Policy]:
    async def answer(request: web.Request) -> web.Response:
        await pace.keep()
        return web.json_response({"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    policy = OpenAIPolicy(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m", tokenizer)
    yield policy
    await policy.close()
    await runner.cleanup()


@contextlib.asynccontextmanager
async def generators(directory: Path, pace: Pace) -> AsyncIterator[Policy]:
    engine = PacedEngine(f"ipc://{directory}/generator", pace)
    policy = GeneratorClient([engine.server.endpoint], GeneratorSettings())
    yield policy
    await policy.close()
    engine.close()
    await asyncio.sleep(0)


@pytest.fixture(params=["scripted", "endpoint", "generators"])
def opened(request: pytest.FixtureRequest, tokenizer_dir: Path, tmp_path: Path) -> Opener:
    tokenizer = transcript_tokenizer(tokenizer_dir)
    return {
        "scripted": lambda pace: scripted(tokenizer, pace),
        "endpoint": lambda pace: foreign(tokenizer, pace),
        "generators": lambda pace: generators(tmp_path, pace),
    }[request.param]


@pytest.fixture
def prompt(tokenizer_dir: Path) -> np.ndarray:
    return transcript_tokenizer(tokenizer_dir).encode_prompt([{"role": "user", "content": "hi"}])


async def ask(
    policy: Policy, prompt: np.ndarray, *, episode: str = "e", timeout_s: float = LONG_S, **fields: int
) -> Sampled:
    return await policy.generate(
        Request(
            episode_id=episode,
            token_ids=prompt,
            sampling=Sampling(**fields),
            stop_token_ids=[2],
            cache_salt="0",
            timeout_s=timeout_s,
        )
    )


def check(sampled: Sampled, max_tokens: int) -> None:
    assert 0 < len(sampled.token_ids) == len(sampled.logprobs) == len(sampled.versions) <= max_tokens
    assert (sampled.token_ids.dtype, sampled.logprobs.dtype, sampled.versions.dtype) == (np.int32, np.float32, np.int32)
    assert (sampled.logprobs <= 0).all()
    assert (sampled.versions >= 0).all()
    if sampled.finish_reason == "length":
        assert len(sampled.token_ids) == max_tokens
    else:
        assert (sampled.finish_reason, sampled.token_ids[-1]) == ("stop", 2)


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 40])
async def test_a_continuation_is_whole_and_within_its_limit(
    opened: Opener, prompt: np.ndarray, max_tokens: int
) -> None:
    async with opened(Pace(0)) as policy:
        check(await ask(policy, prompt, max_tokens=max_tokens), max_tokens)


async def test_many_episodes_at_once(opened: Opener, prompt: np.ndarray) -> None:
    async with opened(Pace(0.01)) as policy:
        answers = await asyncio.gather(*(ask(policy, prompt, episode=f"e{i}", max_tokens=30) for i in range(40)))
    for sampled in answers:
        check(sampled, 30)


async def test_the_deadline_is_kept_and_named(opened: Opener, prompt: np.ndarray) -> None:
    async with opened(Pace(600)) as policy, asyncio.timeout(LONG_S):
        with pytest.raises(DeadlineError, match=r"within 0\.3 s"):
            await ask(policy, prompt, timeout_s=0.3)


async def test_cancelling_one_harms_no_other(opened: Opener, prompt: np.ndarray) -> None:
    pace = Pace(600)
    async with opened(pace) as policy:
        doomed = asyncio.create_task(ask(policy, prompt, episode="doomed", timeout_s=600))
        await until(lambda: pace.num_asked == 1)
        pace.latency_s = 0.1
        other = asyncio.create_task(ask(policy, prompt, episode="other", max_tokens=8))
        await until(lambda: pace.num_asked == 2)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        check(await other, 8)
        check(await ask(policy, prompt, episode="doomed", max_tokens=8), 8)


async def test_closing_twice_is_closing(opened: Opener, prompt: np.ndarray) -> None:
    async with opened(Pace(0)) as policy:
        await ask(policy, prompt, max_tokens=4)
        await policy.close()
        await policy.close()


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [1, 40])
async def test_real_vllm_keeps_the_contract(served_model, max_tokens: int) -> None:
    policy = GeneratorClient([served_model.endpoint], served_model.settings.generator)
    tokenizer = ChatTokenizer.load(served_model.model_dir)
    prompt = tokenizer.encode_prompt([{"role": "user", "content": "hi"}])
    try:
        asked = (ask(policy, prompt, episode=f"e{i}", max_tokens=max_tokens, timeout_s=60) for i in range(8))
        for sampled in await asyncio.gather(*asked):
            check(sampled, max_tokens)
            assert (sampled.versions == served_model.version).all()
    finally:
        await policy.close()
