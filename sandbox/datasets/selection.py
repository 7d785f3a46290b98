"""Which tests a record's command runs. Never everything for want of a name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from sandbox.datasets.fields import Record, refusal
from sandbox.tasks.diffs import files_after, files_gone
from sandbox.tasks.test_paths import is_compiled_source, is_test_module

_KEYWORD = re.compile(r"[\w.+:\-/]+")  # words that `pytest -k` takes as they are
_MAX_KEYWORD_BYTES = 32 << 10


def file_of_test(test: str) -> str:
    """The file that a name like `tests/test_x.py::test_a[1]` starts with; empty for names of another form."""
    path, found, _ = test.partition("::")
    return path.removeprefix("./") if found and re.search(r"[^/]\.[A-Za-z]\w*$", path) else ""


def files_to_run(
    record: Record, test_patch: str, fail_to_pass: Iterable[str], pass_to_pass: Iterable[str]
) -> list[str]:
    """Files that exist once the test patch is applied: those with named tests, and the patch's other test modules.

    Raises `TaskError` where a named test is in a file that the patch takes away, and where no file is left.
    """
    gone = files_gone(test_patch)
    named: set[str] = set()
    for field, tests in (("FAIL_TO_PASS", fail_to_pass), ("PASS_TO_PASS", pass_to_pass)):
        for test in tests:
            path = file_of_test(test)
            if path in gone:
                raise refusal(record, field, f"{test[:200]!r} is in a file that the test patch takes away")
            named |= {path} - {""}
    found = sorted(named | {path for path in files_after(test_patch) if is_test_module(path)})
    if not found:
        raise refusal(record, "test_patch", "leaves no test file, and FAIL_TO_PASS names none: it would run everything")
    return [as_argument(path) for path in found]


def as_argument(path: str) -> str:
    """A path that no command takes for an option, nor pytest for the name of a file of arguments."""
    return f"./{path}" if path.startswith(("-", "@")) else path


def keywords(tests: Iterable[str]) -> str:
    """` -k '...'` where every test is a case of a data file (`x.py::Suite::y.test::case`); empty otherwise."""
    words: set[str] = set()
    for test in tests:
        parts = test.split("::")
        if len(parts) < 3 or not re.search(r"\.\w+$", parts[-2]) or not _KEYWORD.fullmatch(parts[-1]):
            return ""
        words.add(parts[-1])
    chosen = " or ".join(sorted(words))
    return f" -k {shlex.quote(chosen)}" if words and len(chosen) < _MAX_KEYWORD_BYTES else ""


def changes_compiled_sources(patch: str) -> list[str]:
    """Paths of a patch whose change shows only once something is built again."""
    return [path for path in files_after(patch) if is_compiled_source(path)]
