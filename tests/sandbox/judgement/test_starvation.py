"""Tests that ran out of time because others had the processors are run again, once; what wastes its own time is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actors.episodes.judgements import Judgements
from actors.episodes.zeros import zero_reason
from protocol.errors import GradingError
from sandbox.base import Backend, ExecResult, Limits, Sandbox, SandboxSpec
from sandbox.judgement import grading
from sandbox.judgement.grading import grade
from sandbox.judgement.starvation import StarvedError, check_had_time
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch
from sandbox.tasks.task import Task, TestSpec
from tests.sandbox.judgement.image import Images, edit
from tests.sandbox.starving import AT_A_DISADVANTAGE, busy

TASK = Task(
    task_id="t/1",
    source="micro",
    repository="r",
    issue="f() is wrong",
    files={"pkg/mod.py": "def f():\n    return 1\n"},
    fail_to_pass=("tests/test_f.py::test_two",),
    test_files={"tests/test_f.py": "from pkg.mod import f\ndef test_two():\n    assert f() == 2\n"},
)
SLOW = "import time\nend = time.process_time() + 0.7\nwhile time.process_time() < end: pass\n"
FIX = "def f():\n    return 2\n"


def result(wall: float, cpu: float, waited: float) -> ExecResult:
    return ExecResult(
        exit_code=-9,
        head=b"",
        tail=b"",
        total_bytes=0,
        timed_out=True,
        duration_s=wall,
        cpu_s=cpu,
        waited_s=waited,
    )


@pytest.mark.parametrize(
    ("wall", "cpu", "waited", "cpus", "starved"),
    [
        pytest.param(100, 10, 88, 1.0, True, id="it spins, and others have the processors"),
        pytest.param(100, 0.1, 0.2, 1.0, False, id="it sleeps"),
        pytest.param(100, 99, 0.5, 1.0, False, id="it spins alone"),
        pytest.param(100, 99, 99, 1.0, False, id="a hundred of its threads hold each other up"),
        pytest.param(100, 24, 99, 0.25, False, id="the same under a small limit"),
        pytest.param(100, 60, 30, 1.0, False, id="it lost less than a third"),
        pytest.param(400, 95, 300, 1.0, False, id="the second run had its time on a busy host"),
        pytest.param(400, 20, 375, 1.0, True, id="nor had the second one its time"),
        pytest.param(100, 10, 500, 1.0, True, id="more than there is"),
    ],
)
def test_whose_time_it_was(wall: float, cpu: float, waited: float, cpus: float, starved: bool) -> None:
    with pytest.raises(StarvedError) if starved else contextlib.nullcontext():
        check_had_time(result(wall, cpu, waited), 100, cpus)


@given(st.floats(1, 1e4), st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 4))
def test_a_further_run_gets_what_was_lost_within_bounds(wall: float, cpu: float, waited: float, cpus: float) -> None:
    seen = result(wall, cpu * wall, waited * wall)
    try:
        check_had_time(seen, wall, cpus)
    except StarvedError as error:
        assert 1 < error.longer <= 4
        assert error.longer == 4 or error.longer * error.had_s > wall, "at the same rate it has its time"
        assert error.label == "grading.starved"


def made_of(outcomes: list[Verdict | StarvedError], deadlines: list[float]) -> Any:
    """In the place of a run: the next of `outcomes`; its deadline is written down."""

    async def run(sandbox: object, task: Task, patch: Patch, deadline_s: float, *rest: object) -> Verdict:
        deadlines.append(deadline_s)
        outcome = outcomes.pop(0)
        if isinstance(outcome, StarvedError):
            raise outcome
        return outcome

    return run


class AnyBackend:
    async def create(self, spec: SandboxSpec) -> Any:
        return contextlib.nullcontext()


async def judged(backend: Any, task: Task, patch: Patch, cache_dir: Path, timeout_s: float = 100) -> Verdict:
    return await grade(
        backend,
        task,
        patch,
        run="test",
        lease="lease",
        limits=Limits(memory_mib=1024),
        cache_dir=cache_dir,
        timeout_s=timeout_s,
    )


async def test_one_more_run_and_then_it_is_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def starved() -> StarvedError:
        return StarvedError(result(100, 10, 50), 100)

    good, deadlines = Verdict(resolved=True, reason=""), []  # type: ignore[var-annotated]
    monkeypatch.setattr(grading, "_grade_in", made_of([starved(), good, good], deadlines))
    verdict = await judged(AnyBackend(), TASK, edit("pkg/mod.py", FIX), tmp_path)
    assert (verdict.resolved, verdict.starved, deadlines) == (True, 1, [100, 250, 100])

    monkeypatch.setattr(grading, "_grade_in", made_of([starved(), starved(), good, good], deadlines))
    judgements = Judgements()
    patch = edit("pkg/mod.py", FIX)

    async def judge() -> Verdict:
        return await judged(AnyBackend(), TASK, patch, tmp_path)

    with pytest.raises(GradingError, match="for the second time") as caught:
        await judgements.of(TASK, patch, judge)
    assert caught.value.label == "grading.starved"
    assert (await judgements.of(TASK, patch, judge)).resolved, "what said nothing is not shared"


async def test_time_out_is_not_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late, good = Verdict(resolved=False, reason="the tests did not end in time"), Verdict(resolved=True, reason="")
    monkeypatch.setattr(grading, "_grade_in", made_of([late, good, good], []))
    judgements, patch = Judgements(), edit("pkg/mod.py", FIX)

    async def judge() -> Verdict:
        return await judged(AnyBackend(), TASK, patch, tmp_path)

    assert not (await judgements.of(TASK, patch, judge)).resolved
    assert (await judgements.of(TASK, patch, judge)).resolved and judgements.num_shared == 0


class Freed:
    """A backend at which others' work ends with the first sandbox; later ones can see that."""

    def __init__(self, backend: Any, end: Callable[[], None], marker: Path) -> None:
        self._backend, self._end, self._marker, self.num_made = backend, end, marker, 0

    async def create(self, spec: SandboxSpec) -> Sandbox:
        self.num_made += 1
        if self.num_made > 1:
            self._end()
            spec = replace(spec, read_only_binds={**spec.read_only_binds, str(self._marker): FREE})
        made: Sandbox = await self._backend.create(spec)
        return made


