"""One lease's place at the gateway: its turns under way, requests sent again, failures that are ours."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Literal

from actors.gateway.asks import Answer, Ask, Refusal
from actors.gateway.turns import Turns
from protocol.errors import DeadlineError, GeneratorError, LonghaulError

Activity = Literal["generating", "executing"]

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16  # turns of one episode under way (sub-agents)
LINGER_S = 2.0  # a turn nobody waits for any more goes on for so long: clients break off and ask again
BUSY_RETRY_S = 1.0


class _Work:
    """One turn under way, or answered and not yet delivered."""

    def __init__(self, task: asyncio.Task[Answer]) -> None:
        self.task = task
        self.num_waiting = 0


class Seat:
    """Answers one episode's requests, several at once. Belongs to one asyncio loop; `close()` ends what is under way.

    Args:
        on_activity: hears when the first of several turns is begun (`generating`) and the last is done (`executing`).

    Attributes:
        fault: the last failure of ours that the agent has not got over: no turn that was begun after it was answered.
    """

    def __init__(self, turns: Turns, on_activity: Callable[[Activity], None] = lambda activity: None) -> None:
        self.turns = turns
        self._on_activity = on_activity
        self.fault: LonghaulError | None = None
        self._num_under_way = 0
        self._works: dict[bytes, _Work] = {}

    async def answer(self, ask: Ask) -> Answer:
        """The turn that `ask` asks for; the same request while the first still runs gets the same answer.

        Raises `Refusal`. A caller that is cancelled cancels the turn, unless another waits or comes within `LINGER_S`.
        """
        mark = ask.fingerprint()
        work = self._works.get(mark)
        if work is None:
            work = self._works[mark] = _Work(asyncio.create_task(self._turn(ask), name="gateway turn"))
            work.task.add_done_callback(functools.partial(self._done, mark, work))
        else:
            self.turns.counts["retries_joined"] += 1
        work.num_waiting += 1
        try:
            return await asyncio.shield(work.task)
        except asyncio.CancelledError:
            if work.task.cancelled():
                raise Refusal("failed", "the turn was cancelled") from None
            raise
        finally:
            work.num_waiting -= 1
            if not work.num_waiting and not work.task.done():
                asyncio.get_running_loop().call_later(LINGER_S, self._abandon, mark, work)

    def delivered(self, ask: Ask) -> None:
        """The agent has the answer: the same request is from now on a new one."""
        work = self._works.get(ask.fingerprint())
        if work is not None and work.task.done():
            del self._works[ask.fingerprint()]

    def broke(self, bug: Exception) -> Refusal:
        """A bug of ours is no fault of the agent's: what to tell it. Call it while the error is handled."""
        log.exception("a request of episode %s hit a bug", self.turns.terms.episode_id)
        return self._fail(LonghaulError(f"{type(bug).__name__}: {bug}", kind="bug"))

    async def close(self) -> None:
        """Cancel the turns under way."""
        tasks = [work.task for work in self._works.values()]
        self._works.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- below: one turn

    async def _turn(self, ask: Ask) -> Answer:
        self._check_room()
        standing = self.fault
        self._num_under_way += 1
        if self._num_under_way == 1:
            self._on_activity("generating")
        try:
            answer = await self.turns.play(ask)
        except (DeadlineError, GeneratorError) as error:
            raise self._fail(error) from error
        except Refusal:
            raise
        except Exception as error:
            raise self.broke(error) from error
        finally:
            self._num_under_way -= 1
            if not self._num_under_way:
                self._on_activity("executing")
        if self.fault is standing:  # it asked again, in whatever words, and was answered
            self.fault = None
        return answer

    # -- below: limits, faults, what is kept

    def _check_room(self) -> None:
        self.turns.check_open()
        if self._num_under_way >= min(MOST_AT_ONCE, self.turns.terms.max_turns - len(self.turns.done)):
            raise Refusal("busy", "as many turns of this episode run as may", retry_after_s=BUSY_RETRY_S)

    def _fail(self, error: LonghaulError) -> Refusal:
        self.turns.counts[f"faults_{error.label.replace('.', '_')}"] += 1
        self.fault = error
        if isinstance(error, GeneratorError) and error.kind == "full":
            return Refusal("busy", "the generators are busy", retry_after_s=error.retry_after_s or BUSY_RETRY_S)
        return Refusal("timeout" if isinstance(error, DeadlineError) else "failed", f"{error.label}: {error}")

    def _done(self, mark: bytes, work: _Work, _: asyncio.Task[Answer]) -> None:
        """A turn that gave no answer is not kept for a retry: the retry is a new try."""
        if (work.task.cancelled() or work.task.exception() is not None) and self._works.get(mark) is work:
            del self._works[mark]

    def _abandon(self, mark: bytes, work: _Work) -> None:
        if not work.num_waiting and not work.task.done():
            self.turns.counts["turns_abandoned"] += 1
            self._works.pop(mark, None)
            work.task.cancel()
