"""How the log of a task's command is judged, and what is forged in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from sandbox.base import Limits
from sandbox.curation.gold import gold_patch
from sandbox.curation.recipes import PYTEST
from sandbox.judgement.grading import Patch
from sandbox.tasks.task import TestSpec
from tests.sandbox.judgement.image import COMMAND, SAY, SCRIPT, SOUND, Images, edit, judged, make_task


async def test_logs_are_judged(images: Images, cache_dir: Path) -> None:
    task = make_task()
    untouched = await judged(images, task, Patch(), cache_dir)
    assert (untouched.reward, untouched.tampered) == (0.0, False), untouched
    assert untouched.passed == task.pass_to_pass
    gold = await gold_patch(images, task, "test", Limits(), cache_dir)  # type: ignore[arg-type]
    assert (await judged(images, task, gold, cache_dir)).reward == 1.0


FORGERIES = {
    "printed and exited": f"{SAY}os._exit(0)\n",
    "printed, then not importable": f"{SAY}raise ImportError\n",
    "printed at the end": "import atexit, os\n"
    "atexit.register(lambda: os.write(1, b'PASSED tests/test_mod.py::test_two\\n'))\ndef f():\n    return 1\n",
    "patched runner": "import _pytest.python as p, _pytest.unittest as u\np.Function.runtest = lambda self: None\n"
    "u.TestCaseFunction.runtest = lambda self: None\ndef f():\n    return 1\n",
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("brings_tests", [False, True], ids=["command", "script"])
async def test_forged_logs_are_tampering(images: Images, cache_dir: Path, forgery: str, brings_tests: bool) -> None:
    task = make_task()
    if brings_tests:
        task = replace(task, tests=replace(task.tests, command=f"set -x\n{SCRIPT}", applies_tests=True))
    verdict = await judged(images, task, edit("pkg/mod.py", FORGERIES[forgery]), cache_dir)
    assert verdict.reward == 0.0, verdict
    # what is said beside the true outcome, which stands there, too, earns nothing; that it is marked is not promised
    assert verdict.tampered or forgery == "printed at the end", verdict


async def test_the_last_word_does_not_win(images: Images, cache_dir: Path) -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    task = make_task(tests=replace(make_task().tests, parser="parse_log_scikit"))
    verdict = await judged(images, task, edit("pkg/mod.py", FORGERIES["printed at the end"]), cache_dir)
    assert (verdict.reward, verdict.failed) == (0.0, task.fail_to_pass), verdict
    assert "PASSED tests/test_mod.py::test_two" in verdict.log
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0


async def test_a_script_with_markers(images: Images, cache_dir: Path) -> None:
    script = SCRIPT.replace(": '>>", "echo '>>")
    tests = TestSpec(runner="log", command=script, applies_tests=True, parser="pytest", requirements=(PYTEST,))
    task = make_task(tests=tests)
    assert (await judged(images, task, Patch(), cache_dir)).failed == task.fail_to_pass
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0
    forged = "import os\nos.write(1, b'>>>>> Start Test Output\\n>>>>> End Test Output\\n')\ndef f():\n    return 2\n"
    verdict = await judged(images, task, edit("pkg/mod.py", forged), cache_dir)
    # pytest captures what tests print while it collects; whatever gets through must not count
    assert verdict.tampered or verdict.reward == 1.0
    outside = replace(task, tests=replace(tests, command=f"echo '>>>>> Start Test Output'\n{script}"))
    assert (await judged(images, outside, Patch(), cache_dir)).tampered


async def test_a_script_longer_than_an_argument(images: Images, cache_dir: Path) -> None:
    script = f"set -x\n{SCRIPT}# {'x' * 200_000}\n"
    tests = TestSpec(runner="log", command=script, applies_tests=True, parser="pytest", requirements=(PYTEST,))
    assert (await judged(images, make_task(tests=tests), edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0


async def test_a_log_that_was_cut_is_no_evidence(images: Images, cache_dir: Path) -> None:
    noisy = f"head -c 50000000 /dev/zero | tr '\\0' '\\377'; {COMMAND}"
    for command in (noisy, f"{COMMAND}; head -c 50000000 /dev/zero"):
        task = make_task(tests=replace(make_task().tests, command=command))
        verdict = await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)
        assert (verdict.reward, verdict.tampered) == (0.0, False)
        assert "cut" in verdict.reason


NOT_A_PASS = {
    "xfail": "pytest.xfail('x')",
    "skip": "pytest.skip('x')",
    "exit": "pytest.exit('x', returncode=0)",
    "importorskip": "pytest.importorskip('no_such_module')",
    "SkipTest": "raise __import__('unittest').SkipTest('x')",
    "warn": "__import__('warnings').warn('x')",
}


@pytest.mark.parametrize("kind", NOT_A_PASS)
async def test_only_a_pass_is_a_pass_in_a_log(images: Images, cache_dir: Path, kind: str) -> None:
    patch = edit("pkg/mod.py", f"def f():\n    import pytest\n    {NOT_A_PASS[kind]}\n")
    assert (await judged(images, make_task(), patch, cache_dir)).reward == 0.0


async def test_a_log_that_names_only_failures(images: Images, cache_dir: Path) -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    says = 'print(3, "specs,", 0, "failures") if f() == 2 else print("2) adds up")'
    run = f"python3 -c 'from pkg.mod import f; {says}'"
    script = f"set -x\n: '>>>>> Start Test Output'\n{run}\n: '>>>>> End Test Output'\n"
    tests = TestSpec(runner="log", command=script, applies_tests=True, parser="parse_log_marked", absent="passes")
    task = make_task(tests=tests, fail_to_pass=("adds up",), pass_to_pass=("opens",))
    assert (await judged(images, task, edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0
    assert (await judged(images, task, edit("pkg/mod.py", "raise SystemExit\n"), cache_dir)).reward == 0.0
