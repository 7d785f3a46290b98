"""A run in which nine of ten sandboxes break for a while: what reaches the learner?

The buffer, the sandbox actor, the judge and the sandboxes are real; the policy knows every answer, and the learner only
looks at what it is given. Whatever arrives without a reward is a fake zero.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path
from typing import cast

from actors.agent.chat import ChatTokenizer
from actors.episodes.sandbox_actor import SandboxActor
from actors.policies.scripted import ScriptedPolicy
from benchmarks.data.outage import BrokenBackend
from learner.replay.service.server import ReplayServer
from protocol.config import Settings
from protocol.messages import Batch, BatchDone, BatchRequest, Message, Trajectory, VersionReady
from protocol.sockets import Client
from sandbox.base import Backend, Sandbox, SandboxSpec
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task

_MODEL = Path(__file__).parents[2] / "assets" / "tiny"
_NUM_TASKS, _NUM_EPISODES = 12, 8
_REQUEST_S, _DEADLINE_S = 20.0, 200.0


class SometimesBroken:
    """A backend whose sandboxes break while `broken` is set."""

    def __init__(self, inner: Backend, r: random.Random) -> None:
        self.name = inner.name
        self._inner, self._bad = inner, BrokenBackend(inner, r)
        self.broken = False

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """A sandbox. Raises `SandboxError` where it does not start."""
        if not self.broken:
            return await self._inner.create(spec)
        return await self._bad.create(spec)


async def run_with_outage(
    backend: Backend, folder: Path, outage_s: float, r: random.Random, least_failed: int = 0
) -> dict[str, int]:
    """Train one batch, break nine of ten sandboxes for `outage_s` and until that many attempts have failed, then train
    two more: `trained` trajectories reached the learner, `zeros` of them without a reward; `failed` attempts did not,
    and `set_aside` tasks were given up.

    Raises `TimeoutError` if the run does not come back.
    """
    tasks = {task.task_id: task for task in make_tasks(_NUM_TASKS, 0, 0, "train")}
    settings = Settings.model_validate(
        {
            "steps": 3,
            "max_staleness": 1,
            "num_actors": _NUM_EPISODES,
            "replay": {"group_size": 2, "batch": 8, "keep_no_signal": True, "curriculum": False},
            "tasks": {"cache_dir": folder / "cache"},
            "episode": {"max_turn_tokens": 400},
            "actors": {"trajectory_log_share": 0.0},
        }
    )
    place = SometimesBroken(backend, r)
    endpoint = f"ipc://{folder}/replay"
    server = ReplayServer(settings, [task.ref for task in tasks.values()], endpoint, folder)
    tokenizer = ChatTokenizer.load(_MODEL)
    policy = ScriptedPolicy(tokenizer, lambda _, history, turn: _answer(tasks, history)[turn])
    actor = SandboxActor(
        settings, "actor-0", _NUM_EPISODES, endpoint, policy, cast(Backend, place), tasks, tokenizer, None, folder
    )
    client = Client(endpoint, None)
    trained: list[Trajectory] = []
    await server.start()
    async with asyncio.timeout(_DEADLINE_S):
        serving, acting = asyncio.create_task(server.run()), asyncio.create_task(actor.run())
        try:
            first = await _batch(client, 1)
            place.broken = True  # before anybody may go on to what comes next
            trained += await _train(client, 1, first)
            policy.version = 1
            await asyncio.sleep(outage_s)
            while sum(server.account().audit.failed_by_kind.values()) < least_failed:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            place.broken = False
            for step in (2, 3):
                trained += await _train(client, step, await _batch(client, step))
                policy.version = step
            account = server.account()
        finally:
            await actor.stop()
            await client.close()
            await server.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(serving, acting)
    return {
        "trained": len(trained),
        "zeros": sum(trajectory.reward == 0 for trajectory in trained),
        "failed": sum(account.audit.failed_by_kind.values()),
        "set_aside": len(account.set_aside),
    }


async def _batch(client: Client, step: int) -> Batch:
    """The batch of a step, once there is one."""
    started = time.monotonic()
    while time.monotonic() - started < _DEADLINE_S:
        reply = await client.request(BatchRequest(learner="benchmark", version=step - 1), _REQUEST_S)
        if isinstance(reply, Batch):
            return reply
        await asyncio.sleep(0.1)
    raise TimeoutError(f"no batch for step {step} within {_DEADLINE_S:g} s")


async def _train(client: Client, step: int, batch: Batch) -> list[Trajectory]:
    """The buffer hears that it was trained and is served."""
    said: tuple[Message, ...] = (
        BatchDone(learner="benchmark", batch_id=step, version=step),
        VersionReady(version=step),
    )
    for message in said:
        await client.request(message, _REQUEST_S)
    return list(batch.trajectories)


def _answer(tasks: dict[str, Task], history: str) -> list[str]:
    """The turns of an agent that knows the gold change of the task whose issue it reads."""
    task = next(task for task in tasks.values() if task.issue in history)
    lines = task.gold_patch.splitlines()
    path = next(line[6:] for line in lines if line.startswith("+++ b/"))
    old, new = (next(line[1:] for line in lines if line[0] == sign and line[:3] != 3 * sign) for sign in "-+")
    return [f"```command\n{command}\n```" for command in (f"replace {path} '{old}' '{new}'", "submit")]
