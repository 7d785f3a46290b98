"""The agent: a loop of model turns and commands in a sandbox, until it submits or a limit ends it.

Knows nothing of training: it keeps its tokens as sampled and says why it ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.commands import CUT, FormatError
from actors.agent.episode import Activity, Episode, Limits, Step
from actors.agent.prefix import Prefix
from actors.agent.scaffold import Scaffold
from actors.agent.tokens import History
from actors.agent.tools import Outcome, Toolbox
from actors.policy import Policy, Request, Sampled
from protocol.config import EpisodeSettings
from protocol.errors import GeneratorError
from protocol.messages import EndReason, FinishReason, Sampling
from sandbox.base import Sandbox


class Agent(Struct, frozen=True):
    """Solves issues; one instance serves many episodes at once."""

    policy: Policy
    tokenizer: ChatTokenizer
    scaffold: Scaffold
    settings: EpisodeSettings
    request_timeout_s: float = 300.0  # of one generation; past it the generator has failed, not the agent
    reuse_versions: int | None = None  # see `GeneratorSettings`
    on_activity: Callable[[str, Activity], None] = lambda episode_id, activity: None

    async def run(
        self, issue: str, sandbox: Sandbox, *, episode_id: str, version: int, sampling: Sampling, limits: Limits
    ) -> Episode:
        """Work on `issue` in `sandbox`; reuse no KV of weights older than `version`, the policy's at the start.

        Raises `GeneratorError`, `DeadlineError` or `SandboxError` when these fail.
        """
        attempt = _Attempt(self, sandbox, episode_id, version, sampling, limits)
        attempt.history.open(self.scaffold.open(issue), self.scaffold.tools)
        end_reason = await attempt.play()
        return Episode(history=attempt.history, steps=attempt.steps, end_reason=end_reason)


class _Ended(Exception):
    def __init__(self, reason: EndReason) -> None:
        self.reason: EndReason = reason


class _Attempt:
    """The state of one episode while it runs."""

    def __init__(
        self, agent: Agent, sandbox: Sandbox, episode_id: str, version: int, sampling: Sampling, limits: Limits
    ) -> None:
        self.history = History(agent.tokenizer)
        self.steps: list[Step] = []
        self._agent, self._limits, self._sampling = agent, limits, sampling
        self._episode_id = episode_id
        self._prefix = Prefix(episode_id, version, agent.reuse_versions)
        self._toolbox = Toolbox(sandbox, agent.settings)
        self._deadline = time.monotonic() + limits.wall_time_s
        self._errors_in_a_row = 0

    async def play(self) -> EndReason:
        try:
            while True:
                step, finish_reason = await self._think()
                observation = await self._act(step, finish_reason)
                self._observe(observation)
        except _Ended as end:
            return end.reason

    async def _think(self) -> tuple[Step, FinishReason]:
        """The next model turn. A turn that the context cuts ends the episode: half a command is not run."""
        room = self._limits.max_context - len(self.history)
        if room <= 0:
            raise _Ended("context")
        max_tokens = min(room, self._sampling.max_tokens, self._agent.settings.max_turn_tokens)
        self._agent.on_activity(self._episode_id, "generating")
        began = time.monotonic()
        sampled = await self._sample(max_tokens)
        cached_version = self._prefix.reused(sampled)
        self._prefix.saw(sampled.versions)
        start, end = self.history.append_sampled(sampled)
        step = Step(
            start=start,
            end=end,
            text=self._agent.tokenizer.decode(sampled.token_ids),
            cached_version=cached_version,
            generate_s=time.monotonic() - began,
        )
        if sampled.finish_reason == "length" and max_tokens == room:
            self.steps.append(step)
            raise _Ended("context")
        return step, sampled.finish_reason

    async def _act(self, step: Step, finish_reason: FinishReason) -> str:
        """Run the turn's command; its observation. Records the turn."""
        self._agent.on_activity(self._episode_id, "executing")
        began = time.monotonic()
        try:
            outcome = await self._execute(step, finish_reason)
            self._errors_in_a_row = 0
        except FormatError as error:
            outcome = Outcome(text=str(error))
            self._errors_in_a_row += 1
        result = {"observation": outcome.text, "format_error": self._errors_in_a_row > 0}
        self.steps.append(msgspec.structs.replace(step, **result, execute_s=time.monotonic() - began))
        if outcome.submitted:
            raise _Ended("submitted")
        if self._errors_in_a_row >= self._agent.settings.max_format_errors:
            raise _Ended("format_errors")
        return outcome.text

    def _observe(self, observation: str) -> None:
        """Add the observation to the history, if another turn may follow. It is added whole or not at all."""
        if len(self.steps) >= self._limits.max_turns:
            raise _Ended("max_turns")
        if time.monotonic() >= self._deadline:
            raise _Ended("wall_time")
        ids = self.history.encode_observation(self._agent.scaffold.answer_role, observation)
        if len(self.history) + len(ids) >= self._limits.max_context:
            raise _Ended("context")
        self.history.append_observation(ids)

    async def _sample(self, max_tokens: int) -> Sampled:
        agent, seed = self._agent, self._sampling.seed
        turn_seed = None if seed is None else seed + len(self.steps)  # else every turn would draw the same
        request = Request(
            episode_id=self._episode_id,
            token_ids=self.history.token_ids,
            sampling=msgspec.structs.replace(self._sampling, max_tokens=max_tokens, seed=turn_seed),
            stop_token_ids=agent.tokenizer.stop_token_ids,
            cache_salt=self._prefix.salt,
            timeout_s=agent.request_timeout_s,
        )
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()) as wall_time:
                sampled = await agent.policy.generate(request)
        except TimeoutError:
            if wall_time.expired():
                raise _Ended("wall_time") from None
            raise
        except GeneratorError as error:
            if error.kind == "context":
                raise _Ended("context") from error
            raise
        if sampled.finish_reason == "cancelled":
            raise GeneratorError(f"the generator cancelled a turn of episode {self._episode_id}", kind="lost")
        return sampled

    async def _execute(self, step: Step, finish_reason: FinishReason) -> Outcome:
        try:
            command = self._agent.scaffold.parse(step.text)
        except FormatError:
            if finish_reason == "length":
                raise FormatError(CUT.format(num_tokens=step.end - step.start)) from None
            raise
        return await self._toolbox.run(command, timeout_s=max(self._deadline - time.monotonic(), 0.001))
