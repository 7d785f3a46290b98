"""Does one replay server on one core keep up with 100,000 actors, and how soon is it back after a crash?

The server runs in a process of its own, bound to one core, with its journal on disk (fsync every 50 ms); the load comes
from this process on the other cores. `submissions_per_s`: 32k-token trajectories, acknowledged, with up to 32 under
way; `leases_per_s`: leases asked for in packs of 64, as a sandbox actor with many free episodes does; `lease_p99_ms`:
one lease at a time for 512 actors that submit 2k-token trajectories; `memory_ratio`: growth of the server's memory over
the trajectories it holds; `submission_cpu_ms`: processor time of the server for one submission; `restart_s`: a server
with 10,000 trajectories in its journal is started until it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.report import parser, report
from learner.replay.service.server import ReplayServer
from protocol.config import Settings
from protocol.messages import (
    NOT_SAMPLED,
    Lease,
    LeaseReply,
    LeaseRequest,
    ReplayStatus,
    ReplayStatusRequest,
    Submit,
    SubmitReply,
    TaskRef,
    Trajectory,
    Turn,
)
from protocol.sockets import Client

NUM_ACTORS = 100_000
LONG, SHORT = 32_768, 2_048
TASKS = [TaskRef(task_id=f"t{i}", source="benchmark", repository=f"r{i % 12}") for i in range(2_000)]
SETTINGS = Settings(
    num_actors=NUM_ACTORS,
    max_staleness=0,
    model={"max_context": LONG},
    replay={"group_size": 8, "batch": NUM_ACTORS, "lease_s": 600, "keep_no_signal": True},
)
_TIMEOUT_S = 60.0


def trajectory(lease: Lease, num_tokens: int) -> Trajectory:
    """An episode of 40 turns, two thirds of its tokens observations."""
    turn = num_tokens // 40
    mask = (np.arange(num_tokens) % turn < turn // 3).astype(np.uint8)
    return Trajectory(
        episode_id=lease.episode_id,
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        group_id=lease.group_id,
        member=lease.member,
        attempt=lease.attempt,
        resolved=bool(lease.member % 2),
        reward=float(lease.member % 2),
        end_reason="submitted",
        turns=[Turn(start=i * turn, end=i * turn + turn // 3) for i in range(40)],
        token_ids=np.arange(num_tokens, dtype=np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        versions=np.where(mask == 1, np.int32(0), np.int32(NOT_SAMPLED)),
        started_at=0.0,
        finished_at=600.0,
    )


def serve(run_dir: Path, core: int, started: multiprocessing.Queue[float]) -> None:
    """The server's process. Says how long its start took, then serves until it is killed."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core})

    async def run() -> None:
        server = ReplayServer(SETTINGS, TASKS, f"ipc://{run_dir}/replay.sock", run_dir, None)
        began = time.perf_counter()
        await server.start()
        started.put(time.perf_counter() - began)
        await server.run()

    asyncio.run(run())


