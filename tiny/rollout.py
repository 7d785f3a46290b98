"""Episodes of the real agent and tools on `micro` tasks in memory: to make the base model and to look at policies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.episode import Assignment, Episode, Limits
from actors.agent.loop import Agent
from actors.agent.scaffolds import make_scaffold
from actors.policy import Policy, Request, Sampled
from protocol.config import EpisodeSettings
from protocol.messages import Sampling
from sandbox.base import SandboxSpec
from sandbox.tasks.micro import Repository
from tiny.memory_sandbox import MemorySandbox
from tiny.sampler import Sampler


class Played(Struct, frozen=True, kw_only=True):
    """One finished episode. `solved`: the files are those of the gold change; the real judge runs tests instead."""

    episode: Episode
    solved: bool


class SamplerPolicy:
    """A `Policy` on a `Sampler`: the requests of all episodes that wait at the same time are one batch.

    Serves at most as many episodes as the sampler has slots.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._slots: dict[str, int] = {}
        self._waiting: dict[int, tuple[np.ndarray, int, asyncio.Future[Sampled]]] = {}

    async def generate(self, request: Request) -> Sampled:
        """Wait for the others that are ready now, then sample with them. The temperature is the sampler's."""
        loop = asyncio.get_running_loop()
        slot = self._slots.setdefault(request.episode_id, len(self._slots))
        future: asyncio.Future[Sampled] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run, request.stop_token_ids)
        self._waiting[slot] = (request.token_ids[self._sampler.length(slot) :], request.sampling.max_tokens, future)
        return await future

    def _run(self, stop_token_ids: list[int]) -> None:
        waiting, self._waiting = self._waiting, {}
        prompts = {slot: ids for slot, (ids, _, _) in waiting.items()}
        limits = {slot: max_tokens for slot, (_, max_tokens, _) in waiting.items()}
        try:
            sampled = self._sampler.generate(prompts, limits, stop_token_ids)
        except Exception as error:  # it belongs to those who wait
            for _, _, future in waiting.values():
                future.set_exception(error)
            return
        for slot, (_, _, future) in waiting.items():
            ids, logprobs = sampled[slot]
            if not future.done():
                future.set_result(
                    Sampled(
                        token_ids=ids,
                        logprobs=logprobs,
                        versions=np.zeros(len(ids), np.int32),
                        finish_reason="stop" if ids[-1] in stop_token_ids else "length",
                    )
                )

    async def close(self) -> None:
        """Nothing is open."""


async def play(
    repositories: Sequence[Repository],
    policy: Policy,
    tokenizer: ChatTokenizer,
    settings: EpisodeSettings,
    max_context: int,
) -> list[Played]:
    """One episode on each repository, all at the same time; episode ids are their indices."""
    agent = Agent(policy, tokenizer, make_scaffold(settings, tokenizer), settings)
    limits = Limits(max_turns=settings.max_turns, max_context=max_context, wall_time_s=settings.wall_time_s)
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_turn_tokens)

    async def one(index: int, repository: Repository) -> Played:
        spec = SandboxSpec(run="memory", lease=str(index))
        sandbox = MemorySandbox(repository.broken, spec)
        assigned = Assignment(
            issue=repository.issue, episode_id=str(index), version=0, sampling=sampling, limits=limits
        )
        episode = await agent.run(assigned, sandbox)
        gold = {path: text.encode() for path, text in repository.fixed.items()}
        return Played(episode=episode, solved=sandbox.files == gold)

    return list(await asyncio.gather(*(one(index, repository) for index, repository in enumerate(repositories))))
