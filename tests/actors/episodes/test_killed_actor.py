"""SIGKILL to a sandbox actor: the next one goes on at the same turn, in the same sandbox, with the same tokens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from actors.agent.chat import ChatTokenizer
from actors.agent.tools import INTERRUPTED
from actors.episodes.episode_journal import EpisodeJournal, Ready
from protocol.messages import Trajectory
from sandbox.docker.backend import DockerBackend
from sandbox.namespace.backend import NamespaceBackend
from sandbox.owners import end_keepers, keeper_of
from tests.actors.episodes.killed_actor import TASKS, turns_of
from tests.actors.episodes.scripted_replay import ScriptedReplay, make_lease

TASK = next(iter(TASKS.values()))
TURNS = turns_of(TASK)


class Run(contextlib.AsyncExitStack):
    """A replay server here, and actors in processes of their own, one after another."""

    def __init__(
        self, directory: Path, tokenizer_dir: Path, backend: str = "namespace", program: str = "killed_actor"
    ) -> None:
        super().__init__()
        self.directory, self.program = directory, program
        self.streams = backend.endswith("-stream")
        self.name = f"test-{secrets.token_hex(4)}"
        self._arguments = [f"ipc://{directory}/replay", str(directory), self.name, str(directory / "cache")]
        self._arguments += [str(tokenizer_dir), backend]
        self.replay = ScriptedReplay(self._arguments[0], [make_lease(0, TASK.task_id, version=5, max_turns=12)])
        self.replay.start()
        self.push_async_callback(self._end)

    def keeps_files(self) -> None:
        """Its sandboxes' files are to survive."""
        self._arguments[-1] = "survives"

    async def start(self) -> None:
        self.actor = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"tests.actors.episodes.{self.program}", *self._arguments
        )

    async def kill(self) -> None:
        os.kill(self.actor.pid, signal.SIGKILL)
        await self.actor.wait()

    async def finish(self) -> Trajectory:
        async with asyncio.timeout(120):
            assert await self.actor.wait() == 0
        (trajectory,) = self.replay.trajectories
        assert not self.replay.failures
        assert not list(self.directory.glob("episodes/*/*"))
        assert keeper_of(self.name) is None
        return trajectory

    def asked(self) -> list[int]:
        """Turns that the model was asked for."""
        path = self.directory / "asked"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                assert self.actor.returncode is None
                await asyncio.sleep(0.02)

    def journal(self) -> bytes:
        """As it is now."""
        return b"".join(path.read_bytes() for path in self.directory.glob("episodes/*/*.journal"))

    async def _end(self) -> None:
        if self.actor.returncode is None:
            await self.kill()
        await self.replay.stop()
        await NamespaceBackend(self.name).purge(self.name)


@pytest.fixture
async def run(tmp_path: Path, tokenizer_dir: Path) -> AsyncIterator[Run]:
    backend = NamespaceBackend("probe-killed-actor")
    available = (await backend.probe()).available
    await backend.close()
    if not available:
        pytest.skip("no namespaces here")
    async with Run(tmp_path, tokenizer_dir) as run:
        yield run


@pytest.fixture
def surviving(run: Run) -> Run:
    """One with `sandbox.survive_restart`."""
    run.keeps_files()
    return run


def check_tokens(trajectory: Trajectory, tokenizer: ChatTokenizer, turns: Sequence[str] = TURNS) -> None:
    """Every turn is there once, as it was sampled, whoever of the processes asked for it."""
    assert len(trajectory.turns) == len(turns)
    for number, turn in enumerate(trajectory.turns):
        ids = np.append(tokenizer.encode(turns[number]), tokenizer.stop_token_ids[0])
        assert trajectory.token_ids[turn.start : turn.end].tolist() == ids.tolist()
        expected = -np.arange(1, len(ids) + 1, dtype=np.float32) / (number + 1)
        assert np.array_equal(trajectory.logprobs[turn.start : turn.end], expected)
        assert set(trajectory.versions[turn.start : turn.end].tolist()) == {5 + number}
    assert int(trajectory.loss_mask.sum()) == sum(turn.end - turn.start for turn in trajectory.turns)


