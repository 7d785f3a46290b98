"""What a task is, and where tasks come from: `micro`, a task file (JSONL, Parquet) or a Hugging Face dataset."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from protocol.config import TaskSettings
from protocol.errors import ConfigError, TaskError
from protocol.messages import TaskRef
from sandbox.sources import materialise, sandbox_spec

__all__ = [
    "Task",
    "TestSpec",
    "check_task",
    "load_tasks",
    "materialise",
    "sandbox_spec",
    "save_tasks",
    "tasks_of_records",
]

log = logging.getLogger(__name__)

RunnerKind = Literal["functions", "pytest", "log", "expected-output"]
_MAX_BAD_SHOWN = 5


class TestSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the hidden tests are run and read.

    `functions`: call the `test_*` functions of the hidden test files, standard library only (tens of milliseconds).
    `pytest`: pytest with a machine-readable report. `log`: run `command`, read its log with the parser named `parser`.
    `expected-output`: the same, and the whole outcome must equal `expected` (R2E-Gym).
    """

    __test__ = False  # not a test class for pytest

    runner: RunnerKind = "functions"
    command: str = ""
    parser: str = ""
    applies_tests: bool = False  # the command brings the hidden tests itself, and prints SWE-bench's markers
    setup: str = ""  # shell commands before `command`, in the same sandbox; their output is no evidence
    import_paths: tuple[str, ...] = (".",)  # relative to the working directory, put on sys.path by our own runners
    import_mode: Literal["prepend", "importlib"] = "prepend"  # pytest's way to import test modules
    requirements: tuple[str, ...] = ()  # pinned packages that the tests need, bound read-only into the sandbox
    modules: tuple[str, ...] = ()  # hidden test modules to run besides those that hold a named test
    expected: dict[str, str] = {}


