"""`longhaul tasks try FILE --task ID --script agent.sh`: a shell script plays the agent in a real sandbox.

Shows what the script printed, the change that was taken of it, the verdict on it and the log of the hidden tests.
Without a script the gold patch is judged, with `--script /dev/null` the untouched tree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, to_builtins

from protocol.config import SandboxSettings, TaskSettings
from protocol.errors import ConfigError, LonghaulError
from protocol.section import count, positive
from sandbox.backends import open_backend
from sandbox.base import Backend, Limits
from sandbox.curation.gold import gold_patch
from sandbox.datasets.loading import all_of, load_tasks
from sandbox.judgement.checkout import prepare, take_patch
from sandbox.judgement.grading import grade
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch
from sandbox.tasks.sources import sandbox_spec, usable_cache
from sandbox.tasks.task import Task

_SCRIPT = "/tmp/agent.sh"


class Rehearsal(Struct, kw_only=True):
    """One play of an agent."""

    task: str
    script_exit: int | None = None
    script_output: str = ""
    change: str = ""
    problem: str = ""
    verdict: Verdict | None = None


def main(arguments: Sequence[str], program: str) -> int:
    """Exit status 0: resolved, 1: not resolved, 2: a mistake in the arguments, 3: the place failed."""
    options = _options(arguments, program)
    try:
        rehearsal = asyncio.run(_try(options))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except LonghaulError as error:
        print(f"{program}: {error.label}: {error}", file=sys.stderr)
        return 3
    except OSError as error:  # a disk that is full, say
        print(f"{program}: {error}", file=sys.stderr)
        return 3
    print(json.dumps(to_builtins(rehearsal)) if options.json else _page(rehearsal))
    return 0 if rehearsal.verdict is not None and rehearsal.verdict.resolved else 1


async def rehearse(
    backend: Backend, task: Task, script: bytes | None, *, run: str, cache_dir: Path, limits: Limits, timeout_s: float
) -> Rehearsal:
    """Play `script` (None: the gold patch) on `task`, take its change and judge it. Raises `LonghaulError`."""
    rehearsal = Rehearsal(task=task.task_id)
    if script is None:
        patch = await gold_patch(backend, task, run, limits, cache_dir)
    else:
        patch = await _play(backend, task, script, rehearsal, run, cache_dir, limits, timeout_s)
    rehearsal.change, rehearsal.problem = patch.diff, patch.problem
    rehearsal.verdict = await grade(
        backend,
        task,
        patch,
        run=run,
        lease="try-judgement",
        limits=limits,
        cache_dir=cache_dir,
        timeout_s=timeout_s,
    )
    return rehearsal


async def _play(
    backend: Backend,
    task: Task,
    script: bytes,
    rehearsal: Rehearsal,
    run: str,
    cache_dir: Path,
    limits: Limits,
    timeout_s: float,
) -> Patch:
    spec = await asyncio.to_thread(sandbox_spec, task, run, "try-agent", limits, cache_dir)
    async with await backend.create(spec) as sandbox:
        await prepare(sandbox, task)
        await sandbox.write(_SCRIPT, script)
        done = await sandbox.exec(["bash", _SCRIPT], timeout=timeout_s)
        rehearsal.script_exit = done.exit_code
        rehearsal.script_output = done.text + ("\n[it did not end in time]" if done.timed_out else "")
        return await take_patch(sandbox, task)


async def _try(options: argparse.Namespace) -> Rehearsal:
    tasks = load_tasks(TaskSettings(source=options.source, split=options.split, count=all_of(options.source)))
    chosen = [task for task in tasks if options.task in (None, task.task_id)]
    if not chosen:
        raise ConfigError(f"{options.source!r} has no task {options.task!r}", kind="tasks")
    try:
        script = options.script.read_bytes() if options.script else None
    except OSError as error:
        raise ConfigError(f"--script {options.script}: {error.strerror}", kind="file") from error
    cache_dir = usable_cache(options.cache_dir, "--cache-dir")
    run = f"try-{os.getpid()}"
    backend = await open_backend(SandboxSettings(backend=options.backend), run)
    try:
        limits = Limits(memory_mib=options.memory_mib, disk_mib=options.disk_mib)
        return await rehearse(
            backend, chosen[0], script, run=run, cache_dir=cache_dir, limits=limits, timeout_s=options.timeout
        )
    finally:
        await backend.close()


def _options(arguments: Sequence[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("source", metavar="FILE", help="task file (JSONL, Parquet), task directory or dataset")
    parser.add_argument("--task", help="id of the task (default: the first)")
    parser.add_argument("--script", type=Path, help="shell script that plays the agent (default: the gold patch)")
    parser.add_argument("--split", default="train", help="split of a dataset")
    parser.add_argument("--backend", default="auto", choices=["auto", "docker", "namespace"])
    parser.add_argument("--cache-dir", type=Path, default=TaskSettings().cache_dir)
    parser.add_argument("--memory-mib", type=count, default=2048, help="memory of the sandbox (default 2048)")
    parser.add_argument("--disk-mib", type=count, default=1024, help="disk of the sandbox (default 1024)")
    parser.add_argument(
        "--timeout", type=positive, default=600.0, help="seconds for the script, and for a run of the tests"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser.parse_args(arguments)


def _page(rehearsal: Rehearsal) -> str:
    verdict = rehearsal.verdict
    assert verdict is not None
    parts = [f"task: {rehearsal.task}"]
    if rehearsal.script_exit is not None:
        parts += [f"script: exit status {rehearsal.script_exit}", rehearsal.script_output.rstrip()]
    parts += ["change:", rehearsal.change.rstrip() or "(none)"]
    if rehearsal.problem:
        parts.append(f"no patch: {rehearsal.problem}")
    parts += ["log of the hidden tests:", verdict.log.rstrip() or "(none)"]
    if verdict.ignored:
        parts.append(f"not taken: {', '.join(verdict.ignored)}")
    said = "resolved" if verdict.resolved else "not resolved"
    parts.append(f"verdict: {said}{', tampered' if verdict.tampered else ''}: {verdict.reason}")
    return "\n".join(parts)
