"""Fields of a record, read with a complaint that names task and field."""

from __future__ import annotations

import ast
import json
from typing import Any

from protocol.errors import TaskError

Record = dict[str, Any]


def name_of(record: Record) -> str:
    """What a complaint calls the task of a record."""
    if record.get("org") and record.get("number"):
        return f"{record['org']}__{record.get('repo')}-{record['number']}"
    return str(record.get("instance_id") or record.get("task_id") or record.get("commit_hash") or "?")


def refusal(record: Record, field: str, message: str, of: str = "") -> TaskError:
    """An error that names task and field."""
    return TaskError(f"task {of or name_of(record)!r}: {field}: {message}", kind=field)


def text(record: Record, field: str, of: str = "") -> str:
    """A field that must hold text."""
    value = record.get(field)
    if not isinstance(value, str) or not value:
        found = "nothing" if value in (None, "") else type(value).__name__
        raise refusal(record, field, f"expected text, got {found}", of)
    return value


def mapping(record: Record, field: str) -> Record:
    """A field that must hold an object, or one as JSON (Parquet editions hold nested fields so)."""
    value = _decoded(record.get(field))
    if not isinstance(value, dict):
        raise refusal(record, field, "expected an object")
    return value


def texts(record: Record, field: str, *, of: str = "", required: bool = True) -> tuple[str, ...]:
    """A list of texts, given as a list, as JSON text, or (SWE-bench Pro) as Python's own form of a list."""
    value = _decoded(record.get(field))
    if value is None and not required:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise refusal(record, field, "expected a list of texts, or one as JSON", of)
    return tuple(value)


def commands(record: Record, field: str, *, of: str = "") -> tuple[str, ...]:
    """Shell commands, given as one text or as a list; at least one."""
    value = record.get(field)
    found = texts({field: value}, field, of=of) if isinstance(value, list) else (text(record, field, of),)
    found = tuple(command.strip() for command in found if command.strip())
    if not found:
        raise refusal(record, field, "holds no command", of)
    return found


def tests(record: Record, field: str) -> tuple[str, ...]:
    """A list of names of tests."""
    try:
        return texts(record, field)
    except TaskError as error:
        raise refusal(record, field, "expected a list of test names, or it as JSON") from error


def _decoded(value: object) -> object:
    if not isinstance(value, str):
        return value
    for decode in (json.loads, ast.literal_eval):  # both read data and run nothing
        try:
            return decode(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value
