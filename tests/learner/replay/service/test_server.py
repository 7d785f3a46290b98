"""The replay buffer over real sockets and a real journal."""

import asyncio
import contextlib
import json
import resource

import numpy as np
import pytest
from msgspec import structs

from learner.replay.service.clock import SteadyClock
from learner.replay.service.server import ReplayServer
from protocol.config import Settings
from protocol.errors import ConfigError, JournalError, WireError
from protocol.membership.fence import Member
from protocol.messages import (
    NOT_SAMPLED,
    Batch,
    BatchDone,
    BatchDoneReply,
    BatchRequest,
    BatchWait,
    CheckpointMark,
    Fail,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseReply,
    LeaseRequest,
    Message,
    Pressure,
    ReplayStatus,
    ReplayStatusRequest,
    Submit,
    SubmitReply,
    TaskRef,
    Trajectory,
    Turn,
    VersionReady,
)
from protocol.sockets import Client, Keys
from tests.waiting import until

TASKS = [TaskRef(task_id=f"t{i}", source="micro", repository=f"r{i % 2}") for i in range(5)]


def settings(**changes) -> Settings:
    replay = {"group_size": 2, "batch": 4, "lease_s": 600} | changes.pop("replay", {})
    return Settings(**{"num_actors": 16, "steps": 3, "max_staleness": 1, "replay": replay} | changes)


