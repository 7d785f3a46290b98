"""SIGKILL to a sandbox actor whose agent comes from outside and tries nothing twice: it notices the time alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.agent.chat import ChatTokenizer
from protocol.messages import Trajectory
from sandbox.docker.backend import DockerBackend
from sandbox.namespace.backend import NamespaceBackend
from sandbox.owners import keeper_of
from tests.actors.episodes.killed_foreign_actor import turns_of
from tests.actors.episodes.test_killed_actor import TASK, Run, check_tokens, tmp_of_sandbox
from tests.waiting import until

TURNS = turns_of(TASK)
SEEN = re.compile(r"trace one two pids ((?:\d+ )+)errors end")


both_forms = pytest.mark.parametrize("run", ["namespace", "namespace-stream"], indirect=True)
as_stream = pytest.mark.parametrize("run", ["namespace-stream"], indirect=True)


@pytest.fixture
async def run(tmp_path: Path, tokenizer_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    backend = NamespaceBackend("probe-killed-actor")
    available = (await backend.probe()).available
    await backend.close()
    if not available:
        pytest.skip("no namespaces here")
    kind = getattr(request, "param", "namespace")
    async with Run(tmp_path, tokenizer_dir, kind, "killed_foreign_actor") as run:
        yield run


async def finish(run: Run, tokenizer: ChatTokenizer) -> Trajectory:
    """To the end, which is as if nothing had happened; one agent, which saw no error and ran each command once."""
    trajectory = await run.finish()
    check_tokens(trajectory, tokenizer, TURNS)
    assert trajectory.resolved and trajectory.end_reason == "submitted"
    assert len(trajectory.branches.leaves()) == 1 and not trajectory.drift
    seen = SEEN.search(tokenizer.decode(trajectory.token_ids))
    assert seen is not None, tokenizer.decode(trajectory.token_ids)
    pids = seen[1].split()
    assert len(pids) == 4 and len(set(pids)) == 1
    return trajectory


@both_forms
async def test_killed_in_the_middle_of_a_turn(run: Run, tokenizer: ChatTokenizer) -> None:
    (run.directory / "hold-2").touch()
    await run.start()
    await run.until(lambda: run.asked() == [0, 1, 2])
    if run.streams:
        await run.until(lambda: run.journal().count(b"KeptAlive") > 5)
    await run.kill()
    (run.directory / "hold-2").unlink()
    await run.start()
    await finish(run, tokenizer)
    assert run.asked() == [0, 1, 2, 2, 3, 4], "only the turn that was never sampled is asked for again"
    assert (run.directory / "continued").read_text() == "1.0"


async def test_killed_between_turns_and_asked_while_nobody_is_there(run: Run, tokenizer: ChatTokenizer) -> None:
    (run.directory / "hold-1").touch()
    await run.start()
    await run.until(lambda: run.asked() == [0, 1])
    keeper = keeper_of(run.name)
    assert keeper is not None
    root = tmp_of_sandbox(keeper.pid)
    (root / "hold").touch()
    (run.directory / "hold-1").unlink()
    await run.until(lambda: (root / "trace").read_text() == "one\ntwo\n")
    await run.kill()
    (root / "hold").unlink()
    await until(lambda: (root / "pids").read_text().count("\n") == 3)  # it is about to ask
    assert keeper_of(run.name) is not None
    await run.start()
    await finish(run, tokenizer)
    assert run.asked() == [0, 1, 2, 3, 4], "no turn is sampled twice"


@both_forms
async def test_killed_with_an_answer_that_is_written_and_not_sent(run: Run, tokenizer: ChatTokenizer) -> None:
    await die_behind("Played-3", run, tokenizer)


@pytest.mark.parametrize("entry", ["Seated-1", "Given-2", "Given-5", "Over-1", "Taken-1"])
async def test_killed_right_behind_another_entry(run: Run, tokenizer: ChatTokenizer, entry: str) -> None:
    await die_behind(entry, run, tokenizer)


async def die_behind(entry: str, run: Run, tokenizer: ChatTokenizer) -> None:
    """Once it is in the journal, and go on."""
    (run.directory / f"die-{entry}").touch()
    await run.start()
    await run.actor.wait()
    assert not (run.directory / f"die-{entry}").exists()
    await run.start()
    await finish(run, tokenizer)
    assert run.asked() == [0, 1, 2, 3, 4], "what was sampled and written is not sampled again, delivered or not"


@as_stream
async def test_killed_again_and_again(run: Run, tokenizer: ChatTokenizer) -> None:
    for turn in range(5):
        (run.directory / f"hold-{turn}").touch()
    for turn in range(5):
        await run.start()
        await run.until(lambda turn=turn: run.asked()[-1:] == [turn])  # type: ignore[misc]
        await run.kill()
        (run.directory / f"hold-{turn}").unlink()
    await run.start()
    await finish(run, tokenizer)
    assert sorted(set(run.asked())) == [0, 1, 2, 3, 4]


@pytest.mark.docker
async def test_killed_while_its_agent_works_in_a_container(
    tmp_path: Path, tokenizer_dir: Path, tokenizer: ChatTokenizer
) -> None:
    docker = DockerBackend("probe-killed-actor")
    available = (await docker.probe()).available
    try:
        if not available:
            pytest.skip("no Docker here")
        async with Run(tmp_path, tokenizer_dir, "docker-stream", "killed_foreign_actor") as run:
            run.directory.chmod(0o755)
            (run.directory / "hold-2").touch()
            await run.start()
            await run.until(lambda: run.asked() == [0, 1, 2])
            await run.kill()
            (run.directory / "hold-2").unlink()
            (run.directory / "die-Played-2").touch()
            await run.start()
            await run.actor.wait()
            await run.start()
            await finish(run, tokenizer)
            assert run.asked() == [0, 1, 2, 2, 3, 4]
            assert await docker.purge(run.name) == 0
    finally:
        await docker.close()
