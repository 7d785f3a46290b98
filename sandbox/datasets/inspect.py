"""`longhaul tasks inspect FILE`: what each record of a task file becomes. Nothing is run and nothing is fetched."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct, to_builtins

from protocol.config import TaskSettings
from protocol.errors import ConfigError, TaskError
from protocol.section import count
from sandbox.datasets.fields import name_of
from sandbox.datasets.formats import CONVERTERS, read_record, recognise
from sandbox.datasets.loading import records_of
from sandbox.tasks.diffs import files_after
from sandbox.tasks.task import Task

_SHOWN_CHARS = 300


class Reading(Struct, kw_only=True, omit_defaults=True):
    """One record: the task that it becomes, or why it is refused."""

    record: int  # from 1
    dataset: str = ""
    task: str = ""
    refused: str = ""
    image: str = ""
    workdir: str = ""
    setup: str = ""
    rebuild: str = ""
    command: str = ""
    parser: str = ""
    absent_tests: str = ""
    hidden_files: list[str] = []
    removed: list[str] = []
    gold_files: list[str] = []
    fail_to_pass: list[str] = []
    pass_to_pass: int = 0


def readings(settings: TaskSettings) -> Iterator[Reading]:
    """Every record of a source, read. Raises `ConfigError` where the source cannot be read at all."""
    seen: set[str] = set()
    for number, record in enumerate(records_of(settings), 1):
        reading = Reading(record=number)
        try:
            if isinstance(record, TaskError):
                raise record
            reading.task = name_of(record)  # also of one that is refused: people ask for it by its name
            reading.dataset = recognise(record) if settings.format == "auto" else settings.format
            task = read_record(reading.dataset, record)
            _fill(reading, task)
            if task.task_id in seen:
                raise TaskError(f"task {task.task_id!r}: task_id: appears twice; the first is kept", kind="duplicate")
            seen.add(task.task_id)
        except TaskError as error:
            reading.refused = str(error)
        yield reading


def main(arguments: Sequence[str], program: str) -> int:
    """`longhaul tasks inspect`. Exit status 1 when no record becomes a task."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("source", metavar="FILE", help="task file (JSONL, Parquet), task directory or dataset")
    parser.add_argument("--format", default="auto", choices=["auto", *CONVERTERS], help="schema (default: recognised)")
    parser.add_argument("--split", default="train", help="split of a dataset")
    parser.add_argument("--task", help="show this task only")
    parser.add_argument("--count", type=count, help="read at most so many records")
    parser.add_argument("--json", action="store_true", help="one JSON object a record")
    options = parser.parse_args(arguments)
    settings = TaskSettings(source=options.source, format=options.format, split=options.split)
    kept = refused = shown = 0
    try:
        for reading in readings(settings):
            if options.count is not None and reading.record > options.count:
                break
            kept, refused = kept + (not reading.refused), refused + bool(reading.refused)
            if options.task in (None, reading.task):
                shown += 1
                print(json.dumps(to_builtins(reading)) if options.json else _page(reading))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    if options.task is not None and not shown:
        print(f"{program}: {options.source!r} has no task {options.task!r}", file=sys.stderr)
        return 2
    print(f"{kept} tasks, {refused} records refused", file=sys.stderr)
    return 0 if kept else 1


def _fill(reading: Reading, task: Task) -> None:
    reading.task, reading.workdir, reading.setup = task.task_id, task.workdir, task.tests.setup
    reading.rebuild = task.tests.rebuild
    reading.image = task.image or (task.sdist or f"{len(task.files or {})} files in the record")
    reading.command = task.tests.command or f"our own runner ({task.tests.runner})"
    reading.parser = task.tests.parser or ("the whole outcome" if task.tests.runner == "expected-output" else "")
    reading.absent_tests = task.tests.absent
    reading.hidden_files = sorted({*task.test_files, *files_after(task.test_patch)})
    reading.removed, reading.gold_files = list(task.removed), files_after(task.gold_patch)
    reading.fail_to_pass = list(task.fail_to_pass) or sorted(task.tests.expected)
    reading.pass_to_pass = len(task.pass_to_pass)


def _page(reading: Reading) -> str:
    fields: dict[str, Any] = to_builtins(reading)
    number, name = fields.pop("record"), fields.pop("task", "?")
    lines = [f"{number}: {name}"]
    for field, value in fields.items():
        said = ", ".join(value) if isinstance(value, list) else str(value)
        said = said.replace("\n", " ; ")
        cut = f" ... ({len(said)} characters)" if len(said) > _SHOWN_CHARS else ""
        lines.append(f"   {field.replace('_', ' ')}: {said[:_SHOWN_CHARS]}{cut}")
    return "\n".join(lines)