def trajectory(lease: Lease, reward: float | None = None, num_tokens: int = 20, **changes) -> Trajectory:
    """An episode whose second half was sampled; members of a group differ in reward unless one is given."""
    reward = float(lease.member % 2) if reward is None else reward
    mask = (np.arange(num_tokens) >= num_tokens // 2).astype(np.uint8)
    fields = {
        "episode_id": lease.episode_id,
        "lease_id": lease.lease_id,
        "task_id": lease.task_id,
        "group_id": lease.group_id,
        "member": lease.member,
        "attempt": lease.attempt,
        "resolved": reward > 0.5,
        "reward": reward,
        "end_reason": "submitted",
        "turns": [Turn(start=num_tokens // 2, end=num_tokens)],
        "token_ids": np.arange(num_tokens, dtype=np.int32),
        "loss_mask": mask,
        "logprobs": np.where(mask == 1, np.float32(-0.5), np.float32(0)),
        "versions": np.where(mask == 1, np.int32(lease.version), np.int32(NOT_SAMPLED)),
        "started_at": 1.0,
        "finished_at": 3.0,
    }
    return Trajectory(**fields | changes)


@contextlib.asynccontextmanager
async def serving(run_dir, config=None, **arguments):
    run_dir.mkdir(exist_ok=True)
    server = ReplayServer(config or settings(), TASKS, f"ipc://{run_dir}/replay.sock", run_dir, None, **arguments)
    endpoint = await server.start()
    running = asyncio.create_task(server.run())
    try:
        async with Client(endpoint) as client:
            yield server, lambda message: client.request(message, timeout_s=60)
    finally:
        await server.stop()
        await running


async def lease(ask, capacity: int) -> list[Lease]:
    reply = await ask(LeaseRequest(actor="a", capacity=capacity))
    assert isinstance(reply, LeaseReply)
    return reply.leases


async def submit(ask, leased: Lease, **changes) -> str:
    reply: Message = await ask(Submit(actor="a", trajectory=trajectory(leased, **changes)))
    assert isinstance(reply, SubmitReply)
    return reply.status


async def test_a_run_from_first_lease_to_last_batch(tmp_path):
    async with serving(tmp_path) as (server, ask):
        for version in range(3):
            while isinstance(batch := await ask(BatchRequest(learner="l", version=version)), BatchWait):
                for leased in await lease(ask, 4):
                    assert await submit(ask, leased) == "accepted"
            assert isinstance(batch, Batch)
            assert batch.batch_id == version + 1
            assert len(batch.trajectories) == 4
            assert all(version - t.oldest_version <= 1 for t in batch.trajectories)
            assert all(t.token_ids.tolist() == list(range(20)) for t in batch.trajectories)
            assert isinstance(
                await ask(BatchDone(learner="l", batch_id=batch.batch_id, version=version + 1)), BatchDoneReply
            )
            await ask(VersionReady(version=version + 1))
        reply = await ask(LeaseRequest(actor="a", capacity=1))
        assert reply.done
        assert server.status()["trained"] == 12


async def test_leases_stop_at_the_staleness_bound_and_say_so(tmp_path):
    async with serving(tmp_path) as (_, ask):
        assert len(await lease(ask, 100)) == 8
        reply = await ask(LeaseRequest(actor="a", capacity=1))
        assert not reply.leases
        assert reply.waiting_for.startswith("staleness bound")
        status = await ask(ReplayStatusRequest())
        assert isinstance(status, ReplayStatus)
        assert status.waiting_for == reply.waiting_for
        assert status.metrics["running"] == 8


async def test_a_restart_brings_everything_back_once(tmp_path):
    async with serving(tmp_path) as (_, ask):
        first = await lease(ask, 8)
        for leased in first[:5]:
            await submit(ask, leased)
        batch = await ask(BatchRequest(learner="l", version=0))
    async with serving(tmp_path) as (server, ask):
        assert await submit(ask, first[0]) == "duplicate"
        again = await ask(BatchRequest(learner="l", version=0))
        assert [t.episode_id for t in again.trajectories] == [t.episode_id for t in batch.trajectories]
        beat = await ask(Heartbeat(actor="a", lease_ids=[first[5].lease_id, first[0].lease_id]))
        assert beat == HeartbeatReply(unknown=[first[0].lease_id])
        for leased in first[5:]:
            assert await submit(ask, leased) == "accepted"
        assert server.status()["accepted"] == 8


async def test_compaction_keeps_what_the_learner_may_fall_back_to(tmp_path):
    async with serving(tmp_path, settings(steps=9, checkpoint={"keep": 1})) as (_, ask):
        for version in range(4):
            while isinstance(batch := await ask(BatchRequest(learner="l", version=version)), BatchWait):
                for leased in await lease(ask, 4):
                    await submit(ask, leased)
            await ask(BatchDone(learner="l", batch_id=version + 1, version=version + 1))
            await ask(VersionReady(version=version + 1))
            if version in (1, 2):
                await ask(CheckpointMark(version=version + 1, path=f"c{version + 1}"))
    assert len(list((tmp_path / "journal").glob("*.log"))) == 2
    async with serving(tmp_path, settings(steps=9, checkpoint={"keep": 1})) as (_, ask):
        again = await ask(BatchRequest(learner="l", version=3))
        assert [t.episode_id for t in again.trajectories] == [t.episode_id for t in batch.trajectories]
        assert (await ask(BatchRequest(learner="l", version=2))).batch_id == 3
        with pytest.raises(WireError, match="forgotten"):
            await ask(BatchRequest(learner="l", version=1))


async def test_a_journal_that_grows_without_checkpoints_loses_what_no_batch_needs(tmp_path):
    """Groups without signal are never trained on: their tokens need not stay."""

    def segments():
        return list((tmp_path / "journal").glob("*.log"))

    async with serving(tmp_path, snapshot_bytes=1) as (server, ask):
        kept = await lease(ask, 2)
        for leased in kept:
            await submit(ask, leased)
        await until(lambda: len(segments()) == 2)
        for _ in range(20):
            for leased in await lease(ask, 2):
                await submit(ask, leased, reward=0.0, num_tokens=2000)
        await until(lambda: sum(path.stat().st_size for path in segments()) < server.journal.end / 2)
        accepted = server.status()["accepted"]
    async with serving(tmp_path) as (server, ask):
        assert server.status()["accepted"] == accepted == 42
        for leased in await lease(ask, 2):
            await submit(ask, leased)
        batch = await ask(BatchRequest(learner="l", version=0))
        assert {leased.episode_id for leased in kept} <= {t.episode_id for t in batch.trajectories}


async def test_the_speed_of_answers_is_among_the_metrics(tmp_path):
    async with serving(tmp_path) as (server, ask):
        assert server.status()["submissions_per_s"] == server.status()["lease_p99_ms"] == 0
        for leased in await lease(ask, 3):
            await submit(ask, leased)
        status = await ask(ReplayStatusRequest())
        assert 0 < status.metrics["submissions_per_s"] <= 3
        assert 0 < status.metrics["lease_p50_ms"] <= status.metrics["lease_p99_ms"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"logprobs": np.full(20, np.nan, np.float32)}, "replay.not_finite"),
        ({"logprobs": np.zeros(19, np.float32)}, "replay.arrays"),
        ({"token_ids": np.zeros(20, np.int64)}, "replay.arrays"),
        ({"versions": np.full(20, 9, np.int32), "loss_mask": np.ones(20, np.uint8)}, "replay.future_version"),
        ({"versions": np.full(20, NOT_SAMPLED, np.int32)}, "replay.mask"),
        (
            {"versions": np.full(20, NOT_SAMPLED, np.int32), "loss_mask": np.zeros(20, np.uint8)},
            "replay.no_sampled_token",
        ),
        ({"lease_id": "g99/0#1"}, "replay.unknown_lease"),
        ({"lease_id": "../../etc"}, "replay.unknown_lease"),
        ({"task_id": "another"}, "replay.mismatch"),
        ({"turns": [Turn(start=5, end=99)]}, "replay.turns"),
        ({"segment_starts": np.array([0, 5], np.int32)}, "replay.segments"),
        (
            {"segment_starts": np.array([0, 5], np.int32), "segment_parents": np.array([-1, 7], np.int32)},
            "replay.segments",
        ),
        ({"reward": float("nan")}, "replay.not_finite"),
        ({"finished_at": float("inf")}, "replay.not_finite"),
    ],
)
async def test_bad_submissions_are_refused_counted_and_disturb_nothing(tmp_path, change, kind):
    async with serving(tmp_path) as (server, ask):
        leased = (await lease(ask, 1))[0]
        with pytest.raises(WireError) as error:
            await ask(Submit(actor="a", trajectory=trajectory(leased, **change)))
        assert error.value.kind == kind
        assert server.status()[f"refused.{kind}"] == 1
        assert await submit(ask, leased) == "accepted"