class Task(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A repository snapshot, an issue text and hidden tests.

    The snapshot is exactly one of: `image` (the repository is inside, at `workdir`), `files` (a small tree, whole), or
    `sdist` (a pinned requirement such as `boltons==25.0.0`, fetched by pip). `removed` and then `setup_patch` are
    applied to it before the agent sees it.
    """

    task_id: str
    source: str  # micro, injected, release, swe-bench, swe-rebench, swe-smith, swe-gym, r2e-gym
    repository: str
    issue: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...] = ()
    difficulty: int = 0
    workdir: str = "/testbed"
    image: str | None = None
    files: dict[str, str] | None = None
    sdist: str | None = None
    sdist_sha256: str = ""
    removed: tuple[str, ...] = ()
    setup_patch: str = ""
    gold_patch: str = ""  # unified diff with git headers, against the snapshot that the agent sees
    test_files: dict[str, str | None] = {}  # hidden tests by path; None: the file must not exist
    test_patch: str = ""  # hidden tests as a diff, for tasks with an image
    base_commit: str = ""
    checkout: str = ""  # git ref of the image's repository that the agent starts from
    hidden_from: str = ""  # git ref that has the named test files, where `checkout` lacks them
    tests: TestSpec = TestSpec()
    flaky: tuple[str, ...] = ()  # tests seen to change their verdict on the same tree
    metadata: dict[str, Any] = {}

    @property
    def ref(self) -> TaskRef:
        """What the replay buffer knows of this task."""
        return TaskRef(task_id=self.task_id, source=self.source, repository=self.repository, difficulty=self.difficulty)


def check_task(task: Task) -> Task:
    """`task`, when its fields fit together; `TaskError` naming task and field otherwise."""

    def fail(field: str, message: str) -> TaskError:
        return TaskError(f"task {task.task_id!r}: {field}: {message}", kind=field)

    if not re.fullmatch(r"[\w.+/@:-]{1,200}", task.task_id):
        raise fail("task_id", "expected 1 to 200 letters, digits or . + / @ : - _")
    if not task.fail_to_pass and task.tests.runner != "expected-output":
        raise fail("fail_to_pass", "names no test, so nothing could show that the issue is solved")
    if sum(x is not None for x in (task.image, task.files, task.sdist)) != 1:
        raise fail("image/files/sdist", "expected exactly one of them")
    if not task.workdir.startswith("/"):
        raise fail("workdir", f"expected an absolute path, got {task.workdir!r}")
    if both := set(task.fail_to_pass) & set(task.pass_to_pass):
        raise fail("pass_to_pass", f"{min(both)!r} is in fail_to_pass, too")
    for path in (*(task.files or ()), *task.test_files, *task.removed):
        absolute = path.startswith("/") and not (task.image and path in task.removed)
        if absolute or not path or ".." in path.split("/"):
            raise fail("files", f"{path!r} is not a path inside the repository")
    if task.tests.runner in ("log", "expected-output") and not task.tests.command:
        raise fail("tests.command", f"runner {task.tests.runner!r} needs a command")
    if task.tests.runner in ("functions", "pytest") and not task.test_files:
        raise fail("test_files", f"runner {task.tests.runner!r} needs hidden test files")
    return task


def load_tasks(settings: TaskSettings) -> list[Task]:
    """The tasks that `settings` asks for, in the source's order.

    A bad record is left out with a warning that names task and field. Raises `ConfigError` when the source cannot be
    read or no record is usable.
    """
    if settings.source == "micro":
        from sandbox.micro import make_tasks

        return make_tasks(settings.count, settings.seed, settings.difficulty, settings.split)
    return tasks_of_records(_records(settings), settings.format, settings.count, settings.source)


def tasks_of_records(records: Iterable[dict[str, Any] | TaskError], schema: str, count: int, origin: str) -> list[Task]:
    """Typed tasks of raw records; `origin` names the source in errors. Raises `ConfigError` when none is usable."""
    from sandbox.formats import converter

    convert: Callable[[dict[str, Any]], Task] | None = None
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for number, record in enumerate(records, 1):
        if len(tasks) >= count:
            break
        try:
            if isinstance(record, TaskError):
                raise record
            convert = convert or converter(schema, record)
            task = check_task(convert(record))
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


def _records(settings: TaskSettings) -> Iterator[dict[str, Any] | TaskError]:
    path = Path(settings.source).expanduser()
    if path.is_file():
        return _parquet_records(path) if path.suffix == ".parquet" else _jsonl_records(path)
    if path.is_dir():
        return _dataset_records(str(path), settings.split)
    if path.suffix in (".jsonl", ".json", ".parquet") or settings.source.startswith((".", "/", "~")):
        raise ConfigError(f"tasks.source: no task file or dataset directory at {settings.source}", kind="tasks")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.source):
        raise ConfigError(
            f"tasks.source: {settings.source!r} is neither `micro`, nor a task file, nor a dataset (owner/name)",
            kind="tasks",
        )
    return _dataset_records(settings.source, settings.split)


def _jsonl_records(path: Path) -> Iterator[dict[str, Any] | TaskError]:
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                record = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                yield TaskError(f"not JSON: {error}", kind="json")
                continue
            yield record if isinstance(record, dict) else TaskError("expected a JSON object", kind="json")


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ConfigError(f"tasks.source {str(path)!r} is not readable Parquet: {error}", kind="tasks") from error


def _dataset_records(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Records of a Hugging Face dataset, by its name or in a directory of its files. They stream: none is kept."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"tasks.source {name!r} is a Hugging Face dataset: pip install 'longhaul[hub]', or name a task file",
            kind="tasks",
        ) from error
    try:
        yield from load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the library lets through whatever its transports and readers raise
        raise ConfigError(f"tasks.source: dataset {name!r}, split {split!r}: {error}", kind="tasks") from error


def save_tasks(tasks: Iterable[Task], path: Path) -> None:
    """Write a task file (JSONL, one task a line, defaults left out)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for task in tasks:
            file.write(encoder.encode(task) + b"\n")


if __name__ == "__main__":
    import sys

    from sandbox.curation.commands import main

    sys.exit(main())
