"""The real process, killed with SIGKILL while actors and a learner work: nothing acknowledged is lost or doubled."""

import asyncio
import contextlib
import random
import signal
import sys
import textwrap

import numpy as np
import pytest

from protocol.config import Settings
from protocol.errors import DeadlineError
from protocol.messages import (
    NOT_SAMPLED,
    Batch,
    BatchDone,
    BatchRequest,
    BatchWait,
    CheckpointMark,
    LeaseRequest,
    Submit,
    Trajectory,
    Turn,
    VersionReady,
)
from protocol.sockets import Client

SERVER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from learner.replay.service.server import ReplayServer
    from protocol.config import Settings
    from protocol.messages import TaskRef

    async def main(run_dir, settings):
        tasks = [TaskRef(task_id=f"t{i}", source="micro", repository="r") for i in range(9)]
        server = ReplayServer(settings, tasks, f"ipc://{run_dir}/replay.sock", run_dir, None)
        await server.start()
        await server.run()

    asyncio.run(main(Path(sys.argv[1]), Settings.model_validate_json(sys.argv[2])))
    """
)
NUM_KILLS = 4
SETTINGS = Settings(
    num_actors=64,
    steps=25,
    max_staleness=2,
    model={"max_context": 10_000},
    replay={"group_size": 2, "batch": 8, "lease_s": 2, "max_attempts": 1000, "fsync": "never"},
)


def trajectory(lease, num_tokens):
    mask = np.ones(num_tokens, np.uint8)
    mask[0] = 0
    return Trajectory(
        episode_id=lease.episode_id,
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        group_id=lease.group_id,
        member=lease.member,
        attempt=lease.attempt,
        resolved=bool(lease.member),
        reward=float(lease.member),
        end_reason="submitted",
        turns=[Turn(start=1, end=num_tokens)],
        token_ids=np.full(num_tokens, int(lease.group_id[1:]) * 2 + lease.member, np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        versions=np.where(mask == 1, np.int32(lease.version), np.int32(NOT_SAMPLED)),
        started_at=0.0,
        finished_at=1.0,
    )


class Run:
    """Actors and a learner that keep asking through every restart, and remember what they were told."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.acknowledged = {}  # lease id -> status
        self.trained = {}  # step -> episode ids
        self.done = False

    async def ask(self, client, message):
        while True:
            try:
                return await client.request(message, timeout_s=1)
            except DeadlineError:
                continue

    async def act(self, name):
        rng = random.Random(name)
        async with Client(self.endpoint) as client:
            while not self.done:
                reply = await self.ask(client, LeaseRequest(actor=name, capacity=4))
                for lease in reply.leases:
                    sent = Submit(actor=name, trajectory=trajectory(lease, rng.choice([10, 300, 9000])))
                    self.acknowledged[lease.lease_id] = (await self.ask(client, sent)).status
                if not reply.leases:
                    await asyncio.sleep(0.02)

    async def next_batch(self, client, version):
        while True:
            reply = await self.ask(client, BatchRequest(learner="l", version=version))
            if isinstance(reply, Batch):
                return reply
            assert isinstance(reply, BatchWait)
            await asyncio.sleep(0.02)

    async def learn(self):
        async with Client(self.endpoint) as client:
            for version in range(SETTINGS.steps):
                batch = await self.next_batch(client, version)
                for t in batch.trajectories:
                    assert t.token_ids.tolist() == [int(t.group_id[1:]) * 2 + t.member] * t.token_ids.size
                    assert version - t.oldest_version <= SETTINGS.max_staleness
                self.trained[version + 1] = [t.episode_id for t in batch.trajectories]
                await self.ask(client, BatchDone(learner="l", batch_id=version + 1, version=version + 1))
                await self.ask(client, VersionReady(version=version + 1))
                if version % 7 == 6:
                    await self.ask(client, CheckpointMark(version=version + 1, path="c"))
        self.done = True


async def start_server(run_dir):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(run_dir), SETTINGS.model_dump_json(), stderr=asyncio.subprocess.PIPE
    )


def journal_size(run_dir):
    return sum(path.stat().st_size for path in (run_dir / "journal").glob("*.log"))


async def grown(run_dir, size, work):
    """Until the journal has that many bytes; the poll is short, so that the kill hits a write now and then."""
    async with asyncio.timeout(100):
        while journal_size(run_dir) < size:
            assert not work.done(), "the run was over before its server was killed often enough"
            await asyncio.sleep(0.001)


@pytest.mark.slow
async def test_killed_at_random_journal_offsets(tmp_path):
    run = Run(f"ipc://{tmp_path}/replay.sock")
    process = await start_server(tmp_path)
    work = asyncio.gather(run.learn(), *(run.act(f"a{i}") for i in range(3)))
    rng = random.Random(7)
    try:
        for _ in range(NUM_KILLS):
            await grown(tmp_path, journal_size(tmp_path) + rng.randrange(1, 500_000), work)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            process = await start_server(tmp_path)
        await asyncio.wait_for(work, 200)
        async with Client(run.endpoint) as client:
            again = await run.next_batch(client, SETTINGS.steps - 1)
    finally:
        work.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert [t.episode_id for t in again.trajectories] == run.trained[SETTINGS.steps]
    trained = [episode for step in run.trained.values() for episode in step]
    assert len(trained) == len(set(trained)) == SETTINGS.steps * SETTINGS.replay.batch
    accepted = {lease.partition("#")[0] for lease, status in run.acknowledged.items() if status != "late"}
    assert accepted == set(trained), "what was acknowledged is trained on, and nothing else"
