"""Parts that are stuck are told from those that work, and are killed whatever state they are in."""

import asyncio
import itertools
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import run_files
from cluster.run_files import RunFiles
from cluster.supervision.part import Part, PartFailed
from cluster.supervision.vigil import Restarts, Signs, Vigil
from cluster.supervisor import Supervisor
from protocol.config import Settings

PATIENCE_S, STEP_S = 10.0, 100.0
LONGEST_LOOK_S = 15.0


def looks(history):
    """At which of a part's looks (seconds since the one before, `Signs`'s fields) something was found, and what."""
    vigil, now, found = Vigil(PATIENCE_S, STEP_S), 0.0, {}
    for i, (passed_s, *seen) in enumerate(history):
        now += passed_s
        if said := vigil.look({"part": Signs(*seen)}, now):
            found[i] = said["part"]
    return found


def test_silence_is_found_once_its_time_is_over():
    found = looks([(1, "actors", 0, {})] * 24)
    assert list(found) == [11, 23], "and it begins anew"
    assert found[11] == "it has said nothing for 11 s"


def test_the_silence_of_a_part_that_is_cut_off_does_not_count():
    cut_off = [(1, "actors", 0, {}, True)] * 50
    assert list(looks([*cut_off, *[(1, "actors", 0, {})] * 20])) == [60]


def test_a_generator_with_requests_and_no_token_is_found():
    def at(running, tokens):
        return "generator", next(clock), {"running": running, "generated_tokens": tokens}

    clock = itertools.count()
    assert not looks([(1, *at(3, tokens)) for tokens in range(50)]), "it yields tokens"
    assert not looks([(1, *at(0, 99)) for _ in range(50)]), "it has nothing to do"
    assert not looks([(1, *at(running % 8, 99)) for running in range(50)]), "all that ran has ended"
    found = looks([(1, *at(3, 99)) for _ in range(20)])
    assert found == {11: "3 requests run, and no token came for 11 s"}


def test_what_a_silent_generator_said_last_is_not_held_against_it():
    status = {"running": 3.0, "generated_tokens": 5.0}
    stale = [(1, "generator", 0, status, True)] * 50
    assert looks([*stale, (1, "generator", 1, status), (1, "generator", 2, status)]) == {}


def test_a_step_that_outlasts_its_collectives_is_found():
    def at(running_s):
        return 1, "learner", running_s, {"running_step_s_max": running_s}

    assert not looks([at(s) for s in (1, 50, 100, 110, 0)])
    assert looks([at(s) for s in (1, 110, 111)]) == {2: "its step has been running for 111 s"}


def test_a_watcher_that_was_stopped_itself_finds_nobody_stuck():
    assert not looks([(1, "actors", 0, {}), (1, "actors", 1, {}), (5000, "actors", 2, {}), (1, "actors", 3, {})])
    assert not looks([(1, "actors", 0, {}), (5000, "actors", 1, {})])


answers = st.one_of(st.none(), st.tuples(st.sampled_from([0.0, 1.0, 4.0]), st.integers(0, 1)))  # running, new tokens
histories = st.lists(st.tuples(st.floats(0, 20), answers), max_size=60)


@given(histories)
def test_it_finds_what_the_whole_history_says(history):
    """The reference looks back over everything at every look."""
    tokens, said, seen = 0, (0, {"running": 0.0, "generated_tokens": 0.0}), []
    for i, (passed_s, answer) in enumerate(history):
        if answer is not None:
            tokens += answer[1]
            said = (i + 1, {"running": answer[0], "generated_tokens": float(tokens)})
        seen.append((passed_s, "generator", *said))
    found = looks(seen)

    begun = 0  # look from which is counted
    for i in range(len(seen)):
        silent, tokenless = _from_scratch(seen[begun : i + 1])
        is_stuck = silent > PATIENCE_S or tokenless > PATIENCE_S
        if i > begun and is_stuck:
            assert i in found
            begun = i + 1
        else:
            assert i not in found


def _from_scratch(seen):
    """Seconds since the last answer, and, at that answer, seconds since requests last had an answer with a token."""
    if not seen:
        return 0.0, 0.0
    at = list(itertools.accumulate(min(passed_s, LONGEST_LOOK_S) for passed_s, *_ in seen[1:]))
    at = [0.0, *at]
    fresh = [i for i in range(len(seen)) if i == 0 or seen[i][2] != seen[i - 1][2]]
    silent = at[-1] - at[fresh[-1]]
    since = fresh[-1]
    for before, after in zip(reversed(fresh[:-1]), reversed(fresh[1:]), strict=True):
        one, other = seen[before][3], seen[after][3]
        if not (one["running"] and other["running"] and one["generated_tokens"] == other["generated_tokens"]):
            break
        since = before
    return silent, at[fresh[-1]] - at[since]