FREE = "/opt/free"
STARVED_AT_FIRST = f"import os\nif not os.path.exists({FREE!r}):\n    {AT_A_DISADVANTAGE}"


async def test_a_fix_that_others_starved_is_no_zero(namespace: Backend, cache_dir: Path, tmp_path: Path) -> None:
    patch = edit("pkg/mod.py", STARVED_AT_FIRST + SLOW + FIX)
    with busy() as end:
        backend = Freed(namespace, end, tmp_path)
        try:
            verdict = await judged(backend, TASK, patch, cache_dir, 4)
        except GradingError as error:  # the host is that busy without us
            assert (error.kind, backend.num_made) == ("starved", 2)
        else:
            assert verdict.resolved and verdict.starved >= 1, verdict
            assert backend.num_made == 2 + verdict.starved, "a reward is confirmed"


async def test_code_that_sleeps_is_not_run_again(namespace: Backend, cache_dir: Path) -> None:
    patch = edit("pkg/mod.py", "import time\ntime.sleep(1e6)\n" + FIX)
    verdict = await judged(namespace, TASK, patch, cache_dir, 15)
    assert (verdict.resolved, verdict.reason, verdict.starved) == (False, "the tests did not end in time", 0)
    assert zero_reason(verdict, patch) == "time"


async def test_where_a_log_is_read_too(images: Images, cache_dir: Path, tmp_path: Path) -> None:
    command = f"python3 -c '{AT_A_DISADVANTAGE}while True: pass'; echo PASSED tests/test_mod.py::test_two"
    spec = TestSpec(runner="log", command=command, parser="parse_log_pytest")
    task = replace(TASK, image="img", files=None, fail_to_pass=("tests/test_mod.py::test_two",), tests=spec)
    with busy() as end:
        backend = Freed(images, lambda: None, tmp_path)
        with pytest.raises(GradingError, match="for the second time: the tests did not end in time on a starved host"):
            await judged(backend, task, edit("pkg/mod.py", FIX), cache_dir, 4)
        end()
    assert backend.num_made == 2
