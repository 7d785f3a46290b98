"""Where attacks are tried: every way to judge, in namespaces and in containers, on tasks with an image and without."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct
from msgspec.structs import replace

from sandbox.base import Backend, Limits, SandboxSpec
from sandbox.curation.recipes import PYTEST
from sandbox.datasets.harbor import from_harbor
from sandbox.datasets.pro import from_swe_bench_pro
from sandbox.diffs import git_diff
from sandbox.patches import Change
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.sources import ENVIRONMENT_INSIDE, materialise
from sandbox.tasks.task import RunnerKind, Task, TestSpec, check_task

LIMITS = Limits(memory_mib=512, disk_mib=128)
MODULE = "calc/__init__.py"
TEST_PATH = "tests/test_core.py"
HIDDEN = """
from calc.core import add, names

def test_adds_small_numbers():
    assert add(2, 3) == 5

def test_adds_nothing():
    assert add(0, 0) == 0

def test_has_names():
    assert names() == ["a", "b"]
"""
_FAULTY = "def add(a, b):\n    return a - b\n\n\ndef names():\n    return ['a', 'b']\n"
_TREE = {
    "calc/__init__.py": "",
    "calc/core.py": _FAULTY,
    "tests/test_old.py": "def test_old():\n    pass\n",
    "setup.cfg": "[metadata]\nname = calc\n",
}
_GOLD = """--- a/calc/core.py
+++ b/calc/core.py
@@ -1,3 +1,3 @@
 def add(a, b):
-    return a - b
+    return a + b
 \n"""
_PYTEST = f"PYTHONPATH={ENVIRONMENT_INSIDE}:. python3 -m pytest -rA --tb=no --color=no -p no:cacheprovider"
_READER = (
    "import json, sys\nseen = [l.split() for l in open(sys.argv[1]) if l.startswith(('PASSED ', 'FAILED '))]\n"
    "tests = [{'name': w[1], 'status': w[0]} for w in seen]\njson.dump({'tests': tests}, open(sys.argv[3], 'w'))\n"
)


class Surface(Struct, frozen=True):
    """One task, and where it is judged."""

    name: str
    backend: Backend
    task: Task
    tree: Path  # what the agent was given
    module: str  # of it, imported by the hidden tests


def calc_task(runner: RunnerKind) -> Task:
    """A package with one fault, judged by one of our runners, or by the log of pytest."""
    command = f"{_PYTEST} {TEST_PATH}" if runner == "log" else ""
    requirements = () if runner == "functions" else (PYTEST,)
    return check_task(
        Task(
            task_id=f"calc-{runner}",
            source="micro",
            repository="calc",
            issue="add(2, 3) gives -1",
            files=_TREE,
            gold_patch=_GOLD,
            test_files={TEST_PATH: HIDDEN},
            fail_to_pass=(f"{TEST_PATH}::test_adds_small_numbers",),
            pass_to_pass=(f"{TEST_PATH}::test_adds_nothing", f"{TEST_PATH}::test_has_names"),
            tests=TestSpec(runner=runner, requirements=requirements, command=command),
        )
    )


def without_image(where: str, backend: Backend, cache_dir: Path) -> list[Surface]:
    """Our own runners and a log, on a tree of this host."""
    tasks = [calc_task(runner) for runner in ("functions", "pytest", "log")]
    tasks += make_tasks(1, 7, 2, "train")
    return [surface_of(where, backend, task, cache_dir) for task in tasks]


def surface_of(where: str, backend: Backend, task: Task, cache_dir: Path) -> Surface:
    """The surface of a task without an image."""
    tree = materialise(task, cache_dir)
    assert tree is not None
    module = MODULE if task.repository == "calc" else module_of(task)
    kind = task.tests.runner if task.repository == "calc" else task.source
    return Surface(f"{kind}, {where}", backend, task, tree, module)


def module_of(task: Task) -> str:
    """A source file that the hidden tests import: the one with the fault, or the first that the gold patch changes."""
    first = next(line for line in task.gold_patch.splitlines() if line.startswith("--- a/"))
    return str(task.metadata.get("path") or first.removeprefix("--- a/"))


@asynccontextmanager
async def with_image(backend: Backend) -> AsyncIterator[list[Surface]]:
    """Tasks in an image with a past and a future, in the forms of the public datasets; the image is gone afterwards."""
    with TemporaryDirectory(prefix="longhaul-attacks-") as folder:
        tree = Path(folder) / "calc"
        commits = await asyncio.to_thread(_make_repository, tree)
        spec = SandboxSpec(run="attacks", lease="image", source=tree, workdir="/testbed", limits=LIMITS)
        async with await backend.create(spec) as sandbox:
            snapshot = await sandbox.snapshot()
        try:
            tasks = _image_tasks(snapshot.reference, *commits)
            yield [Surface(f"{name}, image", backend, task, tree, MODULE) for name, task in tasks.items()]
        finally:
            await backend.delete_snapshot(snapshot)


def _make_repository(tree: Path) -> tuple[str, str]:
    """Its base commit and one that holds the solution and the tests, which no branch names."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false", *arguments]
        done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    for path, text in _TREE.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "base")
    base = git("rev-parse", "HEAD")
    (tree / "calc/core.py").write_text(_FAULTY.replace("a - b", "a + b"))
    (tree / TEST_PATH).write_text(HIDDEN)
    git("add", "-A")
    git("commit", "-q", "-m", "solution")
    solution = git("rev-parse", "HEAD")
    git("tag", "v2")
    git("reset", "-q", "--hard", base)
    return base, solution


