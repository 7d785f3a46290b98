"""Parts of a run without a model under faults every few seconds, so that there are many of them.

Sandbox actors, their keeper and the replay buffer are processes of their own, killed (SIGKILL) or stopped (SIGSTOP,
then killed or going on) under a seed and started again here; now and then the disk is full, others take the
processors, the Docker daemon is gone, or the wall clock is wrong. A learner without a model takes the batches. The
policy is a script whose tokens tell whether a turn was lost or a command was run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil

from actors.agent.chat import ChatTokenizer
from benchmarks.chaos.bad_hours import without_daemon, without_processors, without_space
from benchmarks.chaos.boxes import Boxes, NamespaceBoxes
from benchmarks.chaos.part import endpoint_of, run_of
from benchmarks.chaos.script import faults_of
from benchmarks.chaos.wall_clock import WallClock
from protocol.config import Settings
from protocol.errors import DeadlineError, WireError
from protocol.messages import Batch, BatchDone, BatchRequest, Message, ReplayStatus, ReplayStatusRequest, VersionReady
from protocol.sockets import Client
from sandbox.datasets.loading import load_tasks
from sandbox.owners import keeper_of
from tiny.model import build_tokenizer

ROOT = Path(__file__).parents[2]
PARTS = ("replay", "sandbox-actor-0", "sandbox-actor-1")
VICTIMS = (*(f"sandbox-actor-{i}" for i in (0, 1, 0, 1)), "replay", "keeper", "sandbox")
BAD_HOURS = {"disk": "full", "processors": "taken", "daemon": "gone", "clock": "two hours wrong"}
_STOPPED_S = 20.0  # a stop that is no death
_LONG_STOPS = 0.05  # share of them
_GRADING_S = 3.0  # longest wait for an actor that grades
_BAD_HOUR_S = (2.0, 6.0)
_CLOCK_STEP_S = 7200
_BAD_HOURS = 0.06  # share of them
READY_S = 120.0
SETTLE_S = 120.0


class Chaos:
    """One run with its faults.

    Args:
        boxes: its sandboxes; default: in namespaces.

    Attributes:
        recoveries: seconds from a fault until the part worked again, by role.
        counts: everything that is counted.
    """

    def __init__(self, directory: Path, seed: int, boxes: Boxes | None = None) -> None:
        self._boxes = boxes or NamespaceBoxes()
        self.recoveries: defaultdict[str, list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._directory = directory
        self._clock = WallClock(directory)
        self._random = random.Random(seed)
        self._not_ours = set(psutil.Process().children(recursive=True))
        self.throughput_share: float | None = None
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._seen: Counter[str] = Counter()  # episodes that came in batches
        build_tokenizer().save_pretrained(directory / "tokenizer")
        self._tokenizer = ChatTokenizer.load(directory / "tokenizer")
        self.settings = Settings.model_validate(
            {
                "run_dir": str(directory),
                "num_actors": 8,
                "steps": 10**6,
                "seed": seed,
                "tasks": {"source": "micro", "count": 6},
                "actors": {"heartbeat_s": 1.0, "trajectory_log_share": 0.0},
                "episode": {"max_turn_tokens": 400, "max_turns": 12},
                "model": {"max_context": 3000},
                "replay": {"group_size": 4, "batch": 8, "lease_s": 30},
                "sandbox": self._boxes.settings | {"share_verdicts": False},
            }
        )
        self._tasks = {task.task_id: task for task in load_tasks(self.settings.tasks)}
        (directory / "settings.json").write_text(self.settings.model_dump_json())

    async def run(self, seconds: float, every_s: float, compare_s: float = 0.0) -> ReplayStatus:
        """Faults for so long, then quiet; what the buffer says at the end.

        Args:
            compare_s: before that, so long without faults and so long with one every ten seconds, twice in turn.
        """
        learning = None
        await self._boxes.open()
        try:
            for name in PARTS:
                await self._start(name)
            learning = asyncio.create_task(self._learn(), name="learner")
            if compare_s:
                rates = [await self._rate(compare_s, 10.0 * (number % 2)) for number in range(4)]
                self.throughput_share = (rates[1] + rates[3]) / (rates[0] + rates[2])
            await self._strike_for(seconds, every_s)
            before = (await self._status()).metrics["accepted"]
            quiet = time.monotonic() + SETTLE_S
            while (await self._status()).metrics["accepted"] < before + 8:  # it works on, after all that
                if time.monotonic() > quiet:
                    raise DeadlineError("no episode was finished after the last fault", kind="chaos")
                await asyncio.sleep(0.5)
            return await self._status()
        finally:
            if learning is not None:
                learning.cancel()
                await asyncio.wait([learning])
            await self._end()

    async def _strike_for(self, seconds: float, every_s: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * every_s)
            if self._random.random() < _BAD_HOURS:
                await self._bad_hour(self._random.choice(self._may_lack()))
            else:
                await self._strike(self._random.choice(VICTIMS))

    async def _rate(self, seconds: float, every_s: float) -> float:
        """Episodes finished a second, without faults or with one every so often."""
        before, began = (await self._status()).metrics["accepted"], time.monotonic()
        if every_s:
            await self._strike_for(seconds, every_s)
        else:
            await asyncio.sleep(seconds)
        return ((await self._status()).metrics["accepted"] - before) / (time.monotonic() - began)

    async def _strike(self, victim: str) -> None:
        how = self._random.choice(("killed", "killed", "stopped"))
        began = time.monotonic()
        if victim == "sandbox":
            if not await self._boxes.kill_one(run_of(self._directory), self._random):
                return
            self.counts["sandboxes_killed"] += 1
            how = "killed"
        elif self._random.random() < _LONG_STOPS and victim != "keeper":
            how = "stopped for 20 s"
            self._processes[victim].send_signal(signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_S)
            self._processes[victim].send_signal(signal.SIGCONT)
        elif victim == "keeper":
            keeper = keeper_of(run_of(self._directory))
            if keeper is None or self._random.random() < 0.7:  # it costs every half-done episode
                return
            os.kill(keeper.pid, signal.SIGKILL)
            how = "killed"
            while (found := keeper_of(run_of(self._directory))) is None or found.pid == keeper.pid:
                if time.monotonic() - began > READY_S:
                    raise DeadlineError("no new keeper was started", kind="chaos")
                await asyncio.sleep(0.05)
            self.recoveries["keeper"].append(time.monotonic() - began)
        else:
            process = self._processes[victim]
            if how == "stopped":
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self._random.uniform(0.5, 2.0))
            elif victim != "replay" and self._random.random() < 0.3 and await self._grades(victim):
                how = "killed while it grades"
            if victim != "replay":
                self.counts["interrupted"] += len(list(self._directory.glob(f"episodes/{victim}/*.journal")))
            process.kill()
            await process.wait()
            began = time.monotonic()
            await self._start(victim)
            self.recoveries["replay" if victim == "replay" else "actor"].append(time.monotonic() - began)
        self.kinds[f"{victim.rstrip('-01')} {how}"] += 1
        self.counts["faults"] += 1

    def _may_lack(self) -> list[str]:
        """What can be taken away from this run: space only from a disk of its own, a daemon only where there is one."""
        there = {"disk": self._directory.is_mount(), "daemon": self._boxes.door is not None}
        return [name for name in BAD_HOURS if there.get(name, True)]

    async def _bad_hour(self, lacking: str) -> None:
        """Nothing dies; once it is over, an episode is finished again."""
        seconds = self._random.uniform(*_BAD_HOUR_S)
        match lacking:
            case "processors":
                await without_processors(seconds)
            case "disk":
                await without_space(self._directory, seconds)
            case "daemon":
                assert self._boxes.door is not None
                await without_daemon(self._boxes.door, seconds)
            case _:
                await self._clock.be_wrong_by(self._random.choice((-1, 1)) * _CLOCK_STEP_S, seconds)
        before, began = (await self._status()).metrics["accepted"], time.monotonic()
        while (await self._status()).metrics["accepted"] == before:
            if time.monotonic() - began > READY_S:
                raise DeadlineError(f"no episode was finished after {lacking} came back", kind="chaos")
            await asyncio.sleep(0.05)
        self.recoveries[lacking].append(time.monotonic() - began)
        self.kinds[f"{lacking} {BAD_HOURS[lacking]}"] += 1
        self.counts["faults"] += 1

    async def _grades(self, victim: str) -> bool:
        """Wait, not for long, until an episode's patch is taken and its verdict not written down."""
        until = time.monotonic() + _GRADING_S
        while time.monotonic() < until:
            for path in self._directory.glob(f"episodes/{victim}/*.journal"):
                with contextlib.suppress(OSError):
                    data = path.read_bytes()
                    if data.rfind(b"Taken") > data.rfind(b"Judged"):
                        return True
            await asyncio.sleep(0.01)
        return False

    async def _start(self, name: str) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.chaos.part", name),
                *(str(self._directory / "settings.json"), str(self._directory / "tokenizer")),
                cwd=ROOT,
                env=os.environ | self._clock.environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._processes[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
        if line != b"ready\n":
            raise RuntimeError(f"{name} did not start; see {self._directory / name}.log")

    async def _learn(self) -> None:
        """Take batches as a learner does, and look at what is in them. Waits for the buffer; cancelling ends it."""
        version = 0
        async with Client(endpoint_of(self._directory)) as client:
            while True:
                reply = await _ask(client, BatchRequest(learner="learner", version=version))
                if not isinstance(reply, Batch):
                    await asyncio.sleep(0.2)
                    continue
                for trajectory in reply.trajectories:
                    self._seen[trajectory.episode_id] += 1
                    self.counts.update(faults_of(trajectory, self._tasks[trajectory.task_id], self._tokenizer))
                version += 1
                await _ask(client, BatchDone(learner="learner", batch_id=reply.batch_id, version=version))
                await _ask(client, VersionReady(version=version))

    async def _status(self) -> ReplayStatus:
        async with Client(endpoint_of(self._directory)) as client:
            reply = await _ask(client, ReplayStatusRequest())
        assert isinstance(reply, ReplayStatus)
        return reply

    async def _end(self) -> None:
        """Kill everything, the keeper last; whatever is left of it then is counted."""
        started = [child for child in psutil.Process().children(recursive=True) if child not in self._not_ours]
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
        keeper = keeper_of(run_of(self._directory))
        if keeper is not None:
            held = psutil.Process(keeper.pid)
            started += [held, *held.children(recursive=True)]
            held.terminate()
        _, alive = await asyncio.to_thread(psutil.wait_procs, started, 20)
        self._clock.close()
        self.counts["orphans"] = len(alive) + await self._boxes.close(run_of(self._directory))

    def figures(self, status: ReplayStatus) -> dict[str, float | None]:
        """What came of it. An actor's interrupted episodes either went on or failed as `sandbox.lost`."""
        seen = status.metrics
        ended = {name.removeprefix("ended."): n for name, n in seen.items() if name.startswith("ended.")}
        filtered = sum(n for name, n in seen.items() if name.startswith("filtered."))
        lost = ended.get("sandbox.lost", 0.0) + ended.get("lease.expired", 0.0)
        return {
            "faults": self.counts["faults"],
            "kinds": len(self.kinds),
            "episodes_leased": seen["leased"],
            "lost": seen["leased"] - seen["accepted"] - seen["failed"] - seen["expired"] - seen["running"],
            "untold": seen["accepted"] - seen["trained"] - filtered - seen["collected"] - _in_hand(seen),
            "trained_twice": sum(count - 1 for count in self._seen.values()),
            "fake_zero_rewards": self.counts["fake_zero_rewards"],
            "turns_repeated": self.counts["turns_repeated"],
            "turns_lost": self.counts["turns_lost"],
            "orphans": self.counts["orphans"],
            "throughput_share": self.throughput_share,
            "continued_share": 1 - lost / self.counts["interrupted"] if self.counts["interrupted"] else None,
        }


def _in_hand(seen: dict[str, float]) -> float:
    """Trajectories of a batch that was formed and is not trained yet."""
    return (seen["batches_formed"] - seen["trained_version"]) * 8


async def _ask(client: Client, message: Message) -> Message:
    """Ask until it is answered: the buffer may be down just now."""
    until = time.monotonic() + READY_S
    while True:
        try:
            return await client.request(message, 2.0)
        except DeadlineError:
            if time.monotonic() > until:
                raise
        except WireError:
            raise
