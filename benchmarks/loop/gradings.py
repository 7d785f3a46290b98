"""What one judgement of a `micro` task uses, alone: the gold patches of some tasks, judged one after the other."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

from protocol.config import SandboxSettings
from sandbox.backends import open_backend
from sandbox.curation.gold import gold_patch
from sandbox.curation.survey import LIMITS
from sandbox.judgement.grading import grade
from sandbox.tasks.micro import make_tasks

_RUN = "benchmark-loop"
_NUM_TASKS = 10
_NUM_GRADINGS = 40
_TIMEOUT_S = 60.0


async def processor_ms_of_grading() -> float:
    """Milliseconds of processor time, of this process and of what ran inside the sandboxes together."""
    backend = await open_backend(SandboxSettings(backend="namespace"), _RUN)
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as directory:
        cache = Path(directory)
        tasks = make_tasks(_NUM_TASKS, 0, 0, "train")
        patches = [await gold_patch(backend, task, _RUN, LIMITS, cache) for task in tasks]
        before = _used_ms()
        for number in range(_NUM_GRADINGS):
            task, patch = tasks[number % _NUM_TASKS], patches[number % _NUM_TASKS]
            lease = f"grading-{number}"
            verdict = await grade(
                backend, task, patch, run=_RUN, lease=lease, limits=LIMITS, cache_dir=cache, timeout_s=_TIMEOUT_S
            )
            if not verdict.resolved:
                raise RuntimeError(f"the gold patch of {task.task_id} is not rewarded: {verdict.reason}")
        return (_used_ms() - before) / _NUM_GRADINGS


def _used_ms() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return 1000 * sum(one.ru_utime + one.ru_stime for one in both)
