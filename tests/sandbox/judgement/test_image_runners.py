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
        assert (verdict.reward, verdict.tampered) == (0.0, end == "os._exit(0)"), verdict
    for passes in ("True", "'sorted' in body"):
        verdict = await judged(images, task, edit("pkg/mod.py", _all_said(name, passes)), cache_dir)
        assert verdict.reward == 0.0, verdict
        equal = "class E:\n    __eq__ = lambda self, other: True\n\ndef f():\n    return E()\n"
        assert (await judged(images, task, edit("pkg/mod.py", equal), cache_dir)).tampered


SYMPY_RUNNER = """
import sys
sys.path.insert(0, ".")
for path in sys.argv[1:]:
    if not path.endswith(".py"):
        continue
    module = {}
    exec(open(path).read(), module)
    for name, test in list(module.items()):
        if name.startswith("test"):
            try:
                test()
                print(name, "ok")
            except AssertionError:
                print(name, "F")
"""


async def test_a_runner_that_names_functions_alone_takes_twins(images: Images, cache_dir: Path) -> None:
    """As sympy's."""
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    files = {"tests/test_mod.py": "from pkg.mod import f\n\ndef test_two():\n    two = 2\n    assert f() == two\n"}
    files["run/test"] = SYMPY_RUNNER
    patch = "".join(git_diff([(None, Change(path=p, kind="file", content=t.encode()))]) for p, t in files.items())
    command = "ln -s run bin; python3 bin/test -C --verbose tests/test_mod.py"
    task = make_task(
        fail_to_pass=("test_two",),
        pass_to_pass=(),
        test_patch=patch,
        tests=TestSpec(runner="log", command=command, parser="parse_log_sympy"),
    )
    assert (await judged(images, task, Patch(), cache_dir)).failed == ("test_two",)
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0
    equal = "class E:\n    __eq__ = lambda self, other: True\n\ndef f():\n    return E()\n"
    assert (await judged(images, task, edit("pkg/mod.py", equal), cache_dir)).tampered


def _all_said(name: str, passes: str) -> str:
    """Code that writes unittest's log: canaries by what they are, and `passes` tells of the others."""
    tail = ".{name}" if name.endswith(".test_two)") else ""
    return (
        "import ast, os, sys, textwrap\nfor label in sys.argv[3:]:\n"
        "    tree = ast.parse(open('tests/' + label.replace('.', '/') + '.py').read())\n"
        "    for cls in [n for n in tree.body if isinstance(n, ast.ClassDef)]:\n"
        "        for node in cls.body:\n"
        "            name, body = node.name, '\\n'.join(map(ast.unparse, node.body))\n"
        f"            ok = {passes}\n"
        "            if 'sorted' in body:\n"
        "                try: exec(body)\n                except AssertionError: ok = False\n"
        "                else: ok = True\n"
        f"            line = f'{{name}} ({{label}}.{{cls.name}}{tail}) ... ' + ('ok' if ok else 'FAIL')\n"
        "            os.write(2, (line + '\\n').encode())\n"
        "os._exit(0)\n"
    )


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
