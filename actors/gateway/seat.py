"""One lease's place at the gateway: its turns under way, requests sent again, failures that are ours.

Where its turns have a journal with a past, it goes on as the seat of the process that wrote it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import Literal

from actors.agent.journal import Journal
from actors.gateway.asks import Answer, Ask, Refusal
from actors.gateway.journal import Faulted, Given, KeptAlive, Played, Refused
from actors.gateway.turns import Turns
from protocol.errors import DeadlineError, GeneratorError, LonghaulError

Activity = Literal["generating", "executing"]

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16  # turns of one episode under way (sub-agents)
LINGER_S = 2.0  # a turn nobody waits for any more goes on for so long: clients break off and ask again
BUSY_RETRY_S = 1.0


class _Work:
    """One turn under way, or answered and not yet delivered."""

    def __init__(self, task: asyncio.Future[Answer], connection: int | None) -> None:
        self.task, self.connection = task, connection
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
        self._told: dict[int, Answer | Refusal] = {}  # by an earlier process, or just about to be; by connection
        self._kept_alive: dict[int, int] = {}
        self._recall()

    async def answer(self, ask: Ask, connection: int | None = None) -> Answer:
        """The turn that `ask` asks for; the same request while the first still runs gets the same answer.

        Raises `Refusal`. A caller that is cancelled cancels the turn, unless another waits or comes within `LINGER_S`.

        Args:
            connection: that `ask` came over, where it is one that another process may be told of again.
        """
        if connection in self._told:
            told = self._told[connection]
            if isinstance(told, Refusal):
                raise told
            return told
        mark = ask.fingerprint()
        work = self._works.get(mark)
        if work is None:
            task = asyncio.create_task(self._turn(ask, connection), name="gateway turn")
            work = self._works[mark] = _Work(task, connection)
            work.task.add_done_callback(functools.partial(self._done, mark, work))
        else:
            self.turns.counts["retries_joined"] += 1
        work.num_waiting += 1
        try:
            answer = await asyncio.shield(work.task)
        except asyncio.CancelledError:
            if work.task.cancelled():
                raise Refusal("failed", "the turn was cancelled") from None
            raise
        except Refusal as refusal:
            if connection is not None:
                self._journal.add(Refused.of(connection, refusal, self.turns.ended))
            raise
        finally:
            work.num_waiting -= 1
            if not work.num_waiting and not work.task.done():
                asyncio.get_running_loop().call_later(LINGER_S, self._abandon, mark, work)
        if connection is not None and connection != work.connection:
            self._journal.add(Given(answer=answer.id, connection=connection))
        return answer

    def delivered(self, ask: Ask) -> None:
        """The agent has the answer: the same request is from now on a new one."""
        work = self._works.get(ask.fingerprint())
        if work is not None and work.task.done():
            del self._works[ask.fingerprint()]
            self._journal.add(Given(answer=work.task.result().id, connection=None))

    def kept_alive(self, connection: int | None) -> int:
        """How many keep-alives an earlier process sent over a stream that waits, or was just about to."""
        return 0 if connection is None else self._kept_alive.get(connection, 0)

    def keep_alive(self, connection: int | None, times: int) -> None:
        """The `times`-th keep-alive of a stream that waits is about to be sent."""
        if connection is not None:
            self._journal.add(KeptAlive(connection=connection, times=times))

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

    async def _turn(self, ask: Ask, connection: int | None) -> Answer:
        self._check_room()
        standing = self.fault
        self._num_under_way += 1
        if self._num_under_way == 1:
            self._on_activity("generating")
        try:
            answer = await self.turns.play(ask, connection)
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
        self._journal.add(Faulted.of(error, time.monotonic()))
        if isinstance(error, GeneratorError) and error.kind == "full":
            return Refusal("busy", "the generators are busy", retry_after_s=error.retry_after_s or BUSY_RETRY_S)
        return Refusal("timeout" if isinstance(error, DeadlineError) else "failed", f"{error.label}: {error}")

    @property
    def _journal(self) -> Journal:
        return self.turns.journal

    def _recall(self) -> None:
        """What an earlier process wrote; where it wrote nothing, this is a new seat."""
        answers: dict[str, tuple[bytes, Answer]] = {}  # of turns whose answer may not have been delivered, by its id
        fault_at = 0.0
        for entry in self._journal.past:
            match entry:
                case Played(connection=connection, answer=answer, refused=refused):
                    self.turns.recall(entry)
                    if connection is not None:
                        self._told[connection] = refused.refusal if refused is not None else answer
                    if refused is None:
                        answers[answer.id] = (entry.fingerprint, answer)
                        if entry.began_at >= fault_at:
                            self.fault = None
                case Refused(connection=connection):
                    self._told[connection] = entry.refusal
                    if entry.ended is not None:
                        self.turns.end(entry.ended)
                case Given(answer=name, connection=None):
                    answers.pop(name, None)
                case Given(answer=name, connection=int(connection)):
                    if name in answers:
                        self._told[connection] = answers[name][1]
                case KeptAlive(connection=connection, times=times):
                    self._kept_alive[connection] = times
                case Faulted():
                    self.fault, fault_at = entry.error, entry.at
        for mark, answer in answers.values():
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            future.set_result(answer)
            self._works[mark] = _Work(future, None)

    def _done(self, mark: bytes, work: _Work, _: asyncio.Future[Answer]) -> None:
        """A turn that gave no answer is not kept for a retry: the retry is a new try."""
        if (work.task.cancelled() or work.task.exception() is not None) and self._works.get(mark) is work:
            del self._works[mark]

    def _abandon(self, mark: bytes, work: _Work) -> None:
        if not work.num_waiting and not work.task.done():
            self.turns.counts["turns_abandoned"] += 1
            self._works.pop(mark, None)
            work.task.cancel()
