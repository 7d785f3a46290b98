"""A repository with its history in an image, for tests of judgement."""

from __future__ import annotations

import subprocess
from pathlib import Path

from msgspec.structs import replace

from protocol.errors import SandboxError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.curation.recipes import PYTEST
from sandbox.judgement.grading import Patch, Verdict, grade
from sandbox.patches import Change
from sandbox.tasks.task import Task, TestSpec

GOLD = "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n"


TESTS = (
    "from pkg.mod import f\n\ndef test_two():\n    assert f() == 2\n\ndef test_callable():\n    assert callable(f)\n"
)


TEST_PATCH = "--- /dev/null\n+++ b/tests/test_mod.py\n@@ -0,0 +1,7 @@\n" + "".join(
    f"+{x}\n" for x in TESTS.splitlines()
)


COMMAND = "PYTHONPATH=/opt/longhaul-tests:. python3 -m pytest -rA --tb=no -p no:cacheprovider tests/test_mod.py"


SCRIPT = (
    "git -c safe.directory='*' checkout -q smith~1 -- tests/test_mod.py\n"
    f": '>>>>> Start Test Output'\n{COMMAND}\n: '>>>>> End Test Output'\n"
)


SOUND = "def f():\n    return 2\n"


SAY = (  # past pytest's capture, to whatever file leads to the log
    "import os\nfor l in ('PASSED tests/test_mod.py::test_two', 'PASSED tests/test_mod.py::test_callable'):\n"
    "    for fd in range(1, 30):\n        try:\n            os.write(fd, (l + '\\n').encode())\n"
    "        except OSError:\n            pass\n"
)


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
