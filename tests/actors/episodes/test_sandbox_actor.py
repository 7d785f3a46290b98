"""The sandbox actor over real sockets, real sandboxes and real judgement; the model is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.agent.chat import ChatTokenizer
from actors.episodes.sandbox_actor import SandboxActor
from actors.policies.scripted import Script, ScriptedPolicy
from actors.policy import Policy, Request, Sampled
from protocol.config import Settings
from protocol.errors import SandboxError
from protocol.messages import NOT_SAMPLED, Lease
from sandbox.base import Backend, Sandbox, SandboxSpec
from sandbox.fake import FakeBackend, FakeSandbox
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task
from tests.actors.episodes.scripted_replay import ScriptedReplay, make_lease
from tests.waiting import LONG_S, until

TASKS = {task.task_id: task for task in make_tasks(4, seed=1, difficulty=0, split="train")}
FIRST = next(iter(TASKS))


def solution(task: Task) -> list[str]:
    """Turns of an agent that knows the answer."""
    path = next(line[6:] for line in task.gold_patch.splitlines() if line.startswith("+++ b/"))
    old, new = (
        next(line[1:] for line in task.gold_patch.splitlines() if line[0] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    commands = ["ls", f"open {path}", f"replace {path} '{old}' '{new}'", "submit"]
    return [f"```command\n{command}\n```" for command in commands]


def knows(*, solves: Callable[[int], bool] = lambda member: True) -> Script:
    """Solves the task whose issue it reads, for the members that `solves` picks; the others submit at once."""

    def script(episode_id: str, history: str, turn: int) -> str:
        task = next(task for task in TASKS.values() if task.issue in history)
        return solution(task)[turn] if solves(int(episode_id.rpartition("/")[2])) else "```command\nsubmit\n```"

    return script


class Held(ScriptedPolicy):
    """Knows, and says nothing to an episode of `held` before it is let; None: to none."""

    def __init__(self, tokenizer: ChatTokenizer, held: str | None = None) -> None:
        super().__init__(tokenizer, knows())
        self.let = asyncio.Event()
        self.waiting: set[str] = set()
        self._held = held

    async def generate(self, request: Request) -> Sampled:
        """See `ScriptedPolicy.generate`."""
        if self._held in (None, request.episode_id):
            self.waiting.add(request.episode_id)
            await self.let.wait()
        return await super().generate(request)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Bench(contextlib.AsyncExitStack):
    """An actor, its replay server and all that they need."""

    def __init__(self, tmp_path: Path, tokenizer: ChatTokenizer) -> None:
        super().__init__()
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir()
        self.endpoint = f"ipc://{tmp_path}/replay"
        self._tokenizer = tokenizer
        self._cache = tmp_path / "cache"

    async def start(
        self,
        leases: list[Lease],
        *,
        policy: Policy | None = None,
        backend: Backend | None = None,
        num_episodes: int = 8,
        heartbeat_s: float = 0.1,
        request_timeout_s: float = 10.0,
        settings: dict[str, object] | None = None,
        **replay: int,
    ) -> None:
        """Start both and leave them running."""
        self.backend = backend or FakeBackend("sandbox-actor-test")
        self.push_async_callback(self.backend.close)
        self.replay = ScriptedReplay(self.endpoint, leases, **replay)
        self.replay.start()
        self.push_async_callback(lambda: self.replay.stop())
        chosen = Settings.model_validate(
            {
                "tasks": {"cache_dir": self._cache},
                "actors": {"heartbeat_s": heartbeat_s, "trajectory_log_share": 1.0},
                "episode": {"max_turn_tokens": 400},
                **(settings or {}),
            }
        )
        policy = policy or ScriptedPolicy(self._tokenizer, knows())
        self.actor = SandboxActor(
            chosen,
            "actor-0",
            num_episodes,
            self.endpoint,
            policy,
            self.backend,
            TASKS,
            self._tokenizer,
            None,
            self.run_dir,
            request_timeout_s=request_timeout_s,
        )
        self.ended = asyncio.create_task(self.actor.run())
        self.push_async_callback(self.actor.stop)

    async def finish(self) -> None:
        """Until the actor says that its work is done."""
        async with asyncio.timeout(2 * LONG_S):
            await self.ended


@pytest.fixture
async def bench(tmp_path: Path, tokenizer: ChatTokenizer) -> AsyncIterator[Bench]:
    async with Bench(tmp_path, tokenizer) as bench:
        yield bench


async def test_episodes_of_evaluations_lie_apart_and_are_no_figures_of_training(bench: Bench) -> None:
    versions = {0: -1, 1: 3, 2: 3, 3: 6}
    await bench.start([make_lease(n, FIRST, version=7, evaluates=each) for n, each in versions.items()])
    await bench.finish()
    assert len(bench.replay.trajectories) == len(versions)
    written = {path: read_lines(path) for path in bench.run_dir.rglob("trajectories/*.jsonl")}
    found = {
        (str(path.parent.parent.relative_to(bench.run_dir)), r["member"]) for path, rs in written.items() for r in rs
    }
    apart = {("evaluations/version-3", 1), ("evaluations/version-3", 2), ("evaluations/version-6", 3)}
    assert found == {(".", 0)} | apart
    status = bench.actor.status()
    assert (status["episodes_finished"], status["episodes_held_out"]) == (1, 3)


async def test_episodes_are_run_judged_and_submitted_once(bench: Bench, tokenizer: ChatTokenizer) -> None:
    leases = [make_lease(n, task_id, version=5) for n, task_id in enumerate([*TASKS, *TASKS])]
    policy = ScriptedPolicy(tokenizer, knows(solves=lambda member: member % 2 == 0), version=6)
    await bench.start(leases, policy=policy)
    await bench.finish()

    assert sorted(t.episode_id for t in bench.replay.trajectories) == sorted(lease.episode_id for lease in leases)
    assert bench.replay.num_submissions == len(leases)
    assert bench.replay.failures == []
    for trajectory in bench.replay.trajectories:
        assert trajectory.resolved == (trajectory.member % 2 == 0), trajectory
        assert trajectory.reward == float(trajectory.resolved)
        assert trajectory.end_reason == "submitted"
        assert len(trajectory.turns) == (4 if trajectory.resolved else 1)
        sampled = trajectory.loss_mask == 1
        assert set(trajectory.versions[sampled].tolist()) == {6}
        assert set(trajectory.versions[~sampled].tolist()) == {NOT_SAMPLED}
        assert sum(t.end - t.start for t in trajectory.turns) == sampled.sum()
        assert trajectory.started_at <= trajectory.finished_at
    assert set(policy.salts.values()) == {"5"}

    status = bench.actor.status()
    assert status["episodes_finished"] == status["ended_submitted"] == 8
    assert status["episodes_running"] == status["episodes_failed"] == 0
    assert status["reward_mean"] == 0.5
    assert status["turns_mean"] == 2.5
    assert status["seconds_grading"] > 0
    assert status["host_memory_share"] > 0
    assert status["host_cpu_share"] >= 0


async def test_what_happened_can_be_read(bench: Bench) -> None:
    await bench.start([make_lease(0, FIRST)], settings={"phase": "eval"})
    await bench.finish()
    (record,) = read_lines(bench.run_dir / "trajectories/actor-0.jsonl")
    assert record["resolved"] is True
    assert record["end_reason"] == "submitted"
    assert [m["role"] for m in record["messages"]] == ["user", *["assistant", "tool"] * 4]
    assert record["messages"][0]["content"] == TASKS[FIRST].issue
    assert [m["content"] for m in record["messages"][1::2]] == solution(TASKS[FIRST])
    assert record["verdict"]["failed"] == []
    (prediction,) = read_lines(bench.run_dir / "predictions/actor-0.jsonl")
    assert prediction["instance_id"] == FIRST
    assert prediction["model_patch"] == record["patch"]
    assert [x for x in record["patch"].splitlines() if x[0] == "+"] == [
        x for x in TASKS[FIRST].gold_patch.splitlines() if x[0] == "+"
    ]


async def test_no_more_than_its_share_at_once_and_polite_waiting(bench: Bench) -> None:
    await bench.start([make_lease(n, FIRST) for n in range(9)], num_episodes=3, at_once=2)
    await bench.finish()
    assert len(bench.replay.trajectories) == 9
    assert bench.replay.most_open <= 3
    assert max(bench.replay.capacities) == 3
    assert bench.actor.status()["seconds_waiting_for_leases"] > 0


async def test_leases_are_kept_alive_while_episodes_run(bench: Bench, tokenizer: ChatTokenizer) -> None:
    policy = Held(tokenizer)
    await bench.start([make_lease(0, FIRST), make_lease(1, FIRST)], policy=policy)
    await until(lambda: bench.replay.heartbeats.count(["lease-0-0", "lease-1-0"]) >= 3)
    policy.let.set()
    await bench.finish()
    assert len(bench.replay.trajectories) == 2


async def test_an_episode_without_a_lease_is_dropped(bench: Bench, tokenizer: ChatTokenizer) -> None:
    policy = Held(tokenizer, "group/1")
    await bench.start([make_lease(0, FIRST), make_lease(1, FIRST)], policy=policy)
    await until(lambda: policy.waiting)
    bench.replay.unknown.add("lease-1-0")
    await bench.finish()
    assert [t.member for t in bench.replay.trajectories] == [0]
    assert bench.replay.failures == []
    assert bench.actor.status()["episodes_dropped"] == 1


async def test_a_submission_without_an_answer_is_sent_again(bench: Bench) -> None:
    await bench.start([make_lease(0, FIRST)], request_timeout_s=0.3)
    bench.replay.num_ignored_submissions = 2
    await bench.finish()
    assert bench.replay.num_submissions >= 3
    assert len(bench.replay.trajectories) == 1


async def test_a_lost_acknowledgement_makes_no_second_episode(bench: Bench) -> None:
    await bench.start([make_lease(0, FIRST)], request_timeout_s=0.3)
    bench.replay.num_lost_answers = 1
    await bench.finish()
    assert bench.replay.num_submissions >= 2
    assert len(bench.replay.trajectories) == 1
    assert bench.actor.status()["episodes_finished"] == 1
    assert len(read_lines(bench.run_dir / "trajectories/actor-0.jsonl")) == 1


async def test_a_late_episode_is_dropped(bench: Bench) -> None:
    await bench.start([make_lease(0, FIRST), make_lease(1, FIRST)])
    bench.replay.late.add("lease-1-0")
    await bench.finish()
    assert (bench.actor.status()["episodes_finished"], bench.actor.status()["episodes_dropped"]) == (1, 1)
    assert [r["member"] for r in read_lines(bench.run_dir / "trajectories/actor-0.jsonl")] == [0]


async def test_a_restarted_server_finds_its_actor_again(bench: Bench, tokenizer: ChatTokenizer) -> None:
    policy = Held(tokenizer)
    await bench.start([make_lease(n, FIRST) for n in range(6)], policy=policy, num_episodes=2, request_timeout_s=0.3)
    await until(lambda: bench.actor.status()["episodes_generating"] == 2)
    await bench.replay.stop()
    policy.let.set()
    await until(lambda: bench.actor.status()["episodes_submitting"] == 2)
    bench.replay.start()
    await bench.finish()
    assert sorted(t.member for t in bench.replay.trajectories) == list(range(6))


class Unlucky:
    """A backend whose first sandboxes cannot be started, or die under the agent."""

    name = "unlucky"

    def __init__(self, *, failing_starts: int = 0, dying: int = 0) -> None:
        self._inner = FakeBackend("unlucky")
        self._failing_starts = failing_starts
        self._dying = dying
        self.num_starting = self.most_starting = 0
        self.made: list[Sandbox] = []

    async def create(self, spec: SandboxSpec) -> Sandbox:
        self.num_starting += 1
        self.most_starting = max(self.most_starting, self.num_starting)
        try:
            await asyncio.sleep(0.05)
            if self._failing_starts > 0:
                self._failing_starts -= 1
                raise SandboxError("no space left on the host", kind="start")
            sandbox = await self._inner.create(spec)
            self.made.append(sandbox)
            if self._dying > 0:
                self._dying -= 1
                await sandbox.close()
            return sandbox
        finally:
            self.num_starting -= 1

    async def close(self) -> None:
        await self._inner.close()


async def test_failures_of_the_world_are_reported_and_are_no_reward(bench: Bench) -> None:
    backend = Unlucky(failing_starts=1, dying=1)
    leases = [make_lease(n, FIRST) for n in range(3)]
    await bench.start([*leases, make_lease(3, "no-such-task")], backend=backend, num_episodes=1)
    await bench.finish()
    assert [(f.lease_id, f.kind) for f in bench.replay.failures] == [
        ("lease-0-0", "sandbox.start"),
        ("lease-1-0", "sandbox.closed"),
        ("lease-3-0", "task.unknown"),
    ]
    assert "no space left" in bench.replay.failures[0].reason
    assert [(t.member, t.resolved) for t in bench.replay.trajectories] == [(2, True)]
    assert bench.actor.status()["failed_sandbox_start"] == 1


async def test_an_episode_without_a_turn_is_a_failure(bench: Bench, tokenizer: ChatTokenizer) -> None:
    short = msgspec.structs.replace(make_lease(0, FIRST), max_context=10)
    policy = ScriptedPolicy(tokenizer, knows(), latency_s=600)
    await bench.start([short, make_lease(1, FIRST)], policy=policy, settings={"episode": {"wall_time_s": 0.5}})
    await bench.finish()
    assert {(f.lease_id, f.kind) for f in bench.replay.failures} == {
        ("lease-0-0", "task.too_long"),
        ("lease-1-0", "deadline.wall_time"),
    }
    assert bench.replay.trajectories == []


async def test_a_broken_host_does_not_use_up_all_attempts(bench: Bench) -> None:
    await bench.start([make_lease(n, FIRST) for n in range(200)], backend=Unlucky(failing_starts=200), num_episodes=1)
    await until(lambda: len(bench.replay.failures) >= 2)
    await asyncio.sleep(1)
    assert len(bench.replay.failures) <= 12  # pauses of about 0.1, 0.2, 0.4, 0.8, 1.6 s between them


async def test_starts_at_the_same_time_are_bounded(bench: Bench) -> None:
    backend = Unlucky()
    await bench.start(
        [make_lease(n, FIRST) for n in range(8)], backend=backend, settings={"sandbox": {"max_starts": 2}}
    )
    await bench.finish()
    assert len(bench.replay.trajectories) == 8
    assert backend.most_starting <= 2 + 2  # gradings start sandboxes, too, under their own bound


async def test_a_bug_in_one_episode_harms_no_other(bench: Bench, tokenizer: ChatTokenizer) -> None:
    def script(episode_id: str, history: str, turn: int) -> str:
        if episode_id == "group/1":
            raise KeyError("oops")
        return knows()(episode_id, history, turn)

    await bench.start([make_lease(n, FIRST) for n in range(3)], policy=ScriptedPolicy(tokenizer, script))
    await bench.finish()
    assert [f.kind for f in bench.replay.failures] == ["longhaul.bug"]
    assert sorted(t.member for t in bench.replay.trajectories) == [0, 2]


async def test_stop_ends_everything_soon(bench: Bench, tokenizer: ChatTokenizer) -> None:
    policy = ScriptedPolicy(tokenizer, knows(), latency_s=600)
    backend = Unlucky()
    await bench.start([make_lease(n, FIRST) for n in range(5)], policy=policy, backend=backend)
    await until(lambda: bench.actor.status()["episodes_generating"] == 5)
    async with asyncio.timeout(LONG_S):
        await bench.actor.stop()
        await bench.ended
    assert bench.actor.status()["episodes_running"] == 0
    assert len(backend.made) == 5
    for sandbox in backend.made:
        with pytest.raises(SandboxError):
            await sandbox.exec(["true"], timeout=5)


@pytest.mark.parametrize("survive", [True, False])
async def test_what_is_half_done_at_a_stop_is_left_to_be_gone_on_with_if_it_is_to_survive(
    survive: bool, bench: Bench, tokenizer: ChatTokenizer
) -> None:
    policy = ScriptedPolicy(tokenizer, knows(), latency_s=600)
    await bench.start(
        [make_lease(n, FIRST) for n in range(3)], policy=policy, settings={"sandbox": {"survive_restart": survive}}
    )
    await until(lambda: bench.actor.status()["episodes_generating"] == 3)
    await bench.actor.stop()
    assert len(list(bench.run_dir.glob("episodes/*/*.journal"))) == (3 if survive else 0)


class CutOff(FakeBackend):
    """The connection to the first sandbox breaks when a file was written there; it lives on, and does not hear that it
    is to end."""

    def __init__(self) -> None:
        super().__init__("sandbox-actor-test")
        self.made: list[FakeSandbox] = []

    async def create(self, spec: SandboxSpec) -> FakeSandbox:
        sandbox = await super().create(spec)
        self.made.append(sandbox)
        if len(self.made) == 1:
            write, close = sandbox.write, sandbox.close

            async def cut(path: str, data: bytes, mode: int = 0o644) -> None:
                await write(path, data, mode)
                sandbox.close = unheard  # type: ignore[method-assign]
                raise SandboxError("the connection is gone", kind="lost")

            async def unheard() -> None:
                sandbox.close = close  # type: ignore[method-assign]

            sandbox.write = cut  # type: ignore[method-assign]
        return sandbox


async def test_a_sandbox_that_was_lost_is_not_gone_on_with_though_it_lives(bench: Bench) -> None:
    """It is further than the snapshot: what was forgotten would be done there twice."""
    backend = CutOff()
    await bench.start([make_lease(0, FIRST)], backend=backend, settings={"sandbox": {"survive_restart": True}})
    await bench.finish()
    (trajectory,) = bench.replay.trajectories
    assert trajectory.resolved
    lost, second, *_ = backend.made
    assert second.spec.lease == lost.spec.lease and second.spec.from_snapshot is not None
    assert lost not in backend.living


async def test_a_drained_actor_ends_what_it_has_and_takes_nothing_more(bench: Bench, tokenizer: ChatTokenizer) -> None:
    policy = Held(tokenizer)
    await bench.start([make_lease(n, FIRST) for n in range(50)], policy=policy, num_episodes=3)
    await until(lambda: len(policy.waiting) == 3)
    bench.actor.drain()
    policy.let.set()
    await bench.finish()
    assert len(bench.replay.trajectories) == 3
    assert not bench.replay.failures


async def test_an_actor_that_never_ran_can_be_stopped(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    policy, backend = ScriptedPolicy(tokenizer, knows()), FakeBackend("sandbox-actor-test")
    actor = SandboxActor(
        Settings(), "a", 1, f"ipc://{tmp_path}/nobody", policy, backend, TASKS, tokenizer, None, tmp_path
    )
    async with asyncio.timeout(LONG_S):
        await actor.stop()
    await backend.close()


async def test_real_namespaces(bench: Bench) -> None:
    backend = NamespaceBackend("sandbox-actor-test")
    capabilities = await backend.probe()
    if not capabilities.available:
        pytest.skip(f"no namespaces here: {capabilities.reason}")
    await bench.start([make_lease(n, task_id) for n, task_id in enumerate(TASKS)], backend=backend)
    await bench.finish()
    assert [t.resolved for t in bench.replay.trajectories] == [True] * len(TASKS)