class ServerProcess:
    """A replay server in a process of its own; killed at the end, as a crash would."""

    def __init__(self, run_dir: Path, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        started: multiprocessing.Queue[float] = context.Queue()
        self.endpoint = f"ipc://{run_dir}/replay.sock"
        self._process = context.Process(target=serve, args=(run_dir, core, started), daemon=True)
        self._process.start()
        self.start_s = started.get(timeout=120)
        assert self._process.pid is not None
        self._ps = psutil.Process(self._process.pid)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self._ps.memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time used so far."""
        times = self._ps.cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()


@contextlib.asynccontextmanager
async def connected(endpoint: str, count: int) -> AsyncIterator[list[Client]]:
    """Some clients, as that many sandbox-actor processes would have."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(endpoint)) for _ in range(count)]


async def take(client: Client, actor: str, capacity: int) -> list[Lease]:
    """Ask for leases."""
    reply = await client.request(LeaseRequest(actor=actor, capacity=capacity), _TIMEOUT_S)
    assert isinstance(reply, LeaseReply)
    return reply.leases


async def give(client: Client, submitted: Trajectory) -> None:
    """Submit, until it is acknowledged."""
    reply = await client.request(Submit(actor="a", trajectory=submitted), _TIMEOUT_S)
    assert isinstance(reply, SubmitReply)
    assert reply.status == "accepted"


async def measure_leases(clients: Sequence[Client], count: int) -> tuple[float, list[Lease]]:
    """Leases per second, and the leases."""
    leases: list[Lease] = []

    async def ask(client: Client, number: int) -> None:
        while len(leases) < count:
            leases.extend(await take(client, f"a{number}", 64))

    began = time.perf_counter()
    await asyncio.gather(*(ask(client, i) for i, client in enumerate(clients)))
    return len(leases) / (time.perf_counter() - began), leases


async def measure_submissions(clients: Sequence[Client], leases: list[Lease], window: int) -> float:
    """Acknowledged 32k-token submissions per second; `window` of them are under way at any time."""
    waiting = list(leases)

    async def submit(client: Client) -> None:
        while waiting:
            await give(client, trajectory(waiting.pop(), LONG))

    began = time.perf_counter()
    await asyncio.gather(*(submit(clients[i % len(clients)]) for i in range(window)))
    return len(leases) / (time.perf_counter() - began)


async def measure_lease_latency(clients: Sequence[Client], seconds: float) -> float:
    """p99 of a lease's answer in ms, for 512 actors whose episodes take 1 to 3 s."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    rng = random.Random(0)

    async def act(client: Client) -> None:
        await asyncio.sleep(rng.uniform(0, 2))
        while time.perf_counter() < until:
            began = time.perf_counter()
            (lease,) = await take(client, "a", 1)
            latencies.append(time.perf_counter() - began)
            await asyncio.sleep(rng.uniform(1, 3))
            await give(client, trajectory(lease, SHORT))

    await asyncio.gather(*(act(clients[i % len(clients)]) for i in range(512)))
    return float(np.percentile(latencies, 99)) * 1000


async def fill(endpoint: str, count: int, num_tokens: int) -> None:
    """Put trajectories into a server."""
    async with connected(endpoint, 4) as clients:
        _, leases = await measure_leases(clients, count)
        waiting = leases[:count]

        async def submit(client: Client) -> None:
            while waiting:
                await give(client, trajectory(waiting.pop(), num_tokens))

        await asyncio.gather(*(submit(client) for client in clients * 4))


async def measure_server(server: ServerProcess, num_submissions: int, seconds: float) -> dict[str, float | None]:
    """Everything that a running server shows."""
    async with connected(server.endpoint, 8) as clients:
        latency_ms = await measure_lease_latency(clients, seconds)
        before = server.memory
        leases_per_s, leases = await measure_leases(clients, max(20_000, num_submissions))
        cpu_s = server.cpu_s
        submissions_per_s = await measure_submissions(clients, leases[:num_submissions], window=32)
        cpu_s = server.cpu_s - cpu_s
        status = await clients[0].request(ReplayStatusRequest(), _TIMEOUT_S)
        assert isinstance(status, ReplayStatus)
        payload = num_submissions * sum(a.nbytes for a in arrays(trajectory(leases[0], LONG)))
        return {
            "submissions_per_s": submissions_per_s,
            "submission_cpu_ms": cpu_s / num_submissions * 1000,
            "leases_per_s": leases_per_s,
            "lease_p99_ms": latency_ms,
            "memory_ratio": (server.memory - before) / payload,
            "unanswered_at_end": status.metrics["unanswered"],
        }


def arrays(of: Trajectory) -> list[np.ndarray]:
    """The arrays that travel as frames."""
    return [of.token_ids, of.loss_mask, of.logprobs, of.versions]


def main() -> None:
    """Measure and report."""
    flags = parser(__doc__)
    flags.add_argument("--dir", type=Path, help="directory of the journal (default: the system's temporary one)")
    flags.add_argument("--save", action="store_true", help="write benchmarks/results/replay.json")
    arguments = flags.parse_args()
    num_submissions, num_tokens = (1_500, SHORT) if arguments.quick else (6_000, LONG)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))
    root = Path(tempfile.mkdtemp(prefix="replay-", dir=arguments.dir))
    try:
        server = ServerProcess(root / "load", cores[0])
        try:
            figures = asyncio.run(measure_server(server, num_submissions, 8 if arguments.quick else 30))
        finally:
            server.kill()
        shutil.rmtree(root / "load")
        server = ServerProcess(root / "restart", cores[0])
        try:
            asyncio.run(fill(server.endpoint, 10_000, num_tokens))
        finally:
            server.kill()
        server = ServerProcess(root / "restart", cores[0])
        server.kill()
        figures["restart_s"] = server.start_s
    finally:
        shutil.rmtree(root)
        os.sched_setaffinity(0, set(cores))
    settings = {
        "submissions": num_submissions,
        "tokens_each": LONG,
        "restart_trajectories": 10_000,
        "restart_tokens_each": num_tokens,
        "fsync": SETTINGS.replay.fsync,
    }
    report("replay", figures, settings, save=arguments.save)


if __name__ == "__main__":
    main()
