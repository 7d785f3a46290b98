"""The gold patch of a task in the form in which an agent's change is judged."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from sandbox.base import Backend, Limits
from sandbox.diffs import patch_between
from sandbox.judgement.checkout import git_apply, prepare, take_patch
from sandbox.patches import Patch
from sandbox.tasks.sources import apply_diff, materialise, sandbox_spec
from sandbox.tasks.task import Task


async def gold_patch(backend: Backend, task: Task, run: str, limits: Limits, cache_dir: Path) -> Patch:
    """Apply `task.gold_patch` to what the agent sees and take the change. Raises `TaskError` if it does not apply."""
    if task.image is None:
        return await asyncio.to_thread(_gold_of_tree, task, cache_dir)
    spec = await asyncio.to_thread(sandbox_spec, task, run, f"gold-{task.task_id}", limits, cache_dir)
    async with await backend.create(spec) as sandbox:
        await prepare(sandbox, task)
        await git_apply(sandbox, task.gold_patch, f"task {task.task_id!r}: gold_patch")
        return await take_patch(sandbox, task)


def _gold_of_tree(task: Task, cache_dir: Path) -> Patch:
    before = materialise(task, cache_dir)
    assert before is not None
    with tempfile.TemporaryDirectory() as scratch:
        after = Path(scratch) / "tree"
        shutil.copytree(before, after, symlinks=True)
        apply_diff(task.gold_patch, after, f"task {task.task_id!r}: gold_patch")
        return patch_between(before, after)