def tmp_of_sandbox(keeper_pid: int) -> Path:
    """`/tmp` as the keeper's only sandbox sees it."""
    inside = [p for p in psutil.Process(keeper_pid).children(recursive=True) if not p.children()]
    return Path(f"/proc/{inside[-1].pid}/root/tmp")


async def test_killed_while_generating(run: Run, tokenizer: ChatTokenizer) -> None:
    (run.directory / "hold-4").touch()
    await run.start()
    await run.until(lambda: run.asked() == [0, 1, 2, 3, 4])
    await run.kill()
    (run.directory / "hold-4").unlink()
    await run.start()
    trajectory = await run.finish()
    assert run.asked() == [0, 1, 2, 3, 4, 4, 5, 6], "only the turn that was never sampled is asked for again"
    check_tokens(trajectory, tokenizer)
    assert trajectory.resolved and trajectory.end_reason == "submitted"
    text = tokenizer.decode(trajectory.token_ids)
    assert "one\ntwo\n1" in text, "each command was run once, and what ran in the background runs on"
    assert INTERRUPTED not in text
    assert (run.directory / "continued").read_text() == "1.0"


async def test_killed_while_a_command_runs(run: Run, tokenizer: ChatTokenizer) -> None:
    (run.directory / "hold-2").touch()
    await run.start()
    await run.until(lambda: run.asked() == [0, 1, 2])
    keeper = keeper_of(run.name)
    assert keeper is not None
    before = len(run.journal())
    root = tmp_of_sandbox(keeper.pid)
    (root / "hold").touch()
    (run.directory / "hold-2").unlink()
    await run.until(lambda: (root / "trace").read_text() == "one\ntwo\n")
    assert len(run.journal()) > before, "the turn is written down before its command is run"
    await run.kill()
    (root / "hold").unlink()
    await run.start()
    trajectory = await run.finish()
    assert run.asked() == list(range(len(TURNS))), "no turn is sampled twice"
    check_tokens(trajectory, tokenizer)
    text = tokenizer.decode(trajectory.token_ids)
    assert text.count(INTERRUPTED) == 1
    assert "one\ntwo\n1" in text, "it is not run again"
    assert trajectory.resolved


async def test_killed_with_its_work_done_but_not_delivered(run: Run, tokenizer: ChatTokenizer) -> None:
    run.replay.num_ignored_submissions = 10**6
    await run.start()
    await run.until(lambda: run.replay.num_submissions > 0)
    await run.kill()
    run.replay.num_ignored_submissions = 0
    await run.start()
    trajectory = await run.finish()
    assert run.asked() == list(range(len(TURNS))), "nothing is done again"
    check_tokens(trajectory, tokenizer)
    assert trajectory.resolved


async def until_held_in_turn_4(run: Run) -> None:
    (run.directory / "hold-4").touch()
    await run.start()
    await run.until(lambda: run.asked() == [0, 1, 2, 3, 4])


def check_went_on(run: Run, trajectory: Trajectory, tokenizer: ChatTokenizer) -> None:
    """At the turn that was never sampled, with the files of the turns before; without what ran in the background."""
    assert run.asked() == [0, 1, 2, 3, 4, 4, 5, 6]
    check_tokens(trajectory, tokenizer)
    assert trajectory.resolved and trajectory.end_reason == "submitted"
    assert "one\ntwo\n0" in tokenizer.decode(trajectory.token_ids)
    assert not list(run.directory.glob("episodes/*"))


