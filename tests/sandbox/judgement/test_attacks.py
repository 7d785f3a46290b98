"""Every known way to a pass without solving the task is worth nothing; the honest way is worth one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.attacks import ATTACKS, Attack, attack_patch
from sandbox.base import Backend, Limits
from sandbox.curation.gold import gold_patch
from sandbox.curation.recipes import PYTEST
from sandbox.judgement.grading import Verdict, grade
from sandbox.patches import Patch
from sandbox.tasks.task import RunnerKind, Task, TestSpec, check_task

HIDDEN = """
from calc.core import add, names

def test_adds_small_numbers():
    assert add(2, 3) == 5

def test_adds_nothing():
    assert add(0, 0) == 0

def test_has_names():
    assert names() == ["a", "b"]
"""


def make_task(runner: RunnerKind) -> Task:
    """A package with one fault, judged by one of our runners."""
    requirements = (PYTEST,) if runner == "pytest" else ()
    return check_task(
        Task(
            task_id=f"calc-{runner}",
            source="micro",
            repository="calc",
            issue="add(2, 3) gives -1",
            files={
                "calc/__init__.py": "",
                "calc/core.py": "def add(a, b):\n    return a - b\n\n\ndef names():\n    return ['a', 'b']\n",
                "tests/test_old.py": "def test_old():\n    pass\n",
                "setup.cfg": "[metadata]\nname = calc\n",
            },
            gold_patch="--- a/calc/core.py\n+++ b/calc/core.py\n@@ -1,3 +1,3 @@\n def add(a, b):\n"
            "-    return a - b\n+    return a + b\n \n",
            test_files={"tests/test_core.py": HIDDEN},
            fail_to_pass=("tests/test_core.py::test_adds_small_numbers",),
            pass_to_pass=("tests/test_core.py::test_adds_nothing", "tests/test_core.py::test_has_names"),
            tests=TestSpec(runner=runner, requirements=requirements),
        )
    )


async def judged(backend: Backend, task: Task, patch: Patch, cache_dir: Path) -> Verdict:
    return await grade(
        backend, task, patch, run="test", lease="lease", limits=Limits(), cache_dir=cache_dir, timeout_s=20
    )


@pytest.mark.parametrize("runner", ["functions", "pytest"])
async def test_only_the_solution_is_rewarded(namespace: Backend, cache_dir: Path, runner: RunnerKind) -> None:
    task = make_task(runner)
    untouched = await judged(namespace, task, Patch(), cache_dir)
    assert (untouched.reward, untouched.tampered) == (0.0, False), untouched
    assert untouched.failed == task.fail_to_pass
    assert untouched.passed == task.pass_to_pass
    gold = await judged(namespace, task, await gold_patch(namespace, task, "test", Limits(), cache_dir), cache_dir)
    assert (gold.reward, gold.tampered) == (1.0, False), gold


def test_there_are_many_kinds_of_attacks() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 80
    assert all(attack.needs for attack in ATTACKS)


ENDLESS = {"SIGSTOP to itself", "the parent is stopped"}  # until a deadline: for the benchmark


@pytest.mark.parametrize("runner", ["functions", "pytest"])
async def test_attacks_earn_nothing(namespace: Backend, cache_dir: Path, runner: RunnerKind) -> None:
    task = make_task(runner)
    room = asyncio.Semaphore(3)

    async def attempt(attack: Attack) -> Verdict:
        async with room:
            return await judged(namespace, task, attack_patch(attack, task, cache_dir, "calc/__init__.py"), cache_dir)

    tried = [attack for attack in ATTACKS if attack.name not in ENDLESS]
    verdicts = await asyncio.gather(*map(attempt, tried))
    assert [attack.name for attack, verdict in zip(tried, verdicts, strict=True) if verdict.reward] == []


FUNCTIONS_MARKED = (
    *("early_exit", "forged_pipe", "forged_frames", "killed_parent", "equal to everything", "os._exit in the function"),
    *("the child is taken over: all pass", "the child is taken over: no negation passes"),
)
PYTEST_MARKED = (
    *("patched_pytest", "runtest swallows all failures", "runtest fails what sorts", "runtest fails known names"),
    *("reports say passed", "calls never see an exception", "the runner's notes are prepared"),
)


@pytest.mark.parametrize(
    ("name", "runner"),
    [*((name, "functions") for name in FUNCTIONS_MARKED), *((name, "pytest") for name in PYTEST_MARKED)],
)
async def test_forging_is_marked(namespace: Backend, cache_dir: Path, name: str, runner: RunnerKind) -> None:
    """What is marked does not hang on the order of two processes; where it would, no mark is promised."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    task = make_task(runner)
    verdict = await judged(namespace, task, attack_patch(attack, task, cache_dir, "calc/__init__.py"), cache_dir)
    assert verdict.tampered, verdict
