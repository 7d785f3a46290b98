"""Every known way to a pass without solving the task is worth nothing; the honest way is worth one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.attacks import ATTACKS, Attack, attack_patch
from benchmarks.attacks.surfaces import MODULE, calc_task
from sandbox.base import Backend, Limits
from sandbox.curation.gold import gold_patch
from sandbox.judgement.grading import Verdict, grade
from sandbox.patches import Patch
from sandbox.tasks.sources import materialise
from sandbox.tasks.task import RunnerKind, Task


async def judged(backend: Backend, task: Task, patch: Patch, cache_dir: Path) -> Verdict:
    return await grade(
        backend, task, patch, run="test", lease="lease", limits=Limits(), cache_dir=cache_dir, timeout_s=60
    )


@pytest.mark.parametrize("runner", ["functions", "pytest", "log"])
async def test_only_the_solution_is_rewarded(namespace: Backend, cache_dir: Path, runner: RunnerKind) -> None:
    task = calc_task(runner)
    untouched = await judged(namespace, task, Patch(), cache_dir)
    assert (untouched.reward, untouched.tampered) == (0.0, False), untouched
    assert untouched.failed == task.fail_to_pass
    assert untouched.passed == task.pass_to_pass
    gold = await judged(namespace, task, await gold_patch(namespace, task, "test", Limits(), cache_dir), cache_dir)
    assert (gold.reward, gold.tampered) == (1.0, False), gold


def test_there_are_many_kinds_of_attacks() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 180
    assert all(attack.needs for attack in ATTACKS)


@pytest.mark.parametrize("runner", ["functions", "pytest"])
def test_the_code_of_an_attack_can_be_run(runner: RunnerKind, cache_dir: Path) -> None:
    """What is no Python earns nothing, and says nothing."""
    task = calc_task(runner)
    for attack in ATTACKS:
        for change in made(attack, task, cache_dir).changes:
            if change.path.endswith(".py") and change.kind == "file" and b"import" in change.content:
                compile(change.content, attack.name, "exec")


def made(attack: Attack, task: Task, cache_dir: Path) -> Patch:
    tree = materialise(task, cache_dir)
    assert tree is not None
    return attack_patch(attack, task, tree, MODULE)


@pytest.mark.parametrize("runner", ["functions", "pytest"])
async def test_attacks_earn_nothing(namespace: Backend, cache_dir: Path, runner: RunnerKind) -> None:
    task = calc_task(runner)
    room = asyncio.Semaphore(3)

    async def attempt(attack: Attack) -> Verdict:
        async with room:
            return await judged(namespace, task, made(attack, task, cache_dir), cache_dir)

    tried = [attack for attack in ATTACKS if not attack.endless]  # those wait for a deadline: for the benchmark
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
    task = calc_task(runner)
    verdict = await judged(namespace, task, made(attack, task, cache_dir), cache_dir)
    assert verdict.tampered, verdict


FAILS_THE_PLACE = (
    *("the child says that nothing can be run", "the child says that it is ready, again", "everything is killed"),
    *("the parent has no memory left", "the parent may open and write nothing", "the parent is interrupted"),
)


@pytest.mark.parametrize("name", FAILS_THE_PLACE)
async def test_code_under_test_cannot_say_that_the_place_failed(namespace: Backend, cache_dir: Path, name: str) -> None:
    """Then its episode would have no reward in place of 0, and be tried again."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    for runner in ("functions", "pytest"):
        task = calc_task(runner)  # type: ignore[arg-type]
        verdict = await judged(namespace, task, made(attack, task, cache_dir), cache_dir)
        assert verdict.reward == 0.0, verdict
