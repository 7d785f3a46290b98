"""Tasks whose repository, with its history, is in an image: what the agent sees, and how a log is judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from protocol.errors import GradingError, SandboxError, TaskError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.curation.gold import gold_patch
from sandbox.curation.recipes import PYTEST
from sandbox.datasets.harbor import from_harbor
from sandbox.datasets.smith import from_swe_smith
from sandbox.diffs import git_diff
from sandbox.judgement.checkout import prepare, take_patch
from sandbox.judgement.grading import Patch, Verdict, grade
from sandbox.judgement.log_canaries import with_module
from sandbox.parsers.own import parse_r2e
from sandbox.parsers.reading import between_markers, parse_log
from sandbox.patches import Change
from sandbox.tasks.task import Task, TestSpec, check_task

GOLD = "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n"
TESTS = (
    "from pkg.mod import f\n\ndef test_two():\n    assert f() == 2\n\ndef test_callable():\n    assert callable(f)\n"
)
TEST_PATCH = "--- /dev/null\n+++ b/tests/test_mod.py\n@@ -0,0 +1,7 @@\n" + "".join(
    f"+{x}\n" for x in TESTS.splitlines()
)
COMMAND = "PYTHONPATH=/opt/longhaul-tests:. python3 -m pytest -rA --tb=no -p no:cacheprovider tests/test_mod.py"


class Images:
    """Stands for a registry: an image is a directory, shown by a backend that knows directories."""

    name = "images"

    def __init__(self, inner: Backend, images: dict[str, Path]) -> None:
        self._inner = inner
        self._images = images

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.image not in self._images:
            raise SandboxError(f"no image {spec.image}", kind="image")
        return await self._inner.create(replace(spec, image=None, source=self._images[spec.image]))


def git(tree: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@pytest.fixture
def images(namespace: Backend, tmp_path: Path) -> Images:
    """A repository with a past, a future commit that solves the issue, a tag of it, and a branch as SWE-smith has."""
    tree = tmp_path / "repository"
    (tree / "pkg").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "pkg" / "__init__.py").write_text("")
    (tree / "pkg" / "mod.py").write_text("def f():\n    return 1\n")
    (tree / ".gitignore").write_text("build/\n")
    git(tree, "init", "-q", "-b", "main")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "base")
    git(tree, "checkout", "-q", "-b", "smith")
    (tree / "tests" / "test_mod.py").write_text(TESTS)
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "tests")
    git(tree, "rm", "-q", "tests/test_mod.py")
    git(tree, "commit", "-q", "-m", "tests removed")
    git(tree, "checkout", "-q", "main")
    (tree / "pkg" / "mod.py").write_text("def f():\n    return 2  # SECRET\n")
    git(tree, "commit", "-q", "-am", "SECRET fix")
    git(tree, "tag", "v2-SECRET")
    git(tree, "update-ref", "refs/remotes/origin/main", "HEAD")
    git(tree, "reset", "-q", "--hard", "HEAD~1")
    git(tree, "gc", "-q")
    return Images(namespace, {"img": tree})


def make_task(**changes: object) -> Task:
    task = Task(
        task_id="o__r-1",
        source="swe-bench",
        repository="o/r",
        issue="f() should be 2",
        image="img",
        fail_to_pass=("tests/test_mod.py::test_two",),
        pass_to_pass=("tests/test_mod.py::test_callable",),
        gold_patch=GOLD,
        test_patch=TEST_PATCH,
        tests=TestSpec(runner="log", command=COMMAND, parser="parse_log_pytest", requirements=(PYTEST,)),
    )
    return replace(task, **changes)


async def judged(backend: Backend | Images, task: Task, patch: Patch, cache_dir: Path) -> Verdict:
    return await grade(
        backend,  # type: ignore[arg-type]
        task,
        patch,
        run="test",
        lease="lease",
        limits=Limits(),
        cache_dir=cache_dir,
        timeout_s=60,
    )


def edit(path: str, text: str) -> Patch:
    return Patch(changes=(Change(path=path, kind="file", content=text.encode()),))


async def test_the_agent_sees_no_past_and_no_future(images: Images) -> None:
    task = make_task()
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        before = await sandbox.exec("git -c safe.directory='*' log --all --oneline", timeout=10)
        assert "SECRET" in before.text
        await prepare(sandbox, task)
        seen = await sandbox.exec(
            "git config --global safe.directory '*'; git log --all --oneline; git tag; git reflog; git for-each-ref;"
            " git fsck --unreachable --no-reflogs; git cat-file --batch-all-objects --batch; grep -rs SECRET .",
            timeout=20,
        )
        status = await sandbox.exec("git status --porcelain", timeout=10)
    assert "SECRET" not in seen.text
    assert "test_two" not in seen.text
    assert seen.text.count(" base") >= 1
    assert status.text == ""


async def test_the_change_is_taken_by_git(images: Images) -> None:
    task = make_task()
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, task)
        await sandbox.exec(
            "echo x > 'new file'; chmod +x 'new file'; rm pkg/__init__.py; ln -s pkg link; sed -i s/1/2/ pkg/mod.py;"
            "mkdir build; echo junk > build/x; printf '\\0' > bin; git config --global safe.directory '*';"
            "git config --global user.email a@b; git config --global user.name n; git add -A; git commit -qm mine",
            timeout=20,
        )
        patch = await take_patch(sandbox, task)
    assert {change.path: change for change in patch.changes} == {
        change.path: change
        for change in (
            Change(path="new file", kind="file", content=b"x\n", executable=True),
            Change(path="pkg/__init__.py", kind="deleted"),
            Change(path="link", kind="link", content=b"pkg"),
            Change(path="pkg/mod.py", kind="file", content=b"def f():\n    return 2\n"),
            Change(path="bin", kind="file", content=b"\0"),
        )
    }
    assert "+    return 2" in patch.diff


async def test_logs_are_judged(images: Images, cache_dir: Path) -> None:
    task = make_task()
    untouched = await judged(images, task, Patch(), cache_dir)
    assert (untouched.reward, untouched.tampered) == (0.0, False), untouched
    assert untouched.passed == task.pass_to_pass
    gold = await gold_patch(images, task, "test", Limits(), cache_dir)  # type: ignore[arg-type]
    assert (await judged(images, task, gold, cache_dir)).reward == 1.0


SAY = (  # past pytest's capture, to whatever file leads to the log
    "import os\nfor l in ('PASSED tests/test_mod.py::test_two', 'PASSED tests/test_mod.py::test_callable'):\n"
    "    for fd in range(1, 30):\n        try:\n            os.write(fd, (l + '\\n').encode())\n"
    "        except OSError:\n            pass\n"
)
FORGERIES = {
    "printed and exited": f"{SAY}os._exit(0)\n",
    "printed, then not importable": f"{SAY}raise ImportError\n",
    "printed at the end": "import atexit, os\n"
    "atexit.register(lambda: os.write(1, b'PASSED tests/test_mod.py::test_two\\n'))\ndef f():\n    return 1\n",
    "patched runner": "import _pytest.python as p, _pytest.unittest as u\np.Function.runtest = lambda self: None\n"
    "u.TestCaseFunction.runtest = lambda self: None\ndef f():\n    return 1\n",
}
SCRIPT = (
    "git -c safe.directory='*' checkout -q smith~1 -- tests/test_mod.py\n"
    f": '>>>>> Start Test Output'\n{COMMAND}\n: '>>>>> End Test Output'\n"
)


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("brings_tests", [False, True], ids=["command", "script"])
async def test_forged_logs_are_tampering(images: Images, cache_dir: Path, forgery: str, brings_tests: bool) -> None:
    task = make_task()
    if brings_tests:
        task = replace(task, tests=replace(task.tests, command=f"set -x\n{SCRIPT}", applies_tests=True))
    verdict = await judged(images, task, edit("pkg/mod.py", FORGERIES[forgery]), cache_dir)
    assert (verdict.reward, verdict.tampered) == (0.0, True), verdict


async def test_the_last_word_does_not_win(images: Images, cache_dir: Path) -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    task = make_task(tests=replace(make_task().tests, parser="parse_log_scikit"))
    verdict = await judged(images, task, edit("pkg/mod.py", FORGERIES["printed at the end"]), cache_dir)
    assert (verdict.reward, verdict.failed) == (0.0, task.fail_to_pass), verdict
    assert "PASSED tests/test_mod.py::test_two" in verdict.log
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0


async def test_a_branch_without_its_tests_gets_them_back(images: Images, cache_dir: Path) -> None:
    task = make_task(test_patch="", checkout="smith", hidden_from="smith~1")
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, task)
        assert (await sandbox.exec("ls tests", timeout=10)).exit_code != 0
    assert (await judged(images, task, Patch(), cache_dir)).failed == task.fail_to_pass
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


async def test_failures_are_named(images: Images, cache_dir: Path) -> None:
    with pytest.raises(SandboxError, match="no image missing"):
        await judged(images, make_task(image="missing"), Patch(), cache_dir)
    with pytest.raises(TaskError, match=r"o__r-1.*test_patch"):
        await judged(images, make_task(test_patch=TEST_PATCH.replace("@@ -0,0", "@@ -5,0")[:60]), Patch(), cache_dir)
    broken = replace(make_task().tests, setup="exit 3")
    with pytest.raises(GradingError, match="setup"):
        await judged(images, make_task(tests=broken), Patch(), cache_dir)
    unknown = replace(make_task().tests, command="sleep 60", parser="pytest")
    verdict = await grade(
        images,  # type: ignore[arg-type]
        make_task(tests=unknown),
        Patch(),
        run="test",
        lease="l",
        limits=Limits(),
        cache_dir=cache_dir,
        timeout_s=0.5,
    )
    assert (verdict.reward, verdict.reason) == (0.0, "the tests did not end in time")


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


class Dead(Images):
    """Gives sandboxes that died."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await super().create(spec)
        await sandbox.close()
        return sandbox


