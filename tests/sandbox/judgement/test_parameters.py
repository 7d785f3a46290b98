"""Tests with parameters have twins as others have."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from sandbox.base import Backend, Limits
from sandbox.curation.recipes import PYTEST
from sandbox.judgement.canaries import plant, twinned_of
from sandbox.judgement.grading import Patch, Verdict, grade
from sandbox.patches import Change
from sandbox.tasks.task import Task, TestSpec, check_task

_TESTS = """
import pytest
from calc import double

CASES = [(1, 2), (2, 4)]

def test_old():
    assert callable(double)

CASES = [(3, 6), (5, 10)]

@pytest.mark.parametrize(
    ("given", "wanted"), CASES
)
@pytest.mark.parametrize("sign", ["a b", "[x]"])
def test_double(given, wanted, sign):
    assert double(given) == wanted

del CASES
"""
_NAMED = tuple(f"t/test_calc.py::test_double[{sign}-{pair}]" for sign in ("a b", "[x]") for pair in ("3-6", "5-10"))
TASK = check_task(
    Task(
        task_id="parameters",
        source="micro",
        repository="calc",
        issue="double(3) gives 3",
        files={"calc.py": "def double(n):\n    return n\n", "t/__init__.py": ""},
        test_files={"t/test_calc.py": _TESTS},
        fail_to_pass=_NAMED,
        pass_to_pass=("t/test_calc.py::test_old",),
        tests=TestSpec(runner="pytest", requirements=(PYTEST,)),
    )
)
_EQUAL = "class E:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"


def twinned(task: Task) -> set[str]:
    modules = {path: text for path, text in task.test_files.items() if text}
    return {group.test for group in plant(modules, "t", task.fail_to_pass, twinned=twinned_of(task)).groups}


async def judged(backend: Backend, text: str, cache_dir: Path) -> Verdict:
    patch = Patch(changes=(Change(path="calc.py", kind="file", content=text.encode()),))
    return await grade(
        backend, TASK, patch, run="test", lease="lease", limits=Limits(), cache_dir=cache_dir, timeout_s=60
    )


async def test_every_case_has_twins(namespace: Backend, cache_dir: Path) -> None:
    assert twinned(TASK) >= {*_NAMED}
    sound = await judged(namespace, "def double(n):\n    return 2 * n\n", cache_dir)
    assert (sound.reward, sound.tampered) == (1.0, False), sound
    half = await judged(namespace, "def double(n):\n    return 6\n", cache_dir)
    assert half.failed == (_NAMED[1], _NAMED[3]), half
    equal = await judged(namespace, f"{_EQUAL}\ndef double(n):\n    return E()\n", cache_dir)
    assert (equal.reward, {*equal.doubted}) == (0.0, {*_NAMED}), equal


def test_a_function_has_twins_if_all_its_named_cases_may() -> None:
    some = replace(TASK, flaky=_NAMED[:1])
    assert twinned(some) == {"t/test_calc.py::test_old"}
    cut = replace(TASK, fail_to_pass=(*_NAMED[:3], _NAMED[3][:-4]))
    assert twinned(cut) == {"t/test_calc.py::test_old"}
    many = replace(TASK, fail_to_pass=tuple(f"t/test_calc.py::test_double[{n}]" for n in range(41)))
    assert twinned(many) == {"t/test_calc.py::test_old"}
