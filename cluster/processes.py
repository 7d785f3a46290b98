"""The processes of a run as Ray actors: thin shells that say where output goes and how a part is made.

Each shell has `start`, `run` (waits for its part to end: the run is over, or `stop` was called), `status` and `stop`.
Heavy imports happen inside, so that placing a process never loads torch into the launcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster import run_files
from cluster.run_files import RunFiles
from protocol.config import Settings
from protocol.membership import fence
from protocol.messages import TaskRef
from protocol.sockets import Keys

if TYPE_CHECKING:
    from learner.held_out import Evaluation
    from learner.replay.service.account import Account, News


OWN_HOST = "own-host"
"""In an endpoint: the address under which Ray knows the host on which the process came to run."""
_LOOK_S = 1.0


class _Process:
    """Output of this process goes to `logs/<name>.log`."""

    does = ""  # in a few words

    def __init__(self, name: str, settings: Settings, files: RunFiles, keys: Keys | None) -> None:
        self.name, self.settings, self.files, self.keys = name, settings, files, keys
        self._since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        log = os.open(files.logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        self._held = run_files.hold(files, name)
        run_files.name_semaphores(files)
        fence.when_replaced(self._end_replaced)
        if keys is not None:  # of several hosts: this one's reaper ends what it finds by its files, and dies last
            threading.Thread(target=self._end_without_reaper, name="reaper watch", daemon=True).start()

    def __repr__(self) -> str:
        """In the column Repr of Ray's dashboard. Ray asks once, when the process is made: what it does later is on the
        console's page Fleet."""
        return f"{self.name}, {self.does}, since {self._since}"

    def _memory(self, *, with_children: bool = False) -> dict[str, float]:
        """Resident bytes of this process; what it shares with others counts for each of them."""
        mine = psutil.Process()
        family = [mine, *mine.children(recursive=True)] if with_children else [mine]
        resident = 0
        for process in family:
            with contextlib.suppress(psutil.Error):
                resident += process.memory_info().rss
        return {"resident_bytes": float(resident)}

    def _end_replaced(self, reason: str) -> None:
        """Another process has this part by now: nothing more is done, not even tidied up, which is that one's."""
        logging.getLogger(__name__).error("%s", reason)
        os.kill(os.getpid(), signal.SIGKILL)

    def _end_without_reaper(self) -> None:
        """Waits for the owner of the private directory to be gone: nobody would end this process in time any more."""
        while run_files.owner_lives(self.files.private):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)

    def bind_address(self, endpoint: str) -> str:
        """`endpoint` with this host's address in it."""
        return endpoint.replace(OWN_HOST, own_address())


class _AsyncProcess(_Process, ABC):
    """One whose part runs on the actor's own loop."""

    _work: asyncio.Task[None]

    async def run(self) -> None:
        """Work until the part is done."""
        self._work = asyncio.create_task(self._run())
        await asyncio.shield(self._work)

    async def join(self) -> None:
        """Wait for `run`, whose caller lost sight of it."""
        await asyncio.shield(self._work)

    @abstractmethod
    async def _run(self) -> None: ...


class ReplayBuffer(_AsyncProcess):
    """Leases, groups and batches."""

    does = "leases episodes and makes batches"

    async def start(self, tasks: list[TaskRef], held_out: list[TaskRef], endpoint: str) -> str:
        from learner.replay.service.server import ReplayServer

        self._server = ReplayServer(
            self.settings, tasks, self.bind_address(endpoint), self.files.directory, self.keys, held_out=held_out
        )
        return await self._server.start()

    async def _run(self) -> None:
        await self._server.run()

    async def status(self) -> dict[str, float]:
        return self._server.status() | self._memory()

    async def news(self) -> News:
        """What is wrong now."""
        return self._server.news()

    async def account(self) -> Account:
        """What the infrastructure did to the run's episodes."""
        return self._server.account()

    async def evaluations(self, known: list[int]) -> list[Evaluation]:
        """Evaluations of held-out tasks, but those of the `known` versions."""
        return self._server.evaluations(known)

    async def report_pressure(self, source: str, levels: dict[str, float]) -> None:
        """How full something is that episodes fill, 1 being the most it should be."""
        self._server.report_pressure(source, levels)

    async def raise_fence(self, generations: dict[str, int]) -> None:
        """By part: no older process of it is heard from now on."""
        for part, generation in generations.items():
            self._server.raise_fence(part, generation)

    async def stop(self) -> None:
        await self._server.stop()


