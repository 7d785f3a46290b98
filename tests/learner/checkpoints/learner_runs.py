"""Whole learners for tests: `python learner_runs.py JOB.json` forks the ranks and a replay server of one run by one.

Importing torch, transformers and DeepSpeed takes longer than the tests, so it happens once. A job is a list of runs:
{"name", "settings", "world", "batches_until", "kill_rank_after"}; the server answers with the batch `version` from a
seed until `batches_until`, then lets the learner wait; with `hold_marks` it acknowledges a checkpoint only after a
later step, and says that evaluations want the versions `wanted`. With `journal` it is the real replay buffer, which
random episodes fill. The writer of rank `full_disk` finds no space for version 2. Every process writes what became of
it to `NAME/`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError

from learner.checkpoints import checkpoint
from learner.checkpoints import writer as checkpoint_writer
from learner.rank import LearnerRank
from learner.replay.service.server import ReplayServer
from learner.training.model import import_deepspeed
from protocol.config import Settings
from protocol.messages import (
    Batch,
    BatchDone,
    BatchDoneReply,
    BatchRequest,
    BatchWait,
    CheckpointMark,
    CheckpointMarkReply,
    LeaseRequest,
    Submit,
    TaskRef,
    VersionReady,
    VersionReadyReply,
)
from protocol.sockets import Client, Peer, Server
from tests.ports import free_port
from tiny.trajectories import random_batch, random_trajectory

LENGTHS = [60, 90, 41, 120]


def batch_of(run: dict, version: int) -> Batch:
    rng = np.random.default_rng(version)
    if version in run.get("without_signal", []):
        trajectories = [random_trajectory(rng, n, member=i, resolved=True) for i, n in enumerate(LENGTHS)]
    else:
        trajectories = random_batch(rng, LENGTHS, group_size=2)
    return Batch(batch_id=version + 1, trajectories=trajectories)


def mark_reply(run: dict, version: int) -> CheckpointMarkReply:
    return CheckpointMarkReply(journal_offset=100 * version, wanted=tuple(run.get("wanted", ())))


async def serve(run: dict, folder: Path) -> None:
    """A replay server without a buffer."""
    log = (folder / "server.jsonl").open("a", buffering=1)
    server = Server(f"ipc://{folder}/replay")
    (folder / "listening").touch()
    held: list[tuple[Peer, int]] = []  # marks that wait for their answer
    done = 0
    async for peer, message in server:
        match message:
            case BatchRequest(version=version) if version < run.get("batches_until", 1000):
                await server.send(peer, batch_of(run, version))
            case BatchRequest():
                (folder / "waits").touch()
                await server.send(peer, BatchWait(retry_after_s=0.05, waiting_for="two more episodes"))
            case BatchDone():
                await server.send(peer, BatchDoneReply())
                log.write(json.dumps({"done": message.batch_id, "version": message.version}) + "\n")
                done = message.version
            case CheckpointMark():
                held.append((peer, message.version))
            case VersionReady():
                await server.send(peer, VersionReadyReply())
        for marker, version in list(held):
            if done > version or version == run["settings"]["steps"] or not run.get("hold_marks"):
                await server.send(marker, mark_reply(run, version))
                log.write(json.dumps({"mark": version}) + "\n")
                held.remove((marker, version))


async def serve_journal(run: dict, folder: Path) -> None:
    """The real buffer, and an actor whose episodes are random."""
    settings = Settings.model_validate(run["settings"])
    tasks = [TaskRef(task_id=f"t{i}", source="made", repository="r") for i in range(4)]
    server = ReplayServer(settings, tasks, f"ipc://{folder}/replay", folder)
    endpoint = await server.start()
    serving = asyncio.create_task(server.run())
    (folder / "listening").touch()
    rng = np.random.default_rng(0)
    async with Client(endpoint) as client:
        while not (reply := await client.request(LeaseRequest(actor="a", capacity=4), 60)).done:
            for lease in reply.leases:
                made = random_trajectory(rng, int(rng.integers(40, 120)), resolved=lease.member % 2 == 0)
                names = {name: getattr(lease, name) for name in ("episode_id", "lease_id", "task_id", "group_id")}
                names |= {"member": lease.member, "attempt": lease.attempt}
                trajectory = msgspec.structs.replace(made, **names)
                await client.request(Submit(actor="a", trajectory=trajectory), 60)
            await asyncio.sleep(0.05)
    await serving


def run_rank(run: dict, rank: int, port: int, folder: Path) -> None:
    outcome = {"error": "", "kind": ""}
    if run.get("full_disk") == rank:
        _fill_disk()
    learner = LearnerRank(
        Settings.model_validate(run["settings"]),
        rank,
        run["world"],
        "127.0.0.1",
        port,
        f"ipc://{folder}/replay",
        f"ipc://{folder}/weights",
        folder,
        run=f"learner-test-{os.getpid()}",
    )
    try:
        outcome["started_at"] = learner.start()
        (folder / f"started-{rank}").touch()
        learner.run()
    except Exception as error:
        outcome |= {"error": f"{type(error).__name__}: {error}", "kind": getattr(error, "kind", "")}
    outcome["status"] = learner.status()
    outcome |= {"version": learner.version, "waiting_for": learner.waiting_for, "records": learner.pop_records()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(outcome))


def _fill_disk() -> None:
    write = checkpoint_writer.save_file

    def fail(tensors: dict, path: Path, **options: object) -> None:
        if "step-2" in str(path):
            raise SafetensorError("No space left on device")
        write(tensors, path, **options)

    checkpoint_writer.save_file = fail


def forked(work, *arguments) -> int:
    if (pid := os.fork()) == 0:
        try:
            work(*arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    return pid


def wait_for(path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {path}"
        time.sleep(0.02)


def run_learner(run: dict, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "listening").unlink(missing_ok=True)
    port = free_port()
    serving = serve_journal if run.get("journal") else serve
    server = forked(lambda: asyncio.run(serving(run, folder)))
    ranks: list[int] = []
    try:
        wait_for(folder / "listening", 60)
        ranks = [forked(run_rank, run, rank, port, folder) for rank in range(run["world"])]
        if "kill_rank" in run:
            wait_for(checkpoint.directory(folder) / f"step-{run['kill_after']}" / "replay.json", 200)
            wait_for(folder / "waits", 200)  # all batches are trained
            os.kill(ranks[run["kill_rank"]], signal.SIGKILL)
        for pid in ranks:
            os.waitpid(pid, 0)
        ranks = []
    finally:
        for pid in [*ranks, server]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> None:
    job = Path(sys.argv[1])
    import_deepspeed()
    for run in json.loads(job.read_text()):
        run_learner(run, job.parent / run.get("folder", run["name"]))
        for outcome in (job.parent / run.get("folder", run["name"])).glob("rank-*.json"):
            outcome.rename(outcome.with_name(f"{run['name']}-{outcome.name}"))


if __name__ == "__main__":
    main()
