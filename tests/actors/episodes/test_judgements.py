"""Equal changes are judged once; failures and tasks with flaky tests are not shared."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from actors.episodes.judgements import Judgements
from protocol.errors import SandboxError
from sandbox.judgement.grading import Verdict
from sandbox.patches import Change, Patch
from sandbox.tasks.task import Task

TASK = Task(task_id="t", source="s", repository="r", issue="", fail_to_pass=("a",))
PATCH = Patch(changes=(Change(path="a", kind="file", content=b"1"), Change(path="b", kind="deleted")))


class Judge:
    """Says yes, after a moment; `failures` times it fails first."""

    def __init__(self, failures: int = 0) -> None:
        self.asked = 0
        self._failures = failures

    async def __call__(self) -> Verdict:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.asked <= self._failures:
            raise SandboxError("lost", kind="lost")
        return Verdict(resolved=True, reason="", log=str(self.asked))


async def test_equal_changes_at_the_same_time_and_later_are_judged_once() -> None:
    judgements, judge = Judgements(), Judge()
    turned = msgspec.structs.replace(PATCH, changes=PATCH.changes[::-1], diff="another text")
    said = await asyncio.gather(*(judgements.of(TASK, patch, judge) for patch in (PATCH, turned, PATCH)))
    said.append(await judgements.of(TASK, PATCH, judge))
    assert {verdict.log for verdict in said} == {"1"}
    assert (judge.asked, judgements.num_shared) == (1, 3)


async def test_other_changes_and_other_tasks_are_judged_alone() -> None:
    judgements, judge = Judgements(), Judge()
    executable = Patch(changes=(msgspec.structs.replace(PATCH.changes[0], executable=True), PATCH.changes[1]))
    await judgements.of(TASK, PATCH, judge)
    await judgements.of(TASK, executable, judge)
    await judgements.of(msgspec.structs.replace(TASK, task_id="u"), PATCH, judge)
    assert judge.asked == 3


async def test_what_may_flake_is_judged_again() -> None:
    judgements, judge = Judgements(), Judge()
    task = msgspec.structs.replace(TASK, flaky=("a",))
    for _ in range(2):
        await judgements.of(task, PATCH, judge)
    assert judge.asked == 2


async def test_a_failed_judgement_is_its_own_and_the_others_go_on() -> None:
    judgements, judge = Judgements(), Judge(failures=1)
    said = await asyncio.gather(*(judgements.of(TASK, PATCH, judge) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in said] == [SandboxError, Verdict, Verdict]
    assert judge.asked == 2


async def test_a_cancelled_judgement_leaves_nobody_waiting() -> None:
    judgements, judge = Judgements(), Judge()
    first = asyncio.create_task(judgements.of(TASK, PATCH, judge))
    second = asyncio.create_task(judgements.of(TASK, PATCH, judge))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await asyncio.wait_for(second, 5)).resolved


async def test_a_verdict_that_time_ran_out_is_shared_with_nobody() -> None:
    judgements, asked = Judgements(), []

    async def late() -> Verdict:
        asked.append(1)
        await asyncio.sleep(0.01)
        return Verdict(resolved=False, reason="the tests did not end in time", failed=("a",))

    said = await asyncio.gather(*(judgements.of(TASK, PATCH, late) for _ in range(3)))
    assert len(said) == len(asked) == 3
    assert judgements.num_shared == 0
