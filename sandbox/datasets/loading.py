"""Where tasks come from: `micro`, a task file (JSONL, Parquet), task directories or a Hugging Face dataset."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from protocol.config import TaskSettings
from protocol.config.sandbox.tasks import TaskFields
from protocol.errors import ConfigError, TaskError, border
from protocol.section import expanded
from sandbox.datasets.harbor import records_of_directories, task_directories
from sandbox.datasets.pro import with_scripts_beside
from sandbox.tasks.record_files import records_of_file
from sandbox.tasks.task import Task

log = logging.getLogger(__name__)

MICRO = "micro"
_MANY_MICRO = 1024
_MAX_BAD_SHOWN = 5


def all_of(source: str) -> int:
    """A `count` that takes everything of a source; of `micro`, which has no end, enough to choose from."""
    return _MANY_MICRO if source == MICRO else 1 << 31


def load_tasks(settings: TaskSettings) -> list[Task]:
    """The tasks that `settings` asks for, in the source's order.

    A bad record is left out with a warning that names task and field. Raises `ConfigError` when the source cannot be
    read or no record is usable. Tasks of a mixture have their source's name as `source`.
    """
    if settings.sources:
        return _of_mixture(settings)
    if settings.source == MICRO:
        from sandbox.tasks.micro import make_tasks

        return make_tasks(settings.count, settings.seed, settings.difficulty, settings.split)
    return tasks_of_records(records_of(settings), settings.format, settings.count, settings.source)


def _of_mixture(settings: TaskSettings) -> list[Task]:
    tasks: dict[str, Task] = {}
    for source in settings.sources:
        own = {name: getattr(source, name) for name in TaskFields.model_fields}
        for task in load_tasks(TaskSettings(**own, cache_dir=settings.cache_dir)):
            if task.task_id in tasks:
                raise ConfigError(
                    f"tasks source {source.name!r}: task {task.task_id!r} is in {tasks[task.task_id].source!r}, too: "
                    "give the sources different splits or seeds",
                    kind="tasks",
                )
            tasks[task.task_id] = msgspec.structs.replace(task, source=source.name)
    return list(tasks.values())


def tasks_of_records(records: Iterable[dict[str, Any] | TaskError], schema: str, count: int, origin: str) -> list[Task]:
    """Typed tasks of raw records; `origin` names the source in errors. Raises `ConfigError` when none is usable."""
    from sandbox.datasets.formats import read_record

    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for number, record in enumerate(records, 1):
        if len(tasks) >= count:
            break
        try:
            if isinstance(record, TaskError):
                raise record
            task = read_record(schema, record)
            if task.task_id in tasks:
                raise TaskError(f"task {task.task_id!r}: task_id: appears twice; the first is kept", kind="duplicate")
            tasks[task.task_id] = task
        except TaskError as error:
            problems.append(f"record {number}: {error}")
    if not tasks:
        shown = "; ".join(problems[:_MAX_BAD_SHOWN]) or "it holds no records"
        raise ConfigError(f"tasks.source {origin!r} has no usable task: {shown}", kind="tasks")
    for problem in problems:
        log.warning("%s: left out: %s", origin, problem)
    return list(tasks.values())


def records_of(settings: TaskSettings) -> Iterator[dict[str, Any] | TaskError]:
    """The raw records of a file, a task directory or a dataset; an error in the place of one that cannot be read.

    Raises `ConfigError` where the source cannot be read at all.
    """
    if settings.source == MICRO:
        return iter([msgspec.to_builtins(task) for task in load_tasks(settings)])
    path = expanded(settings.source)
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long, a directory that may not be entered
        raise ConfigError(f"tasks.source {settings.source!r}: {error.strerror}", kind="tasks") from error
    if is_file:
        records = records_of_file(path)
        return (record if isinstance(record, TaskError) else with_scripts_beside(record, path) for record in records)
    if is_directory:
        if directories := task_directories(path):
            return records_of_directories(directories)
        return _dataset_records(str(path), settings.split)
    if path.suffix in (".jsonl", ".json", ".parquet") or settings.source.startswith((".", "/", "~")):
        raise ConfigError(f"tasks.source: no task file or dataset directory at {settings.source}", kind="tasks")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.source):
        raise ConfigError(
            f"tasks.source: {settings.source!r} is neither `micro`, nor a task file, nor a dataset (owner/name)",
            kind="tasks",
        )
    return _dataset_records(settings.source, settings.split)


def _dataset_records(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Records of a Hugging Face dataset, by its name or in a directory of its files. They stream: none is kept."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"tasks.source {name!r} is a Hugging Face dataset: pip install 'longhaul[hub]', or name a task file",
            kind="tasks",
        ) from error
    # the library lets through whatever its transports and readers raise
    with border(
        ConfigError, f"tasks.source to be a task file or a dataset: dataset {name!r}, split {split!r}", kind="tasks"
    ):
        yield from load_dataset(name, split=split, streaming=True)


def save_tasks(tasks: Iterable[Task], path: Path) -> None:
    """Write a task file (JSONL, one task a line, defaults left out)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for task in tasks:
            file.write(encoder.encode(task) + b"\n")