async def test_second_learner_unknown_message_and_versions_from_the_future_are_refused(tmp_path):
    async with serving(tmp_path) as (_, ask):
        await ask(BatchRequest(learner="l", version=0))
        for message, kind in [
            (BatchRequest(learner="m", version=0), "replay.second_learner"),
            (BatchDone(learner="l", batch_id=1, version=1), "replay.unknown_batch"),
            (LeaseReply(leases=[]), "replay.unknown_type"),
            (Fail(actor="a", lease_id="g5/5#5", kind="k", reason=""), "replay.unknown_lease"),
            (LeaseRequest(actor="a", capacity=-1), "replay.capacity"),
        ]:
            with pytest.raises(WireError) as error:
                await ask(message)
            assert error.value.kind == kind


async def test_a_failed_member_is_leased_again_and_its_group_waits(tmp_path):
    async with serving(tmp_path, settings(max_staleness=0)) as (server, ask):
        first = await lease(ask, 4)
        await ask(Fail(actor="a", lease_id=first[0].lease_id, kind="sandbox.died", reason="gone"))
        for leased in first[1:]:
            await submit(ask, leased)
        assert isinstance(await ask(BatchRequest(learner="l", version=0)), BatchWait)
        again = (await lease(ask, 4))[0]
        assert (again.episode_id, again.attempt) == (first[0].episode_id, 2)
        assert await submit(ask, first[0]) == "late"
        assert await submit(ask, again) == "accepted"
        assert len((await ask(BatchRequest(learner="l", version=0))).trajectories) == 4
        assert server.status()["ended.sandbox.died"] == 1


