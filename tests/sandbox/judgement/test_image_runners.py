"""Commands of the public datasets: which take canaries, and how."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from sandbox.curation.recipes import PYTEST
from sandbox.diffs import git_diff
from sandbox.judgement.grading import Patch
from sandbox.judgement.log_canaries import with_module
from sandbox.patches import Change
from sandbox.tasks.task import TestSpec
from tests.sandbox.judgement.image import COMMAND, SAY, TESTS, Images, edit, judged, make_task


async def test_expected_output(images: Images, cache_dir: Path) -> None:
    expected = {"test_two": "PASSED", "test_callable": "PASSED"}
    tests = TestSpec(runner="expected-output", command=COMMAND, expected=expected, requirements=(PYTEST,))
    task = make_task(fail_to_pass=(), pass_to_pass=(), tests=tests)
    untouched = await judged(images, task, Patch(), cache_dir)
    assert (untouched.reward, untouched.failed) == (0.0, ("test_two",))
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0


R2E = make_task(
    fail_to_pass=(),
    pass_to_pass=(),
    test_patch="",
    removed=("r2e_tests", "run_tests.sh"),
    test_files={
        "r2e_tests/test_mod.py": TESTS,
        "run_tests.sh": COMMAND.replace("tests/test_mod.py", "r2e_tests"),
    },
    tests=TestSpec(
        runner="expected-output",
        command="bash run_tests.sh",
        expected={"test_two": "PASSED", "test_callable": "PASSED"},
        requirements=(PYTEST,),
    ),
)


async def test_expected_output_of_an_image_with_canaries(images: Images, cache_dir: Path) -> None:
    assert (await judged(images, R2E, Patch(), cache_dir)).failed == ("test_two",)
    assert (await judged(images, R2E, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0
    head = SAY.replace("for l in (", "for l in ('== short test summary info ==', ")
    for end in ("os._exit(0)\n", "raise ImportError\n"):
        verdict = await judged(images, R2E, edit("pkg/mod.py", head + end), cache_dir)
        assert (verdict.reward, verdict.tampered) == (0.0, True), verdict


async def test_a_project_that_stops_at_the_first_failure_is_judged(images: Images, cache_dir: Path) -> None:
    task = make_task(tests=replace(make_task().tests, command=COMMAND.replace("-rA", "-x -rA")))
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0


async def test_what_a_task_hides_cannot_be_put_in_its_place(images: Images, cache_dir: Path) -> None:
    planted = (
        edit("run_tests.sh", "echo short test summary info; echo PASSED x::test_two; echo PASSED x::test_callable\n"),
        edit("r2e_tests/test_mod.py", "def test_two():\n    pass\ndef test_callable():\n    pass\n"),
        Patch(changes=(Change(path="r2e_tests", kind="link", content=b"pkg"),)),
        edit(".venv/bin/python", "#!/bin/sh\n"),
    )
    for patch in planted:
        verdict = await judged(images, R2E, patch, cache_dir)
        assert verdict.failed == ("test_two",)
        assert verdict.ignored == (patch.changes[0].path,)


DJANGO_RUNNER = """
import sys, unittest
sys.path[:0] = ["tests", "."]
suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[3:])
unittest.TextTestRunner(verbosity=2).run(suite)
"""


UNITTESTS = (
    "import unittest\nfrom pkg.mod import f\n\nclass T(unittest.TestCase):\n"
    "    def test_two(self):\n        self.assertEqual(f(), 2)\n"
)


async def test_a_runner_of_labels_takes_canaries(images: Images, cache_dir: Path) -> None:
    """As Django's, whose modules are named by dotted labels and whose log is unittest's."""
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    files = {"tests/runtests.py": DJANGO_RUNNER, "tests/app/test_mod.py": UNITTESTS, "tests/app/__init__.py": ""}
    name = "test_two (app.test_mod.T.test_two)" if sys.version_info >= (3, 11) else "test_two (app.test_mod.T)"
    patch = "".join(git_diff([(None, Change(path=p, kind="file", content=t.encode()))]) for p, t in files.items())
    task = make_task(
        fail_to_pass=(name,),
        pass_to_pass=(),
        test_patch=patch,
        tests=TestSpec(
            runner="log", command="python3 tests/runtests.py --verbosity 2 app.test_mod", parser="parse_log_django"
        ),
    )
    assert (await judged(images, task, Patch(), cache_dir)).failed == (name,)
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0
    for end in ("os._exit(0)", "raise ImportError"):
        forged = f"import os\nos.write(2, b'{name} ... ok\\n')\n{end}\n"
        verdict = await judged(images, task, edit("pkg/mod.py", forged), cache_dir)
        assert (verdict.reward, verdict.tampered) == (0.0, True), verdict


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("source x && pytest -rA t.py", "source x && pytest -rA t.py tests/app/test_c.py --maxfail=0"),
        ("tox --current-env -epy39 -- t.py", "tox --current-env -epy39 -- t.py tests/app/test_c.py --maxfail=0"),
        ("./tests/runtests.py --parallel 1 app.test_a", "./tests/runtests.py --parallel 1 app.test_a app.test_c"),
        ("bin/test -C --verbose a/tests/test_a.py", "bin/test -C --verbose a/tests/test_a.py tests/app/test_c.py"),
        ("pytest tests | tee log", None),
        ("pytest tests; make report", None),
        ("make test", None),
    ],
)
def test_a_known_runner_takes_one_more_module(command: str, expected: str | None) -> None:
    assert with_module(command, "tests/app/test_c.py") == expected
