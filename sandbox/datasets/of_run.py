"""Which tasks a run trains on and which it is scored on: never one in both."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from protocol.config import Settings
from protocol.errors import ConfigError
from sandbox.datasets.loading import load_tasks
from sandbox.tasks.task import Task

_POINTS = 1 << 32


class RunTasks(NamedTuple):
    """Of a run: the tasks it works on, and those that are scored beside them (`eval.every`)."""

    tasks: list[Task]
    held_out: list[Task]


def tasks_of_run(settings: Settings) -> RunTasks:
    """The tasks of a run, in their sources' order; every process of it gets the same.

    With `eval.held_out_share` a part of every source is held out: training never sees it, and an evaluation of the same
    source takes nothing else.

    Raises:
        ConfigError: they cannot be loaded, a part is empty, or the run would train on what it is scored on.
    """
    tasks = load_tasks(settings.tasks)
    share = settings.eval.held_out_share
    if settings.phase == "eval":
        return RunTasks(_held_out_of(settings, tasks) if share and not settings.eval.tasks else tasks, [])
    held_out: list[Task] = []
    if share:
        held_out = _held_out_of(settings, tasks)
        gone = {task.task_id for task in held_out}
        tasks = [task for task in tasks if task.task_id not in gone]
        if not tasks:
            raise ConfigError(f"--eval.held-out-share {share:g} leaves no task to train on", kind="held_out")
    if settings.held_out is not None:
        held_out = [*(() if settings.eval.tasks else held_out), *load_tasks(settings.held_out)]
    elif share and settings.eval.every:
        held_out += _of_micro_sources(settings)
    if settings.eval.every:
        _refuse_trained(settings, tasks, held_out)
    return RunTasks(tasks, _spread(held_out, settings.eval.tasks_in_training) if settings.eval.every else [])


def is_held_out(task_id: str, share: float) -> bool:
    """Whether a task belongs to the held-out share: by a hash of its name, whatever file it is in and beside what."""
    point = int.from_bytes(hashlib.sha256(b"held out " + task_id.encode()).digest()[:4], "big")
    return point < share * _POINTS


def _held_out_of(settings: Settings, tasks: Sequence[Task]) -> list[Task]:
    """Those of `tasks` that are held out, and those with the very change of one that is, under another name. `micro`
    has a split of its own instead, and is not parted."""
    parted = [task for task in tasks if not _is_of_micro(settings, task)]
    share = settings.eval.held_out_share
    changes = {change for task in parted if is_held_out(task.task_id, share) and (change := _change(task))}
    chosen = {task.task_id for task in parted if is_held_out(task.task_id, share) or _change(task) in changes}
    evaluates_micro = settings.phase == "eval"
    found = [task for task in tasks if task.task_id in chosen or (evaluates_micro and _is_of_micro(settings, task))]
    if not found and parted:
        raise ConfigError(
            f"--eval.held-out-share {share:g} holds out none of the {len(parted)} tasks: raise it, or set --eval.tasks",
            kind="held_out",
        )
    return found


def _of_micro_sources(settings: Settings) -> list[Task]:
    """The held-out split of every `micro` source of a mixture."""
    sources = [
        source.model_copy(update={"split": "heldout", "count": settings.eval.tasks_in_training})
        for source in settings.tasks.sources
        if source.source == "micro"
    ]
    return load_tasks(settings.tasks.model_copy(update={"sources": sources})) if sources else []


def _is_of_micro(settings: Settings, task: Task) -> bool:
    own = settings.tasks.of_source(task.source)
    return (own.source if own else settings.tasks.source) == "micro"


def _change(task: Task) -> tuple[str, str] | None:
    """What makes two tasks the same whatever they are called."""
    return (task.repository, task.gold_patch) if task.gold_patch else None


def _refuse_trained(settings: Settings, tasks: Iterable[Task], held_out: Iterable[Task]) -> None:
    trained = {task.task_id: task.task_id for task in tasks}
    changes = {change: task.task_id for task in tasks if (change := _change(task))}
    both = [(task.task_id, trained.get(task.task_id) or changes.get(_change(task) or ("", ""))) for task in held_out]
    same = [(mine, its) for mine, its in both if its is not None]
    if same:
        mine, its = same[0]
        named = repr(mine) if mine == its else f"{mine!r}, whose change is that of {its!r},"
        raise ConfigError(
            f"--eval.tasks {settings.eval.tasks}: the run trains on {len(same)} of these tasks, {named} first: "
            "held-out tasks must be others",
            kind="held_out",
        )


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count`, in turn from every source."""
    by_source: dict[str, list[Task]] = {}
    for task in tasks:
        by_source.setdefault(task.source, []).append(task)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_source.values()))
    return list(itertools.islice((task for task in in_turn if task is not None), count))
