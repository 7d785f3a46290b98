"""The agent: a loop of model turns and commands in a sandbox, until it submits or a limit ends it.

Knows nothing of training: it keeps its tokens as sampled and says why it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.agent.commands import CUT, FormatError
from actors.agent.episode import Activity, Assignment, Episode, Step
from actors.agent.journal import Answered, Over, Turned
from actors.agent.prefix import Prefix
from actors.agent.progress import Progress
from actors.agent.scaffold import Scaffold
from actors.agent.tools import Outcome, Toolbox
from actors.agent.tree import check_sampled
from actors.policy import Policy, Request, Sampled
from protocol.config import EpisodeSettings
from protocol.errors import AgentError, GeneratorError
from protocol.messages import EndReason, FinishReason
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

    async def run(self, assigned: Assignment, sandbox: Sandbox) -> Episode:
        """Work on the issue in `sandbox`; behind its journal's past in the same sandbox.

        Raises `GeneratorError`, `DeadlineError` or `SandboxError` when these fail, `AgentError` (kind: resume) if the
        past is not one of this episode.
        """
        progress = self._progress(assigned)
        await _Attempt(self, sandbox, assigned, progress).play()
        return progress.finished()

    def recall(self, assigned: Assignment) -> Episode:
        """The episode of a journal that tells it to its end. Raises `AgentError` as `run` does."""
        progress = self._progress(assigned)
        if progress.ended is None:
            raise AgentError(f"the journal of episode {assigned.episode_id} does not tell its end", kind="resume")
        return progress.finished()

    def _progress(self, assigned: Assignment) -> Progress:
        prefix = Prefix(assigned.episode_id, assigned.version, self.reuse_versions)
        progress = Progress(self.tokenizer, self.scaffold, self.settings, assigned.limits, prefix, assigned.journal)
        progress.open(assigned.issue)
        return progress


class _Ended(Exception):
    def __init__(self, reason: EndReason) -> None:
        self.reason: EndReason = reason


class _Attempt:
    """What moves one episode on."""

    def __init__(self, agent: Agent, sandbox: Sandbox, assigned: Assignment, progress: Progress) -> None:
        self._agent, self._limits, self._sampling = agent, assigned.limits, assigned.sampling
        self._progress, self._episode_id, self._save = progress, assigned.episode_id, assigned.save
        self._toolbox = Toolbox(sandbox, agent.settings)
        self._toolbox.state = progress.open_file
        self._deadline = time.monotonic() + self._limits.wall_time_s - progress.elapsed_s

    async def play(self) -> None:
        """Turn after turn, until the episode has ended."""
        is_known = self._progress.unanswered is None
        while self._progress.ended is None:
            if self._progress.unanswered is None:
                await self._think()
            else:
                await self._act(*self._progress.unanswered, is_known=is_known)
                is_known = True

    async def _think(self) -> None:
        """The next model turn. A turn that the context cuts ends the episode: half a command is not run."""
        try:
            if (over := self._progress.observe()) is not None:
                raise _Ended(over)
            room = self._limits.max_context - len(self._progress.history)
            if room <= 0:
                raise _Ended("context")
            max_tokens = min(room, self._sampling.max_tokens, self._agent.settings.max_turn_tokens)
            self._agent.on_activity(self._episode_id, "generating")
            began = time.monotonic()
            sampled = await self._sample(max_tokens)
        except _Ended as end:
            self._progress.add(Over(reason=end.reason))
            return
        check_sampled(sampled)
        self._progress.add(
            Turned.of(
                sampled,
                is_last=sampled.finish_reason == "length" and max_tokens == room,
                cached_version=self._progress.prefix.reused(sampled),
                generate_s=time.monotonic() - began,
                elapsed_s=self._elapsed_s,
                at=time.time(),
            )
        )

    async def _act(self, step: Step, finish_reason: FinishReason, *, is_known: bool) -> None:
        """Carry out a turn's command.

        Args:
            is_known: that nobody has begun it before.
        """
        self._agent.on_activity(self._episode_id, "executing")
        began = time.monotonic()
        is_readable = True
        try:
            outcome = await self._execute(step, finish_reason, is_known)
        except FormatError as error:
            outcome, is_readable = Outcome(text=str(error)), False
        self._progress.add(
            Answered(
                text=outcome.text,
                format_error=not is_readable,
                submitted=outcome.submitted,
                execute_s=time.monotonic() - began,
                elapsed_s=self._elapsed_s,
                open_file=self._toolbox.state,
            )
        )
        if self._progress.ended is None:
            await self._save()

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._deadline + self._limits.wall_time_s

    async def _sample(self, max_tokens: int) -> Sampled:
        agent, seed = self._agent, self._sampling.seed
        turn_seed = None if seed is None else seed + len(self._progress.steps)  # else every turn would draw the same
        wall_time = asyncio.timeout(self._deadline - time.monotonic())
        request = Request(
            episode_id=self._episode_id,
            token_ids=self._progress.history.token_ids,
            sampling=msgspec.structs.replace(self._sampling, max_tokens=max_tokens, seed=turn_seed),
            stop_token_ids=agent.tokenizer.stop_token_ids,
            cache_salt=self._progress.prefix.salt,
            timeout_s=agent.request_timeout_s,
            pause=functools.partial(self._paused, wall_time),
        )
        try:
            async with wall_time:
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

    @contextlib.contextmanager
    def _paused(self, wall_time: asyncio.Timeout) -> Iterator[None]:
        """The wall time stands still meanwhile."""
        began = time.monotonic()
        wall_time.reschedule(None)
        try:
            yield
        finally:
            now = time.monotonic()
            self._deadline += now - began
            wall_time.reschedule(asyncio.get_running_loop().time() + self._deadline - now)

    async def _execute(self, step: Step, finish_reason: FinishReason, is_known: bool) -> Outcome:
        try:
            command = self._agent.scaffold.parse(step.text)
        except FormatError:
            if finish_reason == "length":
                raise FormatError(CUT.format(num_tokens=step.end - step.start)) from None
            raise
        return await self._toolbox.run(command, max(self._deadline - time.monotonic(), 0.001), is_known=is_known)
