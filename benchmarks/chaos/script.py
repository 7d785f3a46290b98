"""A policy without a model whose episodes tell, from their tokens alone, whether anything was lost or done twice."""

from __future__ import annotations

import asyncio
import random
import re

import numpy as np

from actors.agent.chat import ChatTokenizer
from actors.agent.tools import INTERRUPTED
from actors.policy import Request, Sampled
from protocol.messages import Trajectory
from sandbox.tasks.task import Task

NUM_TRACES = 4
_REPEATED = re.compile(r"repeated ([0-9]+)")


def turns_of(task: Task, member: int) -> list[str]:
    """Each command leaves a trace when it is run; the last but one counts those that were left twice. Members of even
    number solve the task, the others change something else."""
    path = next(line[6:] for line in task.gold_patch.splitlines() if line.startswith("+++ b/"))
    old, new = (
        next(line[1:] for line in task.gold_patch.splitlines() if line[0] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    work = f"replace {path} '{old}' '{new}'" if member % 2 == 0 else "create notes.txt\nnothing"
    traces = [f"echo {number} >> /tmp/trace; sleep 0.2" for number in range(NUM_TRACES)]
    commands = [*traces, work, "echo repeated $(sort /tmp/trace | uniq -d | wc -l)", "submit"]
    return [f"```command\n{command}\n```" for command in commands]


class TellingPolicy:
    """Knows the turn from the history alone, so that any process goes on with any episode."""

    def __init__(self, tokenizer: ChatTokenizer, tasks: list[Task], seed: int) -> None:
        self._tokenizer, self._tasks = tokenizer, tasks
        self._random = random.Random(seed)

    async def generate(self, request: Request) -> Sampled:
        """See `Policy.generate`."""
        history = self._tokenizer.decode(request.token_ids, keep_special=True)
        task = next(task for task in self._tasks if task.issue in history)
        turns = turns_of(task, int(request.episode_id.rpartition("/")[2]))
        turn = sum(text in history for text in turns)
        await asyncio.sleep(self._random.uniform(0.05, 0.3))
        ids = np.append(self._tokenizer.encode(turns[turn]), np.int32(request.stop_token_ids[0]))
        return Sampled(
            token_ids=ids,
            logprobs=expected_logprobs(len(ids), turn),
            versions=np.full(len(ids), int(request.cache_salt), np.int32),
            finish_reason="stop",
        )

    async def close(self) -> None:
        """Nothing is open."""


def expected_logprobs(count: int, turn: int) -> np.ndarray:
    """float32 [count]: another number for every token of an episode."""
    values: np.ndarray = -np.arange(1, count + 1, dtype=np.float32) / (turn + 1)
    return values


def faults_of(trajectory: Trajectory, task: Task, tokenizer: ChatTokenizer) -> dict[str, int]:
    """What is wrong with an episode: `turns_repeated`, `turns_lost`, `fake_zero_rewards`; all 0 if nothing is."""
    turns = turns_of(task, trajectory.member)
    expected = [np.append(tokenizer.encode(text), tokenizer.stop_token_ids[0]) for text in turns]
    intact = len(trajectory.turns) == len(expected) and all(
        np.array_equal(trajectory.token_ids[turn.start : turn.end], ids)
        and np.array_equal(trajectory.logprobs[turn.start : turn.end], expected_logprobs(len(ids), number))
        for number, (turn, ids) in enumerate(zip(trajectory.turns, expected, strict=True))
    )
    text = tokenizer.decode(trajectory.token_ids)
    repeated = sum(int(found) for found in _REPEATED.findall(text))
    # who was interrupted while it solved the task may not have solved it
    should_solve = trajectory.member % 2 == 0 and INTERRUPTED not in text
    return {
        "turns_repeated": repeated,
        "turns_lost": int(not intact),
        "fake_zero_rewards": int(should_solve and not trajectory.resolved),
    }