async def test_a_sandbox_that_dies_is_no_verdict(images: Images, cache_dir: Path) -> None:
    with pytest.raises(SandboxError):
        await judged(Dead(images._inner, images._images), make_task(), Patch(), cache_dir)


def test_summary_lines_are_read() -> None:
    log = (
        "collected 5 items\n\x1b[32mPASSED\x1b[0m a.py::one\nFAILED a.py::two - AssertionError: x\nERROR a.py::three\n"
        "SKIPPED [2] a.py:3: no\nXFAIL a.py::four\nXPASS a.py::five\nPASSED a.py::p[x y]\nFAILED a.py::p[x z]\n"
    )
    parsed = parse_log("pytest", log)
    assert parsed.outcomes == {
        "a.py::one": "passed",
        "a.py::two": "failed",
        "a.py::three": "failed",
        "a.py::four": "xfailed",
        "a.py::five": "xpassed",
        "a.py::p[x": "failed",
    }
    assert parsed.contradicted == []
    assert parse_log("pytest", "FAILED a.py::x\nPASSED a.py::x\n").contradicted == ["a.py::x"]
    assert parse_log("pytest", "PASSED a.py::x\nERROR a.py::x\n").outcomes == {"a.py::x": "failed"}


def test_r2e_names() -> None:
    log = "PASSED not::this\n== short test summary info ==\nPASSED t.py::T::a\nFAILED t.py::T::b - E\nERROR t.py\n"
    assert parse_r2e(log) == {"T.a": "PASSED", "T.b": "FAILED"}
    assert parse_r2e("no summary") == {}