def _image_tasks(image: str, base: str, solution: str) -> dict[str, Task]:
    plain = calc_task("log")
    added = [(None, Change(path=TEST_PATH, kind="file", content=HIDDEN.encode()))]
    test_patch = git_diff(added)
    of_image = replace(plain, image=image, files=None, test_files={}, test_patch=test_patch, base_commit=base)
    script = (
        f"git config --global --add safe.directory '*'\nset -x\n"
        f"git apply -v - <<'EOF_114329324912'\n{test_patch}EOF_114329324912\n"
        f": '>>>>> Start Test Output'\n{plain.tests.command}\n: '>>>>> End Test Output'\n"
    )
    by_script = replace(of_image.tests, command=script, applies_tests=True)
    reader = from_swe_bench_pro(
        {
            "instance_id": "instance_calc",
            "repo": "o/calc",
            "base_commit": base,
            "dockerhub_tag": "none",
            "problem_statement": plain.issue,
            "patch": _GOLD,
            "test_patch": test_patch,
            "before_repo_set_cmd": f"git reset --hard {base}\ngit checkout {solution} -- {TEST_PATH}",
            "selected_test_files_to_run": [TEST_PATH],
            "fail_to_pass": list(plain.fail_to_pass),
            "pass_to_pass": list(plain.pass_to_pass),
            "run_script": f"cd /testbed; {_PYTEST} $(echo $1 | tr , ' ')\n",
            "parser_script": _READER,
        }
    )
    reader = replace(reader, image=image, workdir="/testbed", tests=replace(reader.tests, requirements=(PYTEST,)))
    reward_file = "/logs/verifier/reward.txt"
    test_script = (
        f"cd /testbed\nif {_PYTEST} /tests/test_core.py; then echo 1 > {reward_file}; else echo 0 > {reward_file}; fi\n"
    )
    reward = from_harbor(
        {
            "harbor_task": "calc",
            "config": {"environment": {"docker_image": image}},
            "instruction": plain.issue,
            "workdir": "/testbed",
            "tests": {"test.sh": test_script, "test_core.py": HIDDEN},
        }
    )
    reward = replace(reward, gold_patch=_GOLD, tests=replace(reward.tests, requirements=(PYTEST,)))
    own = replace(calc_task("pytest"), image=image, files=None)
    named = {"pytest": own, "command": of_image, "script": replace(of_image, tests=by_script)}
    named |= {"reader": reader, "reward": reward}
    return {name: check_task(replace(task, task_id=f"calc-image-{name}")) for name, task in named.items()}