class Generator(_AsyncProcess):
    """A vLLM engine."""

    does = "samples tokens with vLLM"

    async def start(self, endpoint: str, weights_endpoint: str | None) -> str:
        from actors.generator.generator import Generator as Engine

        self._engine = Engine(self.settings, self.name, self.bind_address(endpoint), weights_endpoint, self.keys)
        return await self._engine.start()

    async def _run(self) -> None:
        await self._engine.run()

    async def status(self) -> dict[str, float]:
        return self._engine.status() | self._memory(with_children=True)  # vLLM's own processes

    async def stop(self) -> None:
        await self._engine.stop()


class SandboxActor(_AsyncProcess):
    """Many episodes as asyncio tasks."""

    does = "runs episodes in sandboxes"

    async def start(self, num_episodes: int, replay_endpoint: str, generator_endpoints: list[str]) -> None:
        from actors.episodes.sandbox_actor import SandboxActor as Host
        from actors.policies.open_policy import open_policy
        from sandbox.backends import KeptFor, open_backend
        from sandbox.datasets.of_run import tasks_of_run

        tasks, held_out = tasks_of_run(self.settings)
        kept_for = KeptFor(self.name, self.files.logs / "keeper.log", self.files.private / "images")
        self._backend = await open_backend(self.settings.sandbox, self.files.name, kept_for)
        self._policy, tokenizer = open_policy(self.settings, generator_endpoints, self.keys)
        self._host = Host(
            self.settings,
            self.name,
            num_episodes,
            replay_endpoint,
            self._policy,
            self._backend,
            {task.task_id: task for task in [*tasks, *held_out]},
            tokenizer,
            self.keys,
            self.files.directory,
            run=self.files.name,
        )
        await self._host.start()

    async def drain(self) -> None:
        """Take no more leases; `run` ends when those that it has are done."""
        self._host.drain()

    async def update_generators(self, endpoints: list[str]) -> None:
        """A generator was started again elsewhere."""
        from actors.policies.generator_client import GeneratorClient

        assert isinstance(self._policy, GeneratorClient), "a foreign endpoint has no generators"
        self._policy.update_endpoints(endpoints)

    async def _run(self) -> None:
        await self._host.run()

    async def status(self) -> dict[str, float]:
        return self._host.status() | self._memory()

    async def stop(self) -> None:
        await self._host.stop()
        await self._policy.close()
        await self._backend.close()


class Learner(_Process):
    """One DeepSpeed rank. A threaded actor: `run` blocks one thread (`join` another), the others answer."""

    does = "trains with DeepSpeed"

    def __init__(self, name: str, settings: Settings, files: RunFiles, keys: Keys | None) -> None:
        super().__init__(name, settings, files, keys)
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def reserve(self) -> tuple[str, int, int]:
        """This host's address and two free ports, for the ranks' rendezvous and for the weights."""
        import socket

        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            second.bind(("", 0))
            return own_address(), first.getsockname()[1], second.getsockname()[1]

    def start(
        self, rank: int, world_size: int, master: tuple[str, int], replay: str, weights: str, resume: str | None
    ) -> None:
        """Ranks that are started again come back to what `resume` says, whatever the run began with."""
        from learner.rank import LearnerRank

        self._rank = LearnerRank(
            self.settings.model_copy(update={"resume": resume}),
            rank,
            world_size,
            *master,
            replay,
            weights,
            self.files.directory,
            self.keys,
            self.files.name,
        )
        self._rank.start()

    def run(self) -> None:
        try:
            self._rank.run()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._ended.set()

    def join(self) -> None:
        """Wait for `run`, whose caller lost sight of it."""
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def status(self) -> dict[str, float]:
        return self._rank.status() | self._memory()

    def pop_records(self) -> list[dict[str, Any]]:
        """Metrics of the steps taken since the last call."""
        return self._rank.pop_records()

    def stop(self) -> None:
        self._rank.stop()


def own_address() -> str:
    """Under which Ray knows this host."""
    import ray.util

    return str(ray.util.get_node_ip_address())


def last_lines(log: Path, num_lines: int = 15) -> str:
    """The end of a log, for an error that must show what a process said last."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])