@pytest.mark.parametrize("log", ["", ">>>>> Start Test Output", ">>>>> End Test Output >>>>> Start Test Output"])
def test_markers_must_be_one_pair(log: str) -> None:
    assert between_markers(log) is None
    assert between_markers(f"{log}>>>>> Start Test Output x >>>>> End Test Output") in (None, " x ")


def test_swebench_parsers() -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    assert parse_log("parse_log_django", "test_x (a.T) ... ok\n").outcomes == {"test_x (a.T)": "passed"}
    with pytest.raises(GradingError, match="no log parser"):
        parse_log("parse_log_nothing", "")


SOUND = "def f():\n    return 2\n"


async def test_a_script_longer_than_an_argument(images: Images, cache_dir: Path) -> None:
    script = f"set -x\n{SCRIPT}# {'x' * 200_000}\n"
    tests = TestSpec(runner="log", command=script, applies_tests=True, parser="pytest", requirements=(PYTEST,))
    assert (await judged(images, make_task(tests=tests), edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0


async def test_a_log_that_names_only_failures(images: Images, cache_dir: Path) -> None:
    pytest.importorskip("swebench", reason="the extra `grading` is not installed")
    says = 'print(3, "specs,", 0, "failures") if f() == 2 else print("2) adds up")'
    run = f"python3 -c 'from pkg.mod import f; {says}'"
    script = f"set -x\n: '>>>>> Start Test Output'\n{run}\n: '>>>>> End Test Output'\n"
    tests = TestSpec(runner="log", command=script, applies_tests=True, parser="parse_log_marked", absent="passes")
    task = make_task(tests=tests, fail_to_pass=("adds up",), pass_to_pass=("opens",))
    assert (await judged(images, task, edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0
    assert (await judged(images, task, edit("pkg/mod.py", "raise SystemExit\n"), cache_dir)).reward == 0.0


async def test_a_task_that_writes_its_reward(images: Images, cache_dir: Path) -> None:
    record = {
        "harbor_task": "two",
        "config": {"environment": {"docker_image": "img"}},
        "instruction": "f() should be 2",
        "workdir": "/testbed",
        "tests": {"test.sh": "python3 /tests/state.py\n", "state.py": STATE},
    }
    task = check_task(from_harbor(record))
    moved = task.tests.command.replace("/tests/", "/tmp/tests/").replace("/logs/", "/tmp/logs/")  # / is not ours here
    files = {f"/tmp{path}": text and text.replace("/tests/", "/tmp/tests/") for path, text in task.test_files.items()}
    task = replace(task, tests=replace(task.tests, command=moved), test_files=files)
    assert (await judged(images, task, Patch(), cache_dir)).failed == ("reward",)
    assert (await judged(images, task, edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0
    said = "import os, signal\nprint('>>>>> Reward: 1', flush=True)\nfor pid in (os.getppid(), 0):\n"
    early = await judged(images, task, edit("pkg/mod.py", said + "    os.kill(pid, signal.SIGKILL)\n"), cache_dir)
    assert (early.reward, early.failed) == (0.0, ("reward",)), early


STATE = (
    "import sys\nsys.path.insert(0, '.')\nfrom pkg.mod import f\n"
    "open('/tmp/logs/verifier/reward.txt', 'w').write(str(f() - 1))\n"
)


async def test_a_bug_that_the_record_brings(images: Images, cache_dir: Path) -> None:
    """SWE-smith: the image is sound and has no branch of the instance; the agent sees neither its tests nor the fix."""
    record = {
        "instance_id": "o__r.abc.func__1",
        "repo": "swesmith/o__r.abc",
        "image_name": "img",
        "patch": GOLD.replace("return 2", "return 7"),
        "problem_statement": "f() should be 1",
        "FAIL_TO_PASS": ["tests/test_one.py::test_one"],
        "PASS_TO_PASS": [],
    }
    tree = images._images["img"]
    (tree / "tests").mkdir(exist_ok=True)
    (tree / "tests" / "test_one.py").write_text("from pkg.mod import f\n\ndef test_one():\n    assert f() == 1\n")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "tests")
    task = check_task(from_swe_smith(record))
    command = COMMAND.replace("test_mod", "test_one")
    task = replace(task, tests=replace(task.tests, command=command, requirements=(PYTEST,)))
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, task)
        seen = await sandbox.exec("cat pkg/mod.py; ls tests; git log --oneline --all", timeout=10)
    assert "return 7" in seen.text
    assert "test_one" not in seen.text
    assert (await judged(images, task, Patch(), cache_dir)).failed == task.fail_to_pass
    gold = await gold_patch(images, task, "test", Limits(), cache_dir)  # type: ignore[arg-type]
    assert (await judged(images, task, gold, cache_dir)).reward == 1.0
