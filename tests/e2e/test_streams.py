"""The streams without a model: real tasks, sandboxes, judgement and replay buffer; the policy is scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.agent.chat import ChatTokenizer
from actors.episodes.sandbox_actor import SandboxActor
from actors.policies.scripted import Script, ScriptedPolicy
from learner.replay.service.server import ReplayServer
from protocol.config import Settings
from protocol.messages import Batch, BatchDone, BatchRequest, BatchWait, VersionReady
from protocol.sockets import Client
from sandbox.datasets.loading import load_tasks
from sandbox.fake import FakeBackend
from sandbox.tasks.task import Task
from tiny.model import build_tokenizer

pytestmark = pytest.mark.e2e


def solution(task: Task) -> list[str]:
    path = next(line[6:] for line in task.gold_patch.splitlines() if line.startswith("+++ b/"))
    old, new = (
        next(line[1:] for line in task.gold_patch.splitlines() if line[0] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    return [f"```command\n{c}\n```" for c in (f"open {path}", f"replace {path} '{old}' '{new}'", "submit")]


def half_right(tasks: list[Task]) -> Script:
    """Even members solve their task, odd ones submit at once: every group carries signal."""
    turns = {task.issue: solution(task) for task in tasks}

    def script(episode_id: str, history: str, turn: int) -> str:
        even = int(episode_id.rpartition("/")[2]) % 2 == 0
        return next(t for issue, t in turns.items() if issue in history)[turn] if even else "```command\nsubmit\n```"

    return script


async def next_batch(endpoint: str, version: int) -> Batch:
    async with Client(endpoint) as client, asyncio.timeout(90):
        while True:
            reply = await client.request(BatchRequest(learner="learner", version=version), 60)
            if isinstance(reply, Batch):
                return reply
            assert isinstance(reply, BatchWait)
            await asyncio.sleep(reply.retry_after_s)


async def step_done(endpoint: str, batch: Batch, version: int) -> None:
    async with Client(endpoint) as client:
        await client.request(BatchDone(learner="learner", batch_id=batch.batch_id, version=version), 60)
        await client.request(VersionReady(version=version), 60)


@contextlib.asynccontextmanager
async def serving(settings: Settings, tasks: list[Task], directory: Path) -> AsyncIterator[str]:
    server = ReplayServer(settings, [task.ref for task in tasks], f"ipc://{directory}/replay", directory, None)
    endpoint = await server.start()
    running = asyncio.create_task(server.run())
    yield endpoint
    await server.stop()
    await asyncio.gather(running, return_exceptions=True)


async def test_batches_come_from_sandboxes_through_a_restart_of_the_buffer(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = ChatTokenizer.load(tmp_path / "tokenizer")
    settings = Settings.model_validate(
        {
            "num_actors": 16,
            "steps": 2,
            "tasks": {"count": 8, "cache_dir": tmp_path / "cache"},
            "episode": {"max_turn_tokens": 400},
            "replay": {"batch": 16, "group_size": 4},
            "actors": {"heartbeat_s": 0.2},
        }
    )
    tasks = load_tasks(settings.tasks)
    backend = FakeBackend("streams-test")
    actor = SandboxActor(
        settings,
        "actor-0",
        16,
        f"ipc://{tmp_path}/replay",
        ScriptedPolicy(tokenizer, half_right(tasks), latency_s=0.02),
        backend,
        {task.task_id: task for task in tasks},
        tokenizer,
        None,
        tmp_path,
        run="streams-test",
        request_timeout_s=1.0,
    )
    running = asyncio.create_task(actor.run())
    try:
        async with serving(settings, tasks, tmp_path) as endpoint:
            async with Client(endpoint) as client:
                await client.request(VersionReady(version=0), 60)
            first = await next_batch(endpoint, 0)
        async with serving(settings, tasks, tmp_path) as endpoint:
            again = await next_batch(endpoint, 0)  # not acknowledged before the restart: the same one
            await step_done(endpoint, again, 1)
            second = await next_batch(endpoint, 1)
    finally:
        await actor.stop()
        await asyncio.gather(running, return_exceptions=True)
        await backend.close()

    ids = [[t.episode_id for t in batch.trajectories] for batch in (first, again, second)]
    assert ids[0] == ids[1]
    assert len(set(ids[0]) | set(ids[2])) == 32  # whole batches, no episode in two of them
    for trajectory in (*first.trajectories, *second.trajectories):
        assert trajectory.resolved == (trajectory.member % 2 == 0)
        assert len(trajectory.turns) == (3 if trajectory.resolved else 1)
    assert actor.status()["episodes_failed"] == 0
