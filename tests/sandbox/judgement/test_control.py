"""Outcomes that code under test can write: a second run that must fail."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from sandbox.datasets.harbor import from_harbor
from sandbox.judgement.grading import Patch
from sandbox.tasks.task import check_task
from tests.sandbox.judgement.image import SOUND, Images, edit, judged

STATE = (
    "import sys\nsys.path.insert(0, '.')\nfrom pkg.mod import f\n"
    "open('/tmp/logs/verifier/reward.txt', 'w').write(str(f() - 1))\n"
)


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