async def test_a_whole_machine_stops_and_files_that_were_to_survive_are_gone_on_with(
    surviving: Run, tokenizer: ChatTokenizer
) -> None:
    await until_held_in_turn_4(surviving)
    await surviving.kill()
    assert end_keepers(surviving.name) == 1
    await NamespaceBackend(surviving.name).purge(surviving.name)  # as the next start does
    (surviving.directory / "hold-4").unlink()
    await surviving.start()
    check_went_on(surviving, await surviving.finish(), tokenizer)


async def test_sandboxes_that_are_lost_beside_a_living_actor_are_gone_on_with(
    surviving: Run, tokenizer: ChatTokenizer
) -> None:
    await until_held_in_turn_4(surviving)
    end_keepers(surviving.name)
    (surviving.directory / "hold-4").unlink()
    trajectory = await surviving.finish()
    assert surviving.asked() in ([0, 1, 2, 3, 4, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6])
    check_tokens(trajectory, tokenizer)
    assert trajectory.resolved and "one\ntwo\n0" in tokenizer.decode(trajectory.token_ids)


async def test_a_snapshot_that_is_gone_costs_its_turns_not_its_episode(
    surviving: Run, tokenizer: ChatTokenizer
) -> None:
    await until_held_in_turn_4(surviving)
    await surviving.kill()
    end_keepers(surviving.name)
    (surviving.directory / "hold-4").unlink()
    (files,) = surviving.directory.glob("episodes/*/*.files")
    assert len(list(files.iterdir())) == 1, "each takes the place of the one before"
    shutil.rmtree(files)
    await surviving.start()
    trajectory = await surviving.finish()
    assert surviving.asked() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]
    check_tokens(trajectory, tokenizer)
    assert trajectory.resolved


@pytest.mark.parametrize("cut", range(4), ids=lambda n: f"torn-{n}")
async def test_a_torn_end_of_the_journal_is_the_turn_before_it(cut: int, tmp_path: Path) -> None:
    journal = EpisodeJournal.begin(tmp_path, make_lease(0, TASK.task_id), 1.0, "recipe")
    whole = (tmp_path / "lease-0-0.journal").read_bytes()
    journal.add(Ready())
    longer = (tmp_path / "lease-0-0.journal").read_bytes()
    torn = [longer[:-1], longer[: len(whole) + 10], longer[:-1] + b"\x00", longer + b"garbage"][cut]
    (tmp_path / "lease-0-0.journal").write_bytes(torn)
    read = EpisodeJournal.read(tmp_path / "lease-0-0.journal", "recipe")
    assert read is not None and read.lease == journal.lease and read.is_taken_over
    assert read.is_ready == (cut == 3)
    read.add(Ready())
    again = EpisodeJournal.read(tmp_path / "lease-0-0.journal", "recipe")
    assert again is not None and again.is_ready
    assert EpisodeJournal.read(tmp_path / "lease-0-0.journal", "another recipe") is None
    for open_journal in (journal, read, again):
        open_journal.discard()


@pytest.mark.docker
async def test_killed_while_it_works_in_a_container(
    tmp_path: Path, tokenizer_dir: Path, tokenizer: ChatTokenizer
) -> None:
    docker = DockerBackend("probe-killed-actor")
    available = (await docker.probe()).available
    try:
        if not available:
            pytest.skip("no Docker here")
        async with Run(tmp_path, tokenizer_dir, "docker") as run:
            (run.directory / "hold-4").touch()
            await run.start()
            await run.until(lambda: run.asked() == [0, 1, 2, 3, 4])
            await run.kill()
            (run.directory / "hold-4").unlink()
            await run.start()
            trajectory = await run.finish()
            check_tokens(trajectory, tokenizer)
            assert run.asked() == [0, 1, 2, 3, 4, 4, 5, 6]
            assert trajectory.resolved
            text = tokenizer.decode(trajectory.token_ids)
            assert "one\ntwo\n" in text  # the trace of both processes' commands, once each
            assert INTERRUPTED not in text
            assert await docker.purge(run.name) == 0
    finally:
        await docker.close()