async def test_a_full_disk_stops_leases_says_so_and_resumes(tmp_path):
    """A limit on the size of files stands in for the disk: the kernel refuses the write in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving(tmp_path) as (server, ask):
        leased = (await lease(ask, 2))[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (server.journal.end + 100, hard))
        try:
            pending = asyncio.create_task(submit(ask, leased, num_tokens=2000))
            await until(lambda: "journal" in server.replay.waiting_for)
            assert not await lease(ask, 1)
            assert not pending.done(), "acknowledged without a journal"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await pending == "accepted"
        await until(lambda: not server.replay.waiting_for)
        assert await lease(ask, 1)
    async with serving(tmp_path) as (_, ask):
        assert await submit(ask, leased) == "duplicate"


async def test_a_step_of_the_clock_ends_no_lease(tmp_path):
    """Of the system's clock; the seconds that pass are another's."""
    wall, steady = [1.7e9], [0.0]
    async with serving(tmp_path, now=SteadyClock(lambda: wall[0], lambda: steady[0])) as (server, ask):
        leased = await lease(ask, 2)
        for step in (7200.0, -14400.0):
            wall[0] += step
            await ask(Heartbeat(actor="a", lease_ids=[leased[0].lease_id]))
            await asyncio.sleep(0.6)  # more than two ticks
            assert server.status()["running"] == 2
        steady[0] += 3600.0
        await until(lambda: server.status()["expired"] == 2)


async def test_a_damaged_journal_stops_the_start_and_is_skipped_by_choice(tmp_path):
    async with serving(tmp_path) as (server, ask):
        first = await lease(ask, 4)
        damaged = server.journal.end
        for leased in first:
            await submit(ask, leased)
    log = next((tmp_path / "journal").glob("*.log"))
    content = bytearray(log.read_bytes())
    content[damaged + 100] ^= 1
    log.write_bytes(content)
    with pytest.raises(JournalError, match=f"offset {damaged} "):
        async with serving(tmp_path):
            pass
    async with serving(tmp_path, settings(replay={"skip_corrupt": True})) as (server, ask):
        assert server.status()["accepted"] == 3
        assert await submit(ask, first[0]) == "accepted", "its lease is running again"


async def test_pressure_lowers_concurrency_and_is_named(tmp_path):
    async with serving(tmp_path) as (server, ask):
        assert len(await lease(ask, 8)) == 8
        assert (await ask(Pressure(source="g0", levels={"kv_cache": 1.2}))).limit == 16
        await until(lambda: server.replay.concurrency.limit == 6)
        reply = await ask(LeaseRequest(actor="a", capacity=1))
        assert "g0.kv_cache" in reply.waiting_for


async def test_the_next_stage_drops_what_the_last_one_showed(tmp_path):
    async with serving(tmp_path / "stage1", settings(replay={"curriculum": False, "keep_no_signal": True})) as (_, ask):
        for leased in await lease(ask, 8):
            await submit(ask, leased, reward=float(leased.task_id != "t0"))
        drawn = {t.task_id for t in (await ask(BatchRequest(learner="l", version=0))).trajectories}
    rates = tmp_path / "stage1" / "pass_rates.json"
    assert drawn <= json.loads(rates.read_text()).keys()
    told = json.loads((tmp_path / "stage1" / "tasks.json").read_text())
    assert told.keys() == {task.task_id for task in TASKS}
    assert all(state["chance"] == 1 / len(TASKS) for state in told.values())
    assert sum(state["runs"] for state in told.values()) == 8
    rule = {"pass_rates": rates, "drop_solved_above": 0.667, "drop_unsolved": True, "batch": 2}
    async with serving(tmp_path / "stage2", settings(replay=rule)) as (server, ask):
        left = {task.task_id for task in TASKS} - json.loads(rates.read_text()).keys()
        assert {leased.task_id for leased in await lease(ask, 4)} <= left
        assert server.status()["tasks_dropped"] == 5 - len(left)
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ConfigError, match="pass_rates"):
        async with serving(tmp_path / "stage3", settings(replay={"pass_rates": tmp_path / "none.json"})):
            pass


async def test_an_evaluation_gives_every_task_its_runs_and_ends(tmp_path):
    config = settings(phase="eval", eval={"runs": 3}, max_staleness=0)
    async with serving(tmp_path, config) as (server, ask):
        given = []
        while not (reply := await ask(LeaseRequest(actor="a", capacity=4))).done:
            assert reply.leases
            given += [leased.task_id for leased in reply.leases]
            for leased in reply.leases:
                await submit(ask, leased, reward=1.0)
        assert sorted(given) == sorted(task.task_id for task in TASKS for _ in range(3))
        assert server.status()["pass_rate"] == 1.0
        with pytest.raises(WireError, match="none needs another batch"):
            await ask(BatchRequest(learner="l", version=0))


async def test_a_member_that_keeps_failing_is_given_up_and_its_group_closes_short(tmp_path):
    config = settings(max_staleness=0, replay={"group_size": 4, "batch": 4, "max_attempts": 2})
    async with serving(tmp_path, config) as (server, ask):
        first = await lease(ask, 4)
        await ask(Fail(actor="a", lease_id=first[0].lease_id, kind="sandbox.died", reason=""))
        for leased in first[1:]:
            await submit(ask, leased)
        (again,) = await lease(ask, 4)
        await ask(Fail(actor="a", lease_id=again.lease_id, kind="sandbox.died", reason=""))
        batch = await ask(BatchRequest(learner="l", version=0))
        assert sorted(t.episode_id for t in batch.trajectories) == sorted(f.episode_id for f in first[1:])
        assert server.status()["groups_short"] == 1


async def test_a_learner_that_was_resumed_elsewhere_starts_at_its_version(tmp_path):
    async with serving(tmp_path, settings(steps=9)) as (_, ask):
        await ask(VersionReady(version=5))
        leases = await lease(ask, 100)
        assert {leased.version for leased in leases} == {5}
        assert len(leases) == 8
        for leased in leases[:4]:
            await submit(ask, leased)
        assert (await ask(BatchRequest(learner="l", version=5))).batch_id == 6
        with pytest.raises(WireError, match="cannot exist"):
            await ask(VersionReady(version=8))


async def test_nothing_of_an_actor_that_was_replaced_is_accepted(tmp_path):
    """Its lease is the newer process's to go on with: the same episode, submitted by both, is that one's."""
    keys = Keys.generate()
    of = [structs.replace(keys, member=Member("a", generation)) for generation in (0, 1)]
    server = ReplayServer(settings(), TASKS, "tcp://127.0.0.1:*", tmp_path, keys)
    endpoint = await server.start()
    running = asyncio.create_task(server.run())
    try:
        async with Client(endpoint, of[0]) as old, Client(endpoint, of[1]) as new:
            (leased,) = await lease(lambda message: old.request(message, timeout_s=60), 1)
            server.raise_fence("a", 1)
            for message in (
                Submit(actor="a", trajectory=trajectory(leased)),
                LeaseRequest(actor="a", capacity=1),
                VersionReady(version=1),
                BatchRequest(learner="l", version=0),
            ):
                with pytest.raises(WireError) as caught:
                    await old.request(message, timeout_s=60)
                assert caught.value.kind == "fenced"
            assert server.status()["accepted"] == 0
            assert await submit(lambda message: new.request(message, timeout_s=60), leased) == "accepted"
    finally:
        await server.stop()
        await running