def test_restarts_are_counted_by_the_hour():
    restarts = Restarts(most=2)
    assert [restarts.take("a", now) for now in (0, 10, 20)] == [True, True, False]
    assert restarts.take("b", 20), "each part has its own"
    assert [restarts.take("a", now) for now in (3601, 3602)] == [True, False]
    assert not Restarts(most=0).take("a", 0)


@given(st.lists(st.floats(0, 1000), max_size=50), st.integers(0, 4))
def test_no_hour_has_more_restarts_than_allowed_and_none_is_refused_below(gaps, most):
    restarts, taken = Restarts(most), []
    for now in itertools.accumulate(gaps):
        within_the_hour = [at for at in taken if now - at <= 3600]
        assert restarts.take("a", now) == (len(within_the_hour) < most)
        if len(within_the_hour) < most:
            taken.append(now)


NAME = "sandbox-actor-0"


@pytest.fixture
async def part(tmp_path):
    """The files of a run, and a process that is a part of it and does nothing."""
    files = RunFiles("run", tmp_path, tmp_path)
    code = (
        "import pathlib, sys, time; from cluster import run_files; where = pathlib.Path(sys.argv[1])\n"
        "held = run_files.hold(run_files.RunFiles('run', where, where), sys.argv[2]); print('held', flush=True)\n"
        "time.sleep(600)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), NAME, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await process.stdout.readline() == b"held\n"
        yield files, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_only_the_very_part_is_killed(part):
    files, process = part
    run_files.end_part(files, "sandbox-actor")
    run_files.end_part(files, "generator-0")
    (files.private / f"generator-1.{process.pid}").touch()  # of a process whose number this one has got
    run_files.end_part(files, "generator-1")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.3)
    run_files.end_part(files, NAME)
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
    run_files.end_part(files, NAME)  # one that is gone is no error


@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_stopped_process_is_named_and_killed_unless_its_host_is_cut_off(part, cut_off):
    files, process = part
    notes = []
    cluster = SimpleNamespace(is_cut_off=lambda name: cut_off, end=lambda name: run_files.end_part(files, name))
    supervisor = Supervisor(Settings(stuck_after_s=1), cluster, [], SimpleNamespace(note=notes.append), [], None)
    stopped = Part(NAME, "actors", lambda title: None, None)
    stopped.ending = asyncio.create_task(process.wait())
    supervisor.crew.actors = [stopped]
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + (3 if cut_off else 60)
    while not notes and time.monotonic() < deadline:
        await supervisor._end_stuck()
        await asyncio.sleep(0.1)
    if cut_off:
        assert (stopped.ending.done(), notes) == (False, [])
        stopped.ending.cancel()
        return
    assert await asyncio.wait_for(stopped.ending, 60) == -signal.SIGKILL
    [note] = notes
    assert note.startswith(f"{NAME} is stuck and is killed: it has said nothing for ")
    assert stopped.why(RuntimeError("Ray's own words")).startswith("it was stuck (it has said nothing")


class Failing:
    """The handle of a process that starts, and whose work fails."""

    def __init__(self):
        self.run = SimpleNamespace(remote=self._run)

    async def _run(self):
        raise OSError("no such luck")


async def test_past_its_budget_a_part_ends_the_run_with_one_reason(tmp_path):
    notes = []
    cluster = SimpleNamespace(
        gone=dict, may_live=lambda name, error: False, dead_ray=str, files=SimpleNamespace(logs=tmp_path), plan=None
    )
    supervisor = Supervisor(Settings(restarts_per_hour=2), cluster, [], SimpleNamespace(note=notes.append), [], None)
    part = Part(NAME, "actors", lambda title: Failing(), lambda handle: asyncio.sleep(0))
    await part.start()
    part.run()
    supervisor.crew.actors = [part]
    with pytest.raises(PartFailed) as failure:
        async with asyncio.timeout(30):
            while True:
                await supervisor._mend()
                await asyncio.sleep(0.01)
    first = str(failure.value).splitlines()[0]
    assert "sandbox-actor-0 failed and was started again restarts_per_hour (2) times within the hour" in first
    assert first.endswith("OSError: no such luck")
    assert sum("is started again" in note for note in notes) == part.num_restarts == 2
