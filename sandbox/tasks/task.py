"""What a task is: a repository snapshot, an issue text and hidden tests."""

from __future__ import annotations

import posixpath
import re
from typing import Any, Literal

import msgspec
from msgspec import Struct

from protocol.errors import TaskError
from protocol.messages import TaskRef
from sandbox.parsers.names import KNOWN_PARSERS, nearest_parsers

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?",
    re.ASCII,
)
"""References of images (github.com/distribution/reference)."""
_GIT_NAME = re.compile(r"(?:[\w.][\w./^~@+-]*)?", re.ASCII)
RunnerKind = Literal["functions", "pytest", "log", "expected-output"]
_MAY_HOLD_ANY_TEXT = ("issue", "metadata", "gold_patch", "setup_patch", "test_patch", "files", "test_files")
STORED_OUTCOMES = ("passed", "xfailed", "xpassed", "skipped")
"""What a named test may be expected to do. Nothing else can be had twice, or it is a failure."""


class TestSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the hidden tests are run and read.

    `functions`: call the `test_*` functions of the hidden test files, standard library only (tens of milliseconds).
    `pytest`: pytest with a machine-readable report. `log`: run `command`, read its log with the parser named `parser`.
    `expected-output`: the same, and the whole outcome must equal `expected` (R2E-Gym). For the others `expected` holds
    the outcome under the gold patch of those named tests that do not plainly pass (`STORED_OUTCOMES`).
    """

    __test__ = False  # not a test class for pytest

    runner: RunnerKind = "functions"
    command: str = ""
    parser: str = ""
    applies_tests: bool = False  # the command brings the hidden tests itself, and prints SWE-bench's markers
    setup: str = ""  # shell commands before `command`, in the same sandbox; their output is no evidence
    rebuild: str = ""  # the same, for changes of sources that must be compiled
    import_paths: tuple[str, ...] = (".",)  # relative to the working directory, put on sys.path by our own runners
    import_mode: Literal["prepend", "importlib"] = "prepend"  # pytest's way to import test modules
    requirements: tuple[str, ...] = ()  # pinned packages that the tests need, bound read-only into the sandbox
    modules: tuple[str, ...] = ()  # hidden test modules to run besides those that hold a named test
    untimed: bool = False  # names of tests are compared without the durations that some runners write into them
    absent: Literal["fails", "passes"] = "fails"  # a named test that the log does not have (`fail_only` of SWE-bench)
    expected: dict[str, str] = {}
    order: Literal["drawn", "file"] = "drawn"  # in which our own runners call tests; `file` where they need it
    untwinned: tuple[str, ...] = ()  # named tests that cannot be run next to their like, as validation found

    def expected_outcome(self, test: str) -> str:
        """The one outcome with which a named test has passed."""
        return self.expected.get(test, "passed")


class Task(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A repository snapshot, an issue text and hidden tests.

    The snapshot is exactly one of: `image` (the repository is inside, at `workdir`), `files` (a small tree, whole), or
    `sdist` (a pinned requirement such as `boltons==25.0.0`, fetched by pip). `removed` and then `setup_patch` are
    applied to it before the agent sees it.
    """

    task_id: str
    source: str  # micro, injected, release, or the name of a public dataset's schema
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
    version: str = ""  # of the repository, as the record has it; some log parsers ask for it
    metadata: dict[str, Any] = {}

    @property
    def ref(self) -> TaskRef:
        """What the replay buffer knows of this task."""
        return TaskRef(task_id=self.task_id, source=self.source, repository=self.repository, difficulty=self.difficulty)


def check_task(task: Task) -> Task:
    """`task`, when its fields fit together; `TaskError` naming task and field otherwise."""

    def fail(field: str, message: str) -> TaskError:
        return TaskError(f"task {task.task_id!r}: {field}: {message}", kind=field)

    if not re.fullmatch(r"\w[\w.+/@:-]{0,199}", task.task_id) or ".." in task.task_id.split("/"):
        raise fail("task_id", "expected 1 to 200 letters, digits or . + / @ : - _")
    for field in task.__struct_fields__:
        try:
            encoded = msgspec.json.encode(getattr(task, field))
        except UnicodeEncodeError as error:
            raise fail(field, f"holds what is no text: {error}") from error
        if b"\\u0000" in encoded and field not in _MAY_HOLD_ANY_TEXT:
            raise fail(field, "holds a NUL, which no command and no name can")
    if not task.fail_to_pass and task.tests.runner != "expected-output":
        raise fail("fail_to_pass", "names no test, so nothing could show that the issue is solved")
    if sum(x is not None for x in (task.image, task.files, task.sdist)) != 1:
        raise fail("image/files/sdist", "expected exactly one of them")
    if not task.workdir.startswith("/") or posixpath.normpath(task.workdir) != task.workdir:
        raise fail("workdir", f"expected an absolute path without detours, got {task.workdir[:200]!r}")
    if task.image is not None and not _IMAGE.fullmatch(task.image):
        raise fail("image", f"no image can have the name {task.image[:300]!r}")
    for field in ("base_commit", "checkout", "hidden_from"):
        if not _GIT_NAME.fullmatch(getattr(task, field)):
            raise fail(field, f"no commit can have the name {getattr(task, field)[:200]!r}")
    for field in ("fail_to_pass", "pass_to_pass"):
        if not all(map(str.strip, getattr(task, field))):
            raise fail(field, "holds a test without a name, which no log can show")
    if both := set(task.fail_to_pass) & set(task.pass_to_pass):
        raise fail("pass_to_pass", f"{min(both)!r} is in fail_to_pass, too")
    for path in (*(task.files or ()), *task.test_files, *task.removed):
        absolute = path.startswith("/") and not (task.image and (path in task.removed or path in task.test_files))
        if absolute or not path or ".." in path.split("/"):
            raise fail("files", f"{path!r} is not a path inside the repository")
    if task.tests.runner in ("log", "expected-output") and not task.tests.command:
        raise fail("tests.command", f"runner {task.tests.runner!r} needs a command")
    if task.tests.runner == "log" and task.tests.parser not in KNOWN_PARSERS:
        near = nearest_parsers(task.tests.parser)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise fail("log_parser", f"nothing here reads logs by {task.tests.parser[:80]!r}{hint}")
    if task.tests.runner in ("functions", "pytest") and not task.test_files:
        raise fail("test_files", f"runner {task.tests.runner!r} needs hidden test files")
    if task.tests.runner != "expected-output":
        for test, outcome in task.tests.expected.items():
            if outcome not in STORED_OUTCOMES:
                raise fail("tests.expected", f"{test!r} is expected to have {outcome!r}, which is no {STORED_OUTCOMES}")
            if test not in task.fail_to_pass and test not in task.pass_to_pass:
                raise fail("tests.expected", f"{test!r} is no test that the task names")
    return task
